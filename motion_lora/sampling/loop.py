"""Sampling: the denoising loop over diffusers' schedulers, with an adapter stack, guidance and per-video seeds.

Every random number of a video comes from a CPU generator of its own, so a seed gives the same video on any device,
alone or in a batch. The arithmetic of the schedulers runs in float32; only the network runs in the base's dtype.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters.apply import AppliedStack, applied_to_text_encoder
from ..adapters.fit import require_fit
from ..adapters.highway import plan_highway
from ..backbones.base import Text
from ..base.pipeline import VideoPipeline
from ..base.placement import no_gradients
from ..base.schedulers import SCHEDULERS, make_scheduler, model_input, noised, start_scale
from ..core.errors import SettingsError, is_out_of_memory
from ..core.out_of_memory import SamplingMemoryError
from ..core.stack import AdapterStack
from .ddim import InvertedClip, noise_prior
from .experts import Experts, experts_at_work
from .settings import SampleSettings, is_guided, resolve, steps_run
from .windows import Fusion, windows

logger = logging.getLogger(__name__)

# Temporal attention sees every pixel of a latent as a sequence; CUDA's kernels take no more than this in one call
# (pytorch/pytorch#142228).
MOST_SEQUENCES = 65_535
_TOO_MANY = "invalid configuration argument"

Progress = Callable[[int, int], None]
"""Called after every denoising step with the steps done and the steps in all; may raise to abort."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One video: frames (f, h, w, 3) in [0, 1] on CPU, its scaled latents (1, c, f, h, w), and the resolved settings.

    Without decoding, `frames` holds no frame: (0, h, w, 3).
    """

    frames: Tensor
    latents: Tensor
    settings: SampleSettings


def sample(
    pipeline: VideoPipeline,
    settings: SampleSettings | Sequence[SampleSettings],
    *,
    stack: AdapterStack | None = None,
    latents: Tensor | None = None,
    source: Tensor | None = None,
    callback: Progress | None = None,
    decode: bool = True,
    batch_size: int = 4,
) -> list[Sample]:
    """Denoise one video per settings, in order; up to `batch_size` alike ones run together.

    stack     LoRAs and highway, applied to a replica; the base is not changed
    latents   start noise of about unit variance (1 or n, c, f, h, w), such as an inverted clip or a noise prior, in
              place of what the seeds give
    source    scaled latents of a clip (1 or n, c, f, h, w) to edit: noised to the level that `edit_strength` sets
    decode    False leaves the frames out

    Raises SettingsError that names every wrong setting, its value and what is legal, LoRAFileError for a LoRA that
    does not fit; both before any work. What `callback` raises passes through and leaves the base as it was.
    """
    wanted = [settings] if isinstance(settings, SampleSettings) else list(settings)
    stack = AdapterStack() if stack is None else stack
    videos = [resolve(pipeline, one, editing=source is not None) for one in wanted]
    _check_batch_size(batch_size)
    noises = _per_video("latents", latents, pipeline, videos)
    sources = _per_video("source", source, pipeline, videos)
    _check_stack(pipeline, stack)
    if not videos:
        return []
    groups = _groups(videos, batch_size)
    progress = _Progress(callback, sum(steps_run(videos[group[0]]) for group in groups))
    results: dict[int, Sample] = {}
    with no_gradients(), pipeline.at_work():
        unet = pipeline.replica().unet
        for group in groups:
            batch = _Batch(pipeline, tuple(videos[i] for i in group))
            with batch.memory_errors():
                started = batch.start([noises[i] for i in group], [sources[i] for i in group])
                finished = batch.denoise(unet, started, stack, progress)
                for i, one in zip(group, batch.finish(finished, decode), strict=True):
                    results[i] = one
    return [results[i] for i in range(len(videos))]


def start_noise(pipeline: VideoPipeline, settings: SampleSettings) -> Tensor:
    """The noise (1, c, f, h, w) on CPU that these settings start from."""
    resolved = resolve(pipeline, settings)
    return torch.randn(_shape(pipeline, resolved), generator=_generator(resolved))


def prior_noise(pipeline: VideoPipeline, settings: SampleSettings, inverted: InvertedClip, p: float) -> Tensor:
    """Start noise (1, c, f, h, w) in the size of `settings` with share `p` of an inverted clip; see `noise_prior`.

    The fresh part is that of the seed, so p = 0 is the noise that these settings start from anyway. Raises
    SettingsError for p outside [0, 1] or noise of another base.
    """
    inverted.check(pipeline)
    resolved = resolve(pipeline, settings, editing=True)
    _, channels, *sides = _shape(pipeline, resolved)
    if inverted.noise.ndim != 5 or inverted.noise.shape[:2] != (1, channels):
        raise SettingsError(f"the noise has shape {tuple(inverted.noise.shape)}; it must be (1, {channels}, f, h, w).")
    return noise_prior(inverted.noise, p, _generator(resolved), *sides)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size}; it must be at least 1.")


def _check_stack(pipeline: VideoPipeline, stack: AdapterStack) -> None:
    for entry in stack.entries:
        require_fit(pipeline.unet, entry.lora, entry.name)
        if entry.text_encoder is not None:
            require_fit(pipeline.text_encoder, entry.text_encoder, entry.name)
    if stack.highway is not None:
        plan_highway(pipeline.unet, stack.highway)


def _per_video(
    name: str, tensor: Tensor | None, pipeline: VideoPipeline, videos: Sequence[SampleSettings]
) -> list[Tensor | None]:
    """One (1, c, f, h, w) per video of a tensor that holds one for all or one for each; raises SettingsError."""
    if tensor is None:
        return [None] * len(videos)
    for video in videos:
        expected = _shape(pipeline, video)[1:]
        if tensor.ndim != 5 or tensor.shape[0] not in (1, len(videos)) or tuple(tensor.shape[1:]) != expected:
            raise SettingsError(
                f"{name} has shape {tuple(tensor.shape)}; {video.num_frames} frames of {video.height} x {video.width} "
                f"pixels need (1 or {len(videos)}, {', '.join(str(n) for n in expected)})."
            )
    if not bool(torch.isfinite(tensor).all()):
        raise SettingsError(f"{name} holds values that are not finite numbers.")
    each = tensor.detach().float().cpu()
    return [each[i % each.shape[0]][None] for i in range(len(videos))]


# One batch ----------------------------------------------------------------------------------------------------------
def _groups(videos: Sequence[SampleSettings], batch_size: int) -> list[list[int]]:
    """Numbers of the videos that can share a forward pass: alike in all but texts, seed, guidance scale and fps."""
    alike: dict[SampleSettings, list[int]] = {}
    for number, video in enumerate(videos):
        guided = float(is_guided(video))
        key = replace(video, prompt="", negative_prompt="", seed=0, guidance_scale=guided, fps=None)
        alike.setdefault(key, []).append(number)
    return [numbers[i : i + batch_size] for numbers in alike.values() for i in range(0, len(numbers), batch_size)]


class _Progress:
    """Steps done over all batches, for the caller's callback."""

    def __init__(self, callback: Progress | None, total: int) -> None:
        self._callback, self._total, self._done = callback, total, 0

    def step(self) -> None:
        self._done += 1
        if self._callback is not None:
            self._callback(self._done, self._total)


