"""Small training runs on the tiny network, shared by the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tiny import tiny_frames, tiny_pipeline
from torch import Tensor

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.absorber import Absorber
from motion_lora.core.clip import Clip
from motion_lora.core.lora import LoRA
from motion_lora.methods.stages import Stage
from motion_lora.training import StageRun, StepReport, TrainSettings, make_recipe

CAPTION = "a red circle moving left over sand"
APPEARANCE = "a red circle over sand"


def sample_clip(
    seed: int = 0,
    *,
    caption: str = CAPTION,
    appearance_caption: str = APPEARANCE,
    absorb_words: str = "red circle",
    num_frames: int = 3,
) -> Clip:
    """A clip of 16 x 16 pixels: 4 x 4 latents."""
    frames = tiny_frames(seed, num_frames=num_frames, size=16)
    return Clip(frames, 8.0, caption, appearance_caption, absorb_words)


def small_pipeline(**changes: Any) -> VideoPipeline:
    """The playground's layout, two levels."""
    return tiny_pipeline(levels=2, **changes)


def in_dtype(dtype: torch.dtype) -> VideoPipeline:
    """A fresh pipeline in another precision."""
    pipeline = small_pipeline()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.to(dtype)
    return replace(pipeline, dtype=dtype)


def quick(**changes: Any) -> TrainSettings:
    """A few steps of everything, at a rate that shows."""
    few: dict[str, Any] = {
        "steps": 3,
        "absorber_steps": 2,
        "token_steps": 2,
        "rank": 2,
        "learning_rate": 1e-2,
        "absorber_learning_rate": 1e-2,
        "token_learning_rate": 1e-2,
        "frames_per_step": 2,
    }
    return TrainSettings(**{**few, **changes})


def stage_on(
    pipeline: VideoPipeline, stage: Stage, settings: TrainSettings, clips: Sequence[Clip], absorber: Absorber | None
) -> StageRun:
    """One stage made ready, as `train` does it."""
    recipe = make_recipe(clips, settings, absorber)
    return StageRun(pipeline, stage, recipe.with_new_tokens(pipeline), absorber)


@dataclass
class Listener:
    """A callback that keeps what it hears and answers `command` at (stage, step)."""

    at: tuple[str, int] = ("", 0)
    command: str = "continue"
    heard: list[StepReport] = field(default_factory=list)

    def __call__(self, report: StepReport) -> Any:
        self.heard.append(report)
        return self.command if (report.stage, report.step) == self.at else "continue"


def weights_of(pipeline: VideoPipeline) -> dict[str, Tensor]:
    """A copy of every weight of the base."""
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text": pipeline.text_encoder}
    return {f"{part}.{name}": weight.clone() for part, m in parts.items() for name, weight in m.state_dict().items()}


def same_weights(pipeline: VideoPipeline, before: dict[str, Tensor]) -> bool:
    now = weights_of(pipeline)
    return set(now) == set(before) and all(torch.equal(now[name], before[name]) for name in before)


def largest_change(lora: LoRA) -> float:
    """How far the up factors are from zero, where they start."""
    return max(float(layer.up.abs().max()) for layer in lora.layers.values())
