"""Tiny Wan bases on disk: diffusers' folder, and ComfyUI's two files with the names that the releases have."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from tiny import FLOW_CONFIG, TEXT_WIDTH, randomise, tiny_text_encoder, tiny_wan, tiny_wan_vae, write_tokenizer

from motion_lora.backbones.wan import native_name


def write_folder(folder: Path) -> Path:
    for name, module in (
        ("transformer", tiny_wan(levels=2)),
        ("vae", tiny_wan_vae()),
        ("text_encoder", tiny_text_encoder()),
    ):
        module.save_pretrained(str(folder / name))
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW_CONFIG), encoding="utf-8")
    (folder / "motion_lora.json").write_text(json.dumps({"name": "tiny-wan", "num_frames": 5}), encoding="utf-8")
    return folder


def native_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {native_name(name): tensor.clone() for name, tensor in network.state_dict().items()}


def write_files(folder: Path, name: str = "wan2.1_t2v_tiny", seed: int = 0) -> tuple[Path, Path]:
    """A network of one head and an autoencoder of Wan 2.1's layout with narrow layers, as ComfyUI has them."""
    network = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=24,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    randomise(network, seed)
    places = folder / "diffusion_models" / f"{name}.safetensors", folder / "vae" / "wan_2.1_vae.safetensors"
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    save_file(native_state(network), str(places[0]))
    vae = AutoencoderKLWan(base_dim=4)
    randomise(vae, 1)
    save_file(native_vae_state(vae), str(places[1]))
    return places


def native_vae_state(vae: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An autoencoder's tensors under Wan's own names, found by asking for each what diffusers makes of it."""
    state = vae.state_dict()
    blocks = [f"{side}.{number}" for side in ("encoder.downsamples", "decoder.upsamples") for number in range(15)]
    blocks += [f"{coder}.middle.{number}" for coder in ("encoder", "decoder") for number in range(3)]
    inner = [f"residual.{number}" for number in (0, 2, 3, 6)]
    inner += ["shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj"]
    stems = [f"{block}.{part}" for block, part in itertools.product(blocks, inner)] + ["conv1", "conv2"]
    stems += [f"{coder}.{part}" for coder in ("encoder", "decoder") for part in ("conv1", "head.0", "head.2")]
    found = {}
    for name in (f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias", "gamma")):
        (theirs,) = convert_wan_vae_to_diffusers({name: name})
        if theirs in state:
            found[name] = state[theirs].clone()
    assert len(found) == len(state)
    return found
