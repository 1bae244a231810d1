"""Where a job's result goes: checked before the first step, written once, whatever happened in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_samples import quick, sample_clip, small_pipeline

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core import disk
from motion_lora.core.errors import OutputError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.files.own import load_lora, save_lora
from motion_lora.jobs import MOTION_LORA, RESULT, JobRunner, JobSpec, JobStore
from motion_lora.jobs.inputs import TrainingInputs
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec
from motion_lora.training import train
from motion_lora.training.recipe import make_recipe
from motion_lora.training.space import bytes_needed


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return small_pipeline()


def work_in(folder: Path, base: VideoPipeline) -> TrainingWork:
    return TrainingWork(TrainingHost(lambda recipe: base, folders={MOTION_LORA: (folder / "loras", "motion")}))


def made(folder: Path, name: str, value: float = 1.0) -> JobSpec:
    """A job's folder with a result."""
    layer = LoRALayer(torch.full((1, 2), value), torch.full((3, 1), value))
    save_lora(folder / RESULT, LoRA({"a": layer}, {"modelspec.title": name, "motion_lora.title": name}))
    return JobSpec(MOTION_LORA, name, "f" * 16, plan={"motion": 5})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "loras").rglob("*") if path.is_file())


@pytest.mark.parametrize("cut", ["before the file", "after the file"])
def test_a_kill_while_publishing_gives_one_file(
    tmp_path: Path, base: VideoPipeline, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    work, spec = work_in(tmp_path, base), made(tmp_path / "job", "walk")
    take = disk._take_name

    def killed(part: Path, path: Path) -> None:
        if cut == "after the file":
            take(part, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_take_name", killed)
        with pytest.raises(KeyboardInterrupt):
            work.publish(spec, tmp_path / "job", 5)
    assert work.publish(spec, tmp_path / "job", 5) == "motion/walk.safetensors" and names(tmp_path) == [
        "walk.safetensors"
    ]


def test_another_result_never_takes_a_name(tmp_path: Path, base: VideoPipeline) -> None:
    work = work_in(tmp_path, base)
    first, second = made(tmp_path / "a", "walk"), made(tmp_path / "b", "walk", 2.0)
    assert work.publish(first, tmp_path / "a", 5) == "motion/walk.safetensors"
    assert work.publish(second, tmp_path / "b", 5) == "motion/walk-2.safetensors"
    assert work.publish(first, tmp_path / "a", 3) == "motion/walk-000003.safetensors"
    assert work.publish(second, tmp_path / "b", 5) == "motion/walk-2.safetensors"
    assert names(tmp_path) == ["walk-000003.safetensors", "walk-2.safetensors", "walk.safetensors"]


def test_a_corrected_name_is_in_the_file_too(tmp_path: Path, base: VideoPipeline) -> None:
    work, spec = work_in(tmp_path, base), made(tmp_path / "job", "wlak")
    work.publish(spec, tmp_path / "job", 5)
    published = work.publish(replace(spec, name="walk"), tmp_path / "job", 5)
    lora = load_lora(tmp_path / "loras" / published)
    assert published == "motion/walk.safetensors" and lora.metadata["modelspec.title"] == "walk"
    assert names(tmp_path) == ["walk.safetensors", "wlak.safetensors"], "what was published stays the user's"


def test_a_linked_folder_is_the_users_own_choice(tmp_path: Path, base: VideoPipeline) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "loras").mkdir()
    try:
        (tmp_path / "loras" / "motion").symlink_to(tmp_path / "big")
    except OSError:
        pytest.skip("this system lets nobody make links")
    spec = made(tmp_path / "job", "walk")
    assert work_in(tmp_path, base).publish(spec, tmp_path / "job", 5) == "motion/walk.safetensors"
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["walk.safetensors"]


def submitted(tmp_path: Path, base: VideoPipeline, name: str) -> JobRunner:
    runner = JobRunner(JobStore(tmp_path / "jobs"), work_in(tmp_path, base))
    inputs = TrainingInputs(base, (sample_clip(),))
    try:
        runner.submit(training_spec(MOTION_LORA, name, inputs, quick(absorber="none"), base={}), inputs)
    finally:
        runner.close()
    return runner


@pytest.mark.parametrize("fault", ["name", "file in the way", "no room"])
def test_what_would_fail_at_the_end_is_said_before_the_first_step(
    tmp_path: Path, base: VideoPipeline, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "loras").mkdir()
    if fault == "file in the way":
        (tmp_path / "loras" / "motion").write_text("")
    if fault == "no room":
        usage = disk.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    expected = {"name": "leads out", "file in the way": "is a file", "no room": "free some"}[fault]
    with pytest.raises(OutputError, match=expected):
        submitted(tmp_path, base, "../mine" if fault == "name" else "mine")
    assert not list((tmp_path / "jobs").iterdir()), "no failed job is left behind"


def test_the_room_needed_is_that_of_the_checkpoint(tmp_path: Path, base: VideoPipeline) -> None:
    settings = quick(absorber="none", checkpoint_every=1)
    result, work = bytes_needed(base, make_recipe([sample_clip()], settings), {"motion": 3})
    kept: list[int] = []

    def look(report: object) -> str:
        kept.append(sum(path.stat().st_size for path in tmp_path.glob("state-*")))
        return "continue"

    lora = train(base, [sample_clip()], settings, callback=look, checkpoint=tmp_path).lora
    assert result == 4 * lora.num_parameters
    assert max(kept) < work < 4 * max(kept)


def test_a_users_own_files_in_the_checkpoint_folder_stay(tmp_path: Path, base: VideoPipeline) -> None:
    (tmp_path / "writable").write_text("my notes")
    train(base, [sample_clip()], quick(absorber="none", steps=1), checkpoint=tmp_path)
    assert (tmp_path / "writable").read_text() == "my notes"
