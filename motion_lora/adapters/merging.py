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


@torch.no_grad()
def merged_weight(weight: Tensor, parts: Sequence[AppliedLayer]) -> Tensor:
    """W + sum(strength * delta) in fp32, rounded once to W's dtype."""
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for part in parts:
        down, up = part.layer.down.to(weight.device), part.layer.up.to(weight.device)
        total += part.strength * LoRALayer(down, up, part.layer.scale).delta()
    return (weight.float() + total).to(weight.dtype)
