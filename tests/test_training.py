"""Training: only what should learn learns, the base stays, the same seed gives the same bits, and faults are clear."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from lora_samples import random_lora, run
from tiny import tiny_frames
from training_samples import (
    Listener,
    in_dtype,
    largest_change,
    quick,
    same_weights,
    sample_clip,
    small_pipeline,
    weights_of,
)

from motion_lora.adapters import merge
from motion_lora.errors import ClipError, LoRAFileError, SettingsError, TrainingError
from motion_lora.inversion import Absorber, PlaceholderTokens
from motion_lora.lora import SPATIAL, TEMPORAL, LoRA, LoRALayer, layer_of
from motion_lora.methods import METHODS
from motion_lora.pipeline import share_parameters
from motion_lora.targets import target_modules
from motion_lora.training import (
    StageRun,
    TrainingAbortedError,
    TrainingPausedError,
    TrainSettings,
    fingerprint,
    learning_rate_factor,
    spatial_weights,
    train,
    train_absorber,
)
from motion_lora.training.settings import absorber_stages, main_stages


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def clip():
    return sample_clip()


@pytest.fixture(scope="module")
def trained(pipeline, clip):
    """One whole run of Customize-A-Video with a dual absorber, and the base's weights from before it."""
    before = weights_of(pipeline)
    return train(pipeline, [clip], quick()), before


def stage_run(pipeline, clips, settings, absorber=None, stage=-1) -> StageRun:
    return StageRun(pipeline, main_stages(settings)[stage], settings, clips, absorber)


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


# What trains and what stays -----------------------------------------------------------------------------------------


def test_the_base_is_untouched(pipeline, trained):
    result, before = trained
    assert same_weights(pipeline, before)
    assert not any(weight.requires_grad for weight in pipeline.unet.parameters())
    assert not any("forward" in module.__dict__ for module in pipeline.unet.modules())
    assert result.finished and result.ending == "completed"


def test_the_result_is_the_temporal_lora_alone(pipeline, trained):
    result, _ = trained
    assert list(result.lora) == list(target_modules(pipeline.unet, "temporal-attention"))
    assert largest_change(result.lora) > 1e-3
    assert result.absorber is not None and result.spatial == ()
    assert list(result.absorber.spatial) == list(target_modules(pipeline.unet, "spatial-attention"))
    assert largest_change(result.absorber.spatial) > 1e-3
    assert result.absorber.spatial.ranks == (1,) and result.lora.ranks == (2,)
    assert {layer.scale for layer in result.absorber.spatial.layers.values()} == {0.5}
    assert result.absorber.tokens.words == ("red circle",) * 4
    stages = [("absorber-spatial", 1), ("absorber-spatial", 2), ("absorber-tokens", 1), ("absorber-tokens", 2)]
    stages += [("motion", step) for step in (1, 2, 3)]
    assert [(report.stage, report.step) for report in result.losses] == stages


def test_metadata_is_ready_for_the_file(pipeline, trained):
    result, _ = trained
    metadata = result.lora.metadata
    assert metadata["motion_lora.method"] == "customize-a-video" and metadata["motion_lora.steps"] == "3"
    assert metadata["motion_lora.target_preset"] == "temporal-attention"
    assert metadata["motion_lora.base_weights_hash"] == pipeline.identity.weights_hash
    assert metadata["motion_lora.num_frames"] == "3" and metadata["motion_lora.height"] == "16"
    assert TrainSettings(**result.settings).resolved().absorber == "dual"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_only_its_parts(pipeline, clip, name):
    settings = quick(method=name, absorber="none", spatial_path_probability=1.0)
    ready = stage_run(pipeline, [clip], settings)
    expected = set()
    for part in main_stages(settings)[-1].parts:
        adapter = f"{part.name}_0" if part.per_clip else part.name
        for module in target_modules(pipeline.unet, part.targets):
            expected |= {f"{adapter}|{module}.down", f"{adapter}|{module}.up"}
    assert set(ready.parameters) == expected
    before = {key: weight.detach().clone() for key, weight in ready.parameters.items()}
    found = gradients(ready, 0)
    assert all(value > 0 for value in found.values()), "every part learns"
    learning = {id(weight) for weight in ready.parameters.values()}
    others = [weight for weight in ready.unet.parameters() if id(weight) not in learning]
    assert not any(weight.requires_grad or weight.grad is not None for weight in others)
    assert all(torch.equal(before[key], weight) for key, weight in ready.parameters.items())


