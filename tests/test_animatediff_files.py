"""LoRA files of AnimateDiff's world: its own form, diffusers' forms as diffusers reads them, image LoRAs of kohya."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import foreign_files
import pytest
import torch
from cli_helpers import succeeds
from lora_samples import predict, random_lora, replica_of
from safetensors.torch import load_file
from tiny import TEXT_WIDTH, tiny_latents, tiny_motion_unet, tiny_text_encoder
from torch import Tensor, nn

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.core.errors import LoRAFileError
from motion_lora.core.lora import LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.container import read_header
from motion_lora.files.inspection import inspect, report_text
from motion_lora.files.own import save_lora
from motion_lora.files.reader import load_any
from motion_lora.files.writers import convert, export_animatediff, export_diffusers, export_native, export_peft

FRAMES = 3


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return tiny_motion_unet(levels=2)


@pytest.fixture(scope="module")
def motion(unet: nn.Module) -> LoRA:
    lora = random_lora(unet, list(target_modules(unet, "temporal-attention")), 2, 0, 0.5)
    return LoRA(lora.layers, lora.metadata, backbone="animatediff")


@torch.no_grad()
def run(network: nn.Module) -> Tensor:
    return predict(network, tiny_latents(num_frames=FRAMES), 500, torch.ones(1, 5, TEXT_WIDTH))


# What diffusers itself makes of our files


@pytest.mark.parametrize("write", [export_peft, export_diffusers])
def test_diffusers_loads_what_we_write(tmp_path: Path, unet: nn.Module, motion: LoRA, write) -> None:
    """Through its network's own loader, which AnimateDiffPipeline.load_lora_weights calls: the same video comes out."""
    path = write(tmp_path / "x.safetensors", motion)
    with applied(theirs := replica_of(unet), AdapterStack((StackEntry(motion),)), FRAMES):
        expected = run(theirs)
    loaded = tiny_motion_unet(levels=2)
    metadata = read_header(path).metadata.get("lora_adapter_metadata")
    options = {} if metadata is None else {"metadata": json.loads(metadata)}
    loaded.load_lora_adapter(load_file(path), prefix="unet", **options)
    torch.testing.assert_close(run(loaded), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(unet), expected, atol=1e-3)


def test_the_form_of_a_motion_adapter(tmp_path: Path, unet: nn.Module, motion: LoRA) -> None:
    """The keys of guoyww/animatediff-motion-lora-*, without alpha."""
    path = export_diffusers(tmp_path / "x.safetensors", motion)
    stem = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.processor."
    keys = set(read_header(path).shapes)
    assert {f"{stem}to_q_lora.down.weight", f"{stem}to_out_lora.up.weight"} <= keys
    assert not any("alpha" in key for key in keys) and len(keys) == 2 * len(motion)
    for network in (None, unet):
        report = load_any(path, network)
        assert (report.format, report.lora.backbone) == ("diffusers", "animatediff")
        assert all(torch.allclose(report.lora.layers[m].delta(), motion.layers[m].delta()) for m in motion)
    whole = LoRA(random_lora(unet, list(target_modules(unet, "temporal-all"))).layers, backbone="animatediff")
    with pytest.raises(LoRAFileError, match=r"no projection of an attention.*: write peft"):
        export_diffusers(tmp_path / "y.safetensors", whole)


# From and to AnimateDiff's own form


def test_there_and_back(tmp_path: Path, unet: nn.Module, motion: LoRA) -> None:
    own = save_lora(tmp_path / "own.safetensors", motion)
    convert(own, tmp_path / "theirs.safetensors", "animatediff")
    report = load_any(tmp_path / "theirs.safetensors", unet)
    assert (report.format, report.matched) == ("animatediff", len(motion))
    assert report.lora.metadata["motion_lora.imported_from"] == "animatediff"
    convert(tmp_path / "theirs.safetensors", tmp_path / "back.safetensors", "motion-lora")
    back = load_any(tmp_path / "back.safetensors", unet).lora
    assert all(torch.allclose(back.layers[m].delta(), motion.layers[m].delta()) for m in motion)
    text = report_text(inspect(tmp_path / "theirs.safetensors"))
    assert "animatediff format" in text and "animatediff (Stable Diffusion 1.5" in text
    half = export_native(tmp_path / "half.safetensors", motion, dtype=torch.float16)
    assert {info.dtype for info in read_header(half).tensors.values()} == {torch.float16}


def test_no_form_of_another_family_is_written(tmp_path: Path, motion: LoRA) -> None:
    """ComfyUI's own Load LoRA would match none of its keys."""
    own = save_lora(tmp_path / "own.safetensors", motion)
    with pytest.raises(LoRAFileError, match="a LoRA for animatediff has no comfyui form: write animatediff"):
        convert(own, tmp_path / "x.safetensors", "comfyui")
    still = LoRA(motion.layers, backbone="unet3d")
    with pytest.raises(LoRAFileError, match="a LoRA for unet3d has no animatediff form: write peft or kohya"):
        export_animatediff(tmp_path / "x.safetensors", still)


