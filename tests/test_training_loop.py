"""The loop's options, what a callback can ask for, and what is refused or stops with a clear error."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from lora_samples import random_lora
from tiny import tiny_frames
from training_samples import (
    Listener,
    in_dtype,
    largest_change,
    quick,
    same_weights,
    sample_clip,
    small_pipeline,
    stage_on,
    weights_of,
)

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.base.placement import share_parameters
from motion_lora.core.absorber import Absorber, PlaceholderTokens
from motion_lora.core.errors import ClipError, LoRAFileError, SettingsError, TrainingError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.training import (
    StageRun,
    TrainingAbortedError,
    TrainSettings,
    learning_rate_factor,
    train,
    train_absorber,
)
from motion_lora.training.settings import main_stages


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def clip():
    return sample_clip()


def stage_run(pipeline, clips, settings, absorber=None, stage=-1) -> StageRun:
    return stage_on(pipeline, main_stages(settings)[stage], settings, clips, absorber)


def gradients(run_: StageRun, step: int) -> dict[str, float]:
    """Largest gradient by adapter after all passes of a step."""
    draw = run_.draw(step)
    with run_.prepared():
        for a_pass in run_.passes(draw):
            with run_.arranged(a_pass, draw):
                run_.loss(a_pass, draw).backward()
    found: dict[str, float] = {}
    for name, weight in run_.parameters.items():
        part = name.split("|")[0]
        found[part] = max(found.get(part, 0.0), 0.0 if weight.grad is None else float(weight.grad.abs().max()))
    return found


# Options of the loop ------------------------------------------------------------------------------------------------


def test_gradient_accumulation_is_the_mean_of_its_steps(pipeline, clip):
    single = stage_run(pipeline, [clip], quick(absorber="none"))
    expected: dict[str, torch.Tensor] = {}
    for step in (0, 1):
        gradients(single, step)
    expected = {name: weight.grad / 2 for name, weight in single.parameters.items()}
    steps = {"steps": 1, "gradient_accumulation": 2, "absorber": "none", "max_grad_norm": 1e6, "weight_decay": 0.0}
    result = train(pipeline, [clip], quick(**steps))
    # the first step of AdamW moves every weight by rate * g / (|g| + eps)
    for module, layer in result.lora.layers.items():
        gradient = expected[f"temporal|{module}.up"]
        assert torch.allclose(layer.up, -1e-2 * gradient / (gradient.abs() + 1e-8), atol=1e-6), module


def test_learning_rate_schedules():
    warm = TrainSettings(warmup_steps=4)
    assert [learning_rate_factor(warm, step, 10) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = TrainSettings(lr_scheduler="cosine", warmup_steps=2)
    assert [learning_rate_factor(cosine, step, 10) for step in (0, 2)] == [0.5, 1.0]
    assert learning_rate_factor(cosine, 6, 10) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 10, 10) == pytest.approx(0.0)


def test_reports_follow_the_schedule(pipeline, clip):
    listener = Listener()
    train(pipeline, [clip], quick(absorber="none", lr_scheduler="cosine", steps=3, report_every=2), callback=listener)
    assert [(report.step, report.total) for report in listener.heard] == [(2, 3), (3, 3)]
    rates = [learning_rate_factor(TrainSettings(lr_scheduler="cosine"), step, 3) * 1e-2 for step in (1, 2)]
    assert [report.learning_rate for report in listener.heard] == pytest.approx(rates)
    assert all(report.loss > 0 and report.seconds > 0 for report in listener.heard)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(clip, dtype):
    pipeline = in_dtype(dtype)
    before = weights_of(pipeline)
    # absorber and spatial path share modules
    settings = quick(method="motiondirector", absorber="spatial", absorber_steps=1, steps=2)
    result = train(pipeline, [clip], settings)
    assert same_weights(pipeline, before)
    assert largest_change(result.lora) > 0 and largest_change(result.spatial[0]) > 0
    assert all(layer.up.dtype is torch.float32 for layer in result.lora.layers.values())
    exact = train(small_pipeline(), [clip], settings)
    pairs = zip(result.losses, exact.losses, strict=True)
    assert all(half.loss == pytest.approx(full.loss, rel=0.05) for half, full in pairs)


@pytest.mark.parametrize(
    "changes",
    [{"timestep_low": 0.9}, {"min_snr_gamma": 0.01}, {"offset_noise": 0.5}, {"highway": "all"}, {"targets": "tap-qk"}],
)
def test_options_change_the_result(pipeline, clip, changes):
    plain = train(pipeline, [clip], quick(absorber="none", steps=2))
    other = train(pipeline, [clip], quick(absorber="none", steps=2, **changes))
    assert [report.loss for report in plain.losses] != [report.loss for report in other.losses]


def test_training_lowers_the_loss_and_the_lora_carries_it(pipeline, clip):
    """A short real training: on noise it has never seen, the merged LoRA denoises the clip better than the base."""
    settings = quick(absorber="none", steps=30, rank=4, learning_rate=1e-2)
    result = train(pipeline, [clip], settings)
    ready = stage_run(pipeline, [clip], replace(settings, seed=77))
    (a_pass,) = main_stages(settings)[-1].passes

    def mean_loss(lora: LoRA | None) -> float:
        network = share_parameters(pipeline.unet)
        ready._forward = network
        stack = AdapterStack() if lora is None else AdapterStack((StackEntry(lora),))
        with torch.no_grad(), applied(network, stack, num_frames=ready.draw(0).latents.shape[2]):
            return sum(float(ready.loss(a_pass, ready.draw(step))) for step in range(8)) / 8

    assert mean_loss(result.lora) < 0.9 * mean_loss(None)


# Commands -----------------------------------------------------------------------------------------------------------


def test_stop_returns_what_there_is(pipeline, clip):
    result = train(pipeline, [clip], quick(absorber="none"), callback=Listener(("motion", 2), "stop"))
    assert (result.ending, result.finished, len(result.losses)) == ("stopped", True, 2)
    assert largest_change(result.lora) > 0 and result.lora.metadata["motion_lora.steps"] == "2"
    two = train(pipeline, [clip], quick(absorber="none", steps=2), callback=Listener(("motion", 2), "stop"))
    assert two.ending == "completed", "there was nothing left to do"
    assert result.lora.fingerprint() == two.lora.fingerprint()


def test_stop_before_the_motion_stage_returns_no_layers(pipeline, clip):
    result = train(pipeline, [clip], quick(), callback=Listener(("absorber-tokens", 1), "stop"))
    assert result.ending == "stopped" and len(result.lora) == 0
    assert result.absorber.spatial is not None and result.absorber.tokens is not None


def test_an_answer_that_is_no_command_is_refused(pipeline, clip):
    with pytest.raises(SettingsError, match="answered 'halt'; it must be one of: continue, pause, stop, abort"):
        train(pipeline, [clip], quick(absorber="none"), callback=Listener(("motion", 1), "halt"))


def test_abort_leaves_nothing(pipeline, clip, tmp_path):
    before = weights_of(pipeline)
    settings = quick(checkpoint_every=1, absorber="none")
    with pytest.raises(TrainingAbortedError, match="nothing was kept"):
        train(pipeline, [clip], settings, callback=Listener(("motion", 2), "abort"), checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists() and same_weights(pipeline, before)


# Faults -------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops(pipeline, clip, tmp_path):
    settings = quick(absorber="none", steps=6, checkpoint_every=1)
    own = small_pipeline()
    bias = own.unet.conv_out.bias
    former = bias.detach().clone()

    def spoil(report):
        """By way of the shared weights, the third step's loss is not a number."""
        if report.step == 2:
            bias.data.fill_(float("nan"))
        return "continue"

    with pytest.raises(TrainingError, match=r"step 3 in motion is not finite; .*last good checkpoint"):
        train(own, [clip], settings, callback=spoil, checkpoint=tmp_path / "kept")
    bias.data.copy_(former)
    resumed = train(own, [clip], settings, checkpoint=tmp_path / "kept")
    assert resumed.lora.fingerprint() == train(own, [clip], settings).lora.fingerprint(), "from the last good step on"
    bias.data.fill_(float("inf"))
    listener = Listener()
    with pytest.raises(TrainingError, match=r"step 1 in motion is not finite; lower learning_rate \(here 0.01\)\.$"):
        train(own, [clip], settings, callback=listener, checkpoint=tmp_path / "none")
    assert listener.heard == [] and not (tmp_path / "none").exists()