def test_absorber_stages_train_only_their_parts(pipeline, clip):
    settings = quick()
    spatial, tokens = (StageRun(pipeline, stage, settings, [clip], None) for stage in absorber_stages(settings))
    modules = target_modules(pipeline.unet, "spatial-attention")
    assert set(spatial.parameters) == {f"absorber|{module}.{end}" for module in modules for end in ("down", "up")}
    assert set(tokens.parameters) == {"tokens|rows"} and tokens.parameters["tokens|rows"].shape == (4, 32)
    for ready in (spatial, tokens):
        assert all(value > 0 for value in gradients(ready, 0).values())
        learning = {id(weight) for weight in ready.parameters.values()}
        networks = (*ready.unet.parameters(), *ready._reader.text_encoder.parameters())
        assert not any(weight.requires_grad for weight in networks if id(weight) not in learning)


def test_absorber_stages_see_no_motion(pipeline, clip):
    """With the temporal layers bypassed, the order of the frames in a batch is nothing but an order."""
    ready = StageRun(pipeline, absorber_stages(quick(absorber="spatial"))[0], quick(patch_crop=False), [clip], None)
    draw = ready.draw(0)
    (a_pass,) = ready.passes(draw)
    turned = replace(draw, latents=draw.latents.flip(0), noise=draw.noise.flip(0), timesteps=draw.timesteps.flip(0))
    with ready.prepared(), ready.arranged(a_pass, draw):
        assert torch.allclose(ready.loss(a_pass, draw), ready.loss(a_pass, turned), atol=1e-6)
        assert draw.latents.shape[2] == 1 and len(draw.latents) == 2
        assert len(set(draw.timesteps.tolist())) == 2


def test_motion_stage_sees_the_absorber(pipeline, clip, trained):
    """The frozen absorber is in the loss, and nowhere in the parameters."""
    absorber = trained[0].absorber
    losses = []
    for given in (None, Absorber(spatial=absorber.spatial), Absorber(tokens=absorber.tokens), absorber):
        ready = stage_run(pipeline, [clip], quick(), given)
        draw = ready.draw(0)
        (a_pass,) = ready.passes(draw)
        with ready.prepared(), ready.arranged(a_pass, draw):
            losses.append(float(ready.loss(a_pass, draw).detach()))
        assert all(name.startswith("temporal|") for name in ready.parameters)
    assert len(set(losses)) == 4


# MotionDirector -----------------------------------------------------------------------------------------------------


def test_dual_path_shares_noise_and_holds_the_spatial_lora(pipeline, clip):
    settings = quick(method="motiondirector", spatial_path_probability=1.0)
    ready = stage_run(pipeline, [clip, sample_clip(1)], settings)
    draw = ready.draw(1)
    assert draw.clip == 1, "clips are taken in turn"
    assert torch.equal(draw.one_frame().noise[:, :, 0], draw.noise[:, :, draw.frame])
    assert torch.equal(draw.one_frame().timesteps, draw.timesteps)
    spatial, temporal = ready.passes(draw)
    with ready.arranged(spatial, draw):
        assert ready.adapters["spatial_1"].strength == 1.0
        assert ready.adapters["temporal"].strength == 0.0 and ready.adapters["spatial_0"].strength == 0.0
    with ready.arranged(temporal, draw):
        assert [ready.adapters[name].strength for name in ("spatial_0", "spatial_1", "temporal")] == [0.0, 1.0, 1.0]
        ready.loss(temporal, draw).backward()
    spatial_weights_ = [weight for name, weight in ready.parameters.items() if name.startswith("spatial")]
    assert all(weight.grad is None for weight in spatial_weights_), "the motion loss never reaches the spatial LoRA"


def test_dual_path_without_its_spatial_half(pipeline, clip):
    ready = stage_run(pipeline, [clip], quick(method="motiondirector", spatial_path_probability=0.0))
    draw = ready.draw(0)
    (temporal,) = ready.passes(draw)
    with ready.arranged(temporal, draw):
        assert ready.adapters["spatial_0"].strength == 0.0, "off in the whole step"
    drawn = stage_run(pipeline, [clip], quick(method="motiondirector"))
    share = sum(drawn.draw(step).with_optional for step in range(400)) / 400
    assert share == pytest.approx(0.8, abs=0.06)


