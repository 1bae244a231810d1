"""How much memory a training step takes, counted to the byte before it runs, and which layers to compute twice to fit.

The step is run once on tensors without memory (torch's fake tensors), forward and backward, as autograd would run it;
every storage is counted from the operation that makes it until the last user lets go. What is not counted: a kernel's
own workspace, and what an allocator leaves unused between tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..backbones.checkpointing import checkpointed_layers
from ..core.errors import SettingsError

GB = 10**9
# AdamW keeps two moments and the step writes a gradient, fp32 each, beside the fp32 parameter.
_PER_TRAINED = 16
# What moving a byte costs, in arithmetic: about 30 on a CPU core, 200 on a data-centre GPU.
_FLOPS_PER_BYTE = 50


@dataclass(frozen=True)
class LayerCost:
    """A layer that may be computed twice: its number among the backbone's, bytes that frees, arithmetic it costs."""

    index: int
    saved: int
    flops: int

    @property
    def worth(self) -> float:
        """Bytes freed by unit of time lost."""
        return self.saved / max(self.flops, 1)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step: the network's weights, what trains (with gradients and moments), and the peak of
    activations beside them."""

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.trained + self.activations

    def __str__(self) -> str:
        parts = ((self.total, "in all"), (self.weights, "weights"), (self.trained, "what trains"),
                 (self.activations, "activations"))  # fmt: skip
        return ", ".join(f"{size / GB:.2f} GB {what}" for size, what in parts)


Loss = Callable[[], Tensor]
"""Runs the forward pass of a step and gives its loss."""


def count_step(network: nn.Module, loss: Loss, recomputed: Sequence[int] = ()) -> StepMemory:
    """Memory of the pass that `loss` runs on `network`, its layers of the numbers `recomputed` computed twice.

    Nothing is computed and nothing allocated; `loss` is called in fake mode, in which it makes its inputs. The network
    may be a real one, whose parameters stay as they are, or one made in the same fake mode.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _faked(network) as counter, checkpointed_layers(network, recomputed):
        torch.autograd.grad(loss(), trained, allow_unused=True)
    return StepMemory(bytes_of(network, trained), _PER_TRAINED * sum(p.numel() for p in trained), counter.peak)


def choose_recomputed(network: nn.Module, loss: Loss, budget: int) -> tuple[tuple[int, ...], StepMemory]:
    """Which layers to compute twice so that the step fits `budget` bytes, the cheapest by the byte first.

    None if everything fits; all of them at most. Raises SettingsError where even that does not fit, with what it takes.
    """
    plain = count_step(network, loss)
    if plain.total <= budget:
        return (), plain
    order = [cost.index for cost in sorted(layer_costs(network, loss), key=lambda cost: cost.worth, reverse=True)]
    found = count_step(network, loss, order)
    if found.total > budget:
        raise SettingsError(
            f"memory is {budget / GB:.2f} GB, and the step takes {found.total / GB:.2f} GB with every layer computed "
            f"twice ({found}); allow that much, or use fewer frames, a smaller size or a 16-bit dtype."
        )
    too_few, enough = 0, len(order)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried = count_step(network, loss, order[:middle])
        if tried.total <= budget:
            enough, found = middle, tried
        else:
            too_few = middle
    return tuple(sorted(order[:enough])), found


def layer_costs(network: nn.Module, loss: Loss) -> list[LayerCost]:
    """What computing each of the backbone's layers twice frees and costs; layers without anything to free left out."""
    layers = _layers(network)
    with _faked(network) as counter, FlopCounterMode(display=False) as flops, ExitStack() as hooks:
        spans = [_Span(counter, flops) for _ in layers]
        for layer, span in zip(layers, spans, strict=True):
            hooks.callback(layer.register_forward_pre_hook(span.enter).remove)
            hooks.callback(layer.register_forward_hook(span.leave).remove)
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            value = loss()
        del value
        found = [span.cost(index, kept.storages) for index, span in enumerate(spans)]
    return [cost for cost in found if cost.saved > 0]


def _layers(network: nn.Module) -> list[nn.Module]:
    from ..backbones.registry import of_network

    return of_network(network).checkpointed(network)


def bytes_of(network: nn.Module | None, trained: Iterable[Tensor] = ()) -> int:
    """Weights and buffers of a network but what trains, each storage once; nothing where there is no network."""
    if network is None:
        return 0
    left_out = {id(tensor) for tensor in trained}
    storages: dict[Any, int] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) not in left_out:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


# Counting -----------------------------------------------------------------------------------------------------------


class _Counter(TorchDispatchMode):
    """Bytes that are alive, and the most there were, over all storages that operations make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self.made: dict[int, int] = {}
        """Bytes of every living storage, by its identity."""
        self._watched: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view, or an operation in place, gives a storage that is an argument's.
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs or {}))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in given and id(storage) not in self.made:
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


class _Kept:
    """Storages that a forward pass keeps for the backward pass."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self.storages: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._tensors.append(tensor)
        self.storages[id(storage)] = storage.nbytes()
        return tensor

    @staticmethod
    def unpack(tensor: Tensor) -> Tensor:
        return tensor


class _Span:
    """One layer's part of a forward pass: which storages it made, and how much arithmetic it was."""

    def __init__(self, counter: _Counter, flops: FlopCounterMode) -> None:
        self._counter, self._flops = counter, flops
        self._before: set[int] = set()
        self._inside: set[int] = set()
        self._began = self.arithmetic = 0

    def enter(self, module: nn.Module, args: Any) -> None:
        self._before = set(self._counter.made)
        self._began = int(self._flops.get_total_flops())

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        handed_on = {id(tensor.untyped_storage()) for tensor in _tensors(out)}
        self._inside = set(self._counter.made) - self._before - handed_on
        self.arithmetic = int(self._flops.get_total_flops()) - self._began

    def cost(self, index: int, kept: dict[int, int]) -> LayerCost:
        saved = sum(size for key, size in kept.items() if key in self._inside)
        return LayerCost(index, saved, self.arithmetic + _FLOPS_PER_BYTE * saved)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


@contextmanager
def _faked(network: nn.Module | None = None) -> Iterator[_Counter]:
    mode = detect_fake_mode(list(network.parameters())) if network is not None else None
    with mode or FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad(), _Counter() as counter:
        yield counter
