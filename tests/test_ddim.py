"""Inversion against diffusers' own scheduler, and noise that stays noise whatever is done to it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from tiny import SCHEDULER_CONFIG, tiny_latents, tiny_pipeline
from torch import Tensor

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import SettingsError
from motion_lora.sampling.ddim import invert, noise_prior, resample_noise
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings

PROMPT = "a red circle moving left"


def base_with(**entries: object) -> VideoPipeline:
    base = tiny_pipeline()
    return dataclasses.replace(base, scheduler_config={**base.scheduler_config, **entries})


def by_diffusers(base: VideoPipeline, latents: Tensor, steps: int, prompt: str) -> Tensor:
    entries = {k: v for k, v in base.scheduler_config.items() if k not in ("_class_name", "skip_prk_steps")}
    scheduler = DDIMInverseScheduler(**entries)
    scheduler.set_timesteps(steps)
    text = base.encode_prompt([prompt])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = base.unet(latents, timestep, text).sample
            latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


CONFIGS = [
    {"prediction_type": "epsilon"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "epsilon", "set_alpha_to_one": True, "steps_offset": 0},
    {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"prediction_type": "epsilon", "beta_schedule": "linear"},
]


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("entries", CONFIGS, ids=lambda entries: "-".join(str(value) for value in entries.values()))
def test_equals_diffusers(entries: dict, steps: int) -> None:
    base = base_with(**entries)
    clip = 0.5 * tiny_latents(3)
    inverted = invert(base, clip, prompt=PROMPT, num_inference_steps=steps)
    expected = by_diffusers(base, clip, steps, PROMPT)
    assert (inverted - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_sampling_comes_back_to_the_clip() -> None:
    """Same steps, same text, no guidance. The error of the discretisation falls with the steps."""
    base = tiny_pipeline(levels=2, prediction_type="v_prediction")
    damped = base.replica()
    with torch.no_grad():
        # A network without training is far from smooth; a quarter of its output is one that DDIM can follow.
        damped.unet.conv_out.weight = torch.nn.Parameter(damped.unet.conv_out.weight / 4, requires_grad=False)
    clip = 0.5 * tiny_latents(3)

    def error(steps: int) -> float:
        inverted = invert(damped, clip, prompt=PROMPT, num_inference_steps=steps)
        settings = SampleSettings(PROMPT, num_inference_steps=steps, guidance_scale=1.0)
        restored = sample(damped, settings, latents=inverted, decode=False)[0].latents
        return float((restored - clip).abs().mean() / clip.abs().mean())

    few, many = error(4), error(20)
    assert many < 0.15
    assert many < few / 2, (few, many)


def test_inversion_depends_on_the_text_and_reports_its_steps() -> None:
    base = tiny_pipeline()
    done: list[tuple[int, int]] = []
    clip = tiny_latents(3, batch=2)
    empty = invert(base, clip, num_inference_steps=2, callback=lambda step, total: done.append((step, total)))
    assert done == [(1, 2), (2, 2)]
    assert empty.shape == clip.shape and empty.dtype == torch.float32
    assert not empty.is_inference() and not empty.requires_grad
    assert (empty - invert(base, clip, prompt=PROMPT, num_inference_steps=2)).abs().max() > 1e-3


def test_wrong_inversions_are_refused() -> None:
    base = tiny_pipeline()
    with pytest.raises(SettingsError, match="num_inference_steps is 0; it must be from 1 to 999"):
        invert(base, tiny_latents(), num_inference_steps=0)
    for shape in ((4, 4, 8, 8), (1, 3, 4, 8, 8), (1, 4, 0, 8, 8)):
        with pytest.raises(SettingsError, match=r"they must be \(b, 4, f, h, w\)"):
            invert(base, torch.zeros(shape))
    with pytest.raises(SettingsError, match="multiples of 16"):
        invert(base, torch.zeros(1, 4, 2, 6, 8))


def test_the_most_steps_that_are_allowed_stay_in_the_table() -> None:
    base = tiny_pipeline()
    scheduler = base.make_scheduler("ddim")
    scheduler.set_timesteps(base.max_inference_steps)
    assert int(scheduler.timesteps.max()) == SCHEDULER_CONFIG["num_train_timesteps"] - 1


# The noise prior ----------------------------------------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prior_is_the_formula() -> None:
    inverted = tiny_latents(1)
    fresh = torch.randn(inverted.shape, generator=seeded(5))
    expected = math.sqrt(0.3) * inverted + math.sqrt(0.7) * fresh
    torch.testing.assert_close(noise_prior(inverted, 0.3, seeded(5)), expected, rtol=0, atol=1e-6)
    assert torch.equal(noise_prior(inverted, 1.0, seeded(5)), inverted)
    assert torch.equal(noise_prior(inverted, 0.0, seeded(5)), fresh)


def test_prior_is_seeded() -> None:
    inverted = tiny_latents(1)
    assert torch.equal(noise_prior(inverted, 0.5, seeded(1), 6, 12, 8), noise_prior(inverted, 0.5, seeded(1), 6, 12, 8))
    assert not torch.equal(noise_prior(inverted, 0.5, seeded(1)), noise_prior(inverted, 0.5, seeded(2)))


SHAPES = [(8, 16, 16), (16, 16, 16), (4, 16, 16), (8, 24, 16), (8, 20, 36), (8, 12, 10), (12, 24, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_white_noise_stays_white_at_any_shape(shape: tuple[int, int, int], p: float) -> None:
    """Unit variance at every place, not on average only, and no correlation between neighbours along any axis."""
    white = torch.randn(64, 4, 8, 16, 16, generator=seeded(1))
    noise = noise_prior(white, p, seeded(2), *shape)
    assert noise.shape == (64, 4, *shape)
    variances = noise.square().mean(dim=(0, 1))
    assert float((variances - 1).abs().max()) < 0.5  # 256 draws each: five and a half deviations
    assert float(noise.var()) == pytest.approx(1.0, abs=0.02)
    for axis in (2, 3, 4):
        length = noise.shape[axis]
        product = noise.narrow(axis, 0, length - 1) * noise.narrow(axis, 1, length - 1)
        assert abs(float(product.mean())) < 0.01


@pytest.mark.parametrize("shape", [(8, 32, 16), (16, 16, 16), (8, 16, 48)])
def test_stretching_keeps_the_layout(shape: tuple[int, int, int]) -> None:
    """Adding up what a value was split into gives the value back."""
    noise = torch.randn(1, 4, 8, 16, 16, generator=seeded(1))
    stretched = resample_noise(noise, list(shape), seeded(2))
    assert stretched.shape == (1, 4, *shape)
    restored = resample_noise(stretched, [8, 16, 16], seeded(3))
    torch.testing.assert_close(restored, noise, rtol=0, atol=1e-5)


def test_wrong_priors_are_refused() -> None:
    inverted = tiny_latents(1)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match="noise prior p is"):
            noise_prior(inverted, p)
    with pytest.raises(SettingsError, match=r"they must be \(b, c, f, h, w\)"):
        noise_prior(inverted[0], 0.5)
    with pytest.raises(SettingsError, match="noise prior height is 0; it must be from 1 to 4096"):
        noise_prior(inverted, 0.5, None, 4, 0, 8)
