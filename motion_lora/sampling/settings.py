"""What is sampled: settings, filled in with the base's values, and every fault of them named at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.errors import SettingsError
from ..core.fields import MISSING, described, field_faults, number_fault, setting

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline

MAX_FRAMES = 1024
MAX_SEED = 2**64 - 1
_MAX_SIDE = 2**16


def _schedulers() -> Sequence[str]:
    # The table needs torch, and the help of the command line does without.
    from ..base.schedulers import SCHEDULERS

    return tuple(SCHEDULERS)


@dataclass(frozen=True)
class SampleSettings:
    """What to sample; `seed` gives one video. None stands for the base's own value.

    Each field says what it does and in which range; `SAMPLING` has all descriptions by name.
    """

    prompt: str = setting(MISSING, "What to show.")
    negative_prompt: str = setting("", "What not to show.")
    num_frames: int | None = setting(None, "Frames.", low=1, high=MAX_FRAMES)
    height: int | None = setting(None, "Height in pixels.", low=1, high=_MAX_SIDE)
    width: int | None = setting(None, "Width in pixels.", low=1, high=_MAX_SIDE)
    num_inference_steps: int = setting(30, "Denoising steps: more is slower and finer.", low=1, high=1000)
    guidance_scale: float | None = setting(
        None,
        "Classifier-free guidance: how strictly the prompt is followed. 1 or less: none, twice as fast.",
        low=0.0,
        high=100.0,
    )
    scheduler: str = setting("ddim", "The sampling method.", choices=_schedulers)
    seed: int = setting(0, "Seed of the start noise.", low=0, high=MAX_SEED)
    fps: float | None = setting(None, "Frames per second of the video.", low=0.1, high=240.0, has_effect=False)
    # SDEdit, Meng et al. 2022.
    edit_strength: float = setting(
        1.0,
        "Share of the steps that are run on the source's noised latents: 1 leaves little of it, 0.3 most.",
        low=0.0,
        high=1.0,
    )
    context_frames: int = setting(
        0,
        "For more frames than the base model was made for: denoise them in overlapping windows of so many, 16 for "
        "AnimateDiff and ModelScope, 8 for the playground. 0: all at once.",
        low=0,
        high=MAX_FRAMES,
    )
    context_overlap: int = setting(
        4, "Frames that neighbouring windows share: more is smoother and slower.", low=0, high=MAX_FRAMES
    )
    loop: bool = setting(False, "With windows: join the end of the video to its beginning, so that it can be repeated.")


SAMPLING = described(SampleSettings)
"""The description of every setting of sampling, by name, in order."""


def resolve(pipeline: VideoPipeline, settings: SampleSettings, *, editing: bool = False) -> SampleSettings:
    """The settings with the base's values in place of None; raises SettingsError that names every fault at once."""
    resolved = replace(
        settings,
        num_frames=pipeline.default_num_frames if settings.num_frames is None else settings.num_frames,
        height=pipeline.default_height if settings.height is None else settings.height,
        width=pipeline.default_width if settings.width is None else settings.width,
        fps=pipeline.default_fps if settings.fps is None else settings.fps,
        guidance_scale=(
            pipeline.default_guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        ),
    )
    faults = list(_faults(pipeline, resolved, editing))
    if faults:
        raise SettingsError("; ".join(faults) + ".")
    return resolved


# Checks -------------------------------------------------------------------------------------------------------------
def _faults(pipeline: VideoPipeline, settings: SampleSettings, editing: bool) -> Iterator[str]:
    wrong = field_faults(settings, {"num_inference_steps": pipeline.max_inference_steps})
    yield from wrong.values()
    if not {"num_frames", "context_frames", "context_overlap", "loop"} & wrong.keys():
        wrong_windows = list(_window_faults(pipeline, settings))
        yield from wrong_windows or _frames_faults(pipeline, settings)
    sizes = settings.height or 0, settings.width or 0
    if not {"height", "width"} & wrong.keys() and (fault := pipeline.size_fault(*sizes)):
        yield fault
    if not {"edit_strength", "num_inference_steps"} & wrong.keys():
        yield from _edit_faults(settings, editing)


def _window_faults(pipeline: VideoPipeline, settings: SampleSettings) -> Iterator[str]:
    overlap = settings.context_overlap
    if 0 < settings.context_frames < (settings.num_frames or 0) and (
        fault := number_fault(overlap, True, 0, settings.context_frames - 1)
    ):
        yield f"context_overlap is {overlap}, it must be {fault}"
    if settings.context_frames and not pipeline.backbone.frames_alone:
        yield f"context_frames is {settings.context_frames}, where the base sees whole clips; leave it at 0"
    if settings.loop and not settings.context_frames:
        yield "loop is on, but context_frames is 0; give the frames of a window, such as the base's own number"


def _frames_faults(pipeline: VideoPipeline, settings: SampleSettings) -> Iterator[str]:
    """Only as many frames as one window has must fit the network."""
    frames = settings.num_frames or 1
    if fault := pipeline.frames_fault(min(frames, settings.context_frames or frames)):
        windowed = 0 < settings.context_frames < frames
        yield (
            f"context_frames: {fault}" if windowed else f"{fault}, or sample a longer video in windows (context_frames)"
        )
    backbone, vae = pipeline.backbone, pipeline.vae
    if not fault and (made := backbone.num_frames(vae, backbone.latent_frames(vae, frames))) != frames:
        yield f"num_frames is {frames}; latents of this base are of {made}"


def _edit_faults(settings: SampleSettings, editing: bool) -> Iterator[str]:
    strength = settings.edit_strength
    if not editing and strength != 1.0:
        yield f"edit_strength is {strength}, but there is no source clip to edit; leave it at 1 or give one"
    if steps_run(settings) < 1:
        steps = settings.num_inference_steps
        yield f"edit_strength {strength} of {steps} steps leaves none to run; use at least {1 / max(steps, 1):.3g}"


def is_guided(settings: SampleSettings) -> bool:
    """Whether resolved settings need the unconditional pass."""
    return (settings.guidance_scale or 0.0) > 1.0


def steps_run(settings: SampleSettings) -> int:
    """How many of the steps are taken: all but those that an edit leaves out."""
    return math.floor(settings.num_inference_steps * settings.edit_strength + 1e-6)
