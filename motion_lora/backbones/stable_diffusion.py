"""Checkpoints of Stable Diffusion 1.5 in one file, as most people have them: what they hold, in diffusers' words.

Nothing is fetched: every size stands in the tensors, all else is the same in each of these models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..core.errors import ModelError
from .motion_module import MotionModule

NETWORK, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

BACKBONE = "animatediff"
"""Of image network and motion module together."""

SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
)
"""The noise that motion modules were trained with: linear, where the image network alone has scaled_linear."""

_LAYERS = 2
_HEADS = 8
_LATENT_SCALE = 0.18215
_HEAD_WIDTH = 64  # of CLIP's text models
_NATIVE_SIDE = 64  # latents, 512 pixels
# What a checkpoint is instead, by the start of its keys.
_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        "conditioner.": "an SDXL checkpoint",
        "cond_stage_model.model.": "a Stable Diffusion 2 checkpoint",
        "model.diffusion_model.double_blocks.": "a checkpoint of a diffusion transformer",
        "model.diffusion_model.joint_blocks.": "a checkpoint of a diffusion transformer",
        "model.diffusion_model.blocks.": "a checkpoint of a diffusion transformer",
        "down_blocks.0.motion_modules.": "a motion module: choose it as one, beside a checkpoint",
        "lora_unet_": "a LoRA, not a model",
    }
)
_PARTS = {NETWORK: "the image network", AUTOENCODER: "the VAE", TEXT: "the text encoder"}
_ENCODER_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.")


def check(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError unless a file's tensors are those of a whole Stable Diffusion 1.5 checkpoint."""
    for start, what in _OTHERS.items():
        if any(key.startswith(start) for key in shapes):
            raise ModelError(_refusal(name, what))
    missing = [part for start, part in _PARTS.items() if not any(key.startswith(start) for key in shapes)]
    if missing:
        raise ModelError(_refusal(name, f"no whole checkpoint: it lacks {', '.join(missing)}"))
    channels = shapes.get(f"{NETWORK}input_blocks.0.0.weight", (0, 0))[1]
    if channels != 4:
        raise ModelError(_refusal(name, f"a checkpoint that takes {channels} channels, as for inpainting"))


def network_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The image network's sizes; raises KeyError for a checkpoint that `check` has not seen."""
    first = [1 + level * (_LAYERS + 1) for level in range(4)]
    return {
        "sample_size": _NATIVE_SIDE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": tuple(shapes[f"{NETWORK}input_blocks.{n}.0.out_layers.3.weight"][0] for n in first),
        "layers_per_block": _LAYERS,
        "cross_attention_dim": shapes[f"{NETWORK}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "num_attention_heads": _HEADS,
    }


def autoencoder_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The VAE's sizes; raises KeyError for a checkpoint that `check` has not seen."""
    levels = len({key.split(".")[3] for key in shapes if key.startswith(f"{AUTOENCODER}encoder.down.")})
    widths = tuple(shapes[f"{AUTOENCODER}encoder.down.{n}.block.0.conv1.weight"][0] for n in range(levels))
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _LAYERS,
        "scaling_factor": _LATENT_SCALE,
    }


def text_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The text encoder's sizes, for transformers' CLIPTextConfig."""
    own = {key.removeprefix(TEXT).removeprefix("text_model."): shape for key, shape in shapes.items() if TEXT in key}
    rows, width = own["embeddings.token_embedding.weight"]
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": own["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len({found[1] for key in own if (found := _ENCODER_LAYER.match(key))}),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": own["embeddings.position_embedding.weight"][0],
    }


def network_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image network's tensors under diffusers' names."""
    # Imports most of diffusers, which nobody needs who reads no checkpoint.
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = {key: tensor for key, tensor in tensors.items() if key.startswith(NETWORK)}
    return dict(convert_ldm_unet_checkpoint(own, {"layers_per_block": _LAYERS}))


def autoencoder_weights(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The VAE's tensors under diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    own = {key: tensor for key, tensor in tensors.items() if key.startswith(AUTOENCODER)}
    return dict(convert_ldm_vae_checkpoint(own, config))


def text_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names."""
    return {key.removeprefix(TEXT): tensor for key, tensor in tensors.items() if key.startswith(TEXT)}


def joint_config(name: str, image: Mapping[str, Any], module: MotionModule) -> dict[str, Any]:
    """The config of image network and motion module as one; raises ModelError where they do not fit each other."""
    widths = tuple(image["block_out_channels"])
    if widths != module.widths:
        raise ModelError(
            f"{name} has levels of {module.widths} channels, the image network {widths}: it is for another."
        )
    wanted = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"}
    wanted |= {"cross_attention_dim", "norm_num_groups", "use_linear_projection"}
    shared = {key: value for key, value in image.items() if key in wanted and value is not None}
    heads = image.get("num_attention_heads") or image.get("attention_head_dim") or _HEADS
    types = {
        key: tuple(kind.replace("2D", "Motion") for kind in image[key])
        for key in ("down_block_types", "up_block_types")
        if key in image
    }
    return {**shared, **types, "num_attention_heads": heads, **module.network_config()}


def _refusal(name: str, what: str) -> str:
    return f"{name} is {what}. An AnimateDiff module goes into a Stable Diffusion 1.5 checkpoint with VAE and CLIP."
