"""One step of a stage, rehearsed before a training on blank clips: what it holds in memory, and how long it takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..backbones.bypass import temporal_bypass
from ..base.pipeline import VideoPipeline
from ..base.placement import no_gradients
from ..methods.stages import Pass
from .batches import Draw, Material, Remember
from .ledger import counting, weights_of
from .looks import NUM_INFERENCE_STEPS, copies_at_once
from .memory import StepMemory, count_step, is_small
from .recipe import Recipe
from .stage import StageRun

# Timed steps after one to warm up, unless that one took so many seconds.
_REPEATS, _LONG = 3, 10.0


class Rehearsal(StageRun):
    """A stage made ready as for training, but on blank latents of the clips' sizes, so that nothing is encoded."""

    def _prepared(
        self, pipeline: VideoPipeline, reader: VideoPipeline, kinds: list[str], remember: Remember
    ) -> list[Material]:
        found = []
        for number, clip in enumerate(self._recipe.clips):
            latents = torch.zeros(pipeline.latent_shape(clip.num_frames, clip.height, clip.width), device=self.device)
            prompts, stills = self._recipe.prompts(number, self.tokens, kinds), None
            if not pipeline.backbone.frames_alone:
                still = pipeline.latent_shape(1, clip.height, clip.width)
                stills = torch.zeros((clip.num_frames, *still[1:]), device=self.device)
            found.append(Material(number, latents, latents, prompts, stills=stills, mirrored_stills=stills))
        return found

    def memory(self) -> StepMemory:
        """What the heaviest step takes."""
        return count_step(self.counted(self.largest_draw()), self.savings)

    @property
    def trained(self) -> int:
        """How many parameters train."""
        return sum(weight.numel() for weight in self.parameters.values())

    def seconds(self) -> float:
        """Of a step, by a few of them: those with and without optional passes by their probability."""
        share = self.settings.spatial_path_probability if any(p.optional for p in self.stage.passes) else 1.0
        with self.prepared():
            draw = self.draw(0)
            whole = self._timed_step(draw, self.stage.passes)
            if share == 1.0:
                return whole
            without = [a_pass for a_pass in self.stage.passes if not a_pass.optional]
            return share * whole + (1 - share) * self._timed_step(draw, without)

    def _timed_step(self, draw: Draw, passes: Sequence[Pass]) -> float:
        optimiser = torch.optim.AdamW(self.groups(), foreach=True if self.device.type == "cpu" else None)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            for _ in range(self.settings.gradient_accumulation):
                for a_pass in passes:
                    self.step(a_pass, draw, self.savings.images)
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm)
            optimiser.step()

        return timed(step, self.device)


def looks_cost(pipeline: VideoPipeline, recipe: Recipe, *, clock: bool) -> tuple[int, float]:
    """Bytes and, by the `clock`, seconds of redrawing the clips in other looks, before the first step."""
    settings, clip = recipe.settings, recipe.clips[0]
    unet = pipeline.replica().unet
    latents = torch.zeros(pipeline.latent_shape(clip.num_frames, clip.height, clip.width), device=pipeline.device)
    at_once = min(copies_at_once(latents), len(settings.looks))
    text = pipeline.read_prompts([clip.caption]).to(pipeline.dtype).expand(2 * at_once)
    batch = latents.expand(2 * at_once, -1, -1, -1, -1).to(pipeline.dtype)
    timestep = torch.zeros((), dtype=torch.long, device=pipeline.device)

    def predict() -> None:
        with no_gradients():
            pipeline.backbone.predict(unet, batch + 0, timestep, text)

    with temporal_bypass(unet):
        with counting(weights_of(unet), computed=is_small(unet, batch)) as ledger:
            predict()
        if not clock:
            return ledger.peak, 0.0
        batches = len(recipe.clips) * math.ceil(len(settings.looks) / at_once)
        return ledger.peak, batches * int(NUM_INFERENCE_STEPS * settings.look_strength + 1e-6) * timed(
            predict, pipeline.device
        )


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the median of a few, after one to warm up unless that took long."""
    first = _seconds(work, device)
    return first if first > _LONG else statistics.median(_seconds(work, device) for _ in range(_REPEATS))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - began
