"""How much memory a computation takes at its peak: every storage that comes into being is counted until it is gone.

What autograd keeps for the backward pass, checkpointed or not, is in it to the byte; workspaces inside of kernels are
not seen. It can be counted without computing anything, on fake tensors, which have a shape and a device and no numbers:
that takes no memory on the device, and some seconds of Python.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class _Ledger(TorchDispatchMode):
    """Bytes in storages that were made inside: now, and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._known = WeakIdKeyDictionary()

    def exempt(self, tensor: Tensor) -> None:
        """What is there already is not counted, nor are views of it."""
        self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._enter(value.untyped_storage())
        return made

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._leave, size)

    def _leave(self, size: int) -> None:
        self.live -= size


def peak_bytes(work: Callable[[], object], modules: Iterable[nn.Module], *, computed: bool) -> int:
    """The most bytes that `work` holds at a time beyond the weights of `modules`, gradients among them.

    It is called once. Not `computed`, it sees fake tensors, also in place of real ones: it may not look at numbers.
    """
    ledger = _Ledger()
    weights = {id(p): p for module in modules for p in (*module.parameters(), *module.buffers())}.values()
    try:
        if computed:
            _count(ledger, work, weights)
        else:
            fakes = FakeTensorMode(allow_non_fake_inputs=True)
            held = [fakes.from_tensor(weight) for weight in weights]
            with fakes:
                _count(ledger, work, held)
    finally:
        for weight in weights:
            weight.grad = None
    return ledger.most


def _count(ledger: _Ledger, work: Callable[[], object], weights: Iterable[Tensor]) -> None:
    for weight in weights:
        ledger.exempt(weight)
    with ledger:
        work()
