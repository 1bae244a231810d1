"""Which checkpoint to keep: validation while training, and the rule that picks the best.

Every `every` steps the LoRA as it is makes a few videos, always of the same prompts and start noises, and the judge
scores them. The rule, in the words of `Limits`:

    A checkpoint is admissible when its leakage is at most `more_leakage` above the base's and its text alignment at
    least 1 - `less_alignment` times the base's. Of the admissible ones the best is that of the highest motion
    fidelity; among those within `tie` of it, the earliest. Where none is admissible, it is the one that is least
    beyond the limits.

Training has settled when `patience` validations in a row did not raise the highest admissible fidelity by more than
`tie`, not counting from before there was an admissible one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import SettingsError
from .files import load_lora, save_lora
from .judging import ALIGNMENT, LEAKAGE, MOTION, SCORES, Judge, Scores, mean_scores
from .lora import LoRA
from .pictures import Line, plot_lines, write_png
from .pipeline import VideoPipeline
from .sampling import SampleSettings, sample
from .stack import AdapterStack, StackEntry
from .storage import write_atomically
from .training import Callback, StepReport, TrainResult, TrainSettings
from .training.batches import derived_seed
from .training.settings import main_stages
from .training.visits import train_with_visits

RECORD = "validation.json"


@dataclass(frozen=True)
class Limits:
    """The rule's numbers; the module says what each means."""

    more_leakage: float = 0.1
    less_alignment: float = 0.1
    tie: float = 0.02
    patience: int = 4


@dataclass(frozen=True)
class Checkpoint:
    """The LoRA after `step`, scored."""

    step: int
    scores: Scores


@dataclass(frozen=True)
class Choice:
    """What the rule picked; `reason` is one sentence, `admissible` whether it keeps the limits."""

    step: int
    admissible: bool
    reason: str


@dataclass(frozen=True)
class ValidationPlan:
    """`every` so many steps, `noises` videos of each prompt are sampled and scored."""

    every: int
    prompts: tuple[str, ...]
    noises: int = 1
    seed: int = 0
    num_inference_steps: int = 15
    guidance_scale: float = 9.0
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    early_stop: bool = False


def excess(scores: Scores, base: Scores, limits: Limits) -> float:
    """How far beyond the limits, 0 for an admissible checkpoint; what was not measured sets no limit."""
    leaked = scores.get(LEAKAGE, 0.0) - (base.get(LEAKAGE, 0.0) + limits.more_leakage)
    floor = base.get(ALIGNMENT, 0.0) * (1 - limits.less_alignment)
    # In parts of the base's own alignment: CLIP's scale is 100, the probe's 1.
    missed = (floor - scores.get(ALIGNMENT, floor)) / max(base.get(ALIGNMENT, 0.0), 1e-9)
    return max(leaked, 0.0) + max(missed, 0.0)


def choose(points: Sequence[Checkpoint], base: Scores, limits: Limits | None = None) -> Choice:
    """The rule; raises SettingsError where there is nothing to choose from."""
    limits = limits or Limits()
    if not points:
        raise SettingsError("There is no checkpoint to choose from: no validation was made.")
    admissible = [point for point in points if excess(point.scores, base, limits) <= 0]
    if not admissible:
        best = min(points, key=lambda point: (excess(point.scores, base, limits), -_fidelity(point), point.step))
        beyond = excess(best.scores, base, limits)
        return Choice(
            best.step, False, f"no checkpoint keeps the limits; step {best.step} is the least beyond ({beyond:.3f})"
        )
    highest = max(_fidelity(point) for point in admissible)
    best = min((p for p in admissible if _fidelity(p) >= highest - limits.tie), key=lambda point: point.step)
    out = len(points) - len(admissible)
    text = (
        f"motion fidelity {_fidelity(best):.3f} at step {best.step}, the highest of {len(admissible)} within the limits"
    )
    return Choice(best.step, True, text + (f" ({out} beyond them)" if out else ""))


def has_settled(points: Sequence[Checkpoint], base: Scores, limits: Limits | None = None) -> bool:
    """Whether going on is not worth it; the module defines it."""
    limits = limits or Limits()
    highest, since = -math.inf, 0
    for point in points:
        admissible = excess(point.scores, base, limits) <= 0
        if admissible and _fidelity(point) > highest + limits.tie:
            highest, since = _fidelity(point), 0
        elif highest > -math.inf:
            since += 1
    return since >= limits.patience


def _fidelity(point: Checkpoint) -> float:
    return point.scores.get(MOTION, 0.0)


# Validation while training --------------------------------------------------------------------------------------------


class Validator:
    """Samples a plan's prompts and has them judged; what the base does is measured once, at the first call."""

    def __init__(self, pipeline: VideoPipeline, judge: Judge, plan: ValidationPlan) -> None:
        self._pipeline, self._judge, self.plan = pipeline, judge, plan
        self._neutral: list[Tensor] = []
        self._base: dict[str, float] = {}

    def base(self) -> dict[str, float]:
        """The scores of the base without a LoRA."""
        if not self._neutral:
            self._neutral = self._sample(AdapterStack())
            self._base = self._scores(self._neutral)
        return self._base

    def score(self, lora: LoRA) -> dict[str, float]:
        """The mean scores of the videos with the LoRA."""
        self.base()
        return self._scores(self._sample(AdapterStack().add(StackEntry(lora))))

    def _sample(self, stack: AdapterStack) -> list[Tensor]:
        return [video.frames for video in sample(self._pipeline, self._requests(), stack=stack)]

    def _scores(self, videos: Sequence[Tensor]) -> dict[str, float]:
        asked = zip(self._requests(), videos, self._neutral, strict=True)
        return mean_scores([self._judge.score(one.prompt, frames, neutral) for one, frames, neutral in asked])

    def _requests(self) -> list[SampleSettings]:
        plan = self.plan
        return [
            SampleSettings(
                prompt,
                num_frames=plan.num_frames,
                height=plan.height,
                width=plan.width,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                seed=derived_seed(plan.seed, "validation", number, noise),
            )
            for number, prompt in enumerate(plan.prompts)
            for noise in range(plan.noises)
        ]


