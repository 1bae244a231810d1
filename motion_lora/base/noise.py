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
from ..core.process import LOGIT_NORMAL, UNIFORM
from .placement import sent

FLOW_PREDICTION = "flow_prediction"
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

    def part_of_whole(self, low: float, high: float) -> tuple[float, float]:
        """The part itself: one network is there for all of the noise."""
        return low, high

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
        values = sent(table[timesteps.cpu()].to(like.dtype), like.device)
        return values.view(-1, *([1] * (like.ndim - 1)))


class FlowSchedule:
    """Flow matching: z = (1 - sigma) z_0 + sigma noise, the network predicts noise - z_0 (Liu et al. 2022, Eq. 1).

    Sigma is drawn evenly, or logit-normally (Esser et al. 2024, section 3.1), and shifted towards noise as the base's
    samplers shift it, s x / (1 + (s - 1) x). Timesteps are sigma times `num_train_timesteps`, no whole numbers.
    """

    prediction_type = FLOW_PREDICTION

    def __init__(self, scheduler_config: Mapping[str, Any], spread: str = UNIFORM) -> None:
        entries = flow_entries(scheduler_config)
        self.shift, self._count = float(entries["shift"]), int(entries["num_train_timesteps"])
        self._spread = spread
        # An expert that is there for a part of the noise sees no other.
        ends = (float(scheduler_config.get(*entry)) for entry in (("sigma_low", 0.0), ("sigma_high", 1.0)))
        self._first, self._end = (sigma / (self.shift - (self.shift - 1) * sigma) for sigma in ends)

    @property
    def num_train_timesteps(self) -> int:
        return self._count

    def sample_timesteps(self, batch: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Random timesteps (b,), real numbers, from the part [low, high) of the schedule as a sampler runs through it.

        The part is measured before the shift: [0.5, 1) is the first half of the steps of a sampling; of an expert, of
        the steps that it is there for (`sigma_low` and `sigma_high` in its config).
        """
        if self._spread == LOGIT_NORMAL:
            place = torch.randn(batch, generator=generator).sigmoid()
        else:
            place = torch.rand(batch, generator=generator)
        place = self._first + (self._end - self._first) * (low + (high - low) * place)
        return self._count * self.shift * place / (1 + (self.shift - 1) * place)

    def part_of_whole(self, low: float, high: float) -> tuple[float, float]:
        """Where the part [low, high) of an expert's steps lies in the whole schedule; all of them stay (0, 1)."""
        if (low, high) == (0.0, 1.0):
            return low, high
        length = self._end - self._first
        return self._first + length * low, self._first + length * high

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z, shaped like latents (b, ...), for timesteps (b,)."""
        sigma = self._sigma(timesteps, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity noise - z_0, the same at every timestep."""
        return noise - latents

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Loss weights (b,) of Min-SNR-gamma (Hang et al. 2023, Eq. 8), for a velocity: sigma^2 min(snr, gamma).

        As for v: an error of the velocity is one of z_0, times sigma; snr = ((1 - sigma) / sigma)^2.
        """
        sigma = timesteps.cpu().float() / self._count
        return torch.minimum((1 - sigma).square(), gamma * sigma.square())

    def _sigma(self, timesteps: Tensor, like: Tensor) -> Tensor:
        sigma = sent((timesteps / self._count).to(like.dtype), like.device)
        return sigma.view(-1, *([1] * (like.ndim - 1)))


Process = NoiseSchedule | FlowSchedule
"""By which noise is added, timesteps are drawn and the target is made; which one says the base's scheduler config."""


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether the entries of a `scheduler_config.json` are of flow matching."""
    of_class = str(scheduler_config.get("_class_name", "")).startswith("FlowMatch")
    said = scheduler_config.get("prediction_type") == FLOW_PREDICTION or bool(scheduler_config.get("use_flow_sigmas"))
    return of_class or said


def flow_entries(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a flow schedule under the names of all of diffusers' classes: `shift` is `flow_shift` in some."""
    named = [scheduler_config[key] for key in ("flow_shift", "shift") if key in scheduler_config]
    shift = float(named[0]) if named else 1.0
    count = int(scheduler_config.get("num_train_timesteps", 1000))
    return {"num_train_timesteps": count, "shift": shift, "flow_shift": shift, "prediction_type": FLOW_PREDICTION}


def prediction_type(scheduler_config: Mapping[str, Any]) -> str:
    """What the network of a base with this schedule predicts."""
    return FLOW_PREDICTION if is_flow(scheduler_config) else str(scheduler_config.get("prediction_type", "epsilon"))


def noise_schedule(scheduler_config: Mapping[str, Any], spread: str = UNIFORM) -> Process:
    """The process of a base. `spread`, one of `SPREADS`, is for flow matching alone. Raises ModelError."""
    return FlowSchedule(scheduler_config, spread) if is_flow(scheduler_config) else NoiseSchedule(scheduler_config)


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
