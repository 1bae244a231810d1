"""What is sampled: settings, filled in with the base's values, and every fault of them named at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..base.pipeline import VideoPipeline
from ..base.schedulers import SCHEDULERS
from ..core.errors import SettingsError

MAX_FRAMES = 1024
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1
MAX_FPS = 240.0


@dataclass(frozen=True)
class SampleSettings:
    """What to sample. None stands for the base's own value; sizes in pixels; `seed` gives one video.

    A `guidance_scale` of 1 or less skips the unconditional pass. `edit_strength` counts for video-to-video only: the
    share of the steps that are run on the source's noised latents, 1 for all of them (SDEdit).

    With `context_frames` the network never sees more frames than that at once: a longer video is denoised in windows of
    that many, `context_overlap` of them shared by neighbours; `loop` joins its end to its beginning. 0: all at once.
    """

    prompt: str
    negative_prompt: str = ""
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 30
    guidance_scale: float | None = None
    scheduler: str = "ddim"
    seed: int = 0
    fps: float | None = None
    edit_strength: float = 1.0
    context_frames: int = 0
    context_overlap: int = 4
    loop: bool = False


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
    steps, most = settings.num_inference_steps, pipeline.max_inference_steps
    texts: dict[str, object] = {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt}
    yield from (f"{name} is {text!r}; it must be text" for name, text in texts.items() if not isinstance(text, str))
    yield from (wrong_frames := list(_whole("num_frames", settings.num_frames, 1, MAX_FRAMES)))
    wrong_windows = list(_window_faults(pipeline, settings))
    yield from wrong_windows
    if not wrong_frames and not wrong_windows:
        yield from _frames_faults(pipeline, settings)
    yield from _whole("num_inference_steps", steps, 1, most)
    yield from _whole("seed", settings.seed, 0, MAX_SEED)
    yield from _number("guidance_scale", settings.guidance_scale, 0.0, MAX_GUIDANCE)
    yield from _number("fps", settings.fps, 0.1, MAX_FPS)
    if settings.scheduler not in SCHEDULERS:
        yield f"scheduler is {settings.scheduler!r}; it must be one of: {', '.join(SCHEDULERS)}"
    sizes = [*_whole("height", settings.height, 1, 2**16), *_whole("width", settings.width, 1, 2**16)]
    yield from sizes
    if not sizes and (fault := pipeline.size_fault(settings.height or 0, settings.width or 0)):
        yield fault
    yield from _edit_faults(settings, editing)


def _window_faults(pipeline: VideoPipeline, settings: SampleSettings) -> Iterator[str]:
    wrong = list(_whole("context_frames", settings.context_frames, 0, MAX_FRAMES))
    yield from wrong
    if not wrong and 0 < settings.context_frames < (settings.num_frames or 0):
        most = settings.context_frames - 1
        yield from _whole("context_overlap", settings.context_overlap, 0, most)
    if settings.context_frames and not pipeline.backbone.frames_alone:
        yield f"context_frames is {settings.context_frames}, where the base sees whole clips; leave it at 0"
    loop: object = settings.loop
    if not isinstance(loop, bool):
        yield f"loop is {loop!r}; it must be true or false"
    elif loop and not wrong and not settings.context_frames:
        yield "loop is on, but context_frames is 0; give the frames of a window, such as the base's own number"


def _frames_faults(pipeline: VideoPipeline, settings: SampleSettings) -> Iterator[str]:
    """Only as many frames as one window has must fit the network."""
    frames = settings.num_frames or 1
    if fault := pipeline.frames_fault(min(frames, settings.context_frames or frames)):
        yield f"{fault}, or sample a longer video in windows (context_frames)"
    backbone, vae = pipeline.backbone, pipeline.vae
    if not fault and (made := backbone.num_frames(vae, backbone.latent_frames(vae, frames))) != frames:
        yield f"num_frames is {frames}; latents of this base are of {made}"


def _edit_faults(settings: SampleSettings, editing: bool) -> Iterator[str]:
    strength = settings.edit_strength
    wrong = list(_number("edit_strength", strength, 0.0, 1.0))
    yield from wrong
    if wrong or not isinstance(settings.num_inference_steps, int):
        return
    if not editing and strength != 1.0:
        yield f"edit_strength is {strength}, but there is no source clip to edit; leave it at 1 or give one"
    if steps_run(settings) < 1:
        steps = settings.num_inference_steps
        yield f"edit_strength {strength} of {steps} steps leaves none to run; use at least {1 / max(steps, 1):.3g}"


def _whole(name: str, value: object, low: int, high: int) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        yield f"{name} is {value!r}; it must be a whole number from {low} to {high}"


def _number(name: str, value: object, low: float, high: float) -> Iterator[str]:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        yield f"{name} is {value!r}; it must be a number from {low:g} to {high:g}"


def is_guided(settings: SampleSettings) -> bool:
    """Whether resolved settings need the unconditional pass."""
    return (settings.guidance_scale or 0.0) > 1.0


def steps_run(settings: SampleSettings) -> int:
    """How many of the steps are taken: all but those that an edit leaves out."""
    return math.floor(settings.num_inference_steps * settings.edit_strength + 1e-6)
