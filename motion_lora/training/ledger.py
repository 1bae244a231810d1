"""The ledger of memory: every storage, counted from the operation that makes it until the last user lets go.

What autograd keeps for the backward pass, computed twice or not, is in it to the byte. Counting computes nothing: the
work runs on torch's fake tensors, which have a shape and no numbers. Not seen is what a kernel takes for itself, and
what an allocator leaves unused between tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..adapters.packing import PACKING
from ..backbones.faster import LAID_OUT


class Ledger(TorchDispatchMode):
    """Bytes that are alive, and the most there were, over all storages that operations make.

    Those of `known` tensors, which were there before, and views of them are left out.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self.made: dict[int, int] = {}
        """Bytes of every living storage, by its identity."""
        self.known = list(known)
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in self.known)}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view, or an operation in place, gives a storage that is an argument's.
        given = {id(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs or {}))}
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            if id(storage) not in given and id(storage) not in self.made and id(storage) not in self._known:
                self._watch(storage)
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.made[key] = size
        self._watched[key] = weakref.ref(storage, lambda _: self._gone(key))
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _gone(self, key: int) -> None:
        self.alive -= self.made.pop(key, 0)
        self._watched.pop(key, None)


@contextmanager
def counting(known: Iterable[Tensor] = (), *, computed: bool = False) -> Iterator[Ledger]:
    """Inside the context operations compute nothing, unless `computed`, and what they would hold is counted.

    `known` are the weights that they use, real or made in a fake mode.
    """
    known = list(known)
    if computed:
        with torch.enable_grad(), Ledger(known) as ledger:
            yield ledger
        return
    mode = detect_fake_mode(known) or FakeTensorMode(allow_non_fake_inputs=True)
    # An operation sees the fake of a real weight, the same one as long as it is held here: views of it are nothing new.
    fakes = [tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor) for tensor in known]
    with mode, torch.enable_grad(), Ledger([*known, *fakes]) as ledger:
        yield ledger


def weights_of(*networks: nn.Module | None) -> list[Tensor]:
    """Every parameter and buffer, and the copies of weights that layers and adapters keep for their products."""
    found: list[Tensor] = []
    for network in networks:
        for module in network.modules() if network is not None else ():
            found += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            found += tensors_in([value for name, value in module.__dict__.items() if name == LAID_OUT])
            packing = module.__dict__.get(PACKING)
            found += packing.weights if packing is not None else ()
    return found


def bytes_of(*networks: nn.Module | None, trained: Iterable[Tensor] = ()) -> int:
    """Of all that `weights_of` finds but what trains, each storage once."""
    left_out = {id(tensor) for tensor in trained}
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in weights_of(*networks)
        if id(tensor) not in left_out
    }
    return sum(storages.values())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a value made of dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
