"""A base with its stack as ComfyUI's own MODEL, CLIP and VAE. Imported when the bridge runs: it needs all of ComfyUI.

ComfyUI denoises in the space x = z_0 + sigma * noise, where diffusers' solvers keep unit variance; `ModelSampling` is
between the two. It is filled with the base's own schedule. What is left of differences to Sample Video is which
fractional timestep a sigma stands for and how strong the start noise is; both follow the schedule that is sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import comfy.ops
import comfy.supported_models_base
import torch
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...motion_lora.adapters.apply import AppliedStack, applied, applied_to_text_encoder
from ...motion_lora.adapters.highway import appearance_highway
from ...motion_lora.backbones.base import Text
from ...motion_lora.backbones.registry import of_network
from ...motion_lora.base.noise import NoiseSchedule
from ...motion_lora.base.pipeline import VideoPipeline
from ...motion_lora.core.errors import ModelError, SettingsError
from ...motion_lora.core.stack import AdapterStack
from . import memory, server

_KEY = "motion_lora"
# Of the last timestep where a schedule ends in pure noise, whose sigma would be infinite: ComfyUI's own value.
_LEAST_ALPHA = 4.8973451890853435e-08
_EVEN = 0.05


class _Latents(comfy.latent_formats.SD15):  # type: ignore[misc]
    """Of the VAE of Stable Diffusion, with frames: (b, c, f, h, w)."""

    latent_dimensions = 3

    def __init__(self, scale: float, channels: int) -> None:
        super().__init__(scale)
        self.latent_channels = channels


class _Network(nn.Module):
    """The base's UNet, as ComfyUI calls a network; `adapters` is the stack at work while something is sampled."""

    def __init__(self, unet: Any, schedule: Schedule) -> None:
        super().__init__()
        self.unet = unet
        self.adapters: AppliedStack | None = None
        self._schedule = schedule

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def forward(self, x: Tensor, t: Tensor, context: Tensor, transformer_options: Any = None, **unused: Any) -> Tensor:
        options = transformer_options or {}
        sigmas, now = options.get("sample_sigmas"), options.get("sigmas")
        if sigmas is not None and now is not None:
            place, timestep = self._schedule.at(now[0], sigmas)
            t = t if timestep is None else torch.full_like(t, timestep)
            if self.adapters is not None:
                self.adapters.at(place)
        return of_network(self.unet).predict(self.unet, x, t, Text({"encoder_hidden_states": context}))


class Schedule:
    """Where a sigma is: its place within what is sampled, and the timestep that the network is told."""

    def __init__(self, pipeline: VideoPipeline) -> None:
        noise = NoiseSchedule(pipeline.scheduler_config)
        alphas = noise.signal.double().square().clamp(min=_LEAST_ALPHA)
        self.sigmas = ((1 - alphas) / alphas).sqrt().float()
        euler = pipeline.make_scheduler("euler")
        self._starts_at_sigma = euler.config.timestep_spacing in ("linspace", "trailing")

    def at(self, sigma: Tensor, sampled: Tensor) -> tuple[float, float | None]:
        """(place in [0, 1] as `AppliedStack.at` takes it, timestep; None for the nearest whole one)."""
        noisy, last = self.timesteps(sampled[:-1]), len(sampled) - 2
        now = float(self.timesteps(sigma[None])[0])
        # Samplers of higher order look between two steps; timesteps fall from step to step.
        after = int((noisy > now + _EVEN).sum())
        index = float(min(after, last))
        if 0 < after <= last and noisy[after] < now - _EVEN:
            high, low = float(noisy[after - 1]), float(noisy[after])
            index = after - 1 + (high - now) / max(high - low, 1e-6)
        return self._place(float(noisy[0]), index, max(last, 0)), now if self.is_even(sampled) else None

    def _place(self, first: float, index: float, last: int) -> float:
        """Relative to the whole schedule, so that it means the same noise level when an edit starts late."""
        share = 1 - first / (len(self.sigmas) - 1)
        start = 0.0 if share < 1.5 / (last + 1) else share
        return min(1.0, start + (1 - start) * index / max(last, 1))

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Fractional timesteps (n,) of sigmas (n,), as diffusers interpolates: linearly between whole ones."""
        table, wanted = self.sigmas.double(), sigmas.detach().cpu().double()
        high = torch.searchsorted(table, wanted.contiguous()).clamp(1, len(table) - 1)
        low = high - 1
        share = ((wanted - table[low]) / (table[high] - table[low])).clamp(0, 1)
        return low + share

    def is_even(self, sampled: Tensor) -> bool:
        """Whether the steps are evenly spaced timesteps, as Euler's are; Karras' sigmas stand for whole ones."""
        gaps = self.timesteps(sampled[:-1]).diff()
        return len(gaps) < 2 or bool((gaps - gaps.mean()).abs().max() <= max(1.0, _EVEN * float(gaps.mean().abs())))

    def start_scale(self, sampled: Tensor, is_max: bool) -> float:
        """What start noise is multiplied by, so that it starts as Sample Video's does."""
        sigma = float(sampled[0])
        unit = (1 + sigma**2) ** 0.5
        wanted = sigma if self._starts_at_sigma and self.is_even(sampled) else unit
        return wanted / (unit if is_max else sigma)


