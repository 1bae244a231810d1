"""Validation in a job: what it leaves, what it hands on, and that no pause, crash or retry scores anything twice."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from metric_models import write_clip_model
from PIL import Image
from training_samples import quick, sample_clip, small_pipeline

import motion_lora.jobs.validation as validating
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.scores import ALIGNMENT, LEAKAGE, MOTION
from motion_lora.evaluate.validation import ValidationPlan
from motion_lora.files.own import load_lora
from motion_lora.jobs import (
    BEST,
    CANCELLED,
    DONE,
    FAILED,
    LAST,
    PAUSED,
    RESULT,
    STOPPED,
    Job,
    JobRunner,
    JobSpec,
    JobStore,
    PreviewPlan,
)
from motion_lora.jobs.inputs import TrainingInputs
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec
from motion_lora.training import train

SETTINGS = quick(absorber="none", steps=6)
PLAN = ValidationPlan(
    2, ("a blue square",), num_inference_steps=1, guidance_scale=1.0, num_frames=3, height=16, width=16
)
MOTION_KIND = "motion-lora"


class Judge:
    """Gives out fidelities in turn, the base's first; where they are used up the process is as good as killed."""

    notes, forms, identity = ("made up",), {}, "made up"

    def __init__(self, fidelities: Sequence[float], scored: list[float]) -> None:
        self.left, self.scored = list(fidelities), scored

    def gaps(self, prompt: str, shape: tuple[int, int, int], *, neutral: bool) -> dict[str, str]:
        return {}

    def score(self, prompt: str, frames: torch.Tensor, neutral: torch.Tensor | None = None) -> dict[str, float]:
        if not self.left:
            raise SettingsError("the judge has gone home")
        self.scored.append(self.left.pop(0))
        return {MOTION: self.scored[-1], LEAKAGE: 0.0, ALIGNMENT: 1.0}


