"""What a training will take, said before it starts, against what it took; and a training that cannot fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_helpers import CAPTIONS, FEW_STEPS, succeeds, write_base, write_clip
from tiny import tiny_frames, tiny_pipeline

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.clip import Clip
from motion_lora.core.out_of_memory import TrainingMemoryError
from motion_lora.files.own import save_lora
from motion_lora.training import Speeds, TrainSettings, preflight, require_memory, train
from motion_lora.training.ledger import bytes_of
from motion_lora.training.preflight import estimate, speeds_of
from motion_lora.training.recipe import make_recipe
from motion_lora.training.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(tiny_frames(), 8.0, "a red circle circling", "a red circle", "red circle")


def settings(method: str = "temporal-only", **more: object) -> TrainSettings:
    return TrainSettings(method=method, steps=24, checkpoint_every=1000, **more)


def peak_of(work: object) -> int:
    """The most bytes that torch's own allocator had handed out at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_parameters_and_file_are_those_of_the_training(base: VideoPipeline, clip: Clip, tmp_path: Path) -> None:
    found = estimate(base, [clip], settings(rank=8), clock=False)
    lora = train(base, [clip], settings(rank=8)).lora
    assert found.parameters == sum(layer.down.numel() + layer.up.numel() for layer in lora.layers.values())
    file = save_lora(tmp_path / "lora.safetensors", lora).stat().st_size
    assert found.file == pytest.approx(file, rel=0.1)
    assert found.seconds is None and found.rank == 8 and found.absorber == "none"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_that_of_a_step(base: VideoPipeline, clip: Clip, checkpointing: bool) -> None:
    recipe = make_recipe([clip], settings("motiondirector", gradient_checkpointing=checkpointing))
    found = Rehearsal(base, recipe.stages[0], recipe, None).memory()
    # Another, whose layers have not yet made the copies of weights that they keep.
    run = Rehearsal(base, recipe.stages[0], recipe, None)
    held = found.total - found.trained - bytes_of(base.unet, base.text_encoder, base.vae)

    def step() -> None:
        draw = next(draw for draw in map(run.draw, range(20)) if draw.with_optional)
        for a_pass in run.stage.passes:
            with run.arranged(a_pass, draw):
                run.loss(a_pass, draw).backward()

    with run.prepared():
        # Workspaces inside of kernels are not seen.
        assert 0.8 < held / peak_of(step) < 1.1


def test_counting_without_computing_gives_the_same(
    base: VideoPipeline, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe([clip], settings())
    run = Rehearsal(base, recipe.stages[0], recipe, None)
    computed = run.memory()
    monkeypatch.setattr("motion_lora.training.memory._SMALL_WEIGHTS", 0)
    assert run.memory().activations == pytest.approx(computed.activations, rel=0.02)


def test_the_base_stays_as_it_is(base: VideoPipeline, clip: Clip) -> None:
    before = {name: weight.clone() for name, weight in base.unet.named_parameters()}
    with torch.inference_mode():
        estimate(base, [clip], settings("customize-a-video", absorber_steps=4, token_steps=4, num_tokens=2))
    for name, weight in base.unet.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None and not weight.requires_grad


def test_the_sentence_names_stages_steps_rank_and_minutes(base: VideoPipeline, clip: Clip) -> None:
    chosen = settings("customize-a-video", absorber_steps=4, token_steps=6, num_tokens=2)
    found = estimate(base, [clip], chosen)
    assert found.sentence().startswith("customize-a-video on tiny: dual absorber 4 + 6 steps, 24 steps, rank 4, about ")
    assert found.seconds == pytest.approx(sum(stage.steps * stage.seconds for stage in found.stages))
    assert json.loads(json.dumps(found.to_json()))["stages"][0]["name"] == "absorber-spatial"
    alone = estimate(base, [clip], chosen, absorber_only=True, clock=False)
    assert alone.sentence() == "dual absorber on tiny: 4 + 6 steps"


def test_what_this_machine_took_before_is_believed(base: VideoPipeline, clip: Clip, tmp_path: Path) -> None:
    speeds = Speeds(tmp_path / "speeds.json")
    assert estimate(base, [clip], settings(), clock=False, speeds=speeds).seconds is None
    result = train(base, [clip], settings())
    kept = speeds_of(base, make_recipe([clip], settings()), result.losses)
    speeds.keep(kept)
    mean = sum(report.seconds for report in result.losses) / len(result.losses)
    found = estimate(base, [clip], settings(), clock=False, speeds=Speeds(tmp_path / "speeds.json"))
    assert found.seconds == pytest.approx(24 * mean, rel=0.01)
    assert estimate(base, [clip], settings(rank=8), clock=False, speeds=speeds).seconds is None, "another step"
    (tmp_path / "speeds.json").write_text("[")
    assert speeds.find(next(iter(kept))) is None


@pytest.mark.parametrize("change", [{"memory": 8.0}, {"compile": True}, {"gradient_checkpointing": True}], ids=str)
def test_steps_that_are_computed_otherwise_are_timed_anew(base: VideoPipeline, clip: Clip, change: dict) -> None:
    def mark(pipeline: VideoPipeline, **more: object) -> str:
        recipe = make_recipe([clip], settings(**more))
        return preflight.step_mark(pipeline, recipe, recipe.main[0])

    assert mark(base, **change) != mark(base) == mark(base)
    assert mark(replace(base, fast_layers=False)) != mark(base)


def test_a_training_that_cannot_fit_says_what_to_lower(
    base: VideoPipeline, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = estimate(base, [clip], settings(), clock=False).memory
    monkeypatch.setattr(preflight, "memory_available", lambda device: round(need / 1.1))
    require_memory(estimate(base, [clip], settings(), clock=False), base, settings())
    monkeypatch.setattr(preflight, "memory_available", lambda device: need // 2)
    found = estimate(base, [clip], settings(), clock=False)
    assert not found.fits
    with pytest.raises(TrainingMemoryError, match=r"needs about .* has .* to give: switch gradient_checkpointing on"):
        require_memory(found, base, settings())


def test_a_dry_run_says_it_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, clip = write_base(tmp_path, levels=2), write_clip(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ("train", "--dry-run", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS)
    capsys.readouterr()
    succeeds(*words)
    said = capsys.readouterr().out.splitlines()
    assert " steps, rank " in said[0] and "a file of " in said[1]
    succeeds(*words, "--json", "--output", tmp_path / "none.safetensors")
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert sorted(tmp_path.rglob("*")) == before
