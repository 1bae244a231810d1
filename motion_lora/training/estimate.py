"""What a training will take, before anything is encoded: the memory of its heaviest pass, counted to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.peft import Adapter, add_adapter
from ..adapters.targets import target_modules
from ..backbones.base import Text
from ..backbones.bypass import temporal_bypass
from ..methods.stages import Pass, Stage
from .memory import GB, StepMemory, bytes_of, choose_recomputed, count_step
from .recipe import Recipe, make_recipe
from .stage import adapter_names_of

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline
    from ..core.absorber import Absorber
    from ..core.clip import Clip
    from .settings import TrainSettings


def estimate_memory(
    pipeline: VideoPipeline, clips: Sequence[Clip], settings: TrainSettings, absorber: Absorber | None = None
) -> StepMemory:
    """The memory of the step that takes most, on the base's device; seconds of work, nothing allocated there.

    Weights are those of the network, and of text encoder and VAE where they stay beside it; a `memory` of the settings
    is kept to, or SettingsError says what it takes. Stages that train tokens alone are left out: they have no adapter.
    The frozen layers of an absorber count as nothing, as they are.
    """
    recipe = make_recipe(clips, settings, absorber)
    beside = 0
    if pipeline.device.type == "cpu" or not settings.offload_encoders:
        beside = bytes_of(pipeline.text_encoder) + bytes_of(pipeline.vae)
    found = [one for stage in recipe.stages for one in _of_stage(pipeline, recipe, stage, beside)]
    heaviest = max(found, key=lambda one: one.total, default=StepMemory(bytes_of(pipeline.unet), 0, 0))
    return StepMemory(heaviest.weights + beside, heaviest.trained, heaviest.activations)


def _of_stage(pipeline: VideoPipeline, recipe: Recipe, stage: Stage, beside: int) -> Iterator[StepMemory]:
    unet = pipeline.replica().unet.eval().requires_grad_(False)
    text = pipeline.read_prompts([""]).to(pipeline.dtype)
    adapters: dict[str, list[Adapter]] = {}
    for part in (part for part in stage.parts if not part.is_tokens):
        chosen = recipe.part(part)
        modules = target_modules(pipeline.unet, chosen.targets)
        for name in adapter_names_of(part, len(recipe.clips)):
            add_adapter(unet, name, modules, rank=chosen.rank, alpha=chosen.alpha, seed=0)
            adapters.setdefault(part.name, []).append(Adapter(unet, name))
    for a_pass in stage.passes:
        # Of a part with an adapter for each clip, one is on at a time.
        active = [adapters[name][0] for name in a_pass.trains if name in adapters]
        for adapter in (one for several in adapters.values() for one in several):
            adapter.set_strength(1.0 if adapter in active else 0.0)
            adapter.set_trainable(adapter in active)
        if active:
            yield _of_pass(pipeline, recipe, unet, stage, a_pass, text, beside)


def _of_pass(
    pipeline: VideoPipeline, recipe: Recipe, unet: Any, stage: Stage, a_pass: Pass, text: Text, beside: int
) -> StepMemory:
    shape, settings = _latents(pipeline, recipe, stage, a_pass), recipe.settings

    def loss() -> Tensor:
        noisy = torch.empty(shape, dtype=pipeline.dtype, device=pipeline.device)
        timesteps = torch.zeros(shape[0], dtype=torch.int64, device=pipeline.device)
        return pipeline.backbone.predict(unet, noisy, timesteps, text.expand(shape[0])).float().square().mean()

    with temporal_bypass(unet, a_pass.bypass):
        if settings.memory is not None:
            return choose_recomputed(unet, loss, int(settings.memory * GB) - beside)[1]
        every = range(len(pipeline.backbone.checkpointed(unet)))
        return count_step(unet, loss, every if settings.gradient_checkpointing else ())


def _latents(pipeline: VideoPipeline, recipe: Recipe, stage: Stage, a_pass: Pass) -> tuple[int, int, int, int, int]:
    """The largest batch (b, c, f, h, w) that a pass sees."""
    shapes = [pipeline.latent_shape(clip.num_frames, clip.height, clip.width) for clip in recipe.clips]
    batch, channels, frames, height, width = max(shapes, key=lambda shape: shape[2] * shape[3] * shape[4])
    if stage.batch == "frames":
        return min(recipe.settings.frames_per_step, frames), channels, 1, height, width
    return batch, channels, 1 if a_pass.frames == "one" else frames, height, width