class Desk:
    """A runner over a folder; `judge` says what the next run will be scored with."""

    def __init__(self, folder: Path, base: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.messages, self.scored = base, [], []
        self._folder, self._patch = folder, monkeypatch
        self.open()

    def open(self) -> None:
        host = TrainingHost(lambda recipe: self.base, folders={MOTION_KIND: (self._folder / "loras", "motion")})
        store = JobStore(self._folder / "jobs")
        self.runner = JobRunner(store, TrainingWork(host), listener=self.messages.append, interval=0.01)

    def restart(self) -> None:
        self.runner.close()
        self.open()

    def judge(self, *fidelities: float) -> None:
        one = Judge(fidelities, self.scored)
        self._patch.setattr(validating, "load_judge", lambda pipeline, reference, **models: one)

    def spec(self, plan: ValidationPlan | None = PLAN, keep: str = BEST, **options: object) -> JobSpec:
        inputs = TrainingInputs(self.base, (sample_clip(),))
        return training_spec(MOTION_KIND, "orbit", inputs, SETTINGS, base={}, validation=plan, keep=keep, **options)

    def submit(self, *args: object, **options: object) -> Job:
        return self.runner.submit(self.spec(*args, **options), TrainingInputs(self.base, (sample_clip(),)))

    def run(self, *args: object, **options: object) -> Job:
        return self.runner.wait(self.submit(*args, **options).id, timeout=120)

    def halted(self, command: str, step: int) -> Job:
        """A job that gets a command in time to obey it at a step."""
        step_done = self.runner._step

        def at_step(entry: object, report: object) -> str:
            if report.step == step:
                getattr(self.runner, command)(entry.id)
            return step_done(entry, report)

        self._patch.setattr(self.runner, "_step", at_step)
        job = self.runner.wait(self.submit().id, timeout=60)
        self._patch.setattr(self.runner, "_step", step_done)
        return job

    def resumed(self, job: Job) -> Job:
        self.runner.resume(job.id)
        return self.runner.wait(job.id, timeout=120)


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return small_pipeline()


@pytest.fixture
def desk(tmp_path: Path, base: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    desk = Desk(tmp_path, base, monkeypatch)
    yield desk
    desk.runner.close(timeout=30)


@pytest.fixture(scope="module")
def straight(base: VideoPipeline) -> dict[int, str]:
    """The LoRA's fingerprint after each number of steps, without jobs and validations."""
    found = {}
    for step in (2, 4, 6):
        made = train(base, [sample_clip()], SETTINGS, callback=lambda r, s=step: "stop" if r.step == s else "continue")
        found[step] = made.lora.fingerprint()
    return found


def fingerprint(job: Job, name: str = RESULT) -> str:
    return load_lora(job.folder / name).fingerprint()


def steps(job: Job) -> list[int]:
    return [point["step"] for point in job.status.validation["points"]]


def test_best_is_handed_on_and_last_kept_beside_it(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.3, 0.8, 0.5)
    job = desk.run()
    assert job.state == DONE, job.status.message
    assert fingerprint(job) == fingerprint(job, "best.safetensors") == straight[4]
    assert fingerprint(job, "last.safetensors") == straight[6]
    assert load_lora(job.folder / RESULT).metadata["modelspec.title"] == "orbit"
    told = job.status.validation
    assert steps(job) == [2, 4, 6] and told["best"]["step"] == 4 and told["base"][MOTION] == 0.1
    assert told["notes"] == ["made up"] and told["keep"] == BEST and told["steps"] == 6
    rows = list(csv.DictReader((job.folder / "validation.csv").read_text().splitlines()))
    assert [(row["step"], row["best"]) for row in rows] == [("0", "0"), ("2", "0"), ("4", "1"), ("6", "0")]
    assert Image.open(job.folder / "validation.png").width > 400
    assert not (job.folder / "validation").exists() and not (job.folder / "checkpoint").exists()
    assert job.status.published == "motion/orbit.safetensors"


def test_last_is_handed_on_where_it_is_asked_for(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.3, 0.8, 0.5)
    job = desk.run(keep=LAST)
    assert fingerprint(job) == fingerprint(job, "last.safetensors") == straight[6]
    assert fingerprint(job, "best.safetensors") == straight[4]


def test_early_stop_ends_the_job_as_done(desk: Desk, straight: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = validating.Limits(patience=1)
    monkeypatch.setattr("motion_lora.evaluate.validation.Limits", lambda: limits)
    desk.judge(0.1, 0.8, 0.5)
    job = desk.run(dataclasses.replace(PLAN, early_stop=True), keep=LAST)
    assert job.state == DONE and job.status.done_steps == 4 and "ended early" in job.status.message
    assert fingerprint(job) == straight[4] and fingerprint(job, "best.safetensors") == straight[2]
    assert job.status.published == "motion/orbit.safetensors", "it is finished, no piece of work"


@pytest.mark.parametrize("step", [3, 4], ids=["between", "at a validation"])
def test_paused_restarted_and_resumed_scores_nothing_twice(desk: Desk, straight: dict[int, str], step: int) -> None:
    desk.judge(0.1, 0.9)
    paused = desk.halted("pause", step)
    assert paused.state == PAUSED and steps(paused) == [2] and paused.status.done_steps == step
    desk.restart()
    assert steps(desk.runner.get(paused.id)) == [2], "the panel has the curve again"
    desk.judge(0.3, 0.5)
    job = desk.resumed(paused)
    assert job.state == DONE, job.status.message
    assert desk.scored == [0.1, 0.9, 0.3, 0.5] and steps(job) == [2, 4, 6]
    assert fingerprint(job) == straight[2] and fingerprint(job, "last.safetensors") == straight[6]


def test_a_validation_that_fails_is_made_up_for(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.3)
    failed = desk.run()
    assert failed.state == FAILED and "gone home" in failed.status.message, "the result depends on it"
    assert failed.status.done_steps == 4 and (failed.folder / "checkpoint").is_dir()
    desk.judge(0.9, 0.5)
    job = desk.resumed(failed)
    assert job.state == DONE and steps(job) == [2, 4, 6] and fingerprint(job) == straight[4]
    assert desk.scored == [0.1, 0.3, 0.9, 0.5]


def test_a_validation_that_fails_is_a_note_where_nothing_depends_on_it(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.3)
    job = desk.run(keep=LAST)
    assert job.state == DONE and fingerprint(job) == straight[6] and steps(job) == [2]
    assert job.status.message == "no validation of step 6: the judge has gone home"


def test_stop_and_save_gives_the_best_so_far(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.9, 0.3, 0.2)
    stopped = desk.halted("stop", 3)
    assert stopped.state == STOPPED and fingerprint(stopped) == straight[2]
    desk.judge(0.95, 0.2)
    job = desk.resumed(stopped)
    assert job.state == DONE and steps(job) == [2, 4, 6] and fingerprint(job) == straight[4]


def test_cancel_forgets_the_validations(desk: Desk, straight: dict[int, str]) -> None:
    desk.judge(0.1, 0.9)
    cancelled = desk.halted("cancel", 3)
    assert cancelled.state == CANCELLED and cancelled.status.validation == {}
    assert not list(cancelled.folder.glob("validation*"))
    desk.judge(0.1, 0.2, 0.3, 0.4)
    job = desk.resumed(cancelled)
    assert steps(job) == [2, 4, 6] and fingerprint(job) == straight[6]


def test_previews_and_validations_at_the_same_step(desk: Desk) -> None:
    desk.judge(0.1, 0.3, 0.8, 0.5)
    job = desk.run(preview=PreviewPlan("a blue square", every=4, num_inference_steps=1))
    assert job.status.previews == ("000004.mp4", "000006.mp4") and steps(job) == [2, 4, 6]


def test_the_fingerprint_holds_what_the_result_depends_on(desk: Desk) -> None:
    early = dataclasses.replace(PLAN, early_stop=True)
    other = dataclasses.replace(PLAN, every=3)
    plain = desk.spec(None).fingerprint
    assert {desk.spec(None, LAST).fingerprint, desk.spec(PLAN, LAST).fingerprint} == {plain}
    assert desk.spec(other, LAST).fingerprint == plain
    different = [desk.spec(PLAN), desk.spec(other), desk.spec(early), desk.spec(early, LAST)]
    assert len({plain, *(spec.fingerprint for spec in different)}) == 5
    assert JobSpec.from_json(json.loads(json.dumps(desk.spec(PLAN).to_json()))).validation["every"] == 2


def test_what_a_job_is_measured_by_is_kept_with_it(desk: Desk) -> None:
    named = desk.spec(PLAN, measured_by={"clip_model": "vit"})
    assert named.fingerprint != desk.spec(PLAN).fingerprint == desk.spec(PLAN, measured_by={}).fingerprint
    assert desk.spec(PLAN, LAST, measured_by={"clip_model": "vit"}).fingerprint == desk.spec(None).fingerprint
    assert desk.spec(None, measured_by={"clip_model": "vit"}).measured_by == {}
    content = json.loads(json.dumps(named.to_json()))
    assert JobSpec.from_json(content).measured_by == {"clip_model": "vit"}
    del content["measured_by"]
    assert JobSpec.from_json(content).measured_by == {}, "a job from before it was known"


def test_a_named_clip_model_takes_part_in_the_choice(desk: Desk, tmp_path: Path) -> None:
    folder = write_clip_model(tmp_path / "tiny-clip")
    job = desk.run(keep=LAST, measured_by={"clip_model": str(folder)})
    assert job.state == DONE, job.status.message
    assert all(ALIGNMENT in point["scores"] for point in job.status.validation["points"])
    assert any("CLIPScore of tiny-clip" in note for note in job.status.validation["notes"])
    gone = desk.run(measured_by={"clip_model": str(tmp_path / "gone")})
    assert gone.state == FAILED and "gone is not a folder" in gone.status.message


def test_messages_hold_the_curve_only_where_it_is_new(desk: Desk) -> None:
    desk.judge(0.1, 0.3, 0.8, 0.5)
    job = desk.run()
    desk.runner.close()
    told = [change for message in desk.messages for change in message["jobs"]]
    curves = [len(change["validation"]["points"]) for change in told if change.get("validation")]
    assert curves == sorted(set(curves)) and curves[-1] == 3, "each is told once"
    assert json.loads(json.dumps(told[-1]))["state"] == DONE
    assert len(desk.runner.describe(job.id)["validation"]["points"]) == 3
    for name in ("validation.csv", "validation.png"):
        assert desk.runner.store.curve(job.id, name).is_file()
    for name in ("status.json", "../x.csv", "validation"):
        with pytest.raises(SettingsError, match="is not one of"):
            desk.runner.store.curve(job.id, name)
