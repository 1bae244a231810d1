"""Stable Diffusion 1.5 and a motion module as one base: from files in official layouts, equal to diffusers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, succeeds
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from lora_samples import predict
from safetensors.torch import load_file, save_file
from sd15_files import (
    MAX_FRAMES,
    REAL_WIDTHS,
    adapter,
    autoencoder,
    image_network,
    ldm_name,
    official_module,
    text_encoder,
    write_checkpoint,
    write_module,
)
from tiny import TEXT_WIDTH, tiny_frames, tiny_latents, write_tokenizer

from motion_lora.backbones import motion_module, stable_diffusion
from motion_lora.backbones.motion_unet import FrameNorm, normalise_per_frame
from motion_lora.backbones.registry import empty_network, of_network
from motion_lora.base import composed
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import ModelError
from motion_lora.files.own import load_lora
from motion_lora.media.write import write_video
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_checkpoint(folder / "photon.safetensors")
    write_module(folder / "v2.safetensors")
    write_module(folder / "v3.ckpt", adapter(mid=False))
    return folder


@pytest.fixture(scope="module")
def loaded(files: Path) -> VideoPipeline:
    return VideoPipeline.load(files / "photon.safetensors", motion_module=files / "v2.safetensors", device="cpu")


def as_diffusers(mid: bool = True) -> UNetMotionModel:
    """Put together by diffusers itself."""
    return UNetMotionModel.from_unet2d(image_network(), adapter(mid=mid)).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What comes out is what diffusers makes of the same parts -------------------------------------------------------------


@torch.no_grad()
def test_a_checkpoint_and_a_module_are_diffusers_network(loaded: VideoPipeline) -> None:
    expected = as_diffusers()
    assert same(loaded.unet, expected)
    assert same(loaded.vae, autoencoder())
    assert same(loaded.text_encoder, text_encoder())
    normalise_per_frame(expected)
    text, latents = torch.ones(1, 5, TEXT_WIDTH), tiny_latents(size=8)
    assert torch.equal(predict(loaded.unet, latents, 500, text), predict(expected, latents, 500, text))
    assert any(isinstance(module, FrameNorm) for module in loaded.unet.modules())


def test_what_the_base_says_of_itself(loaded: VideoPipeline) -> None:
    assert loaded.backbone.name == "animatediff"
    assert loaded.identity.name == "photon + v2"
    assert (loaded.scheduler_config["beta_schedule"], loaded.scheduler_config["steps_offset"]) == ("linear", 1)
    assert (loaded.default_height, loaded.default_width, loaded.default_num_frames) == (512, 512, 16)
    assert "take at most 8" in (loaded.frames_fault(MAX_FRAMES + 1) or "")


def test_it_samples(loaded: VideoPipeline) -> None:
    settings = SampleSettings("a red circle", num_frames=2, height=64, width=64, num_inference_steps=1)
    assert sample(loaded, settings)[0].frames.shape == (2, 64, 64, 3)


def test_a_torch_file_and_an_adapter_folder(files: Path, tmp_path: Path) -> None:
    adapter(mid=False).save_pretrained(tmp_path / "adapter")
    expected = as_diffusers(mid=False)
    for module in (files / "v3.ckpt", tmp_path / "adapter"):
        base = VideoPipeline.load(files / "photon.safetensors", motion_module=module, device="cpu")
        assert same(base.unet, expected)


def test_a_diffusers_folder(files: Path, tmp_path: Path, loaded: VideoPipeline) -> None:
    folder = tmp_path / "stable"
    parts = {"unet": image_network(), "vae": autoencoder(), "text_encoder": text_encoder()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    write_tokenizer(folder / "tokenizer")
    base = VideoPipeline.load(folder, motion_module=files / "v2.safetensors", device="cpu")
    assert same(base.unet, loaded.unet)
    assert base.identity.weights_hash == loaded.identity.weights_hash
    assert base.identity.config_hash == loaded.identity.config_hash
    with pytest.raises(ModelError, match=r"Stable Diffusion 1\.5's folder or checkpoint"):
        VideoPipeline.load(tmp_path, motion_module=files / "v2.safetensors")


def test_a_whole_pipeline_folder_of_diffusers(files: Path, tmp_path: Path, loaded: VideoPipeline) -> None:
    """As AnimateDiffPipeline saves it: the joint network, and the adapter once more beside it."""
    folder = tmp_path / "pipeline"
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        getattr(loaded, name).save_pretrained(folder / name)
    adapter().save_pretrained(folder / "motion_adapter")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    base = VideoPipeline.load(folder, device="cpu")
    assert same(base.unet, loaded.unet)
    assert any(isinstance(module, FrameNorm) for module in base.unet.modules())


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            adapter(mid=False, frames=24),
            "a v1 motion module .24 positions.: it belongs to an image network whose group",
        ),
        (
            adapter(mid=False, widths=(64, 64, 64, 64)),
            "levels of .64, 64, 64, 64. channels, the image network .32, 32, 64, 64.",
        ),
        (adapter(mid=False, widths=(32, 32, 64)), "3 levels, as of the SDXL beta"),
    ],
)
def test_other_modules_are_refused(files: Path, tmp_path: Path, made, message: str) -> None:
    path = write_module(tmp_path / "other.safetensors", made)
    with pytest.raises(ModelError, match=message):
        VideoPipeline.load(files / "photon.safetensors", motion_module=path)


def test_a_v1_module_in_a_folder_is_refused(files: Path, tmp_path: Path) -> None:
    """The positions in the weights count, not those in the config; of a conversion with 32 its writer and its name."""
    v1, v3 = adapter(mid=False, frames=24), adapter(mid=False, frames=32)
    cases = {
        "24 positions": (v1, "a", {"motion_max_seq_length": 32}),
        r"its config\.json was written by diffusers 0\.22\.0\.dev0, before": (
            v3, "b", {"_diffusers_version": "0.22.0.dev0"},
        ),
        "by its name": (v3, "models--guoyww--animatediff-motion-adapter-v1-5/snapshots/4c9", {}),
    }  # fmt: skip
    for message, (made, name, said) in cases.items():
        made.save_pretrained(folder := tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **said}))
        with pytest.raises(ModelError, match=rf"a v1 motion module \({message}.*group norms run over all frames"):
            VideoPipeline.load(files / "photon.safetensors", motion_module=folder)
    joint = UNetMotionModel.from_unet2d(image_network(), v1)
    with pytest.raises(ModelError, match=r"The base has a v1 motion module \(24 positions\).*Put v2 or v3 into"):
        of_network(joint).prepare(joint)


@pytest.mark.parametrize(
    ("mid", "place", "version"),
    [
        (False, "models--guoyww--animatediff-motion-adapter-v1-5-3", "0.25.0.dev0"),
        (True, "animatediff-motion-adapter-v1-5-2", "0.22.0.dev0"),
        (False, "mm_sd_v15/v3_sd15_mm.ckpt", ""),
    ],
)
def test_later_modules_are_not_taken_for_v1(mid: bool, place: str, version: str) -> None:
    assert not motion_module.v1_sign(32, mid, place, {"_diffusers_version": version})


def test_what_is_no_module_says_what_it_is(files: Path, tmp_path: Path) -> None:
    place = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    without = {n: t for n, t in official_module(adapter()).items() if "pos_encoder" not in n}
    cases = {
        "a LoRA: load it as one": {f"{place}.processor.to_q_lora.down.weight": torch.ones(2, 32)},
        "HotShot-XL": {f"{place}.pos_encoder.positional_encoding": torch.ones(1, 8, 32)},
        "PIA or FancyVideo": {"conv_in.weight": torch.ones(32, 9, 3, 3)},
        "choose it as the base model": load_file(files / "photon.safetensors"),
        "it has no motion_modules": {"x": torch.ones(1)},
        "without positions": without,
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ModelError, match=message):
            VideoPipeline.load(files / "photon.safetensors", motion_module=tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="There is no motion module at"):
        VideoPipeline.load(files / "photon.safetensors", motion_module=tmp_path / "nowhere.safetensors")


def test_what_is_no_checkpoint_says_what_it_is(files: Path, tmp_path: Path) -> None:
    whole = load_file(files / "photon.safetensors")
    cases = {
        "an SDXL checkpoint": {"conditioner.embedders.0.x": torch.ones(1)},
        "a Stable Diffusion 2 checkpoint": {"cond_stage_model.model.x": torch.ones(1)},
        "it lacks the VAE": {name: t for name, t in whole.items() if not name.startswith("first_stage")},
        "takes 9 channels": {**whole, "model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)},
        "a motion module: choose it as one": official_module(adapter()),
        "lack 1 of the network's tensors": {n: t for n, t in whole.items() if n != "model.diffusion_model.out.2.bias"},
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ModelError, match=message):
            VideoPipeline.load(
                tmp_path / "x.safetensors", motion_module=files / "v2.safetensors", tokenizer=files / "tokenizer"
            )
    with pytest.raises(ModelError, match=r"for a Stable Diffusion 1\.5 checkpoint name an AnimateDiff motion module"):
        VideoPipeline.load(files / "photon.safetensors")


def test_words_are_found_offline(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "alone" / "photon.safetensors"
    assert composed.find_tokenizer(files / "photon.safetensors") == files / "tokenizer"
    assert composed.find_tokenizer(alone, files / "tokenizer") == files / "tokenizer"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ModelError, match="comfy/sd1_tokenizer of ComfyUI"):
        composed.find_tokenizer(alone)
    with pytest.raises(ModelError, match="holds no tokenizer"):
        composed.find_tokenizer(alone, tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(files / "tokenizer" / "vocab.json"))
    assert composed.find_tokenizer(alone) == files / "tokenizer"


# The real sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mid", "tensors", "parameters"), [(True, 588, 453_209_280), (False, 560, 417_137_600)], ids=["v2", "v3"]
)
def test_real_modules_have_their_place(mid: bool, tensors: int, parameters: int) -> None:
    """Counts of guoyww's files, from shared facts; names and shapes against the joint network."""
    with torch.device("meta"):
        official = official_module(adapter(mid=mid, frames=32, widths=REAL_WIDTHS))
    assert len(official) == tensors
    assert sum(tensor.numel() for name, tensor in official.items() if not name.endswith(".pe")) == parameters
    shapes = {name: tuple(tensor.shape) for name, tensor in official.items()}
    found = motion_module.recognise("real", shapes)
    assert (found.version, found.max_frames, found.widths) == ("v2" if mid else "v3", 32, REAL_WIDTHS)
    with torch.device("meta"):
        image = UNet2DConditionModel(block_out_channels=REAL_WIDTHS, cross_attention_dim=768, attention_head_dim=8)
    checkpoint = {f"model.diffusion_model.{ldm_name(n)}": tuple(t.shape) for n, t in image.state_dict().items()}
    config = stable_diffusion.joint_config("real", stable_diffusion.network_config(checkpoint), found)
    network = empty_network({"_class_name": "UNetMotionModel", **config})
    tables = {name for name in official if name.endswith("attention_blocks.1.pos_encoder.pe")}
    own = motion_module.network_weights({name: t for name, t in official.items() if name not in tables})
    expected = {n: t.shape for n, t in network.state_dict().items() if "motion_modules" in n}
    assert {name: tensor.shape for name, tensor in own.items()} == expected
    assert {n: t.shape for n, t in image.state_dict().items()} | expected == {
        n: t.shape for n, t in network.state_dict().items()
    }


def test_on_the_command_line(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ("--base", files / "photon.safetensors", "--motion-module", files / "v3.ckpt")
    clip = write_video(tmp_path / "clip.mp4", tiny_frames(num_frames=2, size=64), 8.0)
    common = ("--method", "temporal-only", "--caption", "a red circle", "--num-frames", 2, "--steps", 1)
    common += ("--height", 64, "--width", 64, "--output", tmp_path / "x.safetensors")
    succeeds("train", *named, "--clip", clip, *common)
    assert load_lora(tmp_path / "x.safetensors").backbone == "animatediff"
    assert "motion module goes into Stable Diffusion 1.5" in fails(
        capsys, "sample", "--prompt", "a", "--motion-module", files / "v3.ckpt", "--output", tmp_path / "x.mp4"
    )
