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


# Two frames that are equal have no difference to compare.
_SMALL = 1e-8

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


def frame_difference_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """The plain loss + mean(1 - cos(|d prediction|, |d target|)), d the differences of neighbouring frames.

    Follow-Your-Motion (arXiv 2506.05207, section 3.3), which takes the cosine from VMC: one for each pair of frames,
    over channels and places. Looks that stay are in no difference. A clip of one frame has the plain loss alone.
    """
    plain = denoising_loss(prediction, target, weights)
    if prediction.shape[2] < 2:
        return plain
    seen, wanted = (clip.diff(dim=2).abs().transpose(1, 2).flatten(2) for clip in (prediction, target))
    lengths = seen.norm(dim=2) * wanted.norm(dim=2)
    apart = 1 - ((seen * wanted).sum(dim=2) / lengths.clamp(min=_SMALL)).mean(dim=1)
    return plain + (apart if weights is None else apart * weights).mean()


def _difference(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
    return frame_difference_loss(prediction, target, context.weights)


def _denoising(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
    return denoising_loss(prediction, target, context.weights)


def _debiased(prediction: Tensor, target: Tensor, context: LossContext) -> Tensor:
    return motion_loss(prediction, target, context.anchor, context.settings.debias_beta, context.weights)


DENOISING, DEBIASED, FRAME_DIFFERENCE = "denoising", "debiased", "frame-difference"
LOSSES: dict[str, Loss] = {DENOISING: _denoising, DEBIASED: _debiased, FRAME_DIFFERENCE: _difference}
"""The losses by name; `debiased` and `frame-difference` have the plain loss beside them."""


def _mean_square(error: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return error.square().mean()
    return (error.square().flatten(1).mean(dim=1) * weights).mean()
