"""Training: only what should learn learns, the base stays, the same seed gives the same bits, and faults are clear."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lora_samples import run
from tiny import tiny_frames, tiny_pipeline
from training_samples import (
    Listener,
    largest_change,
    quick,
    same_weights,
    sample_clip,
    small_pipeline,
    stage_on,
    weights_of,
)

from motion_lora.adapters.targets import target_modules
from motion_lora.adapters.weights import spatial_weights
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.absorber import Absorber
from motion_lora.core.errors import LoRAFileError, SettingsError
from motion_lora.core.lora import SPATIAL, TEMPORAL
from motion_lora.methods.table import METHODS
from motion_lora.training import StageRun, TrainingPausedError, TrainSettings, fingerprint, train, train_absorber
from motion_lora.training.batches import random_patches
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


def test_metadata_is_ready_for_the_file(pipeline, clip, trained):
    result, _ = trained
    metadata = result.lora.metadata
    assert metadata["motion_lora.method"] == "customize-a-video" and metadata["motion_lora.steps"] == "3"
    assert metadata["motion_lora.target_preset"] == "temporal-attention"
    assert metadata["motion_lora.base_weights_hash"] == pipeline.identity.weights_hash
    assert metadata["motion_lora.num_frames"] == "3" and metadata["motion_lora.height"] == "16"
    assert metadata["motion_lora.training_fingerprint"] == fingerprint(pipeline.identity, [clip], quick(), None)
    assert TrainSettings.from_json(result.settings).absorber == "dual"


def test_gradients_are_clipped(pipeline, clip):
    """Below AdamW's epsilon a gradient hardly moves anything, so a norm that is clipped to it must not either."""
    free, held = (
        largest_change(train(pipeline, [clip], quick(absorber="none", max_grad_norm=norm)).lora) for norm in (1.0, 1e-8)
    )
    assert held < 0.2 * free


def test_clips_and_captions_are_encoded_once(pipeline, clip, monkeypatch):
    counted = {"encode_frames": 0, "read_prompts": 0}

    def counting(name):
        whole = getattr(VideoPipeline, name)

        def encode(self, *arguments, **named):
            counted[name] += 1
            return whole(self, *arguments, **named)

        return encode

    for name in counted:
        monkeypatch.setattr(VideoPipeline, name, counting(name))
    train(pipeline, [clip], quick(absorber="none", steps=1))
    once = dict(counted)
    train(pipeline, [clip], quick(absorber="none", steps=5))
    assert counted == {name: 2 * count for name, count in once.items()} and min(once.values()) == 1


def test_patches_are_cropped_where_the_paper_says():
    """One size for the batch, sides 0.33 to 0.67 of the whole, any place: a cell tells where it comes from."""
    cells = torch.arange(24.0).view(1, 1, 4, 6) + 100 * torch.arange(3.0).view(3, 1, 1, 1)
    big = torch.nn.functional.interpolate(cells, scale_factor=10, mode="nearest").expand(3, 2, 40, 60)
    sizes, places = set(), set()
    for seed in range(200):
        patches = random_patches(big, torch.Generator().manual_seed(seed))
        height, width = patches.shape[-2:]
        assert patches.shape[:2] == (3, 2) and 13 <= height <= 27 and 20 <= width <= 40
        assert all(patches[n].min() >= 100 * n and patches[n].max() < 100 * n + 24 for n in range(3)), "its own frame"
        sizes.add((height, width))
        places.update(float(patch[0, 0, 0] - 100 * n) for n, patch in enumerate(patches))
    assert len(sizes) > 10 and {0.0, 9.0} <= places, "from the corner to the middle"


def test_absorbers_alone_see_patches(pipeline, clip):
    settings = quick(absorber="spatial", patch_crop=True)
    (stage,) = absorber_stages(settings)
    whole, cropped = (
        stage_on(pipeline, stage, replace(settings, patch_crop=crop), [clip], None) for crop in (False, True)
    )
    assert {whole.draw(step).latents.shape[-1] for step in range(8)} == {4}
    assert max(cropped.draw(step).latents.shape[-1] for step in range(8)) < 4
    assert stage_run(pipeline, [clip], settings).draw(0).latents.shape[-1] == 4, "the motion stage sees the whole"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_only_its_parts(pipeline, clip, name):
    settings = quick(method=name, absorber="none", spatial_path_probability=1.0)
    if name.startswith("joint-"):
        pipeline, clip = tiny_pipeline(levels=2, backbone="wan"), sample_clip(num_frames=5)
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
    spatial, tokens = (stage_on(pipeline, stage, settings, [clip], None) for stage in absorber_stages(settings))
    modules = target_modules(pipeline.unet, "spatial-attention")
    assert set(spatial.parameters) == {f"absorber|{module}.{end}" for module in modules for end in ("down", "up")}
    assert set(tokens.parameters) == {"tokens|rows"} and tokens.parameters["tokens|rows"].shape == (4, 32)
    for ready in (spatial, tokens):
        assert all(value > 0 for value in gradients(ready, 0).values())
        learning = {id(weight) for weight in ready.parameters.values()}
        networks = (*ready.unet.parameters(), *(ready.reader or pipeline).text_encoder.parameters())
        assert not any(weight.requires_grad for weight in networks if id(weight) not in learning)


def test_absorber_stages_see_no_motion(pipeline, clip):
    """With the temporal layers bypassed, the order of the frames in a batch is nothing but an order."""
    ready = stage_on(pipeline, absorber_stages(quick(absorber="spatial"))[0], quick(patch_crop=False), [clip], None)
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
    assert {UNET3D.layer_of(module) for module in result.lora} == {TEMPORAL}
    assert all({UNET3D.layer_of(module) for module in lora} == {SPATIAL} for lora in result.spatial)
    captions = [lora.metadata["motion_lora.captions"] for lora in result.spatial]
    assert "red circle" in captions[0] and captions[1] == '["a blue square moving left over sand"]'
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


# Absorbers -----------------------------------------------------------------------------------------------------------


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


def test_absorber_alone_for_a_method_of_many_looks(pipeline, clip, trained):
    """An absorber comes before the looks: it is the one that any other method would train, and the method takes it."""
    looks = ("a blue square {motion} over sand",)
    settings = quick(method="many-looks", looks=looks, look_similarity=-1.0, absorber="dual", steps=1)
    absorber = train_absorber(pipeline, [clip], settings)
    assert absorber.spatial is not None and trained[0].absorber.spatial is not None
    assert absorber.spatial.fingerprint() == trained[0].absorber.spatial.fingerprint()
    assert train(pipeline, [clip], settings, absorber=absorber).losses[-1].step == 1
    with pytest.raises(SettingsError, match="looks are for learning a motion, which 'motiondirector-image' does not"):
        train(pipeline, [clip], quick(method="motiondirector-image", looks=looks))


def test_weights_of_a_tuned_network_as_absorber(pipeline, clip):
    tuned = {name: weight + 0.05 for name, weight in pipeline.unet.state_dict().items()}
    weights = spatial_weights(tuned, pipeline.unet)
    assert weights and {UNET3D.layer_of(name) for name in weights} == {SPATIAL}
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
