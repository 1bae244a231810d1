"""The training losses, one function per formula, and `LOSSES`, the names by which passes and settings ask for them.

Shapes: prediction and target (b, c, f, h, w), both fp32 or the loss rounds; every loss is a scalar tensor. Each takes
optional per-clip weights (b,), which multiply the clip's mean before the mean over the batch.

A new loss is a function (prediction, target, context) and an entry of `LOSSES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossContext:
    """What a loss may want beside prediction and target.

    `settings` are those of the training, of which a loss reads its own; `anchor` is a random frame of the clip,
    `weights` (b,) are per clip or None, `timesteps` (b,) are on the CPU.
    """

    settings: Any
    anchor: int = 0
    weights: Tensor | None = None
    timesteps: Tensor | None = None


Loss = Callable[["Tensor", "Tensor", LossContext], "Tensor"]


def denoising_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean((prediction - target)^2): Customize-A-Video Eq. 3 to 5, MotionDirector's L_spatial and L_org."""
    return _mean_square(prediction - target, weights)


def appearance_debiased_loss(
    prediction: Tensor, target: Tensor, anchor: int, beta: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """MotionDirector's L_ad: mean((phi(prediction) - phi(target))^2), phi(x)_f = sqrt(beta^2 + 1) x_f - beta x_anchor.

    phi takes the anchor frame's share, the look that all frames have in common, out of every frame (the anchor frame
    itself included); gradients flow through the anchor too. phi is linear, so it is applied once to the error
    e = prediction - target instead of to both: a quarter of the memory and the same value. Raises IndexError for an
    anchor that is no frame.
    """
    error = prediction - target
    num_frames = error.shape[2]
    if not 0 <= anchor < num_frames:
        raise IndexError(f"anchor frame is {anchor}, the clip has frames 0 to {num_frames - 1}")
    anchored = error[:, :, anchor : anchor + 1]
    return _mean_square(math.sqrt(beta**2 + 1) * error - beta * anchored, weights)


def motion_loss(
    prediction: Tensor, target: Tensor, anchor: int, beta: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """MotionDirector's L_temporal = L_org + L_ad, both with weight 1 (its Eq. 7)."""
    debiased = appearance_debiased_loss(prediction, target, anchor, beta, weights)
    return denoising_loss(prediction, target, weights) + debiased


def _denoising(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
    return denoising_loss(prediction, target, context.weights)


def _debiased(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
    return motion_loss(prediction, target, context.anchor, context.settings.debias_beta, context.weights)


DENOISING, DEBIASED = "denoising", "debiased"
LOSSES: dict[str, Loss] = {DENOISING: _denoising, DEBIASED: _debiased}
"""The losses by name; `debiased` is the plain loss and the appearance-debiased one beside it."""


def _mean_square(error: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return error.square().mean()
    return (error.square().flatten(1).mean(dim=1) * weights).mean()
