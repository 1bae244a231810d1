"""Checkpoints: resumed equals uninterrupted bit for bit, another run's is refused, a crash leaves the last one."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_samples import Listener, in_dtype, quick, sample_clip, small_pipeline

import motion_lora.training.checkpoint as state
from motion_lora.core import disk
from motion_lora.core.errors import OutputError, SettingsError, TrainingError
from motion_lora.training import TrainResult, train, train_absorber


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def clips():
    return [sample_clip(), sample_clip(1, absorb_words="circle")]


def same(a: TrainResult, b: TrainResult) -> bool:
    """Bits and losses, timing aside."""
    losses = [[replace(report, seconds=0.0) for report in result.losses] for result in (a, b)]
    absorbers = [result.absorber.fingerprint() if result.absorber else "" for result in (a, b)]
    spatial = [[lora.fingerprint() for lora in result.spatial] for result in (a, b)]
    lora = a.lora.fingerprint() == b.lora.fingerprint() and a.lora.metadata == b.lora.metadata
    return lora and losses[0] == losses[1] and absorbers[0] == absorbers[1] and spatial[0] == spatial[1]


SETTINGS = quick(dropout=0.1, lr_scheduler="cosine", warmup_steps=1)


@pytest.fixture(scope="module")
def whole(pipeline, clips):
    return train(pipeline, clips, SETTINGS)


@pytest.mark.parametrize(
    "at",
    [("absorber-spatial", 1), ("absorber-spatial", 2), ("absorber-tokens", 1), ("motion", 1), ("motion", 3)],
    ids=lambda at: f"{at[0]}-{at[1]}",
)
def test_resumed_is_uninterrupted(pipeline, clips, whole, tmp_path, at):
    paused = train(pipeline, clips, SETTINGS, callback=Listener(at, "pause"), checkpoint=tmp_path)
    assert not paused.finished and paused.ending == "paused"
    assert (paused.losses[-1].stage, paused.losses[-1].step) == at
    listener = Listener()
    resumed = train(pipeline, clips, SETTINGS, callback=listener, checkpoint=tmp_path)
    assert resumed.finished and same(resumed, whole)
    assert len(listener.heard) == len(whole.losses) - len(paused.losses), "nothing is done twice"
    again = train(pipeline, clips, SETTINGS, callback=listener, checkpoint=tmp_path)
    assert same(again, whole) and len(listener.heard) == len(whole.losses) - len(paused.losses)


def test_a_crash_between_checkpoints_costs_only_the_steps_since(pipeline, clips, tmp_path):
    settings = quick(method="motiondirector", steps=4, checkpoint_every=2, spatial_path_probability=0.5)
    whole_run = train(pipeline, clips, settings)

    def crash(report):
        if report.step == 3:
            raise KeyboardInterrupt
        return "continue"

    with pytest.raises(KeyboardInterrupt):
        train(pipeline, clips, settings, callback=crash, checkpoint=tmp_path)
    listener = Listener()
    resumed = train(pipeline, clips, settings, callback=listener, checkpoint=tmp_path)
    assert [report.step for report in listener.heard] == [3, 4]
    assert same(resumed, whole_run)


def test_stopped_can_go_on(pipeline, clips, tmp_path):
    settings = quick(absorber="none")
    whole_run = train(pipeline, clips, settings)
    stopped = train(pipeline, clips, settings, callback=Listener(("motion", 1), "stop"), checkpoint=tmp_path)
    assert stopped.ending == "stopped" and len(stopped.lora) > 0
    assert same(train(pipeline, clips, settings, checkpoint=tmp_path), whole_run)


def test_fp16_resumes_with_its_scaler(clips, tmp_path):
    pipeline, settings = in_dtype(torch.float16), quick(absorber="none", steps=2)
    whole_run = train(pipeline, clips, settings)
    train(pipeline, clips, settings, callback=Listener(("motion", 1), "pause"), checkpoint=tmp_path)
    index = json.loads((tmp_path / state.INDEX).read_text(encoding="utf-8"))
    assert index["scaler"]["scale"] > 1
    assert same(train(pipeline, clips, settings, checkpoint=tmp_path), whole_run)


def test_absorber_run_resumes(pipeline, clips, tmp_path, whole):
    pause = Listener(("absorber-tokens", 1), "pause")
    with pytest.raises(TrainingError, match="Paused"):
        train_absorber(pipeline, clips, SETTINGS, callback=pause, checkpoint=tmp_path)
    absorber = train_absorber(pipeline, clips, SETTINGS, checkpoint=tmp_path)
    assert absorber.fingerprint() == whole.absorber.fingerprint()
    with pytest.raises(SettingsError, match=r"stages '.*tokens' there and '.*tokens\+motion' here"):
        train(pipeline, clips, SETTINGS, checkpoint=tmp_path)


def test_a_checkpoint_of_another_run_is_refused(pipeline, clips, tmp_path):
    settings = quick(absorber="none")
    train(pipeline, clips, settings, callback=Listener(("motion", 1), "pause"), checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SettingsError, match=r"rank 2 there and 3 here, seed 0 there and 5 here, .* choose"):
        train(pipeline, clips, replace(settings, rank=3, seed=5), checkpoint=tmp_path)
    with pytest.raises(SettingsError, match="other clips, base or absorber"):
        train(pipeline, clips[:1], settings, checkpoint=tmp_path)
    with pytest.raises(SettingsError, match="dtype 'float32' there and 'bfloat16' here"):
        train(in_dtype(torch.bfloat16), clips, settings, checkpoint=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # how it is run may change
    otherwise = replace(settings, gradient_checkpointing=True, report_every=2)
    resumed = train(pipeline, clips, otherwise, checkpoint=tmp_path)
    assert resumed.lora.fingerprint() == train(pipeline, clips, settings).lora.fingerprint()


def test_a_folder_that_cannot_be_written_is_refused_before_work(pipeline, clips, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputError):
        train(pipeline, clips, SETTINGS, callback=lambda _: pytest.fail("work had begun"), checkpoint=tmp_path / "file")


@pytest.mark.parametrize("broken", ["index", "tensors", "missing"])
def test_a_damaged_checkpoint_is_named(pipeline, clips, tmp_path, broken):
    settings = quick(absorber="none")
    train(pipeline, clips, settings, callback=Listener(("motion", 1), "pause"), checkpoint=tmp_path)
    (tensors,) = tmp_path.glob("*.safetensors")
    if broken == "index":
        (tmp_path / state.INDEX).write_text("{", encoding="utf-8")
    elif broken == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    else:
        tensors.unlink()
    with pytest.raises(TrainingError, match=r"checkpoint in .* is damaged .*; delete it to start over"):
        train(pipeline, clips, settings, checkpoint=tmp_path)


def test_a_failed_write_leaves_the_former_checkpoint(pipeline, clips, tmp_path, monkeypatch):
    settings = quick(absorber="none", steps=4, checkpoint_every=1)
    whole_run = train(pipeline, clips, settings)
    written = state.write_atomically

    def fail_at_third_index(path, data, *rest):
        if path.name == state.INDEX and json.loads(data)["step"] == 3:
            raise OutputError("no disk space left")
        return written(path, data, *rest)

    monkeypatch.setattr(state, "write_atomically", fail_at_third_index)
    with pytest.raises(OutputError, match="no disk space"):
        train(pipeline, clips, settings, checkpoint=tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / state.INDEX).read_text(encoding="utf-8"))["step"] == 2
    assert same(train(pipeline, clips, settings, checkpoint=tmp_path), whole_run)
    assert len(list(tmp_path.iterdir())) == 4, "two checkpoints: of each an index and a file of tensors"


def test_steps_go_on_while_a_checkpoint_is_written(pipeline, clips, tmp_path, monkeypatch):
    step_three, in_time = threading.Event(), []
    write = state.write_atomically

    def slow(path, data):
        in_time.append(step_three.wait(timeout=5))
        return write(path, data)

    def heard(report):
        if report.step == 3:
            step_three.set()
        return "continue"

    monkeypatch.setattr(state, "write_atomically", slow)
    settings = quick(method="temporal-only", steps=3, checkpoint_every=2)
    assert train(pipeline, clips, settings, callback=heard, checkpoint=tmp_path).ending == "completed"
    assert in_time and all(in_time)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("motion-lora-checkpoint")]


def test_a_checkpoint_is_written_while_python_ends(pipeline, clips, tmp_path, monkeypatch):
    """Ctrl-C on a server: threads still train for a moment, and nothing more can be handed to another thread."""
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    settings = quick(steps=4, checkpoint_every=2)
    assert train(pipeline, clips, settings, callback=Listener(("motion", 3), "pause"), checkpoint=tmp_path).ending
    monkeypatch.undo()
    assert state.Keeper(tmp_path, "", {}, [], torch.float32).exists
    resumed = train(pipeline, clips, settings, checkpoint=tmp_path)
    assert resumed.lora.fingerprint() == train(pipeline, clips, settings).lora.fingerprint()


@pytest.mark.parametrize("broken", ["a bit", "index", "tensors", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(pipeline, clips, tmp_path, broken, caplog):
    """A disk may lose what it has taken: one bit of a moment would go on training, quietly to something else."""
    settings = quick(absorber="none", steps=4, checkpoint_every=1)
    whole_run = train(pipeline, clips, settings)
    train(pipeline, clips, settings, callback=Listener(("motion", 2), "pause"), checkpoint=tmp_path)
    tensors, index = tmp_path / "state-motion-0000002.safetensors", tmp_path / state.INDEX
    if broken == "a bit":
        data = bytearray(tensors.read_bytes())
        data[-10] ^= 1
        tensors.write_bytes(data)
    elif broken == "index":
        index.write_text(index.read_text(encoding="utf-8").replace('"step": 2', '"step": 3'), encoding="utf-8")
    elif broken == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    else:
        tensors.unlink()
    listener = Listener()
    assert same(train(pipeline, clips, settings, callback=listener, checkpoint=tmp_path), whole_run)
    assert [report.step for report in listener.heard] == [2, 3, 4]
    assert "is damaged" in caplog.text and "going on from step 1" in caplog.text


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    """A virus scanner holds it for a moment, or the right to it is missing: it is whole, and newer than the other."""
    keeper = state.Keeper(tmp_path, "mark", {}, ["motion"], torch.float32)
    for step in (1, 2):
        keeper.save(state.Progress({"look": {"a": torch.ones(2)}}, [], "motion", step), None)
    opened, refusals = Path.open, []

    def refuse(path, *args, **more):
        if "0000002" in path.name and (len(refusals) < times or times < 0):
            refusals.append(path)
            raise PermissionError(13, "in use", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(disk, "_PAUSES", (0.0, 0.0))
    times = 1
    assert state.Keeper(tmp_path, "mark", {}, ["motion"], torch.float32).open().step == 2 and refusals
    times = -1
    with pytest.raises(TrainingError, match="in use"):
        state.Keeper(tmp_path, "mark", {}, ["motion"], torch.float32).open()


def test_what_is_kept_beside_a_checkpoint_is_made_again_when_it_is_damaged(tmp_path):
    keeper = state.Keeper(tmp_path, "mark", {}, ["motion"], torch.float32)
    made = keeper.remember("looks", lambda: torch.ones(3))
    (file,) = tmp_path.glob("kept-*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert torch.equal(keeper.remember("looks", lambda: torch.ones(3)), made)
    assert keeper.remember("looks", lambda: pytest.fail("sound, and made again")) is not None
