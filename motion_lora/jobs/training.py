"""Training as the work of a job: what is kept for a restart, stops for previews and validations, the result's file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..base.pipeline import VideoPipeline
from ..core.absorber import Absorber
from ..core.disk import (
    check_space,
    check_target,
    free_path,
    path_inside,
    plain_fault,
    retried,
    safe_name,
    write_atomically,
)
from ..core.errors import MotionLoRAError, OutputError, TrainingError
from ..core.lora import LoRA
from ..evaluate.validation import ValidationPlan
from ..files.absorber_file import load_absorber, save_absorber
from ..files.container import read_header
from ..files.own import load_lora, save_lora
from ..media.write import encoder_fault
from ..training import (
    Speeds,
    StepReport,
    TrainingAbortedError,
    TrainingPausedError,
    TrainResult,
    TrainSettings,
    View,
    run_fingerprint,
    step_plan,
    train,
    train_absorber,
)
from ..training.preflight import speeds_of
from ..training.recipe import make_recipe
from ..training.settings import absorber_stages
from ..training.space import bytes_needed
from .inputs import (
    TrainingInputs,
    keep_absorber,
    keep_clips,
    keep_texts,
    kept_absorber,
    kept_clips,
    with_kept_texts,
)
from .job import APPEARANCE_ABSORBER, LAST, MOTION_LORA, JobSpec, PreviewPlan
from .pictures import VIDEO, draw_cover, publish_pictures
from .previews import draw_preview, draw_sheet
from .store import CHECKPOINT, INPUTS, PREVIEWS, RESULT
from .validation import JobValidation, decides, rule_of
from .worker import CONTINUE, STOP, Outcome, Reporter

_LOG = logging.getLogger(__name__)
# Which file the result became, or is about to become.
PUBLISHED = "published.json"
_TITLE = "modelspec.title"
_EARLY = "ended early: the last validations brought nothing more"


def _nothing(spec: JobSpec) -> None:
    """The default of hooks that a host may leave out."""


def _by_path(kind: str, name: str) -> Path:
    """The default of a host that names files by their paths."""
    return Path(name)


@dataclass(frozen=True)
class TrainingHost:
    """What the work needs of whoever runs it.

    `load_base` finds a base by the recipe of a spec; `prepare` and `release` come before and after each run on the
    device; `folders` says where finished files of each kind of job are put for the user, and below which subfolder.
    `find_metric` gives the file or folder of a model that a spec's `measured_by` names, by its kind and name.
    `speeds` keeps how long steps took, for estimates.
    """

    load_base: Callable[[Mapping[str, str]], VideoPipeline]
    prepare: Callable[[JobSpec], None] = _nothing
    release: Callable[[JobSpec], None] = _nothing
    folders: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    find_metric: Callable[[str, str], Path] = _by_path
    speeds: Speeds | None = None


def training_spec(
    kind: str,
    name: str,
    inputs: TrainingInputs,
    settings: TrainSettings,
    *,
    base: Mapping[str, str],
    preview: PreviewPlan | None = None,
    validation: ValidationPlan | None = None,
    keep: str = LAST,
    measured_by: Mapping[str, str] | None = None,
    yields: bool = False,
) -> JobSpec:
    """The spec of a training job, with the fingerprint of everything that determines its result.

    Without a `validation` there is nothing but the last checkpoint to `keep`, and nothing to be `measured_by`.
    """
    plan = step_plan(settings, absorber_given=inputs.absorber is not None)
    if kind == APPEARANCE_ABSORBER:
        absorbing = [stage.name for stage in absorber_stages(settings)]
        plan = {stage: steps for stage, steps in plan.items() if stage in absorbing}
    mark = run_fingerprint(inputs.pipeline, inputs.clips, settings, inputs.absorber)
    if validation is not None and decides(validation, keep):
        mark = f"{mark}:{json.dumps(rule_of(validation, keep, measured_by or {}), sort_keys=True)}"
    return JobSpec(
        kind=kind,
        name=name,
        fingerprint=hashlib.sha256(f"{kind}:{mark}".encode()).hexdigest(),
        device=str(inputs.pipeline.device),
        base=dict(base),
        settings=settings.to_json(),
        plan=plan,
        preview=preview or PreviewPlan(),
        validation={} if validation is None else asdict(validation),
        keep=LAST if validation is None else keep,
        measured_by={} if validation is None else dict(measured_by or {}),
        yields=yields,
    )


class TrainingWork:
    """The work of jobs of both kinds: motion LoRAs and appearance absorbers."""

    def __init__(self, host: TrainingHost) -> None:
        self._host = host

    def keep(self, spec: JobSpec, payload: object, folder: Path) -> None:
        """Clips, captions, absorber and given texts, so that a server that was restarted can go on with the job.

        Raises OutputError, before anything is written, where the result could not be put in its place, or its work has
        no room.
        """
        inputs = _checked(payload)
        self._check_places(spec, inputs, folder, sum(clip.frames.numel() * 4 for clip in inputs.clips))
        keep_clips(folder / INPUTS, inputs.clips)
        keep_texts(folder / INPUTS, inputs.pipeline)
        if inputs.absorber is not None:
            keep_absorber(folder / INPUTS, inputs.absorber)

    def restore(self, spec: JobSpec, folder: Path) -> TrainingInputs:
        """What `keep` wrote, with the base loaded again. Raises ModelError where the base is gone."""
        base = with_kept_texts(folder / INPUTS, self._host.load_base(spec.base))
        return TrainingInputs(base, kept_clips(folder / INPUTS), kept_absorber(folder / INPUTS, base))

    def run(self, spec: JobSpec, payload: object, folder: Path, reporter: Reporter) -> Outcome:
        """Train until the end or a command, with a stop at every preview and validation."""
        inputs = _checked(payload)
        self._check_places(spec, inputs, folder)
        self._host.prepare(spec)
        try:
            with inputs.pipeline.at_work():
                if spec.kind == APPEARANCE_ABSORBER:
                    return _run_absorber(spec, inputs, folder, reporter)
                return _run_motion(spec, inputs, folder, reporter, self._host)
        except TrainingAbortedError:
            return Outcome(finished=False, saved=False)
        finally:
            self._host.release(spec)

    def publish(self, spec: JobSpec, folder: Path, step: int) -> str:
        """Copy the result to where the user looks for it; never over another file. Its name there, with subfolder.

        Which file it becomes is written down before it is written: after a kill the same one is found again.
        """
        if (place := self._place(spec)) is None:
            return ""
        root, target = place
        if step < sum(spec.plan.values()):
            target = target.with_name(f"{target.stem}-{step:06d}{target.suffix}")
        _retitle(spec, folder)
        data = retried((folder / RESULT).read_bytes)
        mark = hashlib.sha256(data).hexdigest()
        chosen = _published_before(folder, mark, target) or free_path(target)
        while not _holds(chosen, data):
            about = {"name": chosen.name, "asked": target.name, "sha256": mark}
            write_atomically(folder / PUBLISHED, json.dumps(about).encode())
            try:
                write_atomically(chosen, data, overwrite=False)
            except OutputError:
                if not os.path.lexists(chosen):
                    raise
                # Another job took the name in the meantime.
                chosen = free_path(target)
        publish_pictures(folder, chosen)
        return chosen.relative_to(root).as_posix()

    def _place(self, spec: JobSpec) -> tuple[Path, Path] | None:
        """The folder that results are listed below, and the file that this one is to be; None for no such place."""
        if spec.kind not in self._host.folders:
            return None
        root, subfolder = self._host.folders[spec.kind]
        return root, path_inside(root, f"{subfolder}/{spec.name}" if subfolder else spec.name)

    def _check_places(self, spec: JobSpec, inputs: TrainingInputs, folder: Path, more: int = 0) -> None:
        """Raise OutputError now for what would only be found out at the end."""
        settings = TrainSettings.from_json(spec.settings)
        recipe = make_recipe(inputs.clips, settings, inputs.absorber)
        result, work = bytes_needed(inputs.pipeline, recipe, spec.plan)
        if (place := self._place(spec)) is not None:
            check_target(place[1], result)
        check_space(folder, work + result + more)


def load_result(folder: Path, kind: str) -> LoRA | Absorber:
    """What a finished or stopped job made."""
    return load_absorber(folder / RESULT) if kind == APPEARANCE_ABSORBER else load_lora(folder / RESULT)


def _retitle(spec: JobSpec, folder: Path) -> None:
    """A job that was renamed after it ended has its old name in the file."""
    if spec.kind != MOTION_LORA or read_header(folder / RESULT).metadata.get(_TITLE, spec.name) == spec.name:
        return
    save_lora(folder / RESULT, load_lora(folder / RESULT).with_metadata(**_titles(spec)))


def _titles(spec: JobSpec) -> dict[str, str]:
    return {"motion_lora.title": spec.name, _TITLE: spec.name}


def _published_before(folder: Path, mark: str, target: Path) -> Path | None:
    """Where this very result was put, or was about to be, under the same name."""
    try:
        about = json.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
        same = about["sha256"] == mark and about["asked"] == target.name
        return target.with_name(safe_name(Path(about["name"]).stem, limit=200) + target.suffix) if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file is there, with this content."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False


# One run ------------------------------------------------------------------------------------------------------------
class _Visits:
    """Who visits a job's training: previews, and validations with the LoRA as it is."""

    def __init__(
        self,
        spec: JobSpec,
        inputs: TrainingInputs,
        folder: Path,
        reporter: Reporter,
        find_metric: Callable[[str, str], Path],
    ) -> None:
        self._spec, self._inputs, self._folder, self._reporter = spec, inputs, folder, reporter
        self._stage, self._steps = list(spec.plan.items())[-1]
        self.validation = JobValidation(spec, inputs, folder, reporter, find_metric) if spec.validation else None
        self.settled = False
        self._fault = _no_encoder(spec, reporter)

    @property
    def fault(self) -> str:
        """What went wrong without being a reason to end the training."""
        return self._fault or (self.validation.fault if self.validation else "")

    def due(self, report: StepReport) -> bool:
        if report.stage != self._stage:
            return False
        return self._previews_at(report.step) or (self.validation is not None and self.validation.due(report))

    def visit(self, view: View) -> str:
        """At the end both are done in any case."""
        at_end = view.step == self._steps
        if self.validation is not None and (at_end or view.step % self._spec.validation["every"] == 0):
            self.settled = self.validation.visit(view) == STOP
        if self._spec.preview.wanted and (self._previews_at(view.step) or at_end or self.settled):
            self._fault = _preview(self._spec, self._inputs, view, self._folder, self._reporter) or self._fault
        return STOP if self.settled else CONTINUE

    def _previews_at(self, step: int) -> bool:
        return self._spec.preview.wanted and step % self._spec.preview.every == 0


