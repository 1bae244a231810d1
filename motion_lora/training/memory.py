"""How much memory a training step takes, counted to the byte before it runs, and what to save so that it fits.

What can be saved, in the order in which it is taken, by the seconds that a byte costs:

    encoders    text encoder and VAE wait in main memory: nothing in a step
    images      a step over images takes so many at a time: more calls, no more arithmetic
    recomputed  layers are computed twice, those first that free most for their arithmetic, as many as it takes
    pieces      sequences go through a transformer block a part at a time, and twice more: its peak shrinks
    offloaded   what layers keep waits in main memory: every byte goes over the bus and back

All of it gives the gradients of the plain step, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..backbones.checkpointing import checkpointed_layers, sequences_in_pieces
from ..backbones.registry import of_network
from ..base.placement import saved_tensors_away
from ..core.errors import SettingsError
from .ledger import Ledger, bytes_of, counting, tensors_in, weights_of

GB = 10**9
# A parameter that trains and AdamW's two moments, fp32 each.
_PER_TRAINED = 12
# Its gradient, and the square root that AdamW makes beside it: what the end of a step holds in any case.
_PER_GRADIENT = 8
# What moving a byte costs, in arithmetic: about 30 on a CPU core, 200 on a data-centre GPU.
_FLOPS_PER_BYTE = 50
_PIECES = (2, 4, 8, 16)
_SMALL_WEIGHTS, _SMALL_LATENTS = 2**26, 2**16


@dataclass(frozen=True)
class Savings:
    """What is done to save memory; see the module. `images` None is all at once."""

    encoders: bool = False
    images: int | None = None
    recomputed: tuple[int, ...] = ()
    pieces: int = 1
    offloaded: bool = False

    def __str__(self) -> str:
        done = ["encoders wait"] if self.encoders else []
        done += [f"{self.images} images at a time"] if self.images else []
        done += [f"{len(self.recomputed)} layers are computed twice"] if self.recomputed else []
        done += [f"sequences in {self.pieces} pieces"] if self.pieces > 1 else []
        done += ["activations offloaded"] if self.offloaded else []
        return ", ".join(done) or "nothing to save"


PLAIN = Savings()


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step: weights of what is on the device, what trains with its moments, and the peak of
    activations and gradients beside them."""

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


@dataclass(frozen=True, eq=False)
class CountedStep:
    """A step that can be counted: `work` runs its passes on `network`, forward and backward, so many images at a time.

    `trained` get the gradients, which `accumulates` says are there from the step's first micro-batch. `encoders` are
    on the device beside the network; where they are `idle` they may wait elsewhere. `batch` is how many images a step
    has, `divisible` whether parts of a batch or of a layer give what the whole does, `has_bus` whether the device has
    memory of its own, `computed` whether counting computes it: so small a step takes less time than on fake tensors.
    """

    network: nn.Module
    trained: Sequence[Tensor]
    work: Callable[[int | None], None]
    accumulates: bool = False
    encoders: Sequence[nn.Module | None] = ()
    idle: bool = False
    batch: int = 1
    divisible: bool = True
    has_bus: bool = False
    computed: bool = False

    @property
    def known(self) -> list[Tensor]:
        """What is there before the step."""
        return [*weights_of(self.network, *self.encoders), *self.trained]


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


@contextmanager
def saving(network: nn.Module, savings: Savings, weights: Iterable[Tensor] | None = None) -> Iterator[None]:
    """Inside the context `network` runs so; encoders and images are their users' affair. `weights` are never sent away:
    by default the network's."""
    with ExitStack() as stack:
        stack.enter_context(sequences_in_pieces(network, savings.pieces))
        stack.enter_context(checkpointed_layers(network, savings.recomputed))
        if savings.offloaded:
            stack.enter_context(saved_tensors_away(weights_of(network) if weights is None else weights))
        yield


def count_step(step: CountedStep, savings: Savings = PLAIN) -> StepMemory:
    """The memory of a step with these savings; nothing is computed and nothing allocated, unless it is to be computed.

    The network may be a real one, whose parameters and their gradients stay as they are, or one made in a fake mode.
    """
    gradients = [parameter.grad for parameter in step.trained]
    try:
        with counting(step.known, computed=step.computed) as ledger, saving(step.network, savings, ledger.known):
            for parameter in step.trained:
                parameter.grad = torch.zeros_like(parameter) if step.accumulates else None
            step.work(savings.images)
    finally:
        for parameter, gradient in zip(step.trained, gradients, strict=True):
            parameter.grad = gradient
    trained = sum(parameter.numel() for parameter in step.trained)
    encoders = () if savings.encoders else step.encoders
    weights = bytes_of(step.network, *encoders, trained=step.trained)
    return StepMemory(weights, _PER_TRAINED * trained, max(ledger.peak, _PER_GRADIENT * trained))


