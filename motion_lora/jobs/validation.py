"""Validation as a part of a training job: what the panel is told, what lies in the job's folder, which LoRA is kept.

validation/               scores and LoRAs of the checkpoints, while the job can go on (see evaluate/validation.py)
validation.csv, .png      the curve
last.safetensors          the LoRA as training left it
best.safetensors          the one that the rule chose
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import MotionLoRAError
from ..core.lora import LoRA
from ..evaluate.checkpoints import Checkpoint, Limits, write_curve
from ..evaluate.judge import load_judge, notes_for
from ..evaluate.scores import Scores
from ..evaluate.validation import Validation, ValidationPlan, Validator
from ..files.own import save_lora
from ..training import StepReport, TrainResult, TrainSettings, View
from .inputs import TrainingInputs
from .job import BEST, CLIP_MODEL, LAST, LPIPS_WEIGHTS, JobSpec
from .store import CURVE, VALIDATION
from .worker import CONTINUE, STOP, Reporter

_LOG = logging.getLogger(__name__)


def decides(plan: ValidationPlan | None, keep: str) -> bool:
    """Whether the result depends on what is validated."""
    return plan is not None and (keep == BEST or plan.early_stop)


def rule_of(plan: ValidationPlan, keep: str, measured_by: Mapping[str, str]) -> dict[str, Any]:
    """Everything of a validation that a result may depend on, for a fingerprint."""
    rule = {"keep": keep, "plan": asdict(plan), "limits": asdict(Limits())}
    # Left out where there is none, so that jobs from before it was known are found again.
    return {**rule, "measured_by": dict(measured_by)} if measured_by else rule


class JobValidation:
    """The validations of one run of a job; `find` gives the file of a CLIP or LPIPS model that the spec names.

    Raises ModelError or SettingsError where such a model cannot be loaded.
    """

    def __init__(
        self,
        spec: JobSpec,
        inputs: TrainingInputs,
        folder: Path,
        reporter: Reporter,
        find: Callable[[str, str], Path],
    ) -> None:
        values = dict(spec.validation)
        self._plan = ValidationPlan(**{**values, "prompts": tuple(values["prompts"])})
        self._spec, self._folder, self._reporter = spec, folder, reporter
        files = {kind: find(kind, name) for kind, name in spec.measured_by.items()}
        clip = inputs.clips[0]
        judge = load_judge(
            inputs.pipeline, clip.frames, clip_model=files.get(CLIP_MODEL), lpips_weights=files.get(LPIPS_WEIGHTS)
        )
        shape = (clip.num_frames, clip.height, clip.width)
        self._notes = notes_for(judge, self._plan.prompts, shape)
        self._validation = Validation(
            Validator(inputs.pipeline, judge, self._plan),
            folder / VALIDATION,
            TrainSettings.from_json(spec.settings),
            heard=lambda point, base: self._show(point),
        )
        self.fault = ""

    def due(self, report: StepReport) -> bool:
        """Whether a step is one to validate after."""
        return self._validation.due(report)

    def visit(self, view: View) -> str:
        """Validate. A fault is a note, unless the result depends on it: then it is raised."""
        with self._noted(f"step {view.step}"):
            self._validation.visit(view)
        return STOP if self._validation.settled else CONTINUE

    def postpone(self, result: TrainResult) -> None:
        """What a command kept from being validated now is validated when the job goes on."""
        self._validation.postpone(result)

    def catch_up(self) -> LoRA | None:
        """Score what an interruption left without scores; the LoRA to end with where that settles the training."""
        if steps := self._validation.record.unscored():
            with self._noted(f"step {', '.join(map(str, steps))}"):
                self._validation.catch_up()
        if not (points := self._validation.record.points):
            return None
        self._show()
        return self._validation.record.lora(points[-1].step) if self._validation.settled else None

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        self._reporter.note(f"validating {what}")
        try:
            yield
        except (MotionLoRAError, OSError) as error:
            if decides(self._plan, self._spec.keep):
                raise
            self.fault = f"no validation of {what}: {error}"
            _LOG.warning("Motion LoRA: %s", self.fault)
        self._reporter.note(self.fault)

    def kept(self, last: LoRA, title: Mapping[str, str]) -> LoRA:
        """Keep the last LoRA and the best one in the job's folder; the one that was asked for."""
        save_lora(self._folder / f"{LAST}.safetensors", last.with_metadata(**title))
        choice = self._validation.choose()
        if choice is None:
            return last
        best = self._validation.record.lora(choice.step)
        save_lora(self._folder / f"{BEST}.safetensors", best.with_metadata(**title))
        return best if self._spec.keep == BEST else last

    def _show(self, fresh: Checkpoint | None = None) -> None:
        """Tell the panel, and draw the curve anew."""
        record, choice = self._validation.record, self._validation.choose()
        if fresh is not None:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in fresh.scores.items())
            best = choice.reason if choice is not None else "no motion was measured"
            _LOG.info("Motion LoRA: %s, step %d: %s; best: %s", self._spec.name, fresh.step, scores, best)
        self._reporter.validated(
            {
                "keep": self._spec.keep,
                "steps": list(self._spec.plan.values())[-1],
                "base": _finite(record.base),
                "points": [{"step": point.step, "scores": _finite(point.scores)} for point in record.points],
                "best": None if choice is None else asdict(choice),
                "notes": list(self._notes),
            }
        )
        write_curve(self._folder / CURVE, record.points, record.base, None if choice is None else choice.step)


def _finite(scores: Scores) -> dict[str, float]:
    """Without what JSON has no word for."""
    return {name: value for name, value in scores.items() if math.isfinite(value)}