def _config(pipeline: VideoPipeline) -> Any:
    config = comfy.supported_models_base.BASE({})
    config.latent_format = _Latents(float(pipeline.scaled(torch.ones(()))), int(pipeline.unet.config["in_channels"]))
    config.custom_operations = comfy.ops.disable_weight_init
    config.manual_cast_dtype = None
    config.memory_usage_factor = 2.0
    return config


def model_of(pipeline: VideoPipeline, stack: AdapterStack) -> ModelPatcher:
    """The base as MODEL; the stack is at work from the first step of a sampling to its last.

    Raises ModelError for a base that predicts neither noise nor v.
    """
    types = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}
    if pipeline.prediction_type not in types:
        raise ModelError(
            f"{pipeline.identity.name} predicts {pipeline.prediction_type!r}, which ComfyUI's samplers do not know: "
            "use Sample Video"
        )
    schedule = Schedule(pipeline)
    load, offload = server.device(), mm.unet_offload_device()
    with server.ordinary_tensors():
        network = _Network(_own_unet(pipeline, offload), schedule)
    made = BaseModel(_config(pipeline), types[pipeline.prediction_type], unet_model=lambda **unused: network)
    made.model_sampling.set_sigmas(schedule.sigmas)
    patcher = ModelPatcher(made.eval(), load_device=load, offload_device=offload)
    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, _KEY, _with_stack(schedule, stack))
    return patcher


def _own_unet(pipeline: VideoPipeline, offload: torch.device) -> Any:
    """Module objects of its own; tensors of its own too where ComfyUI moves them, which must not move the base."""
    if offload == pipeline.device:
        return pipeline.replica().unet
    return copy.deepcopy(pipeline.unet).to(offload)


def _with_stack(schedule: Schedule, stack: AdapterStack) -> Callable[..., Tensor]:
    """Round a sampler, when ComfyUI has brought the network onto the device."""

    def sample(
        executor: Any, wrap: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, latents: Any, *rest: Any
    ) -> Tensor:
        if noise.ndim != 5:
            raise SettingsError(
                f"latents have {noise.ndim} axes; a video's have 5: (b, c, f, h, w), from the bridge's own output"
            )
        network = wrap.inner_model.diffusion_model
        if latents is None or not torch.count_nonzero(latents):
            noise = noise * schedule.start_scale(sigmas, executor.class_obj.max_denoise(wrap, sigmas))
        with applied(network.unet, stack, noise.shape[2]) as adapters, appearance_highway(network.unet, stack.highway):
            network.adapters = adapters
            try:
                made: Tensor = executor(wrap, sigmas, extra, callback, noise, latents, *rest)
            finally:
                network.adapters = None
        return made

    return sample


