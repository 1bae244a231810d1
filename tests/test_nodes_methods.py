"""The nodes of the methods against the double of ComfyUI: inversion, editing, absorbers, image path, ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfy_double import Host, InterruptProcessingException, hosted
from safetensors.torch import load_file, save_file
from tiny import write_tiny_folder

from motion_lora.adapters.targets import TARGETS
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.core.lora import SPATIAL, LoRA, LoRALayer
from motion_lora.training import RANGES, TrainSettings

TRAIN, SAMPLE, INVERT = "MotionLoRA_TrainMotionLoRA", "MotionLoRA_SampleVideo", "MotionLoRA_InvertClip"
OPTIONS, BY_LORA, BY_MODEL = (f"MotionLoRA_{n}" for n in ("TrainingOptions", "AbsorberFromLoRA", "AbsorberFromModel"))
PROMPT = "a red circle circling over sand"
# As many steps as the inversion, guidance off: what comes back to the clip.
BACK = {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 1.0}
SPATIAL_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEMPORAL_LAYER = "down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny", levels=2)
        yield host


@pytest.fixture(scope="module")
def base(host: Host):
    return host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]


@pytest.fixture(scope="module")
def frames(host: Host) -> torch.Tensor:
    return host.run("MotionLoRA_PlaygroundClip", num_frames=3).args[1]


@pytest.fixture(scope="module")
def clips(host: Host, frames: torch.Tensor):
    words = {"caption": PROMPT, "appearance_caption": "a red circle over sand", "absorb_words": "red circle"}
    cut = {"num_frames": 0, "width": 32, "height": 32}
    return host.run("MotionLoRA_ReferenceClip", images=frames, **words, **cut).args[0]


@pytest.fixture(scope="module")
def inverted(host: Host, base, clips):
    return host.run(INVERT, base_model=base, clips=clips, prompt=PROMPT, num_inference_steps=4).args[0]


def lora_on(base, *names: str) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name in names:
        out, into = base.unet.get_submodule(name).weight.shape
        down, up = torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator)
        layers[name] = LoRALayer(down, up)
    return LoRA(layers, {"modelspec.title": "look"})


# Inversion and editing ------------------------------------------------------------------------------------------------


def test_inversion_has_a_bar_and_comes_back_to_the_clip(host: Host, base, clips, inverted) -> None:
    assert inverted.noise.shape == (1, 4, 3, 8, 8) and host.progress[-1] == (4, 4)
    clip = base.encode_frames(clips[0].frames)

    def distance(**inputs: object) -> float:
        latents = host.run(SAMPLE, base_model=base, decode=False, **BACK, **inputs).args[2]["samples"]
        return float((latents * base.vae.config["scaling_factor"] - clip).norm() / clip.norm())

    whole = distance(noise=inverted, noise_prior=1.0)
    half = distance(noise=inverted, noise_prior=0.5)
    none = distance(num_frames=3, width=32, height=32)
    assert whole < 0.5 * none and whole < half


def test_no_share_of_the_noise_is_the_seed_alone(host: Host, base, inverted) -> None:
    plain = host.run(SAMPLE, base_model=base, num_frames=3, width=32, height=32, seed=3, **BACK).args[0]
    forgotten = host.run(SAMPLE, base_model=base, noise=inverted, noise_prior=0.0, seed=3, **BACK).args[0]
    assert torch.equal(plain, forgotten), "its frames and size are those of the noise"
    unconnected = {"noise_prior": 0.9, "edit_strength": 0.1}
    again = host.run(SAMPLE, base_model=base, num_frames=3, width=32, height=32, seed=3, **BACK, **unconnected).args[0]
    assert torch.equal(plain, again), "without a link they have no effect"


def test_noise_of_another_size_is_stretched(host: Host, base, inverted) -> None:
    asked = {"num_frames": 5, "width": 48, "height": 32}
    images = host.run(SAMPLE, base_model=base, noise=inverted, **asked, **BACK).args[0]
    assert images.shape == (5, 32, 48, 3)


def test_noise_of_another_base_is_refused(host: Host, base, inverted) -> None:
    other = dataclasses.replace(inverted, base=dataclasses.replace(inverted.base, name="other", weights_hash="1"))
    with pytest.raises(host.library("core.errors").SettingsError, match="inverted on other, not on tiny"):
        host.run(SAMPLE, base_model=base, noise=other, **BACK)


def test_one_clip_is_inverted_and_cancel_stops_it(host: Host, base, clips) -> None:
    with pytest.raises(host.library("core.errors").ClipError, match="one clip and got 2"):
        host.run(INVERT, base_model=base, clips=(*clips, *clips))
    host.interrupted.set()
    with pytest.raises(InterruptProcessingException):
        host.run(INVERT, base_model=base, clips=clips)
    assert not host.interrupted.is_set()


def test_a_source_is_edited_more_the_higher_the_strength(host: Host, base, frames: torch.Tensor) -> None:
    size = {"width": 32, "height": 32}

    def edited(strength: float) -> torch.Tensor:
        return host.run(SAMPLE, base_model=base, source=frames, edit_strength=strength, **size, **BACK).args[2][
            "samples"
        ]

    little, much = edited(0.25), edited(1.0)
    clip = host.library("media.sizes").fit(frames.clone(), 32, 32, 1, "clip")
    source = base.encode_frames(clip) / base.vae.config["scaling_factor"]
    assert little.shape == source.shape, "as many frames as the source has"
    assert (little - source).norm() < (much - source).norm()
    with pytest.raises(host.library("core.errors").SettingsError, match="source has 3 frames and num_frames is 4"):
        host.run(SAMPLE, base_model=base, source=frames, num_frames=4, **size, **BACK)
    with pytest.raises(host.library("core.errors").SettingsError, match="leaves none to run"):
        edited(0.0)


# Absorbers of others --------------------------------------------------------------------------------------------------


def test_a_lora_of_a_look_becomes_an_absorber(host: Host, base, clips) -> None:
    lora = lora_on(base, SPATIAL_LAYER, TEMPORAL_LAYER)
    (connected,) = host.run(BY_LORA, base_model=base, lora=lora, strength=0.5).args
    assert set(connected.spatial) == {SPATIAL_LAYER} and connected.spatial.layers[SPATIAL_LAYER].scale == 0.5
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename="look").args[0]
    (from_file,) = host.run(BY_LORA, base_model=base, lora_name=name, strength=0.5).args
    assert from_file.fingerprint() == connected.fingerprint()
    assert ("text", ("1", "1 temporal layers of look.safetensors are left out")) in host.server.sent
    held = host.run(TRAIN, base_model=base, clips=clips, appearance_absorber=from_file, steps=2, seed=1).args[0]
    plain = host.run(TRAIN, base_model=base, clips=clips, absorber="none", steps=2, seed=1).args[0]
    assert held.fingerprint() != plain.fingerprint(), "the motion was learned beside the look"
    (saved,) = host.run("MotionLoRA_SaveAbsorber", appearance_absorber=connected, filename="third").args
    assert host.run("MotionLoRA_LoadAbsorber", absorber_name=saved).args[0].fingerprint() == connected.fingerprint()


def test_a_lora_that_is_no_look_is_refused(host: Host, base) -> None:
    error = host.library("core.errors").LoRAFileError
    with pytest.raises(error, match="changes temporal layers only"):
        host.run(BY_LORA, base_model=base, lora=lora_on(base, TEMPORAL_LAYER))
    with pytest.raises(error, match="choose a file, or connect"):
        host.run(BY_LORA, base_model=base)
    misfit = LoRA({"nowhere.to_q": LoRALayer(torch.ones(1, 4), torch.ones(4, 1))})
    with pytest.raises(error, match=r"nowhere\.to_q"):
        host.run(BY_LORA, base_model=base, lora=misfit)


@pytest.fixture(scope="module")
def tuned(host: Host) -> str:
    """An image model of the base's layout, tuned on something: only what is spatial, as an image model has it."""
    folder = host.folder / "models/diffusers/dreambooth/unet"
    folder.mkdir(parents=True)
    weights = load_file(host.folder / "models/diffusers/tiny/unet/diffusion_pytorch_model.safetensors")
    spatial = {name: weight + 0.02 for name, weight in weights.items() if UNET3D.layer_of(name) == SPATIAL}
    save_file(spatial, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    return "dreambooth"


def test_a_tuned_model_is_an_absorber(host: Host, base, clips, tuned: str) -> None:
    assert {"dreambooth", "tiny"} <= set(host.module("comfy.folders").network_names())
    assert tuned not in host.module("comfy.models").names(), "an image model is no base"
    (absorber,) = host.run(BY_MODEL, base_model=base, model=tuned).args
    assert set(absorber.weights) == {n for n, _ in base.unet.named_parameters() if UNET3D.layer_of(n) == SPATIAL}
    held = host.run(TRAIN, base_model=base, clips=clips, appearance_absorber=absorber, steps=2, seed=2).args[0]
    plain = host.run(TRAIN, base_model=base, clips=clips, absorber="none", steps=2, seed=2).args[0]
    assert held.fingerprint() != plain.fingerprint()
    shown = {"base_model": base, "num_images": 1, "num_inference_steps": 1, "prompt": "a red circle"}
    look = host.run("MotionLoRA_PreviewAbsorber", appearance_absorber=absorber, **shown).args[0]
    empty = dataclasses.replace(absorber, weights={})
    assert not torch.equal(look, host.run("MotionLoRA_PreviewAbsorber", appearance_absorber=empty, **shown).args[0])


def test_a_model_that_cannot_be_an_absorber_is_refused(host: Host, base) -> None:
    with pytest.raises(host.library("core.errors").LoRAFileError, match="the base's own spatial weights"):
        host.run(BY_MODEL, base_model=base, model="tiny")
    assert "there is no model" in str(host.nodes[BY_MODEL].validate_inputs(model="gone"))


# Image path -----------------------------------------------------------------------------------------------------------


def test_a_look_of_images_goes_on_the_stack_and_into_the_lists(host: Host, base, frames: torch.Tensor) -> None:
    cut = {"num_frames": 0, "width": 32, "height": 32, "caption": "a red circle"}
    photos = [host.run("MotionLoRA_ReferenceClip", images=one, **cut).args[0] for one in (frames, frames[:1])]
    (both,) = host.run("MotionLoRA_CombineClips", clips_1=photos[0], clips_2=photos[1]).args
    assert [clip.num_frames for clip in both] == [3, 1]
    settings = {"method": "motiondirector-image", "steps": 3, "rank": 2, "name": "red"}
    look, name, _, _ = host.run(TRAIN, base_model=base, clips=both, **settings).args
    assert {UNET3D.layer_of(module) for module in look} == {SPATIAL}
    (direct,) = host.run("MotionLoRA_MotionLoRAStack", motion_lora=look).args
    (by_file,) = host.run("MotionLoRA_AppearanceLoRA", lora_name=name, base_model=base).args
    assert by_file.entries[0].lora.fingerprint() == direct.entries[0].lora.fingerprint()
    with pytest.raises(host.library("core.errors").ClipError, match="use 'motiondirector-image'"):
        host.run(TRAIN, base_model=base, clips=both, method="motiondirector", steps=1)


# Ablations ------------------------------------------------------------------------------------------------------------


def test_every_setting_left_alone_is_the_methods_own(host: Host, base) -> None:
    (options,) = host.run(OPTIONS).args
    assert options.settings == {}
    settings = host.module("train").settings_from(
        base, {"seed": 0, "gradient_checkpointing": False, "options": options}
    )
    own = TrainSettings.for_base(base, "customize-a-video")
    assert settings.with_effect() == own.with_effect()


def test_every_setting_arrives_by_its_name(host: Host, base) -> None:
    widgets = {
        "debiased_loss": "on",
        "debias_beta": 0.0,
        "spatial_path_probability": 0.5,
        "spatial_targets": "spatial-attention",
        "spatial_rank": 3,
        "spatial_alpha": 0.5,
        "spatial_learning_rate": 1e-3,
        "highway": "all",
        "highway_scale": 0.9,
        "look_strength": 0.5,
        "look_guidance_scale": 0.0,
        "timestep_low": 0.0,
        "timestep_high": 0.9,
        "min_snr_gamma": 5.0,
        "offset_noise": 0.1,
        "patch_crop": "off",
        "frames_per_step": 3,
        "absorber_rank": 2,
        "absorber_alpha": 1.5,
        "absorber_learning_rate": 1e-4,
        "num_tokens": 2,
        "token_learning_rate": 1e-4,
        "dropout": 0.2,
        "horizontal_flip": 0.0,
        "lr_scheduler": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.0,
        "gradient_accumulation": 2,
        "loss": "debiased",
        "memory": 8.0,
    }
    assert {*widgets, "device"} == {i.id for i in host.nodes[OPTIONS].define_schema().inputs}
    assert set(widgets) <= {field.name for field in dataclasses.fields(TrainSettings)}
    (options,) = host.run(OPTIONS, **widgets).args
    assert options.settings == {**widgets, "debiased_loss": True, "patch_crop": False}
    run = {"seed": 0, "gradient_checkpointing": False, "options": options, "method": "motiondirector"}
    settings = host.module("train").settings_from(base, run)
    assert {name: getattr(settings, name) for name in widgets} == options.settings


def test_ablations_train(host: Host, base, clips) -> None:
    widgets = {"debiased_loss": "on", "highway": "all", "min_snr_gamma": 5.0, "timestep_low": 0.5, "patch_crop": "on"}
    (options,) = host.run(OPTIONS, **widgets, num_tokens=2).args
    few = {"base_model": base, "clips": clips, "steps": 2, "absorber_steps": 1, "token_steps": 1, "seed": 4}
    few |= {"method": "spatial-temporal", "absorber": "dual", "targets": "tap-k"}
    changed = host.run(TRAIN, **few, options=options).args[0]
    assert {name.rsplit(".", 1)[1] for name in changed if UNET3D.layer_of(name) != SPATIAL} == {"to_k"}
    (fewer,) = host.run(OPTIONS, num_tokens=2).args
    assert host.run(TRAIN, **few, options=fewer).args[0].fingerprint() != changed.fingerprint()


def test_a_training_goes_to_the_device_that_the_options_name(
    host: Host, base, clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, models = host.module("comfy.server"), host.module("comfy.models")
    assert server.devices() == ("cpu",)
    monkeypatch.setattr(server, "devices", lambda: ("cpu", "cpu:0"))
    (options,) = host.run(OPTIONS, device="cpu:0").args
    few = {"base_model": base, "clips": clips, "steps": 1, "seed": 5, "method": "temporal-only"}
    host.run(TRAIN, **few, options=options)
    spec = host.module("comfy.jobs").runner().jobs()[0].spec
    assert spec.device == "cpu:0" and spec.base["device"] == "cpu:0" and spec.base["name"] == "tiny"
    assert str(models.load_again(spec.base).device) == "cpu:0"
    monkeypatch.setattr(server, "devices", lambda: ("cpu",))
    assert str(models.load_again(spec.base).device) == "cpu", "a card that was taken out is done without"
    with pytest.raises(host.library("core.errors").SettingsError, match="here it can be: auto, cpu"):
        host.run(TRAIN, **{**few, "seed": 6}, options=options)


def test_bad_settings_leave_no_job_behind(host: Host, base, clips) -> None:
    runner = host.module("comfy.jobs").runner()
    count = len(runner.jobs())
    (options,) = host.run(OPTIONS, timestep_low=0.9, timestep_high=0.5).args
    with pytest.raises(host.library("core.errors").SettingsError, match="timestep_low"):
        host.run(TRAIN, base_model=base, clips=clips, options=options)
    with pytest.raises(host.library("core.errors").SettingsError, match="rank is 1000"):
        host.run("MotionLoRA_TrainAppearanceAbsorber", base_model=base, clips=clips, absorber_rank=1000)
    assert len(runner.jobs()) == count


ABOVE_ZERO = ("timestep_high", "look_strength")


def test_choices_are_those_of_the_library(host: Host) -> None:
    choices = host.module("widgets.enums")
    spatial = tuple(name for name, preset in TARGETS.items() if preset.layer == SPATIAL)
    assert spatial == choices.SPATIAL_TARGETS
    assert {name: RANGES[name][1] for name in choices.SHARES} == choices.SHARES
    assert all(RANGES[name][0] <= 0.0 for name in choices.SHARES if name not in ABOVE_ZERO)


def test_files_of_others_are_listed_again_when_they_change(host: Host, base, tmp_path: Path) -> None:
    node = host.nodes[BY_LORA]
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora_on(base, SPATIAL_LAYER), filename="mark").args[0]
    before = node.fingerprint_inputs(lora_name=name, strength=1.0)
    path = host.folder / "output/loras" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert node.fingerprint_inputs(lora_name=name, strength=1.0) != before
    assert node.validate_inputs(lora_name=host.module("absorbers").CONNECTED) is True
    assert "there is no file" in str(node.validate_inputs(lora_name="gone.safetensors"))