def test_each_clip_has_a_spatial_lora_and_all_share_the_temporal_one(pipeline, clip):
    settings = quick(method="motiondirector", steps=2, spatial_path_probability=1.0, dropout=0.1)
    result = train(pipeline, [clip, sample_clip(1, caption="a blue square moving left over sand")], settings)
    assert len(result.spatial) == 2 and all(largest_change(lora) > 0 for lora in result.spatial)
    assert result.spatial[0].fingerprint() != result.spatial[1].fingerprint()
    assert {layer_of(module) for module in result.lora} == {TEMPORAL}
    assert all({layer_of(module) for module in lora} == {SPATIAL} for lora in result.spatial)
    alone = train(pipeline, [clip], replace(settings, steps=1))
    assert alone.spatial[0].fingerprint() == result.spatial[0].fingerprint(), "the other clip's steps leave it alone"


def test_debiased_loss_with_any_method(pipeline, clip):
    def loss(method: str, debiased: bool | None) -> float:
        ready = stage_run(pipeline, [clip], quick(method=method, debiased_loss=debiased, targets="temporal-all"))
        draw = ready.draw(0)
        with ready.prepared(), ready.arranged(ready.passes(draw)[-1], draw):
            return float(ready.loss(ready.passes(draw)[-1], draw).detach())

    assert loss("temporal-only", None) == loss("temporal-only", False) < loss("temporal-only", True)
    assert loss("motiondirector", None) == loss("motiondirector", True) > loss("motiondirector", False)


def test_images_teach_an_appearance(pipeline):
    images = [sample_clip(seed, num_frames=1, caption="a red circle over sand") for seed in (0, 1)]
    result = train(pipeline, images, quick(method="motiondirector-image", horizontal_flip=0.5))
    assert list(result.lora) == list(target_modules(pipeline.unet, "spatial-self-ff"))
    assert largest_change(result.lora) > 0 and result.spatial == ()


# Repeatable ---------------------------------------------------------------------------------------------------------


def test_the_seed_decides_every_bit(pipeline, clip, trained):
    result, _ = trained
    torch.manual_seed(999)
    again = train(pipeline, [clip], quick())
    assert again.lora.fingerprint() == result.lora.fingerprint()
    assert again.lora.metadata == result.lora.metadata
    assert again.absorber.fingerprint() == result.absorber.fingerprint()
    assert [report.loss for report in again.losses] == [report.loss for report in result.losses]
    other = train(pipeline, [clip], quick(absorber="none", seed=1))
    assert other.lora.fingerprint() != train(pipeline, [clip], quick(absorber="none")).lora.fingerprint()


def test_the_host_keeps_its_random_state_and_mode(pipeline, clip):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        frames = tiny_frames(0, num_frames=3, size=16)
        assert frames.is_inference()
        result = train(pipeline, [replace(clip, frames=frames)], quick(method="motiondirector", dropout=0.1))
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    plain = train(pipeline, [replace(clip, frames=frames.clone())], quick(method="motiondirector", dropout=0.1))
    assert result.lora.fingerprint() == plain.lora.fingerprint()
    assert not any(layer.up.is_inference() for layer in result.lora.layers.values())


