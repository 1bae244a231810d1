"""Files of Wan: what ComfyUI applies, what trainers write, and bases read from native files and diffusers folders."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from lora_samples import random_lora
from real_host import ROOT, comfyui_and_python
from safetensors.torch import load_file, save_file
from tiny import (
    TEXT_WIDTH,
    tiny_frames,
    tiny_pipeline,
    tiny_wan,
)
from training_samples import quick, sample_clip
from wan_samples import native_state, write_folder

from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.registry import empty_network
from motion_lora.backbones.wan import WAN_1_3B_CONFIG, WAN_14B_CONFIG, native_name
from motion_lora.backbones.wan_files import expert_of, network_config, network_weights
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import ClipError, LoRAFileError, ModelError, SettingsError
from motion_lora.core.lora import LoRA
from motion_lora.files.inspection import inspect, summary
from motion_lora.files.reader import load_any
from motion_lora.files.writers import convert, export_native
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import train

SCRIPT = Path(__file__).with_name("wan_in_comfyui.py")
PROMPTS = ("a red circle moving left over sand", "a red circle over sand", "")


def lora_on(network: torch.nn.Module, preset: str = "joint-qk") -> LoRA:
    made = random_lora(network, list(target_modules(network, preset)), scale=0.5)
    return LoRA(made.layers, made.metadata, backbone="wan")


# LoRA files


def test_the_file_is_what_core_applies_without_alpha(tmp_path):
    network = tiny_wan(levels=2)
    path = export_native(tmp_path / "x.safetensors", lora_on(network))
    assert sorted(load_file(path)) == sorted(
        f"diffusion_model.blocks.{n}.self_attn.{projection}.lora_{factor}.weight"
        for n in range(2)
        for projection in "qk"
        for factor in "AB"
    )
    found = load_any(path, network)
    assert found.lora.backbone == "wan"
    assert summary(inspect(path, network))["layers"] == "4 (4 joint)"
    for module, layer in lora_on(network).layers.items():
        torch.testing.assert_close(found.lora.layers[module].delta(), layer.delta())


@pytest.mark.parametrize("spelling", ["musubi", "wan-fun", "diffusers", "ai-toolkit"])
def test_files_of_other_trainers_are_read(tmp_path, spelling):
    network = tiny_wan(levels=2)
    lora = lora_on(network, "joint-all")
    tensors = {}
    for module, layer in lora.layers.items():
        native = native_name(module)
        down, up = layer.down, layer.up * layer.scale
        if spelling in ("musubi", "wan-fun"):
            stem = ("lora_unet_" if spelling == "musubi" else "lora_unet__") + native.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(float(layer.rank))
        else:
            stem = f"transformer.{module}" if spelling == "diffusers" else f"diffusion_model.{native}"
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(tmp_path / "x.safetensors"))
    for known in (None, network):
        found = load_any(tmp_path / "x.safetensors", known).lora
        assert found.backbone == "wan" and set(found) == set(lora)
        for module, layer in lora.layers.items():
            torch.testing.assert_close(found.layers[module].delta(), layer.delta())


def test_files_go_from_format_to_format(tmp_path):
    lora = lora_on(tiny_wan(levels=2))
    source = export_native(tmp_path / "x.safetensors", lora)
    for kind in ("motion-lora", "kohya", "peft", "comfyui"):
        convert(source, tmp_path / f"{kind}.safetensors", kind)
        found = load_any(tmp_path / f"{kind}.safetensors").lora
        assert found.backbone == "wan" and load_any(tmp_path / f"{kind}.safetensors").format == kind
        assert all(torch.equal(found.layers[m].delta(), load_any(source).lora.layers[m].delta()) for m in lora)
    with pytest.raises(LoRAFileError, match="a LoRA for Wan, a diffusion transformer"):
        load_any(source, tiny_pipeline(levels=2).unet)


def test_comfyui_applies_every_key_and_predicts_as_we_do(tmp_path):
    checkout, python = comfyui_and_python()
    network = empty_network({**WAN_1_3B_CONFIG, "num_attention_heads": 2, "num_layers": 2, "ffn_dim": 64})
    weights = {name: network.get_submodule(name).weight for name in target_modules(network, "joint-all")}
    stand_in = torch.nn.Module()
    for name, weight in weights.items():
        _put(stand_in, name, torch.nn.Linear(weight.shape[1], weight.shape[0]))
    lora = LoRA(random_lora(stand_in, list(weights)).layers, {}, backbone="wan")
    path = export_native(tmp_path / "x.safetensors", lora)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [python, "-P", str(SCRIPT), str(checkout), str(path), str(tmp_path / "network.safetensors")]
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["modules"] == found["known"] == found["applied"] == 20 and found["changed"]
    assert found["distance"] < 1e-6 and found["prediction"] < 1e-5 and found["vae"]


def _put(root: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    *way, last = name.split(".")
    for part in way:
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)


# Native files of a base


@pytest.mark.parametrize("config", [WAN_1_3B_CONFIG, WAN_14B_CONFIG])
def test_models_are_recognised_by_content(config):
    network = empty_network({**config, "num_layers": 2})
    shapes = {f"model.diffusion_model.{native_name(n)}": tuple(t.shape) for n, t in network.state_dict().items()}
    assert network_config(shapes, "it") == {**config, "num_layers": 2}


@pytest.mark.parametrize(
    ("tensor", "shape", "what"),
    [
        ("vace_patch_embedding.weight", (1,), "VACE"),
        ("img_emb.proj.0.bias", (1,), "image-to-video"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", (1,), "Animate"),
        ("patch_embedding.weight", (1536, 36, 1, 2, 2), "image-to-video or Fun Control"),
    ],
)
def test_others_of_the_family_are_named_and_refused(tensor, shape, what):
    network = empty_network({**WAN_1_3B_CONFIG, "num_layers": 1})
    shapes = {native_name(name): tuple(t.shape) for name, t in network.state_dict().items()} | {tensor: shape}
    with pytest.raises(ModelError, match=f"wan.safetensors .*{what}.* not supported. Choose a Wan text-to-video"):
        network_config(shapes, "wan.safetensors")


def test_fp8_is_multiplied_by_its_scale():
    state = native_state(tiny_wan(levels=1))
    whole = network_weights(state, "it")
    name = "blocks.0.self_attn.q"
    state[f"{name}.scale_weight"] = torch.tensor(0.5)
    state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    state[f"{name}.weight"] = (state[f"{name}.weight"] / 0.5).to(torch.float8_e4m3fn)
    found = network_weights(state, "it")
    assert set(found) == set(whole)
    torch.testing.assert_close(
        found["blocks.0.attn1.to_q.weight"].float(), whole["blocks.0.attn1.to_q.weight"], rtol=0.07, atol=0.01
    )
    state[f"{name}.weight"] = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ModelError, match=r"is stored as torch\.uint8, a quantisation that is not read"):
        network_weights(state, "it")


def test_an_expert_is_told_by_the_name_of_its_file():
    assert expert_of("wan2.2_t2v_high_noise_14B_fp16") == "high"
    assert expert_of("Wan2_2-T2V-A14B-LOW-Noise") == "low"
    assert expert_of("wan2.1_t2v_1.3B_fp16") == ""


# Bases


def test_a_diffusers_folder_is_a_base(tmp_path):
    loaded = VideoPipeline.load(write_folder(tmp_path / "wan"), device="cpu", dtype="fp32")
    assert (loaded.backbone.name, loaded.identity.name, loaded.default_num_frames) == ("wan", "tiny-wan", 5)
    ours = tiny_pipeline(0, levels=2, backbone="wan")
    assert torch.equal(loaded.unet.proj_out.weight, ours.unet.proj_out.weight)
    made = sample(loaded, SampleSettings("a red circle", num_inference_steps=2))[0]
    assert made.frames.shape == (5, 32, 32, 3)
    half = VideoPipeline.load(tmp_path / "wan", device="cpu", dtype="bf16").unet
    assert half.proj_out.weight.dtype == torch.bfloat16
    assert half.scale_shift_table.dtype == torch.float32, "as diffusers keeps it"


def test_a_folder_of_another_kind_is_refused(tmp_path):
    folder = write_folder(tmp_path / "wan")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "in_channels": 36}))
    with pytest.raises(ModelError, match="transformer is Wan image-to-video or Fun Control"):
        VideoPipeline.load(folder, device="cpu")
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "WanVACETransformer3DModel"}))
    with pytest.raises(ModelError, match="WanVACETransformer3DModel: Wan VACE; it takes a control video"):
        VideoPipeline.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("vae", {"z_dim": 48}, "the VAE gives 48 channels, the network takes 4"),
        ("vae", {"_class_name": "AutoencoderKL"}, "is a AutoencoderKL; the network needs a AutoencoderKLWan"),
        ("text_encoder", {"hidden_size": 64}, "gives vectors of 64, the network takes 32"),
        ("text_encoder", {"model_type": "llama"}, "is a llama model; the network needs a UMT5 encoder"),
    ],
)
def test_parts_that_do_not_belong_together_are_named(tmp_path, part, entries, message):
    folder = write_folder(tmp_path / "wan")
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    with pytest.raises(ModelError, match=message):
        VideoPipeline.load(folder, device="cpu")


def given_pipeline() -> VideoPipeline:
    from dataclasses import replace

    full = tiny_pipeline(levels=2, backbone="wan")
    texts = {prompt: full.encode_prompt([prompt]) for prompt in PROMPTS}
    return replace(full, text_encoder=None, tokenizer=None, texts=texts)


def test_texts_may_come_from_outside():
    given, full = given_pipeline(), tiny_pipeline(levels=2, backbone="wan")
    clip = sample_clip(num_frames=5)
    settings = quick(method="joint-customize-a-video", absorber_rank=2)
    assert train(given, [clip], settings).lora.fingerprint() == train(full, [clip], settings).lora.fingerprint()
    wanted = SampleSettings(PROMPTS[0], num_inference_steps=2)
    assert torch.equal(sample(given, wanted)[0].frames, sample(full, wanted)[0].frames)
    with pytest.raises(ClipError, match="no embedding of 'a blue square': this base has no text encoder"):
        sample(given, SampleSettings("a blue square", num_inference_steps=2))


def test_learned_tokens_are_refused_there_with_the_reason():
    settings = quick(method="joint-customize-a-video", absorber="textual-inversion")
    with pytest.raises(SettingsError, match=r"learned tokens need the text encoder itself, .* came from outside"):
        train(given_pipeline(), [sample_clip(num_frames=5)], settings)


def test_shorter_texts_are_filled_up():
    from motion_lora.base.given import text_of

    texts = {"a": torch.ones(1, 3, TEXT_WIDTH), "b": torch.ones(5, TEXT_WIDTH)}
    found = text_of(texts, ["a", "b"], torch.device("cpu")).tensors["encoder_hidden_states"]
    assert found.shape == (2, 5, TEXT_WIDTH) and not found[0, 3:].any() and bool(found[1].all())
    assert tiny_frames().shape[-1] == 3


@torch.no_grad()
def test_t5_is_read_and_its_states_end_with_the_text(tmp_path):
    """As diffusers' pipeline: attention to the words alone, zeros behind them."""
    from transformers import UMT5Config, UMT5EncoderModel

    from motion_lora.backbones.wan import WAN
    from motion_lora.base.video_transformer import read_t5

    config = UMT5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0)
    torch.manual_seed(0)
    theirs = UMT5EncoderModel(config).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = read_t5(tmp_path, torch.float32, [tmp_path / "model.safetensors"])
    ids = torch.tensor([[5, 7, 9, 1, 0, 0], [8, 1, 0, 0, 0, 0]])
    found = WAN.read(ours, ids).tensors["encoder_hidden_states"]
    states = theirs(ids, ids.gt(0).long()).last_hidden_state
    for row, length in ((0, 4), (1, 2)):
        torch.testing.assert_close(found[row, :length], states[row, :length])
        assert not found[row, length:].any()
    assert read_t5(tmp_path, torch.float16, [tmp_path / "model.safetensors"]).dtype == torch.bfloat16