def test_on_the_command_line(tmp_path: Path, motion: LoRA, capsys) -> None:
    own = save_lora(tmp_path / "own.safetensors", motion)
    target = tmp_path / "theirs.safetensors"
    succeeds("convert", own, "--format", "animatediff", "--output", target, "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["to"], said["layers"]) == ("animatediff", len(motion))
    succeeds("inspect", target, "--json")
    assert json.loads(capsys.readouterr().out)["backbone"] == "animatediff"


# What other tools write, made from known changes


def as_safetensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    foreign_files.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def as_checkpoint(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As guoyww's training saves it."""
    torch.save({"epoch": 3, "global_step": 7, "state_dict": {f"module.{n}": t for n, t in tensors.items()}}, path)
    return path


@pytest.mark.parametrize("write", [as_safetensors, as_checkpoint])
@pytest.mark.parametrize(
    ("preset", "spell", "form"),
    [
        pytest.param("temporal-attention", foreign_files.motion_lora, "animatediff", id="camera moves"),
        pytest.param("temporal-all", foreign_files.admd_temporal, "animatediff", id="ADMotionDirector's motion"),
        pytest.param("a look", foreign_files.admd_spatial, "diffusers", id="ADMotionDirector's look"),
        pytest.param("temporal-attention", foreign_files.diffusers_processors, "diffusers", id="MotionAdapter"),
    ],
)
def test_motion_of_other_tools_is_read(tmp_path: Path, unet: nn.Module, preset: str, spell, form: str, write) -> None:
    """Every layer's change comes back, and the sum of weight and change is what is applied."""
    looks = ("spatial-attention", "spatial-self-ff") if preset == "a look" else ()
    modules = {m: None for name in looks or (preset,) for m in target_modules(unet, name)}
    known = random_lora(unet, [*modules, *(["down_blocks.0.attentions.0.proj_in"] if looks else [])])
    path = write(tmp_path / "theirs.safetensors", spell(known))
    # The tiny network's text is narrower than any by which a look is told without a network.
    for network in (unet,) if looks else (unet, None):
        report = load_any(path, network)
        assert (report.format, report.lora.backbone, set(report.lora)) == (form, "animatediff", set(known))
        assert all(torch.equal(report.lora.layers[m].delta(), known.layers[m].delta()) for m in known)
    with applied(changed := replica_of(unet), AdapterStack((StackEntry(load_any(path, unet).lora, 0.5),)), FRAMES):
        for module in (sorted(known)[0], sorted(known)[-1]):
            expected = unet.get_submodule(module).weight + 0.5 * known.layers[module].delta()
            torch.testing.assert_close(changed.get_submodule(module).weight, expected)


# Image LoRAs of Stable Diffusion 1.5


def test_image_loras_go_onto_the_spatial_layers(tmp_path: Path, unet: nn.Module) -> None:
    """Kohya's: attention, feed-forward, and proj_in and proj_out, which are 1x1 convolutions there and here."""
    modules = list(target_modules(unet, "spatial-self-ff"))
    modules += [f"down_blocks.0.attentions.0.{name}" for name in ("proj_in", "proj_out")]
    look = random_lora(unet, modules, 2)
    encoder = tiny_text_encoder()
    words = random_lora(encoder, [n for n, m in encoder.named_modules() if n.endswith("mlp.fc1")])
    bare = LoRA({n.removeprefix("text_model."): layer for n, layer in words.layers.items()})
    path = tmp_path / "look.safetensors"
    foreign_files.kohya(path, look, alpha=1.0, **foreign_files.text_encoder_part(bare, 2.0))
    report = load_any(path, unet)
    assert (report.format, report.matched, report.lora.backbone) == ("kohya", len(look), "animatediff")
    assert "2 text-encoder layers were left out" in report.text
    halved = {m: replace(layer, scale=0.5).delta() for m, layer in look.layers.items()}
    assert all(torch.equal(report.lora.layers[m].delta(), halved[m]) for m in look)
    with_words = load_any(path, unet, text_encoder=encoder)
    assert with_words.text_encoder is not None and len(with_words.text_encoder) == 2
    before = run(unet)
    with applied(network := replica_of(unet), AdapterStack((StackEntry(report.lora),)), FRAMES):
        assert not torch.allclose(run(network), before, atol=1e-3)


def test_diffusers_image_loras_too(tmp_path: Path, unet: nn.Module) -> None:
    look, encoder = random_lora(unet, list(target_modules(unet, "spatial-attention"))), tiny_text_encoder()
    words = random_lora(encoder, [n for n, m in encoder.named_modules() if n.endswith(("q_proj", "mlp.fc1"))])
    bare = LoRA({n.removeprefix("text_model."): layer for n, layer in words.layers.items()})
    for spelling in ("lora.{}", "lora_linear_layer.{}", "lora_{}"):
        tensors = foreign_files.dotted(look, spelling) | foreign_files.diffusers_text_part(bare, spelling)
        report = load_any(as_safetensors(tmp_path / "x.safetensors", tensors), unet, text_encoder=encoder)
        assert (report.matched, report.lora.backbone) == (len(look), "animatediff")
        assert all(torch.equal(report.lora.layers[m].delta(), look.layers[m].delta()) for m in look)
        assert report.text_encoder is not None and set(report.text_encoder) == set(words)
        assert all(torch.equal(report.text_encoder.layers[m].delta(), words.layers[m].delta()) for m in words)