def test_fingerprint_sees_all_that_decides(pipeline, clip, trained):
    identity, settings = pipeline.identity, quick()
    plain = fingerprint(identity, [clip], settings, None)
    assert plain == fingerprint(identity, [sample_clip()], replace(settings, report_every=7), None)
    others = [
        fingerprint(replace(identity, weights_hash="other"), [clip], settings, None),
        fingerprint(identity, [sample_clip(1)], settings, None),
        fingerprint(identity, [replace(clip, caption="a blue circle")], settings, None),
        fingerprint(identity, [clip], replace(settings, seed=1), None),
        fingerprint(identity, [clip], settings, trained[0].absorber),
    ]
    assert len({plain, *others}) == 6


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
    result = train(pipeline, [clip], quick(method="motiondirector", absorber="dual", steps=2))
    assert same_weights(pipeline, before)
    assert largest_change(result.lora) > 0 and largest_change(result.spatial[0]) > 0
    assert all(layer.up.dtype is torch.float32 for layer in result.lora.layers.values())
    exact = train(small_pipeline(), [clip], quick(method="motiondirector", absorber="dual", steps=2))
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
    settings = quick(absorber="none", steps=40, rank=4, learning_rate=1e-2)
    result = train(pipeline, [clip], settings)
    ready = stage_run(pipeline, [clip], replace(settings, seed=77))
    (a_pass,) = main_stages(settings)[-1].passes

    def mean_loss(lora: LoRA | None) -> float:
        network = share_parameters(pipeline.unet)
        if lora is not None:
            merge(network, lora, lambda _: 1.0)
        ready._forward = network
        with torch.no_grad():
            return sum(float(ready.loss(a_pass, ready.draw(step))) for step in range(8)) / 8

    assert mean_loss(result.lora) < 0.9 * mean_loss(None)


# Commands -----------------------------------------------------------------------------------------------------------


def test_stop_returns_what_there_is(pipeline, clip):
    result = train(pipeline, [clip], quick(absorber="none"), callback=Listener(("motion", 2), "stop"))
    assert (result.ending, result.finished, len(result.losses)) == ("stopped", True, 2)
    assert largest_change(result.lora) > 0 and result.lora.metadata["motion_lora.steps"] == "2"
    two = train(pipeline, [clip], quick(absorber="none", steps=2))
    assert result.lora.fingerprint() == two.lora.fingerprint()


def test_stop_before_the_motion_stage_returns_no_layers(pipeline, clip):
    result = train(pipeline, [clip], quick(), callback=Listener(("absorber-tokens", 1), "stop"))
    assert result.ending == "stopped" and len(result.lora) == 0
    assert result.absorber.spatial is not None and result.absorber.tokens is not None


def test_abort_leaves_nothing(pipeline, clip, tmp_path):
    before = weights_of(pipeline)
    settings = quick(checkpoint_every=1, absorber="none")
    with pytest.raises(TrainingAbortedError, match="nothing was kept"):
        train(pipeline, [clip], settings, callback=Listener(("motion", 2), "abort"), checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists() and same_weights(pipeline, before)


def test_absorber_alone_and_reused(pipeline, clip, trained):
    whole, _ = trained
    absorber = train_absorber(pipeline, [clip], quick())
    assert absorber.fingerprint() == whole.absorber.fingerprint()
    result = train(pipeline, [clip], quick(), absorber=absorber)
    assert result.lora.fingerprint() == whole.lora.fingerprint()
    assert {report.stage for report in result.losses} == {"motion"}
    with pytest.raises(TrainingPausedError):
        train_absorber(pipeline, [clip], quick(), callback=Listener(("absorber-spatial", 1), "pause"))
    with pytest.raises(SettingsError, match="absorber is 'none'"):
        train_absorber(pipeline, [clip], quick(absorber="none"))


def test_weights_of_a_tuned_network_as_absorber(pipeline, clip):
    tuned = {name: weight + 0.05 for name, weight in pipeline.unet.state_dict().items()}
    weights = spatial_weights(tuned, pipeline.unet)
    assert weights and {layer_of(name) for name in weights} == {SPATIAL}
    before = weights_of(pipeline)
    held = stage_run(pipeline, [clip], quick(), Absorber(weights=weights))
    assert same_weights(pipeline, before)
    name = "down_blocks.0.attentions.0.proj_in.weight"
    assert torch.equal(held.unet.get_parameter(name), tuned[name])
    plain = stage_run(pipeline, [clip], quick())
    assert not torch.allclose(run(held.unet), run(plain.unet), atol=1e-3)
    with pytest.raises(LoRAFileError, match="none of its weights"):
        spatial_weights({"model.diffusion": torch.zeros(1)}, pipeline.unet)
    with pytest.raises(LoRAFileError, match=f"{name} has another shape"):
        spatial_weights({name: torch.zeros(1)}, pipeline.unet)


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

    with pytest.raises(TrainingError, match=r"step 3 in motion is not finite; lower learning_rate .*last good checkpoint"):
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
    with pytest.raises(TrainingError, match="cpu ran out of memory; switch gradient_checkpointing on, use fewer frames"):
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
