"""The constant part of a stack: changes summed into new weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


# Share of a change that may be lost when it is rounded into 16-bit weights.
_MOST_LOST = 0.1


@torch.no_grad()
def merged_weight(weight: Tensor, parts: Sequence[AppliedLayer]) -> Tensor | None:
    """W + sum(strength * delta) in fp32, rounded once to W's dtype.

    None where the change is so small beside W that more than a tenth of it would be lost by rounding: W lies on the
    grid of its dtype already, so that what is below half a step is not blurred but gone. It then has to stay beside W.
    """
    total = _change(weight, parts)
    merged = (weight.float() + total).to(weight.dtype)
    if weight.element_size() > 2:
        return merged
    lost = (merged.float() - weight.float() - total).norm()
    return merged if float(lost) <= _MOST_LOST * float(total.norm()) else None


@torch.no_grad()
def is_below_precision(weight: Tensor, parts: Sequence[AppliedLayer]) -> bool:
    """Whether even beside W, on outputs of its dtype, much of so small a change would be rounded off."""
    return float(_change(weight, parts).norm()) < torch.finfo(weight.dtype).eps / 4 * float(weight.float().norm())


def _change(weight: Tensor, parts: Sequence[AppliedLayer]) -> Tensor:
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for part in parts:
        down, up = part.layer.down.to(weight.device), part.layer.up.to(weight.device)
        total += part.strength * LoRALayer(down, up, part.layer.scale).delta()
    return total
