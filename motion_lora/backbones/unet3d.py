"""Supported video networks: how to recognise one, and where its spatial layers, temporal layers and skips are.

One network is supported, diffusers' `UNet3DConditionModel`: ModelScope text-to-video, ZeroScope, the playground. Its
temporal layers are `transformer_in`, every `temp_attentions.*` and every `temp_convs.*`; all else has the names and
shapes of Stable Diffusion 2.1's image network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import nn

from ..core.errors import ModelError
from .base import Backbone, Skip
from .registry import SUPPORTED, check_kind

MODELSCOPE_UNET_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "UNet3DConditionModel",
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": 64,
        "norm_num_groups": 32,
    }
)
"""The network of ModelScope text-to-video-ms-1.7b and of ZeroScope, which fine-tunes it."""


def describe(unet: nn.Module) -> Backbone:
    """The layers of `unet`; raises ModelError, saying what it is, for anything but a `UNet3DConditionModel`."""
    if not isinstance(unet, UNet3DConditionModel):
        check_kind(type(unet).__name__, "The given network")
        raise ModelError(f"The given network is not diffusers' own UNet3DConditionModel. Choose a {SUPPORTED}.")
    return Backbone(
        name="unet3d",
        spatial_transformers=_names(unet, Transformer2DModel),
        temporal_transformers=_names(unet, TransformerTemporalModel),
        temporal_convolutions=_names(unet, TemporalConvLayer),
        residual_blocks=_names(unet, ResnetBlock2D),
        skips=_skips(unet),
        cross_attention_dim=int(unet.config["cross_attention_dim"]),
        in_channels=int(unet.config["in_channels"]),
    )


def empty_unet(config: Mapping[str, Any]) -> UNet3DConditionModel:
    """A network without weights (on the meta device) from a `config.json`'s entries, to count and to name modules."""
    check_kind(str(config.get("_class_name", UNet3DConditionModel.__name__)), "The network config")
    try:
        with torch.device("meta"):
            unet: UNet3DConditionModel = UNet3DConditionModel.from_config(dict(config))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"The network config makes no UNet3DConditionModel: {error}") from error
    return unet


def vae_factor(vae: AutoencoderKL) -> int:
    """How many pixels one latent spans along each side."""
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def size_multiple(vae: AutoencoderKL, unet: UNet3DConditionModel) -> int:
    """Frame height and width in pixels must be multiples of this, or the UNet's levels do not halve evenly."""
    levels = len(unet.config["block_out_channels"])
    return vae_factor(vae) * int(2 ** (levels - 1))


def _names(unet: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(name for name, module in unet.named_modules() if isinstance(module, kind))


def _levels(blocks: nn.ModuleList) -> Iterator[tuple[int, Any]]:
    """The blocks with their number; `Any`, for torch types the attributes of a module as modules or tensors."""
    yield from enumerate(blocks)


def _producers(unet: UNet3DConditionModel) -> list[tuple[str | None, str | None]]:
    """Temporal and spatial transformer behind each residual, in the order in which the UNet gathers them."""
    producers: list[tuple[str | None, str | None]] = [("transformer_in", None)]
    for level, block in _levels(unet.down_blocks):
        for layer in range(len(block.resnets)):
            if getattr(block, "has_cross_attention", False):
                prefix = f"down_blocks.{level}"
                producers.append((f"{prefix}.temp_attentions.{layer}", f"{prefix}.attentions.{layer}"))
            else:
                producers.append((None, None))
        if block.downsamplers is not None:
            producers.append((None, None))
    return producers


def _skips(unet: UNet3DConditionModel) -> tuple[Skip, ...]:
    """The UNet hands out its residuals last in, first out: each up block takes as many as it has resnets."""
    producers = _producers(unet)
    skips: list[Skip] = []
    end = len(producers)
    for level, block in _levels(unet.up_blocks):
        start = end - len(block.resnets)
        for index in range(start, end):
            skips.append(Skip(index, f"up_blocks.{level}", index - start, *producers[index]))
        end = start
    return tuple(sorted(skips, key=lambda skip: skip.index))
