"""DDIM inversion of a clip, and start noise that remembers it.

Inversion runs DDIM's deterministic update (Song et al. 2021, equation 12) backwards, from the clip to noise; sampling
from that noise with as many DDIM steps, the same text and no guidance leads back to about the clip. Mixed with fresh
noise it gives new videos the clip's layout (the noise prior of MotionDirector's inference).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..base.placement import no_gradients
from ..base.schedulers import make_scheduler
from ..core.errors import SettingsError
from ..core.identity import BaseIdentity

MAX_SIDE = 4096


@dataclass(frozen=True, eq=False)
class InvertedClip:
    """A clip's noise (1, c, f, h, w) float32 on CPU, and the base, prompt and steps that it belongs to."""

    noise: Tensor
    base: BaseIdentity
    prompt: str = ""
    num_inference_steps: int = 50

    def check(self, pipeline: VideoPipeline) -> None:
        """Raise SettingsError unless the noise is of this base: on another one it leads back to nothing."""
        if self.base.weights_hash and self.base.weights_hash != pipeline.identity.weights_hash:
            raise SettingsError(
                f"the noise was inverted on {self.base.name}, not on {pipeline.identity.name}; invert the clip on the "
                "base that samples."
            )


def invert(
    pipeline: VideoPipeline,
    latents: Tensor,
    *,
    prompt: str = "",
    num_inference_steps: int = 50,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The noise from which DDIM comes back to the clean scaled `latents`; both (b, c, f, h, w), float32 on CPU.

    Runs the plain base without guidance on the levels that DDIM sampling of `num_inference_steps` steps visits, and
    equals diffusers' `DDIMInverseScheduler` in float32. `callback(step, total)` is called after every step.
    Raises SettingsError for a wrong number of steps or wrong latents, before any work.
    """
    _check_inversion(pipeline, latents, num_inference_steps)
    levels = inversion_levels(pipeline.scheduler_config, num_inference_steps)
    with no_gradients(), pipeline.at_work():
        text = pipeline.read_prompts([prompt] * latents.shape[0]).to(pipeline.dtype)
        noisy = latents.detach().to(pipeline.device, torch.float32)
        for done, (timestep, alpha_from, alpha_to) in enumerate(levels, start=1):
            moment = torch.tensor(timestep, device=pipeline.device)
            predicted = pipeline.backbone.predict(pipeline.unet, noisy.to(pipeline.dtype), moment, text).float()
            noisy = inverse_step(noisy, predicted, alpha_from, alpha_to, pipeline.prediction_type)
            if callback is not None:
                callback(done, len(levels))
        return noisy.cpu()


def inversion_levels(scheduler_config: Mapping[str, Any], num_inference_steps: int) -> list[tuple[int, Tensor, Tensor]]:
    """(timestep, alpha_bar now, alpha_bar next) of every inversion step, from the clip to the noise.

    The timesteps are DDIM's own in reverse. The network is asked at the level that is to be reached, as DDIM asked it
    on the way down. Before the first level comes alpha_bar 1 or that of timestep 0, as the base's config says.
    """
    scheduler = make_scheduler("ddim", scheduler_config)
    scheduler.set_timesteps(num_inference_steps)
    stride = int(scheduler.config["num_train_timesteps"]) // num_inference_steps
    table = scheduler.alphas_cumprod
    levels = []
    for timestep in reversed(scheduler.timesteps.tolist()):
        before = timestep - stride
        now = table[before] if before >= 0 else scheduler.final_alpha_cumprod
        levels.append((int(timestep), now, table[timestep]))
    return levels


def inverse_step(
    sample: Tensor, predicted: Tensor, alpha_from: Tensor, alpha_to: Tensor, prediction_type: str
) -> Tensor:
    """One step towards noise: DDIM's equation 12 with the two levels exchanged. `alpha` is the product alpha_bar."""
    signal, noise = alpha_from.sqrt(), (1 - alpha_from).sqrt()
    if prediction_type == "v_prediction":
        clean = signal * sample - noise * predicted
        epsilon = signal * predicted + noise * sample
    else:
        clean = (sample - noise * predicted) / signal
        epsilon = predicted
    return alpha_to.sqrt() * clean + (1 - alpha_to).sqrt() * epsilon


def noise_prior(
    inverted: Tensor,
    p: float,
    generator: torch.Generator | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Start noise sqrt(p) * inverted + sqrt(1 - p) * randn, (b, c, f, h, w), float32 on CPU (MotionDirector).

    `inverted` (b, c, f, h, w) comes from `invert`; p = 1 gives it back, p = 0 forgets it. `num_frames`, `height` and
    `width`, in latents, ask for another shape: see `resample_noise`. Raises SettingsError for p outside [0, 1] or a
    shape that cannot be.
    """
    if not 0.0 <= p <= 1.0:
        raise SettingsError(f"noise prior p is {p}; it must be from 0 (fresh noise) to 1 (the inverted clip).")
    if inverted.ndim != 5 or 0 in inverted.shape:
        raise SettingsError(f"inverted latents have shape {tuple(inverted.shape)}; they must be (b, c, f, h, w).")
    shape = [
        own if asked is None else asked
        for own, asked in zip(inverted.shape[2:], (num_frames, height, width), strict=True)
    ]
    for name, side in zip(("num_frames", "height", "width"), shape, strict=True):
        if not 1 <= side <= MAX_SIDE:
            raise SettingsError(f"noise prior {name} is {side}; it must be from 1 to {MAX_SIDE} (in latents).")
    with no_gradients():
        prior = resample_noise(inverted.detach().float().cpu(), shape, generator)
        fresh = torch.randn(prior.shape, generator=generator)
        return math.sqrt(p) * prior + math.sqrt(1 - p) * fresh


def resample_noise(noise: Tensor, shape: list[int], generator: torch.Generator | None = None) -> Tensor:
    """Stretch or shrink noise (b, c, f, h, w) to `shape` (f, h, w) so that white noise stays white, of unit variance.

    Interpolation would blur the noise and lower its variance. Here every axis is first refined by a whole factor, a
    value being split into parts that are random but for their sum, and then added up in blocks; each step is
    orthogonal (the conditional upsampling of Chang et al. 2024, "How I Warped Your Noise"). The layout is stretched
    with the axis, over frames as over pixels. An axis that keeps its length is left alone, bit for bit.
    """
    for axis, length in zip((2, 3, 4), shape, strict=True):
        noise = _resample_axis(noise, axis, length, generator)
    return noise


def _resample_axis(noise: Tensor, axis: int, length: int, generator: torch.Generator | None) -> Tensor:
    common = math.gcd(noise.shape[axis], length)
    parts, block = length // common, noise.shape[axis] // common
    if (parts, block) == (1, 1):
        return noise
    along = noise.movedim(axis, -1)
    fine = along[..., None].expand(*along.shape, parts) / math.sqrt(parts)
    if parts > 1:
        fresh = torch.randn(fine.shape, generator=generator)
        fine = fine + fresh - fresh.mean(dim=-1, keepdim=True)
    blocks = fine.reshape(*along.shape[:-1], length, block)
    return (blocks.sum(dim=-1) / math.sqrt(block)).movedim(-1, axis)


def _check_inversion(pipeline: VideoPipeline, latents: Tensor, steps: int) -> None:
    most = pipeline.max_inference_steps
    if not 1 <= steps <= most:
        raise SettingsError(f"num_inference_steps is {steps}; it must be from 1 to {most}.")
    if pipeline.prediction_type not in ("epsilon", "v_prediction"):
        raise SettingsError(
            f"{pipeline.identity.name} is trained by flow matching, and DDIM inversion is for diffusion: leave the "
            "inverted noise out."
        )
    channels = pipeline.latent_shape(1, 0, 0)[1]
    if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
        raise SettingsError(f"latents have shape {tuple(latents.shape)}; they must be (b, {channels}, f, h, w).")
    pipeline.check_size(*pipeline.clip_shape(latents)[1:])