def choose_savings(step: CountedStep, budget: int, *, encoders: bool = False) -> tuple[Savings, StepMemory]:
    """What to save so that the step fits `budget` bytes: nothing if everything fits, the cheapest by the byte first.

    `encoders`: they wait in any case. Raises SettingsError where nothing is enough, with what it then takes.
    """
    light = list(_light(step, Savings(encoders=encoders)))
    for savings in light:
        if (found := count_step(step, savings)).total <= budget:
            return savings, found
    costs = sorted(layer_costs(step, savings.images), key=lambda cost: cost.worth, reverse=True)
    order = [cost.index for cost in costs]
    savings = _recomputing(savings, order)
    if (found := count_step(step, savings)).total <= budget:
        return _fewest(step, light[-1], order, (savings, found), budget)
    heavy = list(_heavy(step, savings))
    savings = heavy[-1] if heavy else savings
    if (found := count_step(step, savings)).total > budget:
        raise SettingsError(
            f"memory is {budget / GB:.2f} GB, and the step takes {found.total / GB:.2f} GB with all that can be saved "
            f"({savings}; {found}); allow that much, or use fewer frames, a smaller size or a 16-bit dtype."
        )
    for lighter in heavy[:-1]:
        if (fits := count_step(step, lighter)).total <= budget:
            return lighter, fits
    return savings, found


def _light(step: CountedStep, start: Savings) -> Iterator[Savings]:
    """What costs no arithmetic, each with all before it."""
    yield start
    if step.idle and not start.encoders:
        yield (start := replace(start, encoders=True))
    images = step.batch
    while step.divisible and images > 1:
        images = (images + 1) // 2
        yield replace(start, images=images)


def _heavy(step: CountedStep, start: Savings) -> Iterator[Savings]:
    """What costs more than computing every layer twice."""
    pieces = _PIECES if step.divisible and of_network(step.network).sequence_layers(step.network) else ()
    for count in pieces:
        yield replace(start, pieces=count)
    for count in (1, *pieces) if step.has_bus else ():
        yield replace(start, pieces=count, offloaded=True)


def _recomputing(savings: Savings, order: Sequence[int]) -> Savings:
    return replace(savings, recomputed=tuple(sorted(order)))


def _fewest(
    step: CountedStep, start: Savings, order: Sequence[int], enough: tuple[Savings, StepMemory], budget: int
) -> tuple[Savings, StepMemory]:
    """As few layers of `order`, from its beginning, as fit; `enough` are all of them."""
    too_few, last = 0, len(order)
    while last - too_few > 1:
        middle = (too_few + last) // 2
        tried = _recomputing(start, order[:middle])
        if (found := count_step(step, tried)).total <= budget:
            last, enough = middle, (tried, found)
        else:
            too_few = middle
    return enough


def layer_costs(step: CountedStep, images: int | None = None) -> list[LayerCost]:
    """What computing each of the backbone's layers twice frees and costs; layers without anything to free left out."""
    layers = of_network(step.network).checkpointed(step.network)
    gradients = [parameter.grad for parameter in step.trained]
    with (
        counting(step.known, computed=step.computed) as ledger,
        FlopCounterMode(display=False) as flops,
        ExitStack() as hooks,
    ):
        spans = [_Span(ledger, flops) for _ in layers]
        for layer, span in zip(layers, spans, strict=True):
            hooks.callback(layer.register_forward_pre_hook(span.enter).remove)
            hooks.callback(layer.register_forward_hook(span.leave).remove)
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            step.work(images)
        found = [span.cost(index, kept.storages) for index, span in enumerate(spans)]
    for parameter, gradient in zip(step.trained, gradients, strict=True):
        parameter.grad = gradient
    return [cost for cost in found if cost.saved > 0]


def is_small(unet: nn.Module, latents: Tensor) -> bool:
    """Whether a step on these latents may be computed to count its memory."""
    weights = sum(weight.numel() * weight.element_size() for weight in unet.parameters())
    return weights < _SMALL_WEIGHTS and latents.numel() <= _SMALL_LATENTS


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
    """One layer's part of a step's forward passes: which storages it made, and how much arithmetic it was."""

    def __init__(self, ledger: Ledger, flops: FlopCounterMode) -> None:
        self._ledger, self._flops = ledger, flops
        self._before: set[int] = set()
        self._inside: set[int] = set()
        self._began = self.arithmetic = 0

    def enter(self, module: nn.Module, args: Any) -> None:
        self._before = set(self._ledger.made)
        self._began = int(self._flops.get_total_flops())

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        handed_on = {id(tensor.untyped_storage()) for tensor in tensors_in(out)}
        self._inside |= set(self._ledger.made) - self._before - handed_on
        self.arithmetic += int(self._flops.get_total_flops()) - self._began

    def cost(self, index: int, kept: dict[int, int]) -> LayerCost:
        saved = sum(size for key, size in kept.items() if key in self._inside)
        return LayerCost(index, saved, self.arithmetic + _FLOPS_PER_BYTE * saved)
