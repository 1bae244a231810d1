"""The main job end to end: a clip from a video file, its motion as a LoRA, new videos with and without it, measured.

What `make demo` runs, and an example of the library's use. The base is a parameter, so the same job runs on any base
that knows the playground's words.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.clip import Clip
from ..core.disk import write_atomically
from ..core.errors import SettingsError
from ..core.lora import LoRA
from ..core.stack import AdapterStack, StackEntry
from ..evaluate.judge import Judge
from ..evaluate.playground_judge import playground_judge
from ..evaluate.scores import Scores, mean_scores, plain_name
from ..files.absorber_file import save_absorber
from ..files.own import load_lora, save_lora
from ..media.plots import plot_losses
from ..media.read import read_clip
from ..media.sheets import contact_sheet
from ..media.write import write_png, write_video
from ..methods.table import METHODS
from ..playground import world
from ..playground.defaults import PLAYGROUND_LOOKS
from ..playground.probe import path_of
from ..playground.probe import read_clip as read_scene
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings, resolve
from ..training import Callback, StepReport, TrainResult, TrainSettings, check_settings, train

# The reference's look shares nothing with the new looks, so that whatever of it turns up in a video has leaked.
REFERENCE_LOOK: Mapping[str, Any] = {
    "shape": "circle",
    "colour": "red",
    "background": "brick",
    "fill": "striped",
    "radius": 0.17,
    "scale": 0.22,
    "phase": 0.0,
    "centre": (0.5, 0.5),
}
NEW_LOOKS: tuple[Mapping[str, Any], ...] = (
    {"shape": "square", "colour": "blue", "background": "snow", "fill": "plain"},
    {"shape": "triangle", "colour": "yellow", "background": "night", "fill": "plain"},
    {"shape": "cross", "colour": "purple", "background": "sand", "fill": "plain"},
)
# Small clips are enlarged in the files, for eyes and because video codecs halve the resolution of colour.
_SIDE_IN_FILES = 256

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo shows. `absorber` and steps of None are the base's defaults."""

    motion: str = "orbit"
    method: str = "many-looks"
    absorber: str | None = None
    steps: int | None = None
    absorber_steps: int | None = None
    token_steps: int | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 2.5
    seed: int = 0
    reference_look: Mapping[str, Any] = field(default_factory=lambda: REFERENCE_LOOK)
    looks: tuple[Mapping[str, Any], ...] = NEW_LOOKS


@dataclass(frozen=True)
class DemoReport:
    """What came out: scores without and with the LoRA, mean and by video, seconds by phase, files by what they are."""

    motion: str
    prompts: tuple[str, ...]
    base: Scores
    customised: Scores
    base_videos: tuple[Scores, ...]
    customised_videos: tuple[Scores, ...]
    seconds: Mapping[str, float]
    files: Mapping[str, str]
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `report.json`."""
        return dataclasses.asdict(self)


@dataclass
class _Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


def run_demo(
    pipeline: VideoPipeline,
    output: Path,
    settings: DemoSettings | None = None,
    *,
    callback: Callback | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoReport:
    """Train on a reference clip, sample with and without the LoRA, measure, and write everything into `output`.

    `callback` hears of training steps, `progress(stage, step, total)` of sampling steps. Raises what `train`, `sample`
    and the writers raise, and SettingsError for a motion that the world does not know, before any work.
    """
    settings = settings or DemoSettings()
    check_demo(pipeline, settings)
    clock, report_progress, scenes = _Clock(), progress or _ignore, new_scenes(settings)
    with clock.phase("reference clip"):
        clip = reference_clip(pipeline, output / "reference.mp4", settings)
    with clock.phase("training"):
        result = train(pipeline, [clip], train_settings(pipeline, settings), callback=callback)
    lora = _keep(result, output, settings)
    with clock.phase("sampling"):
        stacks = {"base": AdapterStack(), "customised": AdapterStack((StackEntry(lora, name=settings.motion),))}
        videos = {
            name: sample_videos(pipeline, scenes, settings, stack, _steps_of(report_progress, name))
            for name, stack in stacks.items()
        }
    with clock.phase("measuring"):
        judge = playground_judge(clip.frames)
        scores = {name: scores_of(judge, scenes, made) for name, made in videos.items()}
    with clock.phase("writing"):
        files = _write_pictures(output, clip, result, scenes, videos)
    report = DemoReport(
        motion=settings.motion,
        prompts=tuple(world.caption(scene) for scene in scenes),
        base=mean_scores(scores["base"]),
        customised=mean_scores(scores["customised"]),
        base_videos=scores["base"],
        customised_videos=scores["customised"],
        seconds=clock.seconds,
        files={**files, "motion LoRA": _lora_path(output, settings).name, "report": "report.json"},
        settings={**dataclasses.asdict(settings), "training": dict(result.settings)},
    )
    write_atomically(output / "report.json", json.dumps(report.to_json(), indent=2).encode())
    return report


# Parts --------------------------------------------------------------------------------------------------------------


def check_demo(pipeline: VideoPipeline, settings: DemoSettings) -> None:
    """Raise SettingsError for settings with which the demo would end half-way."""
    reference_scene(settings)
    check_settings(train_settings(pipeline, settings))
    for request in _requests(new_scenes(settings), settings):
        resolve(pipeline, request)


def reference_scene(settings: DemoSettings) -> world.Scene:
    """The scene of the reference clip; raises SettingsError for a motion that the world does not know."""
    if settings.motion not in world.MOTIONS:
        raise SettingsError(f"The playground has no motion {settings.motion!r}; it has: {', '.join(world.MOTIONS)}.")
    return world.Scene(motion=settings.motion, **settings.reference_look)


def new_scenes(settings: DemoSettings) -> list[world.Scene]:
    """What the prompts ask for: the reference's motion with other looks."""
    return [world.Scene(motion=settings.motion, **look) for look in settings.looks]