class Record:
    """The validations of one run, on disk beside its checkpoint: scores, and the LoRA of every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = _read(folder / RECORD)
        self.base: dict[str, float] = content.get("base", {})
        self.points = [Checkpoint(entry["step"], entry["scores"]) for entry in content.get("points", [])]

    def add(self, step: int, lora: LoRA, scores: Scores, base: Scores) -> None:
        """Keep a checkpoint; one of the same step, from before a resume, is replaced."""
        save_lora(self._path(step), lora)
        others = [point for point in self.points if point.step < step]
        self.points, self.base = [*others, Checkpoint(step, scores)], dict(base)
        content = {"base": self.base, "points": [asdict(point) for point in self.points]}
        write_atomically(self.folder / RECORD, json.dumps(content).encode())

    def lora(self, step: int) -> LoRA:
        """The LoRA of a checkpoint."""
        return load_lora(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"validated-{step:06d}.safetensors"


@dataclass(frozen=True, eq=False)
class Validated:
    """A training with its validations. `best` is the LoRA that the rule chose, None where nothing was validated."""

    result: TrainResult
    base: Scores
    points: tuple[Checkpoint, ...]
    choice: Choice | None
    best: LoRA | None
    stopped_early: bool


def train_validated(
    run: Callable[[Callback], TrainResult],
    validator: Validator,
    folder: Path,
    settings: TrainSettings,
    *,
    callback: Callback | None = None,
    limits: Limits | None = None,
    heard: Callable[[Checkpoint, Scores], None] | None = None,
) -> Validated:
    """Train by `run(callback)` with a validation every `plan.every` steps of the motion stage, and at the end.

    `folder` keeps what was validated, so that an interrupted run goes on; it is the caller's to remove. `heard` is told
    of each checkpoint and of the base's scores. Raises SettingsError, before anything runs, when `every` is not a
    multiple of `report_every`, at which steps alone training can be interrupted.
    """
    check_plan(validator.plan, settings)
    record, limits = Record(folder), limits or Limits()
    stage, stopped = main_stages(settings)[-1].name, False

    def due(report: StepReport) -> bool:
        return report.stage == stage and report.step % validator.plan.every == 0

    def visit(lora: LoRA, step: int) -> str:
        nonlocal stopped
        scores = validator.score(lora)
        record.add(step, lora, scores, validator.base())
        if heard is not None:
            heard(record.points[-1], record.base)
        stopped = validator.plan.early_stop and has_settled(record.points, record.base, limits)
        return "stop" if stopped else "continue"

    result = train_with_visits(run, due, visit, callback)
    choice = choose(record.points, record.base, limits) if record.points else None
    best = record.lora(choice.step) if choice is not None else None
    return Validated(result, record.base, tuple(record.points), choice, best, stopped and result.ending == "stopped")


def check_plan(plan: ValidationPlan, settings: TrainSettings) -> None:
    """Raise SettingsError for a plan that cannot be followed."""
    if plan.every < 1 or plan.every % settings.report_every:
        raise SettingsError(
            f"validate_every is {plan.every}; it must be a multiple of report_every, which is {settings.report_every}."
        )
    if not plan.prompts:
        raise SettingsError("There is no prompt to validate with; give --validate-prompt, with looks of its own.")


# What is left of it ---------------------------------------------------------------------------------------------------


def curve_csv(points: Sequence[Checkpoint], base: Scores, chosen: int | None = None) -> str:
    """The curve as comma-separated lines; step 0 is the base, the last column marks the chosen checkpoint."""
    names = [name for name in SCORES if name in base or any(name in point.scores for point in points)]
    lines = [",".join(["step", *names, "best"])]
    for point in (Checkpoint(0, base), *points):
        values = [f"{point.scores[name]:.6g}" if name in point.scores else "" for name in names]
        lines.append(",".join([str(point.step), *values, "1" if point.step == chosen else "0"]))
    return "\n".join(lines) + "\n"


def write_curve(path: Path, points: Sequence[Checkpoint], base: Scores, chosen: int | None = None) -> tuple[Path, Path]:
    """Write the curve as `path`.csv and `path`.png and return both."""
    table = write_atomically(path.with_name(f"{path.name}.csv"), curve_csv(points, base, chosen).encode())
    title = "Validation" + (f": step {chosen} is the best" if chosen is not None else "")
    every = [Checkpoint(0, base), *points]
    lines = [
        # CLIP's text alignment runs to 100, the others to 1.
        Line(name.replace("_", " "), *_series(every, name))
        for name in (MOTION, LEAKAGE, ALIGNMENT)
        if any(name in point.scores for point in every)
    ]
    picture = plot_lines(lines, title=title, x_label="step", y_label="score (text alignment relative to the base)")
    return table, write_png(path.with_name(f"{path.name}.png"), picture)


def _series(points: Sequence[Checkpoint], name: str) -> tuple[list[float], list[float]]:
    kept = [point for point in points if name in point.scores]
    scale = kept[0].scores[name] if name == ALIGNMENT and kept[0].scores[name] > 0 else 1.0
    return [float(point.step) for point in kept], [point.scores[name] / scale for point in kept]


def _read(path: Path) -> dict[str, Any]:
    try:
        value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(value)