class Clip:
    """The base's text encoder as CLIP: reads a text as Sample Video does, without weights in brackets."""

    def __init__(self, pipeline: VideoPipeline, stack: AdapterStack) -> None:
        self._pipeline, self._stack = pipeline, stack

    def clone(self) -> Clip:
        return Clip(self._pipeline, self._stack)

    def tokenize(self, text: str, return_word_ids: bool = False, **unused: Any) -> dict[str, str]:
        return {"text": text}

    def encode_from_tokens(self, tokens: dict[str, str], return_pooled: bool = False, return_dict: bool = False) -> Any:
        embeddings = self._encoded(tokens["text"])
        if return_dict:
            return {"cond": embeddings, "pooled_output": None}
        return (embeddings, None) if return_pooled else embeddings

    def encode_from_tokens_scheduled(
        self, tokens: dict[str, str], unprojected: bool = False, add_dict: Any = None, show_pbar: bool = True
    ) -> list[list[Any]]:
        return [[self._encoded(tokens["text"]), {"pooled_output": None, **(add_dict or {})}]]

    def _encoded(self, text: str) -> Tensor:
        """Text embeddings (1, tokens, dim)."""
        reader = self._pipeline
        with ExitStack() as contexts:
            contexts.enter_context(server.ordinary_tensors())
            if any(entry.text_encoder is not None for entry in self._stack.entries):
                reader = self._pipeline.replica(unet=False, text_encoder=True)
                contexts.enter_context(applied_to_text_encoder(reader.text_encoder, self._stack))
            return reader.encode_prompt([text]).to(mm.intermediate_device())


class Vae:
    """The base's VAE as VAE: frames (f, h, w, 3) to unscaled latents (1, c, f, h, w), and back to (b, f, h, w, 3)."""

    def __init__(self, pipeline: VideoPipeline) -> None:
        self._pipeline = pipeline
        self.latent_channels = int(pipeline.unet.config["in_channels"])
        self.latent_dim = 3

    def encode(self, pixels: Tensor) -> Tensor:
        server.make_room(int(memory.decoding_room(self._pipeline, *pixels.shape[:3])))
        with server.ordinary_tensors():
            latents = self._pipeline.encode_frames(pixels[..., :3].float().cpu().clone())
        return self._pipeline.unscaled(latents).to(mm.intermediate_device())

    def decode(self, samples: Tensor, vae_options: Any = None) -> Tensor:
        server.make_room(int(memory.decoding_room(self._pipeline, *self._pipeline.clip_shape(samples))))
        with server.ordinary_tensors():
            frames = self._pipeline.decode_latents(self._pipeline.scaled(samples.float().clone()))
        return server.to_output(frames)

    # Frames are encoded and decoded a few at a time; there is nothing that tiles would save.
    def encode_tiled(self, pixels: Tensor, **unused: Any) -> Tensor:
        return self.encode(pixels)

    def decode_tiled(self, samples: Tensor, **unused: Any) -> Tensor:
        return self.decode(samples)

    def spacial_compression_encode(self) -> int:
        return self._pipeline.vae_factor

    def spacial_compression_decode(self) -> int:
        return self._pipeline.vae_factor

    def temporal_compression_decode(self) -> int | None:
        return None


def sigmas_of(pipeline: VideoPipeline, scheduler: str, steps: int) -> Tensor:
    """The sigmas (steps + 1,) that Sample Video takes with a scheduler. Raises SettingsError for one without any."""
    made = pipeline.make_scheduler(scheduler)
    made.set_timesteps(steps)
    if not isinstance(sigmas := getattr(made, "sigmas", None), Tensor):
        raise SettingsError(f"{scheduler} has no sigmas: use euler or dpmpp-2m-karras")
    return torch.cat([sigmas[:-1].float(), sigmas.new_zeros(1).float()])
