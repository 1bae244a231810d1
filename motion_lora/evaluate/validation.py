"""Validation while training: every so many steps a few videos are sampled with the LoRA as it is, and scored.

Always the same prompts and start noises, so that the curve shows the LoRA and not the draw. What was scored is kept on
disk beside the checkpoint of the training, with the LoRA of each step, so that an interrupted training goes on with its
validations as they were, and the best checkpoint (checkpoints.py) can be handed out at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.clip import Clip
from ..core.disk import remove_files, remove_if_empty, write_atomically
from ..core.errors import LoRAFileError, SettingsError
from ..core.lora import LoRA
from ..core.stack import AdapterStack, StackEntry
from ..files.container import read_tensors, serialize
from ..files.own import load_lora, save_lora
from ..playground import world
from ..playground.model import is_playground
from ..playground.prompts import asked_scene, other_looks
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings, resolve
from ..training import StepReport, TrainResult, TrainSettings
from ..training.batches import derived_seed
from ..training.settings import main_stages
from ..training.stops import View, Visitor
from .checkpoints import Checkpoint, Choice, Limits, choose, has_settled
from .judge import Judge, motion_fault
from .scores import MOTION, Scores, mean_scores

RECORD = "validation.json"
_NEUTRAL, _LORA = "base.safetensors", "validated-"
# What the playground was tuned for.
_PLAYGROUND_PROMPTS, _PLAYGROUND_NOISES = 3, 4


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


def validation_plan(
    pipeline: VideoPipeline,
    clip: Clip,
    every: int,
    prompts: Sequence[str] = (),
    *,
    num_inference_steps: int = 15,
    early_stop: bool = False,
) -> ValidationPlan:
    """A plan for training on `clip`, in its size and length.

    Without `prompts` a caption in the playground's words gives its motion in other looks; any other leaves the plan
    without a prompt, which `check_plan` refuses.
    """
    playground = is_playground(pipeline)
    return ValidationPlan(
        every,
        tuple(prompts) or _other_prompts(clip.caption),
        noises=_PLAYGROUND_NOISES if playground else 1,
        num_inference_steps=num_inference_steps,
        guidance_scale=pipeline.default_guidance_scale,
        num_frames=clip.num_frames,
        height=clip.height,
        width=clip.width,
        early_stop=early_stop,
    )


def _other_prompts(caption: str) -> tuple[str, ...]:
    scene = asked_scene(caption)
    return () if scene is None else tuple(world.caption(s) for s in other_looks(scene, _PLAYGROUND_PROMPTS))


def check_plan(plan: ValidationPlan, settings: TrainSettings) -> None:
    """Raise SettingsError for a plan that cannot be followed."""
    if plan.every < 1 or plan.every % settings.report_every:
        raise SettingsError(
            f"validate_every is {plan.every}; it must be a multiple of report_every, which is {settings.report_every}."
        )
    if not plan.prompts:
        raise SettingsError(
            "There is no prompt to validate with; name one or more, with the clip's motion and a look that is not the "
            "clip's (validate_prompts, --validate-prompt)."
        )


def check_validation(
    plan: ValidationPlan, pipeline: VideoPipeline, reference: Tensor, settings: TrainSettings, *, keep_best: bool
) -> None:
    """`check_plan`, and SettingsError for a validation that cannot be sampled or says nothing of a motion.

    `reference` is the first clip (f, h, w, 3). Where its motion cannot be measured there is no best checkpoint and no
    time to stop, so neither `keep_best` nor `plan.early_stop` can be followed; scores of the look alone still can.
    """
    if not any(stage.learns_motion for stage in main_stages(settings)):
        raise SettingsError(
            f"validate_every is {plan.every}, and method {settings.method!r} learns a look, which no validation of "
            "motion can judge; do without validate_every (0)."
        )
    check_plan(plan, settings)
    for request in _requests(plan):
        resolve(pipeline, request)
    fault = motion_fault(pipeline, reference) if keep_best or plan.early_stop else ""
    if fault:
        raise SettingsError(
            f"The best checkpoint cannot be told, nor an early stop: motion fidelity cannot be measured ({fault}). Set "
            "keep to last (--no-keep-best) and switch early_stop off, or do without validate_every (0)."
        )


def _requests(plan: ValidationPlan) -> list[SampleSettings]:
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


# Validation while training --------------------------------------------------------------------------------------------


class Validator:
    """Samples a plan's prompts and has them judged; what the base does is measured once, at the first call."""

    def __init__(self, pipeline: VideoPipeline, judge: Judge, plan: ValidationPlan) -> None:
        self._pipeline, self._judge, self.plan = pipeline, judge, plan
        self._neutral: list[Tensor] = []
        self._base: dict[str, float] = {}

    @property
    def identity(self) -> str:
        """Whose scores these are: see `Judge.identity`."""
        return self._judge.identity

    def base(self) -> dict[str, float]:
        """The scores of the base without a LoRA."""
        if not self._neutral:
            self._neutral = self._sample(AdapterStack())
            self._base = self._scores(self._neutral)
        return self._base

    def neutral(self) -> list[Tensor]:
        """The base's own videos, frames (f, h, w, 3) each, which leakage is measured against."""
        self.base()
        return self._neutral

    def know(self, neutral: Sequence[Tensor], base: Scores) -> None:
        """Take what another validator of the same plan has found of the base."""
        self._neutral, self._base = list(neutral), dict(base)

    def score(self, lora: LoRA) -> dict[str, float]:
        """The mean scores of the videos with the LoRA."""
        self.base()
        return self._scores(self._sample(AdapterStack().add(StackEntry(lora))))

    def _sample(self, stack: AdapterStack) -> list[Tensor]:
        return [video.frames for video in sample(self._pipeline, _requests(self.plan), stack=stack)]

    def _scores(self, videos: Sequence[Tensor]) -> dict[str, float]:
        asked = zip(_requests(self.plan), videos, self._neutral, strict=True)
        return mean_scores([self._judge.score(one.prompt, frames, neutral) for one, frames, neutral in asked])


