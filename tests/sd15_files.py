"""Files as users of AnimateDiff have them, in their official layouts, made from diffusers' own networks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from safetensors.torch import save_file
from tiny import TEXT_WIDTH, randomise, tiny_text_encoder, write_tokenizer
from torch import Tensor, nn

WIDTHS = (32, 32, 64, 64)
REAL_WIDTHS = (320, 640, 1280, 1280)
MAX_FRAMES = 8


def image_network(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's layout with narrow layers."""
    config = {"block_out_channels": WIDTHS, "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 8, **changes}
    network = UNet2DConditionModel(sample_size=8, **config)
    randomise(network, seed)
    return network


def autoencoder(seed: int = 1) -> AutoencoderKL:
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    randomise(vae, seed)
    return vae


def adapter(seed: int = 3, *, mid: bool = True, frames: int = MAX_FRAMES, widths: Any = WIDTHS) -> MotionAdapter:
    """A motion module in diffusers' class: v2's layout, or v3's without a module in the middle."""
    made = MotionAdapter(block_out_channels=widths, motion_max_seq_length=frames, use_motion_mid_block=mid)
    if next(made.parameters()).device.type != "meta":
        randomise(made, seed)
    return made


def official_module(made: MotionAdapter) -> dict[str, Tensor]:
    """A motion module's tensors in guoyww's names, with its table of positions for each attention."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in made.state_dict().items():
        name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name)
        if name.endswith("pos_embed.pe"):
            for attention in range(2):
                place = name.replace("pos_embed.pe", f"attention_blocks.{attention}.pos_encoder.pe")
                tensors[place] = tensor.clone()
            continue
        name = re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", name)
        name = re.sub(r"\.norm([12])\.", lambda found: f".norms.{int(found[1]) - 1}.", name)
        tensors[name.replace(".norm3.", ".ff_norm.")] = tensor.contiguous()
    return tensors


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def ldm_name(name: str) -> str:
    """A tensor of the image network as the original code of latent diffusion names it."""
    for ours, theirs in _ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[parts[1], parts[2]]
        return ".".join(["middle_block", str(place), *_inner(parts[1], parts[3:])])
    level, kind, layer = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks.{3 * (level + 1)}.0.op.{parts[-1]}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level else 1}.conv.{parts[-1]}"
    place = (
        f"input_blocks.{3 * level + layer + 1}" if parts[0] == "down_blocks" else f"output_blocks.{3 * level + layer}"
    )
    return ".".join([place, "0" if kind == "resnets" else "1", *_inner(kind, parts[4:])])


def _inner(kind: str, rest: list[str]) -> list[str]:
    return [_RESNET[rest[0]], *rest[1:]] if kind == "resnets" else rest


def ldm_vae(vae: nn.Module) -> dict[str, Tensor]:
    """The VAE's tensors in the original names, attention as 1x1 convolutions."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in vae.state_dict().items():
        old = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        old = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block", old)
        old = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample", old)
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", old)
        if "mid_block.attentions.0" in old:
            old = old.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            old = re.sub(r"to_([qkv])\.", r"\1.", old).replace("to_out.0", "proj_out")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        old = old.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        tensors[old] = tensor.contiguous()
    return tensors


def text_encoder(seed: int = 2) -> nn.Module:
    return tiny_text_encoder(seed, heads=1)


def checkpoint_tensors(network: nn.Module, vae: nn.Module, encoder: nn.Module) -> dict[str, Tensor]:
    tensors = {f"model.diffusion_model.{ldm_name(n)}": t.contiguous() for n, t in network.state_dict().items()}
    tensors |= {f"first_stage_model.{n}": t for n, t in ldm_vae(vae).items()}
    words = {n.removeprefix("text_model."): t for n, t in encoder.state_dict().items()}
    return tensors | {f"cond_stage_model.transformer.text_model.{n}": t.contiguous() for n, t in words.items()}


def write_checkpoint(path: Path, **extra: Tensor) -> Path:
    """A Stable Diffusion 1.5 checkpoint, with CLIP's words in the folder beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**checkpoint_tensors(image_network(), autoencoder(), text_encoder()), **extra}, path)
    write_tokenizer(path.parent / "tokenizer")
    return path


def write_module(path: Path, made: MotionAdapter | None = None, **extra: Tensor) -> Path:
    """guoyww's file; one that ends in .ckpt is a torch file with a training's other entries."""
    tensors = {**official_module(made or adapter()), **extra}
    if path.suffix == ".ckpt":
        wrapped = {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
        torch.save(wrapped, path)
    else:
        save_file(tensors, path)
    return path
