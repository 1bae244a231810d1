"""Trains, samples and scores the cells. A finished cell is a file; a rerun does those that are missing or stale.

Every row gets the same seconds: its absorber is trained first, then as many steps as fit into what is left. How long a
step takes is timed once per row and machine, so that shards on several machines each keep to the time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...base.pipeline import VideoPipeline
from ...core.clip import Clip
from ...core.disk import write_atomically
from ...core.errors import SettingsError
from ...core.lora import LoRA
from ...evaluate.scores import (
    ALIGNMENT,
    LEAKAGE,
    MOTION,
    OWN_MOTION,
    PLACE,
    SIZE,
    UNNAMED_LEAKAGE,
)
from ...files.own import load_lora, save_lora
from ...playground import world
from ...playground.probe import Reading, path_of, read_clip
from ...playground.prompts import other_looks
from ...playground.scores import diversity, score_reading, shown_share
from ...sampling.loop import sample
from ...sampling.settings import SampleSettings
from ...training import Callback, StepReport, TrainSettings, train, train_absorber
from ...training.batches import derived_seed
from .plan import UNNAMED, BenchPlan, Cell, cells, check_plan, clip_of, perfect_copies, reference_scene
from .rows import Row, find_rows

# What a measurement means; a change makes finished cells stale.
_VERSION = 3
_TIMED_STEPS, _WARM_UP = 6, 2
_FOLDER, _WORK = "cells", "work"
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """A LoRA, the steps of its motion stage, and the seconds of all of its training."""

    lora: LoRA
    steps: int
    seconds: float


def run_cells(
    pipeline: VideoPipeline,
    output: Path,
    plan: BenchPlan,
    *,
    shard: tuple[int, int] = (1, 1),
    tell: Tell | None = None,
    done: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of a shard; returns every finished cell of the whole plan, other shards' too.

    `tell` hears of training steps, `done(name, number, total)` of cells. Raises SettingsError before work starts.
    """
    check_plan(plan)
    for row in find_rows(plan.rows):
        if row.method:
            row.train_settings(pipeline, dict(plan.training))
    runner, wanted = _Runner(pipeline, output, plan, tell or _silent), cells(plan, shard)
    for number, cell in enumerate(wanted, start=1):
        if runner.finished(cell) is None:
            runner.run(cell)
        if done is not None:
            done(cell.name, number, len(wanted))
    return [content for cell in cells(plan) if (content := runner.finished(cell)) is not None]


class _Runner:
    def __init__(self, pipeline: VideoPipeline, output: Path, plan: BenchPlan, tell: Tell) -> None:
        self._pipeline, self._output, self._plan, self._tell = pipeline, output, plan, tell

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """What the cell's file holds, if this base and these settings made it."""
        content = _read(self._path(cell))
        return content if content is not None and content.get("fingerprint") == self._fingerprint(cell) else None

    def run(self, cell: Cell) -> None:
        """Train where it has to be, sample, score, write the file."""
        trained = self._trained(cell) if cell.row.method else None
        scene = reference_scene(cell.unit, self._plan)
        content = {
            "fingerprint": self._fingerprint(cell),
            "row": cell.row.name,
            "motion": cell.unit.motion,
            "reference": cell.unit.reference,
            "steps": trained.steps if trained else 0,
            "seconds": trained.seconds if trained else 0.0,
            "scores": self._scores(cell.row, trained.lora if trained else None, scene),
        }
        write_atomically(self._path(cell), (json.dumps(content) + "\n").encode())

    # Training

    def _trained(self, cell: Cell) -> Trained:
        """Train, or take what a row with the same training left: such rows differ in sampling alone."""
        name = _digest(self._training(cell))
        path = self._output / _WORK / f"{name}.safetensors"
        about = _read(path.with_suffix(".json"))
        if about is None:
            clips = self._clips(cell)
            settings = cell.row.train_settings(self._pipeline, {**dict(self._plan.training), "seed": self._plan.seed})
            trained = train_for(
                self._pipeline, clips, settings, self._plan.seconds, cell.row, self._output / _WORK, self._tell
            )
            save_lora(path, trained.lora)
            about = {"steps": trained.steps, "seconds": trained.seconds}
            write_atomically(path.with_suffix(".json"), json.dumps(about).encode())
        return Trained(load_lora(path), about["steps"], about["seconds"])

    def _clips(self, cell: Cell) -> list[Clip]:
        scene = reference_scene(cell.unit, self._plan)
        return perfect_copies(self._pipeline, scene) if cell.row.perfect_copies else [clip_of(self._pipeline, scene)]

    # Scores

    def _scores(self, row: Row, lora: LoRA | None, scene: world.Scene) -> dict[str, float]:
        plan = self._plan
        asked = other_looks(scene, plan.other_looks)
        wanted = [(scene, UNNAMED, plan.noises), *((one, (), plan.noises) for one in asked)]
        wanted.append((asked[0], UNNAMED, plan.open_noises))
        requests = [
            self._request(one, unnamed, number, noise)
            for number, (one, unnamed, noises) in enumerate(wanted)
            for noise in range(noises)
        ]
        videos = iter([made.frames for made in sample(self._pipeline, requests, stack=row.stack(lora), batch_size=8)])
        groups = [[next(videos) for _ in range(noises)] for _, _, noises in wanted]
        reference = clip_of(self._pipeline, scene).frames
        return score_groups(reference, scene, groups[0], asked, groups[1:-1], groups[-1])

    def _request(self, scene: world.Scene, unnamed: tuple[str, ...], number: int, noise: int) -> SampleSettings:
        return SampleSettings(
            world.caption(scene, unnamed),
            num_inference_steps=self._plan.num_inference_steps,
            guidance_scale=self._plan.guidance_scale,
            seed=derived_seed(self._plan.seed, "bench", number, noise),
        )

    # Files

    def _path(self, cell: Cell) -> Path:
        return self._output / _FOLDER / f"{cell.name}.json"

    def _training(self, cell: Cell) -> dict[str, Any]:
        """All that decides what is trained."""
        row, plan = cell.row, self._plan
        return {
            "base": self._pipeline.identity.weights_hash,
            "scene": asdict(reference_scene(cell.unit, plan)),
            "training": row.train_settings(self._pipeline, dict(plan.training)).to_json() if row.method else None,
            "copies": row.perfect_copies,
            "seconds": plan.seconds,
            "most_steps": row.most_steps,
            "seed": plan.seed,
        }

    def _fingerprint(self, cell: Cell) -> str:
        plan, highway = self._plan, cell.row.highway
        sampling = (plan.other_looks, plan.noises, plan.open_noises, plan.num_inference_steps, plan.guidance_scale)
        return _digest([_VERSION, self._training(cell), sampling, asdict(highway) if highway else None])