def _run_motion(spec: JobSpec, inputs: TrainingInputs, folder: Path, reporter: Reporter, host: TrainingHost) -> Outcome:
    visits = _Visits(spec, inputs, folder, reporter, host.find_metric)
    # A server that went away may have left a checkpoint without its scores, or settled and not ended.
    lora = visits.validation.catch_up() if visits.validation else None
    finished = early = lora is not None
    if lora is None:
        result = train(
            inputs.pipeline,
            inputs.clips,
            TrainSettings.from_json(spec.settings),
            absorber=inputs.absorber,
            callback=reporter.step,
            visitor=visits,
            checkpoint=folder / CHECKPOINT,
        )
        _keep_speeds(host, spec, inputs, result)
        if visits.validation and result.ending != "completed":
            visits.validation.postpone(result)
        if result.ending == "paused":
            return Outcome(finished=False, saved=False)
        lora, early = result.lora, visits.settled and result.ending == "stopped"
        finished = early or result.ending == "completed"
    if len(lora) == 0:
        return Outcome(finished=False, saved=False, note="the motion stage has taken no step yet; resume to go on")
    title = _titles(spec)
    kept = visits.validation.kept(lora, title) if visits.validation else lora
    save_lora(folder / RESULT, kept.with_metadata(**title))
    draw_cover(folder, inputs.pipeline, kept, spec.preview, inputs.clips[0])
    return Outcome(finished=finished, saved=True, note=visits.fault or (_EARLY if early else ""))