class Record:
    """The validations of one run, on disk beside its checkpoint: scores, and the LoRA of every one of them.

    One that was made by another plan counts for nothing. Scores that another `judge` (its identity) gave count for
    nothing either, but their LoRAs stay and can be scored again; a record from before judges were named is taken as is.
    """

    def __init__(self, folder: Path, plan: ValidationPlan, judge: str = "") -> None:
        self.folder, self._judge = folder, judge
        self._plan: dict[str, Any] = json.loads(json.dumps(asdict(replace(plan, early_stop=False))))
        content = _read(folder / RECORD)
        if content and content.get("plan") != self._plan:
            content = {}
            remove_files(self._paths())
        if content.get("judge", judge) != judge:
            content = {}
        self.base: dict[str, float] = content.get("base", {})
        self.points = [Checkpoint(entry["step"], entry["scores"]) for entry in content.get("points", [])]

    def neutral(self) -> list[Tensor]:
        """The base's own videos; none before the first validation, or where they are damaged."""
        try:
            found = read_tensors(self.folder / _NEUTRAL, own=True)
        except (LoRAFileError, OSError):
            return []
        return [found[f"{number:04d}"] for number in range(len(found))] if self.base else []

    def open(self, base: Scores, neutral: Sequence[Tensor]) -> None:
        """Keep what the base does; scores that were made beside another are forgotten."""
        tensors = {f"{number:04d}": frames.contiguous() for number, frames in enumerate(neutral)}
        write_atomically(self.folder / _NEUTRAL, serialize(tensors, {}))
        self.base, self.points = dict(base), []
        self._write()

    def keep(self, step: int, lora: LoRA) -> None:
        """Keep a LoRA that is still to be scored; later ones, from before training went back, are forgotten."""
        remove_files(path for path in self._paths() if _step_of(path) > step)
        save_lora(self._path(step), lora)
        self.points = [point for point in self.points if point.step < step]

    def add(self, step: int, scores: Scores) -> None:
        """Keep the scores of the LoRA of a step."""
        self.points = sorted([*self.points, Checkpoint(step, dict(scores))], key=lambda point: point.step)
        self._write()

    def unscored(self) -> list[int]:
        """The steps of the LoRAs that were kept and have no scores, in order."""
        return sorted({_step_of(path) for path in self._paths()} - {point.step for point in self.points})

    def has(self, step: int, lora: LoRA) -> bool:
        """Whether this very LoRA is scored."""
        scored = any(point.step == step for point in self.points)
        return scored and self.lora(step).fingerprint() == lora.fingerprint()

    def lora(self, step: int) -> LoRA:
        """The LoRA of a checkpoint."""
        return load_lora(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / f"{_LORA}{step:06d}.safetensors"

    def _paths(self) -> list[Path]:
        return list(self.folder.glob(f"{_LORA}*.safetensors"))

    def _write(self) -> None:
        points = [asdict(point) for point in self.points]
        content = {"plan": self._plan, "judge": self._judge, "base": self.base, "points": points}
        write_atomically(self.folder / RECORD, json.dumps(content).encode())


def delete_record(folder: Path) -> None:
    """Remove a run's validations, and the folder when nothing else is in it."""
    remove_files([folder / RECORD, folder / _NEUTRAL, *folder.glob(f"{_LORA}*.safetensors")])
    remove_if_empty(folder)


class Validation:
    """The validations of one training, as its visitor: when one is due, what it does, and what they say so far.

    `folder` keeps what was validated, so that an interrupted training goes on; it is the caller's to remove. `heard`
    is told of each checkpoint and of the base's scores. Raises SettingsError, before anything runs, when `every` is
    not a multiple of `report_every`, at which steps alone training can be visited.
    """

    def __init__(
        self,
        validator: Validator,
        folder: Path,
        settings: TrainSettings,
        *,
        limits: Limits | None = None,
        heard: Callable[[Checkpoint, Scores], None] | None = None,
    ) -> None:
        check_plan(validator.plan, settings)
        self._validator, self._limits, self._heard = validator, limits or Limits(), heard
        self._stage = main_stages(settings)[-1].name
        self.record = Record(folder, validator.plan, validator.identity)

    @property
    def settled(self) -> bool:
        """Whether the plan asks for an early stop, and this is the time."""
        wanted = self._validator.plan.early_stop and self._measures_motion
        return wanted and has_settled(self.record.points, self.record.base, self._limits)

    def due(self, report: StepReport) -> bool:
        """Whether a step is one to validate after."""
        return report.stage == self._stage and report.step % self._validator.plan.every == 0

    def visit(self, view: View) -> str:
        """Score the LoRA, unless this very one is scored."""
        if not self.record.has(view.step, view.lora):
            self._know_base()
            self.record.keep(view.step, view.lora)
            self._score(view.step, view.lora)
        return "stop" if self.settled else "continue"

    def postpone(self, result: TrainResult) -> None:
        """Where training was held at a step to validate after, keep its LoRA to be scored when it goes on."""
        last = result.losses[-1] if result.losses else None
        if last is not None and self.due(last) and not self.record.has(last.step, result.lora):
            self.record.keep(last.step, result.lora)

    def catch_up(self) -> None:
        """Score the LoRAs that were left without scores, or have another judge's: training goes on after them."""
        for step in self.record.unscored():
            self._know_base()
            self._score(step, self.record.lora(step))

    def choose(self) -> Choice | None:
        """What the rule picks of the checkpoints so far; None where their motion was not measured."""
        return choose(self.record.points, self.record.base, self._limits) if self._measures_motion else None

    @property
    def _measures_motion(self) -> bool:
        return any(MOTION in point.scores for point in self.record.points)

    def _know_base(self) -> None:
        if neutral := self.record.neutral():
            self._validator.know(neutral, self.record.base)
        else:
            self.record.open(self._validator.base(), self._validator.neutral())

    def _score(self, step: int, lora: LoRA) -> None:
        self.record.add(step, self._validator.score(lora))
        if self._heard is not None:
            self._heard(self.record.points[-1], self.record.base)


@dataclass(frozen=True, eq=False)
class Validated:
    """A training with its validations. `best` is the LoRA that the rule chose, None where nothing was validated."""

    result: TrainResult
    base: Scores
    points: tuple[Checkpoint, ...]
    choice: Choice | None
    best: LoRA | None
    stopped_early: bool


def train_validated(run: Callable[[Visitor], TrainResult], validation: Validation) -> Validated:
    """Train by `run(visitor)` with a validation every `plan.every` steps of the motion stage, and at the end."""
    validation.catch_up()
    result = run(validation)
    if result.ending != "completed":
        validation.postpone(result)
    record, choice = validation.record, validation.choose()
    best = record.lora(choice.step) if choice is not None else None
    stopped_early = validation.settled and result.ending == "stopped"
    return Validated(result, record.base, tuple(record.points), choice, best, stopped_early)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix(_LORA))


def _read(path: Path) -> dict[str, Any]:
    try:
        value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(value)
