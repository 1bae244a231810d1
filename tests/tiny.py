"""Tiny real networks for the tests: the layouts of ModelScope and of the playground with narrow layers.

Every weight is random, those that diffusers starts at zero included, so that each layer shows in the output.
"""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from motion_lora.base.identity import identify
from motion_lora.base.pipeline import VideoPipeline

TEXT_WIDTH = 32
MAX_TOKENS = 16
VAE_FACTOR = 4
SIZE = 32  # pixels; the UNet sees 8 x 8
NUM_FRAMES = 4
WORDS = ("a", "red", "blue", "circle", "square", "moving", "left", "right", "circling", "over", "snow", "sand")

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    # entries of another scheduler class, as real folders have them
    "skip_prk_steps": True,
    "trained_betas": None,
}

_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock3D", "CrossAttnUpBlock3D"


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter from a seeded generator, at a scale that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            gain = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(gain + 0.1 * noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)


def tiny_unet_config(*, levels: int = 3, layers_per_block: int = 1) -> dict[str, Any]:
    """levels=3: ModelScope's layout, no attention at the deepest level. levels=2: the playground's, 1: half of it."""
    tail = levels == 3
    return {
        "sample_size": SIZE // VAE_FACTOR,
        "block_out_channels": (32, 64, 64)[:levels],
        "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, *(["DownBlock3D"] if tail else []))[:levels],
        "up_block_types": (*(["UpBlock3D"] if tail else []), _CROSS_UP, _CROSS_UP)[-levels:],
        "layers_per_block": layers_per_block,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }


def tiny_unet(seed: int = 0, *, levels: int = 3, layers_per_block: int = 1) -> UNet3DConditionModel:
    unet = UNet3DConditionModel(**tiny_unet_config(levels=levels, layers_per_block=layers_per_block))
    randomise(unet, seed)
    return unet


def tiny_motion_unet(
    seed: int = 0, *, levels: int = 3, layers_per_block: int = 1, mid_block: bool = True, max_frames: int = 8
) -> UNetMotionModel:
    """AnimateDiff's layout on Stable Diffusion 1.5's: with a motion module in the middle block as v2, or as v3."""
    tail = levels == 3
    cross_down, cross_up = "CrossAttnDownBlockMotion", "CrossAttnUpBlockMotion"
    unet = UNetMotionModel(
        sample_size=SIZE // VAE_FACTOR,
        block_out_channels=(32, 64, 64)[:levels],
        down_block_types=(cross_down, cross_down, *(["DownBlockMotion"] if tail else [])),
        up_block_types=(*(["UpBlockMotion"] if tail else []), cross_up, cross_up),
        layers_per_block=layers_per_block,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=max_frames,
        use_motion_mid_block=mid_block,
        norm_num_groups=8,
    )
    randomise(unet, seed)
    return unet


def tiny_wan(seed: int = 0, *, levels: int = 3, layers_per_block: int = 1) -> WanTransformer3DModel:
    """Wan's layout with as many blocks as `levels`; `layers_per_block` is of U-Nets."""
    network = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=levels,
        rope_max_seq_len=32,
    )
    randomise(network, seed)
    return network


BACKBONE_UNETS = {"unet3d": tiny_unet, "animatediff": tiny_motion_unet, "wan": tiny_wan}


def tiny_vae(seed: int = 1) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.7,
    )
    randomise(vae, seed)
    return vae


def tiny_wan_vae(seed: int = 1, *, temporal: int = 4) -> AutoencoderKLWan:
    """Wan's causal autoencoder, an eighth of each side; 1 + 4 n frames are 1 + n latents, with `temporal` 1 as many."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, temporal == 4, temporal == 4],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 0.8, 1.0],
        scale_factor_temporal=temporal,
        scale_factor_spatial=8,
    )
    randomise(vae, seed)
    return vae


FLOW_CONFIG: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}


def write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that knows WORDS and falls back to characters, as CLIP falls back to byte pairs."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = characters + [f"{character}</w>" for character in characters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            if (pair := (pieces[0], pieces[1])) not in merges:
                merges.append(pair)
            if (merged := "".join(pair)) not in tokens:
                tokens.append(merged)
            pieces = [merged, *pieces[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": "<|startoftext|>",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@functools.cache
def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def tiny_tokenizer() -> CLIPTokenizer:
    return copy.deepcopy(_tokenizer())


def tiny_text_encoder(seed: int = 2, *, width: int = TEXT_WIDTH, heads: int = 4) -> CLIPTextModel:
    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    randomise(encoder, seed)
    return encoder


def tiny_pipeline(
    seed: int = 0,
    *,
    levels: int = 3,
    layers_per_block: int = 1,
    prediction_type: str = "epsilon",
    backbone: str = "unet3d",
) -> VideoPipeline:
    """A whole base on CPU in fp32: 32 x 32 pixels, 4 frames by default, sizes are multiples of 16 (levels=3) or 8."""
    unet = BACKBONE_UNETS[backbone](seed, levels=levels, layers_per_block=layers_per_block)
    flows = backbone == "wan"
    return VideoPipeline(
        unet=unet,
        vae=tiny_wan_vae(seed + 1) if flows else tiny_vae(seed + 1),
        text_encoder=tiny_text_encoder(seed + 2),
        tokenizer=tiny_tokenizer(),
        scheduler_config=FLOW_CONFIG if flows else {**SCHEDULER_CONFIG, "prediction_type": prediction_type},
        identity=identify(unet, "tiny"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        default_num_frames=5 if flows else NUM_FRAMES,
    )


def write_tiny_folder(
    folder: str | Path,
    seed: int = 0,
    *,
    levels: int = 3,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """The tiny base as a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler, model_index.json."""
    folder = Path(folder)
    parts: Sequence[tuple[str, Any]] = (
        ("unet", tiny_unet(seed, levels=levels)),
        ("vae", tiny_vae(seed + 1)),
        ("text_encoder", tiny_text_encoder(seed + 2)),
    )
    for name, module in parts:
        nn.Module.to(module, dtype).save_pretrained(str(folder / name), variant=variant, max_shard_size=max_shard_size)
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER_CONFIG), encoding="utf-8")
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "motion_lora.json").write_text(json.dumps({"name": "tiny", "num_frames": NUM_FRAMES}), encoding="utf-8")
    return folder


def tiny_frames(seed: int = 0, num_frames: int = NUM_FRAMES, size: int = SIZE) -> Tensor:
    """A clip with something moving in it: frames (f, h, w, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    frames = 0.2 + 0.1 * torch.rand(1, size, size, 3, generator=generator).expand(num_frames, -1, -1, -1).clone()
    for frame in range(num_frames):
        left = 2 + frame * max((size - 12) // num_frames, 1)
        frames[frame, size // 3 : size // 3 + 8, left : left + 8] = torch.tensor([0.9, 0.1, 0.1])
    return frames


def tiny_latents(
    seed: int = 0, *, batch: int = 1, num_frames: int = NUM_FRAMES, size: int = SIZE // VAE_FACTOR
) -> Tensor:
    """Noise shaped like latents (b, 4, f, h, w)."""
    return torch.randn(batch, 4, num_frames, size, size, generator=torch.Generator().manual_seed(seed))
