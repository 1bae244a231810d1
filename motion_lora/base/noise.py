"""Training-side noise: which timestep, how much noise, what the network has to predict.

The schedule is the base model's own, read from the entries of its `scheduler_config.json`. All randomness comes from
the generator that is passed in; it lives on the CPU, so every device sees the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ..core.errors import ModelError

_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_SCHEDULE_ENTRIES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


class NoiseSchedule:
    """The forward process of a base model: z_t = signal_t z_0 + sigma_t noise, with signal_t^2 + sigma_t^2 = 1."""

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        """Raises ModelError for a prediction type that is neither epsilon, v_prediction nor sample."""
        self.prediction_type = str(scheduler_config.get("prediction_type", "epsilon"))
        if self.prediction_type not in _PREDICTION_TYPES:
            known = ", ".join(_PREDICTION_TYPES)
            raise ModelError(f"The scheduler's prediction_type is {self.prediction_type!r}; training knows {known}.")
        takes = inspect.signature(DDPMScheduler.__init__).parameters
        entries = {key: scheduler_config[key] for key in _SCHEDULE_ENTRIES if key in scheduler_config and key in takes}
        alphas: Tensor = DDPMScheduler(**entries).alphas_cumprod
        # The two factors stay in the precision in which diffusers' samplers compute them.
        self.signal = alphas.sqrt()
        self.sigma = (1 - alphas).sqrt()

    @property
    def num_train_timesteps(self) -> int:
        return len(self.signal)

    def sample_timesteps(self, batch: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Timesteps (b,) int64, uniform over the part [low, high) of the schedule; 0 is clean, 1 is pure noise."""
        first, end = timestep_range(self.num_train_timesteps, low, high)
        return torch.randint(first, end, (batch,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t, shaped like latents (b, ...), for timesteps (b,)."""
        return self._at(self.signal, timesteps, latents) * latents + self._at(self.sigma, timesteps, latents) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network predicts: the noise, v = signal * noise - sigma * z_0 (Salimans and Ho 2022), or z_0."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        return self._at(self.signal, timesteps, latents) * noise - self._at(self.sigma, timesteps, latents) * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio signal_t^2 / sigma_t^2, (b,) on the CPU."""
        index = timesteps.cpu()
        return (self.signal[index] / self.sigma[index]).square()

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Loss weights (b,) of Min-SNR-gamma (Hang et al. 2023, Eq. 8), for the prediction type of this model."""
        snr = self.snr(timesteps)
        if self.prediction_type == "epsilon":
            # min(snr, gamma) / snr, written so that a last timestep without any signal gives 1 and not 0 / 0
            return (gamma / snr).clamp(max=1)
        clipped = snr.clamp(max=gamma)
        return clipped if self.prediction_type == "sample" else clipped / (snr + 1)

    @staticmethod
    def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        values = table[timesteps.cpu()].to(like.device, like.dtype)
        return values.view(-1, *([1] * (like.ndim - 1)))


def timestep_range(num_train_timesteps: int, low: float, high: float) -> tuple[int, int]:
    """First timestep and the one past the last of the part [low, high); never empty for low < high."""
    first = min(int(low * num_train_timesteps), num_train_timesteps - 1)
    return first, max(first + 1, round(high * num_train_timesteps))


def clip_noise(shape: tuple[int, ...], generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Gaussian noise (b, c, f, h, w) on the CPU.

    `offset` adds one number per channel and frame, as MotionDirector's code does (offset noise; off by default).
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        batch, channels, frames = shape[:3]
        noise += offset * torch.randn(batch, channels, frames, 1, 1, generator=generator)
    return noise
