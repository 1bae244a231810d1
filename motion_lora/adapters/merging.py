"""What a stack changes alike in all frames: changes summed into new weights, anew in a step where one has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.curves import Schedule
from ..core.lora import LoRALayer


@dataclass(frozen=True, eq=False)
class AppliedLayer:
    """One layer of one entry: its constant strength, and what varies."""

    module: str
    layer: LoRALayer
    key: str
    strength: float
    steps: Schedule | None = None
    frames: tuple[float, ...] | None = None


# A change of which less than this arrives in 16-bit weights is worth a warning.
_ENOUGH = 0.9


@torch.no_grad()
def merged_weight(weight: Tensor, parts: Sequence[AppliedLayer]) -> tuple[Tensor, bool]:
    """W + sum(strength * delta) in fp32, rounded once to W's dtype; and whether that dtype holds enough of the change.

    W lies on the grid of its dtype already, so what is below half a step is not blurred but gone. A branch beside W
    would not save it: the outputs, in the same dtype, round it off alike (measured: 56 % of a change of a thousandth of
    a bfloat16 weight arrived, merged 48 %, at a cost in every step).
    """
    total = _change(weight, parts)
    merged = (weight.float() + total).to(weight.dtype)
    if weight.element_size() > 2:
        return merged, True
    arrived = ((merged.float() - weight.float()) * total).sum()
    return merged, float(arrived) >= _ENOUGH * float(total.square().sum())


class Scheduled:
    """The merged weight of a module some of whose layers vary over steps; made again where a strength has moved.

    Making it costs rank * in * out, a branch beside the module rank * (in + out) for each of thousands of tokens.
    """

    def __init__(self, module: nn.Module, weight: Tensor, parts: Sequence[AppliedLayer]) -> None:
        """`weight` is the base's; the merged one is the module's own, and is written over."""
        self._module, self._weight, self._parts = module, weight, parts
        device, wide = weight.device, torch.float32
        self._ups = torch.cat([part.layer.scale * part.layer.up.to(device, wide).flatten(1) for part in parts], dim=1)
        self._downs = torch.cat([part.layer.down.to(device, wide).flatten(1) for part in parts])
        self._ranks = torch.tensor([part.layer.rank for part in parts])
        self._strengths: list[float] | None = None
        self.set_step(0.0)

    @torch.no_grad()
    def set_step(self, position: float) -> None:
        """The weight as it is at a step, 0 the first, 1 the last; nothing where no strength has moved."""
        strengths = [part.strength * (part.steps.value(position) if part.steps else 1.0) for part in self._parts]
        if strengths == self._strengths:
            return
        self._strengths = strengths
        into = self._module._parameters["weight"]
        assert into is not None
        constant = [part for part in self._parts if part.steps is None]
        if not any(strength for part, strength in zip(self._parts, strengths, strict=True) if part.steps):
            # To the bit what it is without the others.
            into.copy_(merged_weight(self._weight, constant)[0])
            return
        gains = torch.tensor(strengths).repeat_interleave(self._ranks).to(self._ups.device)
        into.copy_(
            torch.addmm(self._weight.float().flatten(1), self._ups * gains, self._downs).view(self._weight.shape)
        )


def _change(weight: Tensor, parts: Sequence[AppliedLayer]) -> Tensor:
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for part in parts:
        down, up = part.layer.down.to(weight.device), part.layer.up.to(weight.device)
        total += part.strength * LoRALayer(down, up, part.layer.scale).delta()
    return total
