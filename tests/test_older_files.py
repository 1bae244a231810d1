"""Files that an older version wrote open, say the same and go on: tests/fixtures/v0/README.md says what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_frames, tiny_pipeline

import motion_lora as ml
from motion_lora.evaluate.checkpoints import Checkpoint, choose, curve_csv
from motion_lora.evaluate.validation import Record, ValidationPlan
from motion_lora.files.absorber_file import load_absorber
from motion_lora.files.inspection import inspect
from motion_lora.jobs import DONE, PAUSED, RESULT, JobRunner, JobSpec, JobStore
from motion_lora.jobs.inputs import TrainingInputs
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec
from motion_lora.training import step_plan

V0 = Path(__file__).parent / "fixtures" / "v0"
EXPECTED: Mapping[str, Any] = json.loads((V0 / "expected.json").read_text(encoding="utf-8"))
SETTINGS = ml.TrainSettings(
    steps=3,
    absorber_steps=2,
    token_steps=2,
    rank=1,
    learning_rate=1e-2,
    absorber_learning_rate=1e-2,
    token_learning_rate=1e-2,
    frames_per_step=2,
    num_tokens=2,
    dropout=0.1,
    lr_scheduler="cosine",
    warmup_steps=1,
)
JOB_SETTINGS = replace(SETTINGS, absorber="none", steps=40, targets="tap-k", dropout=0.0)


@pytest.fixture(scope="module")
def base() -> ml.VideoPipeline:
    return tiny_pipeline(levels=2)


def older_clip() -> ml.Clip:
    frames = tiny_frames(0, num_frames=3, size=16)
    return ml.Clip(frames, 8.0, "a red circle moving left over sand", "a red circle over sand", "red circle", "test")


def abs_sum(lora: ml.LoRA) -> float:
    return sum(float(layer.delta(torch.float64).abs().sum()) for layer in lora.layers.values())


def check_lora(lora: ml.LoRA, name: str) -> None:
    expected = EXPECTED[name]
    assert len(lora) == expected["layers"] and list(lora.ranks) == expected["ranks"]
    assert abs_sum(lora) == pytest.approx(expected["abs_sum"], rel=1e-6)


def distance(a: ml.LoRA, b: ml.LoRA) -> float:
    """How far apart two LoRAs' changes of the weights are, in parts of the second's size; 0 for the same bits."""
    assert set(a.layers) == set(b.layers) and len(b) > 0
    gaps = [(layer.delta() - b.layers[module].delta()).norm() for module, layer in a.layers.items()]
    sizes = [layer.delta().norm() for layer in b.layers.values()]
    return float(torch.stack(gaps).norm() / torch.stack(sizes).norm())


# A machine that rounds otherwise than the one that wrote the files ends a little elsewhere. The files are of trainings
# without a break; one that is begun anew here may end further off, as the first step of Adam takes signs.
ROUNDING = 0.02


# LoRA files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["motion", "motion_bare"])
def test_own_format(name: str) -> None:
    lora = ml.load_lora(V0 / f"{name}.safetensors")
    check_lora(lora, "motion.safetensors")
    assert lora.fingerprint() == EXPECTED["motion.safetensors"]["fingerprint"]


def test_metadata_of_the_own_format() -> None:
    metadata = ml.load_lora(V0 / "motion.safetensors").metadata
    settings = json.loads(metadata["motion_lora.settings"])
    assert metadata["motion_lora.method"] == "customize-a-video" and metadata["motion_lora.base_name"] == "tiny"
    assert settings["learning_rate"] == 1e-2 and settings["lr_scheduler"] == "cosine"
    facts = inspect(V0 / "motion.safetensors")
    assert facts["kind"] == "lora"


def test_without_metadata_nothing_is_said_of_the_training() -> None:
    metadata = ml.load_lora(V0 / "motion_bare.safetensors").metadata
    assert not {"motion_lora.method", "motion_lora.settings", "motion_lora.captions"} & set(metadata)


@pytest.mark.parametrize("name", ["motion", "motion_bare", "motion_kohya", "motion_peft"])
def test_every_format_is_the_same_lora_on_the_base(name: str, base: ml.VideoPipeline) -> None:
    lora = ml.load_any(V0 / f"{name}.safetensors", base.unet).lora
    check_lora(lora, "motion.safetensors")
    assert distance(lora, ml.load_lora(V0 / "motion.safetensors")) == 0.0


def test_the_acting_range(base: ml.VideoPipeline) -> None:
    lora = ml.load_lora(V0 / "motion_high_noise.safetensors")
    check_lora(lora, "motion_high_noise.safetensors")
    schedule = ml.StackEntry(lora).schedule
    assert schedule is not None and (schedule.start, schedule.end) == (0.0, pytest.approx(0.4))
    assert ml.StackEntry(ml.load_lora(V0 / "motion.safetensors")).schedule is None


def test_the_absorber_trains_in_place_of_its_stages(base: ml.VideoPipeline) -> None:
    absorber, expected = load_absorber(V0 / "absorber.safetensors"), EXPECTED["absorber.safetensors"]
    assert absorber.spatial is not None and absorber.tokens is not None
    assert len(absorber.spatial) == expected["layers"]
    assert abs_sum(absorber.spatial) == pytest.approx(expected["abs_sum"], rel=1e-6)
    assert list(absorber.tokens.names) == expected["tokens"] and list(absorber.tokens.words) == expected["words"]
    assert float(absorber.tokens.rows.double().abs().sum()) == pytest.approx(expected["rows_sum"], rel=1e-6)
    result = ml.train(base, [older_clip()], SETTINGS, absorber=absorber)
    assert {report.stage for report in result.losses} == {"motion"}
    assert distance(result.lora, ml.load_lora(V0 / "motion.safetensors")) < 0.25


# Settings and checkpoints ---------------------------------------------------------------------------------------------


def test_settings() -> None:
    content = json.loads((V0 / "settings.json").read_text(encoding="utf-8"))
    assert ml.TrainSettings.from_json(content) == SETTINGS
    many = ml.TrainSettings.from_json(json.loads((V0 / "settings_many_looks.json").read_text(encoding="utf-8")))
    looks = ("a blue square {motion} over snow",)
    # What was the row's default then stays what it was.
    assert many == replace(ml.TrainSettings.for_method("many-looks"), timestep_low=0.6, looks=looks)


def test_a_paused_training_goes_on(base: ml.VideoPipeline, tmp_path: Path) -> None:
    shutil.copytree(V0 / "checkpoint", tmp_path / "checkpoint")
    heard: list[tuple[str, int]] = []

    def hear(report: Any) -> str:
        heard.append((report.stage, report.step))
        return "continue"

    resumed = ml.train(base, [older_clip()], SETTINGS, callback=hear, checkpoint=tmp_path / "checkpoint")
    assert heard == [("motion", 2), ("motion", 3)]
    assert resumed.finished and len(resumed.losses) == sum(step_plan(SETTINGS).values())
    assert distance(resumed.lora, ml.load_lora(V0 / "motion.safetensors")) < ROUNDING


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_a_paused_job_is_found_and_goes_on(base: ml.VideoPipeline, tmp_path: Path) -> None:
    shutil.copytree(V0 / "jobs", tmp_path / "jobs")
    runner = JobRunner(JobStore(tmp_path / "jobs"), TrainingWork(TrainingHost(lambda recipe: base)))
    try:
        (job,) = runner.jobs()
        expected = EXPECTED["jobs"]
        assert (job.id, job.state, job.spec.name) == (expected["id"], PAUSED, "orbit")
        assert (job.status.done_steps, job.status.all_steps) == (expected["done_steps"], expected["all_steps"])
        assert len(runner.losses(job.id)) == expected["done_steps"]
        assert ml.TrainSettings.from_json(job.spec.settings) == JOB_SETTINGS
        runner.resume(job.id)
        done = runner.wait(job.id, timeout=120)
        assert done.state == DONE, done.status.message
        assert done.status.resumed_at == expected["done_steps"]
        assert [point.step for point in runner.losses(job.id)] == list(range(1, expected["all_steps"] + 1))
        lora = ml.load_lora(done.folder / RESULT)
    finally:
        runner.close(timeout=30)
    assert distance(lora, ml.load_lora(V0 / "job_result.safetensors")) < ROUNDING


def test_the_same_job_is_the_job_of_before(base: ml.VideoPipeline) -> None:
    """Who queues the same workflow again after an update goes on with it, and does not begin anew."""
    (folder,) = (V0 / "jobs").iterdir()
    kept = JobSpec.from_json(json.loads((folder / "job.json").read_text(encoding="utf-8")))
    spec = training_spec(kept.kind, "orbit", TrainingInputs(base, (older_clip(),)), JOB_SETTINGS, base=kept.base)
    assert spec.fingerprint == kept.fingerprint


# Validations ----------------------------------------------------------------------------------------


def test_a_record_of_validations(tmp_path: Path) -> None:
    shutil.copytree(V0 / "validation", tmp_path / "validation")
    prompt = "a blue square moving left over snow"
    plan = ValidationPlan(1, (prompt,), num_inference_steps=2, num_frames=3, height=16, width=16)
    record = Record(tmp_path / "validation", plan, "judge of v0")
    assert [point.step for point in record.points] == [1, 2, 3] and record.unscored() == []
    assert record.base == {"motion_fidelity": 0.1, "text_alignment": 0.9, "appearance_leakage": 0.05}
    assert record.points[1] == Checkpoint(
        2, {"motion_fidelity": 0.8, "text_alignment": 0.88, "appearance_leakage": 0.1}
    )
    check_lora(record.lora(2), "validation")
    (video,) = record.neutral()
    assert torch.equal(video, tiny_frames(1, num_frames=3, size=16))
    choice = choose(record.points, record.base)
    assert (choice.step, choice.admissible) == (EXPECTED["choice"]["step"], EXPECTED["choice"]["admissible"])
    curve = (V0 / "validation" / "curve.csv").read_text(encoding="utf-8")
    assert curve_csv(record.points, record.base, choice.step) == curve