def reference_clip(pipeline: VideoPipeline, path: Path, settings: DemoSettings) -> Clip:
    """Render the reference, write it as a video file, and read that file back as a user's clip would be read."""
    scene = reference_scene(settings)
    side, num_frames, fps = pipeline.default_height, pipeline.default_num_frames, pipeline.default_fps
    _write(path, world.render(scene, num_frames, side), fps)
    return read_clip(
        path,
        caption=world.caption(scene),
        appearance_caption=world.appearance_caption(scene),
        absorb_words=world.appearance_words(scene),
        num_frames=num_frames,
        fps=fps,
        height=side,
        width=side,
    )


def train_settings(pipeline: VideoPipeline, settings: DemoSettings) -> TrainSettings:
    """The method's defaults on this base, with what the demo's settings say otherwise."""
    names = ("absorber", "steps", "absorber_steps", "token_steps", "seed")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    found = dataclasses.replace(TrainSettings.for_base(pipeline, settings.method), **given)
    if METHODS[found.method].needs_looks and not found.looks:
        # Whatever the base is, the demo speaks of the playground's world.
        return dataclasses.replace(found, looks=PLAYGROUND_LOOKS)
    return found


def sample_videos(
    pipeline: VideoPipeline,
    scenes: Sequence[world.Scene],
    settings: DemoSettings,
    stack: AdapterStack,
    callback: Callable[[int, int], None],
) -> list[Tensor]:
    """One video (f, h, w, 3) per scene, each with a seed of its own, the same ones for every stack."""
    wanted = _requests(scenes, settings)
    return [one.frames for one in sample(pipeline, wanted, stack=stack, callback=callback)]


def _requests(scenes: Sequence[world.Scene], settings: DemoSettings) -> list[SampleSettings]:
    return [
        SampleSettings(
            prompt=world.caption(scene),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seed=settings.seed + number,
        )
        for number, scene in enumerate(scenes)
    ]


def scores_of(judge: Judge, scenes: Sequence[world.Scene], videos: Sequence[Tensor]) -> tuple[Scores, ...]:
    """The scores (`evaluate.scores`) of videos (f, h, w, 3), each of the scene that was prompted."""
    return tuple(judge.score(world.caption(scene), frames) for scene, frames in zip(scenes, videos, strict=True))


def summary(report: DemoReport, output: Path) -> list[str]:
    """Lines to show when the demo is done."""
    lines = [f"{'':22}{'base':>10}{'customised':>12}"]
    for name, before in report.base.items():
        lines.append(f"{plain_name(name):22}{before:10.2f}{report.customised[name]:12.2f}")
    lines += ["", f"{sum(report.seconds.values()):.0f} seconds; everything is in {output}:"]
    return [*lines, *(f"  {name}: {output / file}" for name, file in report.files.items())]


def losses_by_stage(reports: Sequence[StepReport]) -> dict[str, list[float]]:
    """The loss of every step, by stage in the order of training."""
    losses: dict[str, list[float]] = {}
    for report in reports:
        losses.setdefault(report.stage, []).append(report.loss)
    return losses


def _ignore(stage: str, step: int, total: int) -> None:
    pass


def _steps_of(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda step, total: progress(f"sampling {name}", step, total)


# Files --------------------------------------------------------------------------------------------------------------


def _lora_path(output: Path, settings: DemoSettings) -> Path:
    return output / f"{settings.motion}.safetensors"


def _keep(result: TrainResult, output: Path, settings: DemoSettings) -> LoRA:
    """Save what was trained; what is sampled with is what the file holds."""
    path = save_lora(_lora_path(output, settings), result.lora)
    if result.absorber is not None:
        save_absorber(output / "absorber.safetensors", result.absorber)
    return load_lora(path)


def _write_pictures(
    output: Path,
    clip: Clip,
    result: TrainResult,
    scenes: Sequence[world.Scene],
    videos: Mapping[str, Sequence[Tensor]],
) -> dict[str, str]:
    """Videos, contact sheet and loss plot; returns their names by what they are."""
    files = {"reference clip": "reference.mp4"}
    rows: list[tuple[str, Tensor]] = [(f"reference: {clip.caption}", clip.frames)]
    for number, scene in enumerate(scenes):
        for name, made in videos.items():
            file = f"{number + 1}-{scene.colour}-{scene.shape}-{name}.mp4"
            files[f"{name} {number + 1}"] = _write(output / file, made[number], clip.fps).name
            rows.append((f"{name}: {world.caption(scene)}", made[number]))
    paths = [path_of(read_scene(frames)) for _, frames in rows]
    sheet = contact_sheet(rows, title="The motion of the first row in new videos", paths=paths)
    write_png(output / "contact_sheet.png", sheet)
    write_png(output / "loss.png", plot_losses(losses_by_stage(result.losses), title="Training loss"))
    return {**files, "contact sheet": "contact_sheet.png", "loss plot": "loss.png"}


def _write(path: Path, frames: Tensor, fps: float) -> Path:
    return write_video(path, frames, fps, upscale=max(1, _SIDE_IN_FILES // frames.shape[1]))