def _keep_speeds(host: TrainingHost, spec: JobSpec, inputs: TrainingInputs, result: TrainResult) -> None:
    """For the estimates of later trainings; of none of them does anything depend on it."""
    if host.speeds is None:
        return
    recipe = make_recipe(inputs.clips, TrainSettings.from_json(spec.settings), inputs.absorber)
    try:
        host.speeds.keep(speeds_of(inputs.pipeline, recipe, result.losses))
    except OutputError as error:
        _LOG.warning("Motion LoRA: the speed of this training is not kept: %s", error)


class _Asked:
    """A callback that keeps the last answer."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self.answer = reporter, CONTINUE

    def __call__(self, report: StepReport) -> str:
        self.answer = self._reporter.step(report)
        return self.answer


def _run_absorber(spec: JobSpec, inputs: TrainingInputs, folder: Path, reporter: Reporter) -> Outcome:
    asked, settings = _Asked(reporter), TrainSettings.from_json(spec.settings)
    try:
        absorber = train_absorber(
            inputs.pipeline, inputs.clips, settings, callback=asked, checkpoint=folder / CHECKPOINT
        )
    except TrainingPausedError:
        return Outcome(finished=False, saved=False)
    save_absorber(folder / RESULT, absorber)
    return Outcome(finished=asked.answer == CONTINUE, saved=True)


def _preview(spec: JobSpec, inputs: TrainingInputs, view: View, folder: Path, reporter: Reporter) -> str:
    """Draw a preview with the LoRA as it is. Why it could not be drawn, which is no reason to end the training."""
    place = folder / PREVIEWS / f"{view.step:06d}{VIDEO}"
    try:
        drawn = draw_preview(place, inputs.pipeline, view.stack, spec.preview, inputs.clips[0])
    except (MotionLoRAError, OSError) as error:
        said = plain_fault(error) if isinstance(error, OSError) else error
        fault = f"no preview at step {view.step}: {said}"
        _LOG.warning("Motion LoRA: %s", fault)
        reporter.note(fault)
        return fault
    try:
        draw_sheet(folder / PREVIEWS, inputs.pipeline, spec.preview, inputs.clips[0])
    except (MotionLoRAError, OSError) as error:
        _LOG.warning("Motion LoRA: no sheet at step %d: %s", view.step, error)
    reporter.preview(drawn.name)
    return ""


def _no_encoder(spec: JobSpec, reporter: Reporter) -> str:
    """Said before the first step, and again at the end: previews that are not what they should be."""
    fault = encoder_fault(VIDEO) if spec.preview.wanted else ""
    if fault:
        _LOG.warning("Motion LoRA: previews of %s: %s", spec.name, fault)
        reporter.note(fault)
    return fault


def _checked(payload: object) -> TrainingInputs:
    if not isinstance(payload, TrainingInputs):
        raise TrainingError(f"a training job needs TrainingInputs, not {type(payload).__name__}")
    return payload