class _Batch:
    """Videos that are denoised together: their generators, scheduler and timesteps."""

    def __init__(self, pipeline: VideoPipeline, videos: tuple[SampleSettings, ...]) -> None:
        self.pipeline, self.videos = pipeline, videos
        first = videos[0]
        self.generators = [_generator(video) for video in videos]
        self.scheduler = make_scheduler(first.scheduler, _noise_schedule(pipeline, first))
        self.scheduler.set_timesteps(first.num_inference_steps, device=pipeline.device)
        self.skipped = len(self.scheduler.timesteps) - steps_run(first)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.skipped)
        takes_generator = SCHEDULERS[first.scheduler].takes_generator
        self.step_options: dict[str, Any] = {"generator": self.generators} if takes_generator else {}

    def start(self, noises: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> Tensor:
        """Start latents (b, c, f, h, w): scaled noise, or the sources noised to the first timestep that is run."""
        drawn = [
            # Drawn in any case, so that later random numbers do not depend on whether start noise was given.
            (torch.randn(_shape(self.pipeline, video), generator=generator), given)
            for video, generator, given in zip(self.videos, self.generators, noises, strict=True)
        ]
        noise = torch.cat([own if given is None else given for own, given in drawn]).to(self.pipeline.device)
        clips = [source for source in sources if source is not None]
        if not clips:
            return noise * start_scale(self.scheduler)
        timestep = self.scheduler.timesteps[self.skipped].repeat(len(self.videos))
        return noised(self.scheduler, torch.cat(clips).to(self.pipeline.device), noise, timestep)

    def denoise(self, unet: Any, latents: Tensor, stack: AdapterStack, progress: _Progress) -> Tensor:
        """Start latents -> clean latents (b, c, f, h, w), float32 on the device; `unet` is a replica of the base's."""
        text = self._encode_prompts(stack)
        with experts_at_work(self.pipeline, unet, stack, latents.shape[2]) as experts:
            return self._loop(experts, latents, text, progress)

    def _loop(self, experts: Experts, latents: Tensor, text: Text, progress: _Progress) -> Tensor:
        timesteps = self.scheduler.timesteps
        for index in range(self.skipped, len(timesteps)):
            unet, adapters = experts.at(timesteps[index])
            # Relative to the whole schedule, so that a position means the same noise level when an edit starts late.
            adapters.at(index / max(len(timesteps) - 1, 1))
            noisy = model_input(self.scheduler, latents, timesteps[index])
            predicted = self._fused(unet, noisy, timesteps[index], text, adapters, index)
            latents = self.scheduler.step(predicted, timesteps[index], latents, **self.step_options).prev_sample
            progress.step()
        return latents

    def _fused(
        self, unet: Any, noisy: Tensor, timestep: Tensor, text: Text, adapters: AppliedStack, step: int
    ) -> Tensor:
        """The guided prediction, window by window where the frames are more than one holds."""
        plan = self._windows(noisy.shape[2], step)
        if len(plan) == 1 and not self.videos[0].loop:
            return self._predict(unet, noisy, timestep, text)
        fusion = Fusion(noisy)
        for window in plan:
            adapters.on_frames(window)
            fusion.add(window, self._predict(unet, noisy[:, :, window], timestep, text))
        return fusion.mean()

    def _windows(self, frames: int, step: int) -> list[list[int]]:
        """Of latent frames, of which a backbone may have fewer than frames."""
        first, backbone = self.videos[0], self.pipeline.backbone
        if not first.context_frames:
            return [list(range(frames))]
        length = backbone.latent_frames(self.pipeline.vae, first.context_frames)
        overlap = math.ceil(first.context_overlap * length / first.context_frames)
        return windows(frames, length, min(overlap, length - 1), loop=first.loop, step=step)

    def _predict(self, unet: Any, noisy: Tensor, timestep: Tensor, text: Text) -> Tensor:
        """The guided prediction: uncond + scale * (cond - uncond), both in one forward pass (Ho and Salimans 2022)."""
        copies = len(text) // noisy.shape[0]
        batch = noisy.repeat(copies, 1, 1, 1, 1).to(self.pipeline.dtype)
        at_once = max(1, MOST_SEQUENCES // (batch.shape[-2] * batch.shape[-1]))
        parts = [
            self.pipeline.backbone.predict(unet, rows, timestep, text.part(i * at_once, (i + 1) * at_once)).float()
            for i, rows in enumerate(batch.split(at_once))
        ]
        predicted = parts[0] if len(parts) == 1 else torch.cat(parts)
        if copies == 1:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        scales = torch.tensor([video.guidance_scale or 0.0 for video in self.videos], device=predicted.device)
        return unconditional + scales.view(-1, 1, 1, 1, 1) * (conditional - unconditional)

    def _encode_prompts(self, stack: AdapterStack) -> Text:
        """Text for the network: of negative prompts then prompts with guidance (2 b), else of prompts alone."""
        prompts = [video.prompt for video in self.videos]
        if is_guided(self.videos[0]):
            prompts = [video.negative_prompt for video in self.videos] + prompts
        reader = self.pipeline
        with ExitStack() as contexts:
            if any(entry.text_encoder is not None for entry in stack.entries):
                reader = self.pipeline.replica(unet=False, text_encoder=True)
                contexts.enter_context(applied_to_text_encoder(reader.text_encoder, stack))
            return reader.read_prompts(prompts).to(self.pipeline.dtype)

    def finish(self, latents: Tensor, decode: bool) -> Iterator[Sample]:
        """The samples, decoded one video at a time."""
        if not bool(torch.isfinite(latents).all()):
            logger.warning(
                "The latents hold values that are not finite; in fp16 a base can overflow, try bf16 or fp32."
            )
        for video, one in zip(self.videos, latents.split(1), strict=True):
            empty = torch.zeros(0, video.height or 0, video.width or 0, 3)
            frames = self.pipeline.decode_latents(one)[0] if decode else empty
            yield Sample(frames, one.cpu(), video)

    @contextmanager
    def memory_errors(self) -> Iterator[None]:
        """A full device becomes a SettingsError that says what to lower."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            video = self.videos[0]
            if _TOO_MANY in str(error):
                raise SettingsError(
                    f"{video.height} x {video.width} pixels are more than {self.pipeline.device} can take in one call: "
                    "lower height or width."
                ) from error
            if not is_out_of_memory(error):
                raise
            # The frames of the error hold the activations that fill the device.
            traceback.clear_frames(error.__traceback__)
            raise SamplingMemoryError(
                f"{self.pipeline.device} has too little memory for {len(self.videos)} x {video.num_frames} frames of "
                f"{video.height} x {video.width}; lower batch_size, num_frames or the size, or use a 16-bit dtype."
            ) from None


def _noise_schedule(pipeline: VideoPipeline, settings: SampleSettings) -> Mapping[str, Any]:
    """The base's own; but the usual spacings would put a single step at the clean end instead of at the noise."""
    single = {"timestep_spacing": "trailing"} if settings.num_inference_steps == 1 else {}
    return {**pipeline.scheduler_config, **single}


def _generator(settings: SampleSettings) -> torch.Generator:
    return torch.Generator().manual_seed(settings.seed)


def _shape(pipeline: VideoPipeline, settings: SampleSettings) -> tuple[int, int, int, int, int]:
    """Of the latents of one video with resolved settings."""
    return pipeline.latent_shape(settings.num_frames or 0, settings.height or 0, settings.width or 0)
