"""The benchmark's trainings: each is done once, kept on disk at every mark of its curve, and resumed after a kill.

An absorber is trained once per reference clip and kind, with seed 0, and used by all variants and seeds; a dual
absorber is the two kinds together, which train apart in any case. Its time counts for every variant that uses it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.absorber import Absorber
from ...core.clip import Clip
from ...core.disk import write_atomically
from ...core.errors import SettingsError, TrainingError
from ...core.lora import LoRA
from ...files.absorber_file import load_absorber, save_absorber
from ...files.own import load_lora, save_lora
from ...methods.table import ABSORBERS
from ...training import (
    Callback,
    StepReport,
    TrainingAbortedError,
    TrainResult,
    TrainSettings,
    fingerprint,
    train,
    train_absorber,
)
from ...training.settings import absorber_stages
from ...training.stops import train_with_visits

_TIMED_STEPS = 8
_WARM_UP = 3
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trained:
    """A training that is done: LoRA files by step, seconds of the motion stage and of the absorber, parameters.

    The seconds count what comes before the first step too: encoding, and redrawing the clip where a method does that.
    """

    loras: Mapping[int, Path]
    steps: int
    seconds: float
    absorber_seconds: float
    parameters: int

    def lora(self, step: int | None = None) -> LoRA:
        """The LoRA after a marked step; the last by default."""
        return load_lora(self.loras[self.steps if step is None else step])


def marks_of(steps: int, curve: Sequence[float]) -> tuple[int, ...]:
    """The steps at which the LoRA is kept: the parts of the curve, and the end."""
    return tuple(sorted({*(max(1, round(part * steps)) for part in curve), steps}))


class Workshop:
    """Trains what the cells need below one folder; `tell(what, step, total)` hears of every step."""

    def __init__(self, pipeline: VideoPipeline, folder: Path, tell: Tell) -> None:
        self._pipeline, self._folder, self._tell = pipeline, folder, tell

    def absorber(self, clip: Clip, settings: TrainSettings) -> tuple[Absorber | None, float]:
        """The absorber that the settings ask for, and the seconds that its training took."""
        # The parts of a dual absorber are trained apart, so that other cells can share them.
        alone = {kind.stages: name for name, kind in ABSORBERS.items() if len(kind.stages) == 1}
        kinds = [alone[stage,] for stage in absorber_stages(settings)]
        parts = [self._absorber_part(clip, replace(settings, absorber=kind, seed=0)) for kind in kinds]
        if not parts:
            return None, 0.0
        found = [absorber for absorber, _ in parts]
        spatial = next((absorber.spatial for absorber in found if absorber.spatial is not None), None)
        tokens = next((absorber.tokens for absorber in found if absorber.tokens is not None), None)
        return Absorber(spatial, tokens, found[0].metadata), sum(seconds for _, seconds in parts)

    def train(self, clip: Clip, settings: TrainSettings, marks: Sequence[int], name: str) -> Trained:
        """Train to the end, or find what was trained before; a training that was cut off goes on."""
        absorber, absorber_seconds = self.absorber(clip, settings)
        if absorber is None:
            settings = replace(settings, absorber="none")
        folder = self._folder / _key(fingerprint(self._pipeline.identity, [clip], settings, absorber), *marks)
        loras = {mark: folder / f"step-{mark:06d}.safetensors" for mark in marks}
        about = _read(folder / "training.json")
        if about is None:
            about = self._train(clip, settings, absorber, loras, folder, name)
        return Trained(loras, settings.steps, about["seconds"], absorber_seconds, about["parameters"])

    def steps_that_fit(self, clip: Clip, settings: TrainSettings, seconds: float, name: str) -> int:
        """How many motion steps fit into so many seconds beside the absorber; raises SettingsError for none.

        Measured once per kind of training and kept, so that a rerun has the same plan.
        """
        absorber, absorber_seconds = self.absorber(clip, settings)
        plan = {**settings.hashed(), "steps": 0, "seed": 0}
        path = self._folder / f"speed-{_key(self._pipeline.identity.weights_hash, plan)}.json"
        about = _read(path)
        if about is None:
            before, per_step = self._timing(clip, settings, absorber)
            ours: dict[str, Any] = {"variant": name, "before": before + absorber_seconds, "seconds_per_step": per_step}
            # Another shard may have been faster, and all go by one plan.
            about = _read(path) or ours
            write_atomically(path, json.dumps(about).encode())
        steps = int((seconds - about["before"]) / about["seconds_per_step"])
        if steps < 1:
            raise SettingsError(
                f"seconds is {seconds:g}, and {name} needs {about['before']:.1f} before its first step, its absorber "
                f"included, and {about['seconds_per_step']:.2f} for a step; give more."
            )
        return steps

    # ------------------------------------------------------------------ parts

    def _absorber_part(self, clip: Clip, settings: TrainSettings) -> tuple[Absorber, float]:
        # What belongs to the motion stage has no effect on an absorber.
        alike = {n: v for n, v in settings.hashed().items() if n.startswith(("absorber", "token", "num_tokens"))}
        alike |= {n: getattr(settings, n) for n in ("patch_crop", "frames_per_step", "horizontal_flip", "weight_decay")}
        folder = self._folder / f"absorber-{_key(self._pipeline.identity.weights_hash, clip.fingerprint(), alike)}"
        path, about = folder / "absorber.safetensors", _read(folder / "training.json")
        if about is None:
            seconds: list[float] = []
            absorber = train_absorber(
                self._pipeline,
                [clip],
                settings,
                callback=self._reporter("absorber", seconds),
                checkpoint=folder / "run",
            )
            save_absorber(path, absorber)
            about = {"seconds": sum(seconds)}
            write_atomically(folder / "training.json", json.dumps(about).encode())
            shutil.rmtree(folder / "run", ignore_errors=True)
        return load_absorber(path), about["seconds"]

    def _train(
        self,
        clip: Clip,
        settings: TrainSettings,
        absorber: Absorber | None,
        loras: Mapping[int, Path],
        folder: Path,
        name: str,
    ) -> dict[str, Any]:
        def run(callback: Callback) -> TrainResult:
            return train(
                self._pipeline, [clip], settings, absorber=absorber, callback=callback, checkpoint=folder / "run"
            )

        def visit(lora: LoRA, step: int) -> str:
            save_lora(loras[step], lora)
            return "continue"

        tell = _Before(self._reporter(name, []))

        def report(step: StepReport) -> str:
            tell(step)
            # Cut off between a checkpoint and its LoRA file: that point of the curve is lost, so start over.
            passed = [mark for mark, path in loras.items() if mark < step.step and not path.exists()]
            return "abort" if passed else "continue"

        try:
            result = train_with_visits(run, lambda step: step.step in loras, visit, report)
        except TrainingAbortedError:
            result = train_with_visits(run, lambda step: step.step in loras, visit, tell)
        if result.ending != "completed":
            raise TrainingError(f"The training of {name} ended {result.ending}; run the benchmark again to go on.")
        about = {
            "name": name,
            "seconds": tell.seconds + sum(report.seconds for report in result.losses),
            "parameters": result.lora.num_parameters,
            "settings": dict(result.settings),
        }
        write_atomically(folder / "training.json", json.dumps(about).encode())
        shutil.rmtree(folder / "run", ignore_errors=True)
        return about

    def _timing(self, clip: Clip, settings: TrainSettings, absorber: Absorber | None) -> tuple[float, float]:
        """Seconds before the first step, and per step."""
        seconds: list[float] = []
        if absorber is None:
            settings = replace(settings, absorber="none")
        short = replace(settings, steps=_TIMED_STEPS)
        report = _Before(self._reporter("timing", seconds))
        train(self._pipeline, [clip], short, absorber=absorber, callback=report)
        return report.seconds, statistics.fmean(seconds[_WARM_UP:])

    def _reporter(self, what: str, seconds: list[float]) -> Callback:
        def report(step: StepReport) -> str:
            seconds.append(step.seconds)
            self._tell(what, step.step, step.total)
            return "continue"

        return report


class _Before:
    """A callback around another that notes the seconds from its making to the beginning of the first step."""

    def __init__(self, callback: Callback) -> None:
        self._callback, self._began = callback, time.perf_counter()
        self.seconds = 0.0
        self._first = True

    def __call__(self, report: StepReport) -> str:
        if self._first:
            self.seconds, self._first = time.perf_counter() - self._began - report.seconds, False
        return self._callback(report)


def _key(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    """A small JSON file, None where there is none or half of one."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value