def train_for(
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    seconds: float,
    row: Row,
    folder: Path,
    tell: Tell,
) -> Trained:
    """Train for so many seconds, absorber and redrawing included. Raises SettingsError where not one step fits.

    The time of a step, and of all before the first, is in `folder`, per row and machine; a missing one is timed.
    """
    began, absorber = time.perf_counter(), None
    if str(settings.resolved().absorber) != "none":
        absorber = train_absorber(pipeline, clips, settings, callback=_reporter(tell, f"{row.name}: absorber"))
    spent = time.perf_counter() - began
    if absorber is None:
        settings = replace(settings, absorber="none")

    def run(steps: int, name: str, callback: Callback) -> LoRA:
        now = replace(settings, steps=steps)
        return train(pipeline, clips, now, absorber=absorber, callback=callback).lora

    about = _speed(run, settings, row, folder, tell)
    steps = int((seconds - spent - about["before"]) / about["per_step"])
    if steps < 1:
        raise SettingsError(
            f"seconds is {seconds:g}, and {row.name} needs {spent + about['before']:.1f} before its first step, its "
            f"absorber and its redrawing included, and {about['per_step']:.2f} for a step; give more (--seconds)."
        )
    steps = min(steps, row.most_steps or steps)
    began = time.perf_counter()
    lora = run(steps, row.name, _reporter(tell, row.name))
    return Trained(lora, steps, spent + time.perf_counter() - began)


def _speed(
    run: Callable[[int, str, Callback], LoRA], settings: TrainSettings, row: Row, folder: Path, tell: Tell
) -> Mapping[str, float]:
    """Seconds `before` the first step and `per_step`."""
    alike = {name: value for name, value in settings.to_json().items() if name not in ("steps", "seed")}
    path = folder / f"speed-{_digest([platform.node(), row.name, alike])}.json"
    about = _read(path)
    if about is None:
        each: list[float] = []

        def report(step: StepReport) -> str:
            each.append(step.seconds)
            tell(f"{row.name}: timing", step.step, step.total)
            return "continue"

        began = time.perf_counter()
        run(_TIMED_STEPS, row.name, report)
        whole = time.perf_counter() - began
        about = {"before": whole - sum(each), "per_step": statistics.fmean(each[_WARM_UP:])}
        write_atomically(path, json.dumps(about).encode())
    return about


def score_groups(
    reference: Tensor,
    scene: world.Scene,
    own: Sequence[Tensor],
    asked: Sequence[world.Scene],
    others: Sequence[Sequence[Tensor]],
    unnamed: Sequence[Tensor],
) -> dict[str, float]:
    """Mean scores of videos (f, h, w, 3): under the reference's `own` caption, in `others`' looks, and where unnamed.

    Diversity is that of the videos whose look is unnamed, which have most start noises; it is left out where the probe
    finds no object in two of them.
    """
    against = read_clip(reference)
    pairs = [(read_clip(video), one) for one, videos in zip(asked, others, strict=True) for video in videos]
    scored = [score_reading(reading, one, against) for reading, one in pairs]
    openly = [read_clip(video) for video in unnamed]
    scores = {
        MOTION: statistics.fmean(one.fidelity for one in scored),
        OWN_MOTION: statistics.fmean(score_reading(read_clip(video), scene, against).fidelity for video in own),
        LEAKAGE: statistics.fmean(one.mean_leakage for one in scored),
        UNNAMED_LEAKAGE: statistics.fmean(
            shown_share(reading, name, getattr(against, name)) for reading in openly for name in UNNAMED
        ),
        ALIGNMENT: statistics.fmean(one.alignment for one in scored),
    }
    return {**scores, **_diversity(openly)}


def _diversity(readings: Sequence[Reading]) -> dict[str, float]:
    if sum(path_of(reading) is not None for reading in readings) < 2:
        return {}
    found = diversity(readings)
    return {PLACE: found.position, SIZE: found.size}


def _reporter(tell: Tell, what: str) -> Callback:
    def report(step: StepReport) -> str:
        tell(what, step.step, step.total)
        return "continue"

    return report


def _silent(what: str, step: int, total: int) -> None:
    pass


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where there is none, or half of one from before a kill."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value