def test_out_of_memory_says_what_to_lower(pipeline, clip, monkeypatch):
    def fail(self, a_pass, draw):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(StageRun, "loss", fail)
    with pytest.raises(TrainingError, match="cpu ran out of memory; switch gradient_checkpointing on, use"):
        train(pipeline, [clip], quick(absorber="none"))
    monkeypatch.setattr(StageRun, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(pipeline, [clip], quick(absorber="none"))


@pytest.mark.parametrize(
    ("settings", "clips", "error", "message"),
    [
        ({}, [], ClipError, "no clip to learn from"),
        ({}, [sample_clip(caption=" ")], ClipError, "Clip 1 has no caption"),
        ({}, [sample_clip(appearance_caption="")], ClipError, "Clip 1 has no appearance caption, .* 'dual'"),
        ({}, [sample_clip(absorb_words="blue square")], ClipError, "'blue square', to be absorbed, is not in the "),
        ({"num_tokens": 1}, [sample_clip(absorb_words="red, sand")], ClipError, "num_tokens is 1 for the 2 phrases"),
        ({"absorber": "none"}, [sample_clip(num_frames=1)], ClipError, "one frame, and a motion needs 2"),
        ({"rank": 999}, [sample_clip()], SettingsError, "rank is 999, this base takes 1 to 32"),
        ({"rank": 0, "steps": 0}, [sample_clip()], SettingsError, "steps is 0.*rank is 0"),
    ],
)
def test_bad_input_is_refused_before_work(pipeline, settings, clips, error, message):
    with pytest.raises(error, match=message) as caught:
        train(pipeline, clips, quick(**settings), callback=lambda report: pytest.fail("work had begun"))
    assert "\n" not in str(caught.value)


def test_all_faults_of_the_clips_at_once(pipeline):
    clips = [sample_clip(caption=""), replace(sample_clip(), frames=tiny_frames(size=20), source="two.mp4")]
    with pytest.raises(ClipError, match=r"Clip 1 has no caption.*Clip 2 \(two.mp4\): height x width is 20 x 20"):
        train(pipeline, clips, quick(absorber="none"))


def test_words_are_found_where_none_are_given(pipeline):
    tokens = train_absorber(pipeline, [sample_clip(absorb_words="")], quick(absorber="textual-inversion")).tokens
    assert tokens.words == ("red circle, sand",) * 4
    with pytest.raises(ClipError, match="no words to absorb"):
        train(pipeline, [sample_clip(absorb_words="", appearance_caption="snow")], quick())


def test_an_absorber_of_another_base_is_refused(pipeline, clip):
    names = list(target_modules(pipeline.unet, "temporal-attention"))
    wrong = {
        "the absorber is empty": Absorber(),
        "temporal layer": Absorber(spatial=random_lora(pipeline.unet, names)),
        "another base": Absorber(
            spatial=LoRA({"down_blocks.0.attentions.0.proj_in": LoRALayer(torch.ones(1, 320), torch.ones(320, 1))})
        ),
        "another text encoder": Absorber(tokens=PlaceholderTokens(("<x>",), torch.zeros(1, 1024))),
        "no such weight": Absorber(weights={"nothing": torch.zeros(1)}),
        "of a temporal layer": Absorber(weights={"transformer_in.norm.weight": torch.ones(32)}),
    }
    for message, absorber in wrong.items():
        with pytest.raises(LoRAFileError, match=f"(?i){message}"):
            train(pipeline, [clip], quick(), absorber=absorber)


def test_the_rows_of_settings_reach_the_result(pipeline, clip):
    assert dataclasses.is_dataclass(TrainSettings)
    result = train(pipeline, [clip], quick(absorber="none", targets="tap-k", alpha=0.25, steps=1))
    assert list(result.lora) == list(target_modules(pipeline.unet, "tap-k"))
    assert {layer.scale for layer in result.lora.layers.values()} == {0.25}
