"""The losses against numbers worked out by hand, and against the formulas as the papers print them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from motion_lora.methods.losses import appearance_debiased_loss, denoising_loss, motion_loss


def clip(*frames: float) -> Tensor:
    """One clip of one channel and one pixel: (1, 1, f, 1, 1)."""
    return torch.tensor(frames).view(1, 1, -1, 1, 1)


def printed_debiased_loss(prediction: Tensor, target: Tensor, anchor: int, beta: float) -> Tensor:
    """MotionDirector Eq. 5 and 6 word for word, phi applied to each side."""

    def phi(x: Tensor) -> Tensor:
        return math.sqrt(beta**2 + 1) * x - beta * x[:, :, anchor].unsqueeze(2)

    return (phi(prediction) - phi(target)).square().mean()


def test_denoising_loss_by_hand():
    assert float(denoising_loss(clip(1.0, 2.0), clip(0.0, 4.0))) == pytest.approx((1 + 4) / 2)


def test_debiased_loss_by_hand():
    # errors 1 and 3, anchor the first: sqrt(2) * 1 - 1 and sqrt(2) * 3 - 1
    expected = ((math.sqrt(2) - 1) ** 2 + (3 * math.sqrt(2) - 1) ** 2) / 2
    assert expected == pytest.approx(5.343146, abs=1e-6)
    assert float(appearance_debiased_loss(clip(1.0, 3.0), clip(0.0, 0.0), 0)) == pytest.approx(expected)
    # beta 0.75: sqrt(1.5625) = 1.25; anchor the second: 1.25 * 1 - 0.75 * 3 and 1.25 * 3 - 0.75 * 3
    expected = ((1.25 - 2.25) ** 2 + (3.75 - 2.25) ** 2) / 2
    assert float(appearance_debiased_loss(clip(1.0, 3.0), clip(0.0, 0.0), 1, beta=0.75)) == pytest.approx(expected)


def test_motion_loss_by_hand():
    expected = (1 + 9) / 2 + ((math.sqrt(2) - 1) ** 2 + (3 * math.sqrt(2) - 1) ** 2) / 2
    assert float(motion_loss(clip(1.0, 3.0), clip(0.0, 0.0), 0)) == pytest.approx(expected)


@pytest.mark.parametrize(("anchor", "beta"), [(0, 1.0), (3, 1.0), (1, 0.5)])
def test_the_cheap_form_is_the_printed_formula(anchor, beta):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 4, 5, 3, 3, generator=generator, requires_grad=True)
    target = torch.randn(2, 4, 5, 3, 3, generator=generator)
    cheap = appearance_debiased_loss(prediction, target, anchor, beta)
    printed = printed_debiased_loss(prediction, target, anchor, beta)
    assert torch.allclose(cheap, printed, rtol=1e-6)
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (cheap, printed)]
    assert torch.allclose(*gradients, atol=1e-6)
    other = [frame for frame in range(5) if frame != anchor]
    through_anchor = torch.autograd.grad(cheap_without(prediction, target, anchor, beta, other), prediction)[0]
    assert through_anchor[:, :, anchor].any(), "the anchor learns from the other frames' errors too"


def cheap_without(prediction: Tensor, target: Tensor, anchor: int, beta: float, frames: list[int]) -> Tensor:
    kept = [anchor, *frames]
    return appearance_debiased_loss(prediction[:, :, kept], target[:, :, kept].detach(), 0, beta)


def test_weights_multiply_each_clip():
    prediction = torch.stack([torch.ones(1, 2, 1, 1), 3 * torch.ones(1, 2, 1, 1)])
    weights = torch.tensor([2.0, 0.5])
    target = torch.zeros_like(prediction)
    assert float(denoising_loss(prediction, target, weights)) == pytest.approx((2 * 1 + 0.5 * 9) / 2)
    # all frames equal: phi leaves (sqrt(2) - 1)^2 of each square
    left = (math.sqrt(2) - 1) ** 2
    value = float(appearance_debiased_loss(prediction, target, 1, weights=weights))
    assert value == pytest.approx(left * (2 * 1 + 0.5 * 9) / 2)
    assert float(denoising_loss(prediction, target, torch.ones(2))) == pytest.approx(5.0)


@pytest.mark.parametrize("anchor", [-1, 2])
def test_an_anchor_that_is_no_frame_is_refused(anchor):
    with pytest.raises(IndexError, match="frames 0 to 1"):
        appearance_debiased_loss(clip(1.0, 3.0), clip(0.0, 0.0), anchor)
