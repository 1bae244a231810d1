"""Frames as latents and back, by the autoencoder of the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..core.axes import fold_frames, frames_to_pixels, pixels_to_frames, unfold_frames


def encode(
    backbone: Backbone,
    vae: nn.Module,
    frames: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    chunk: int,
) -> Tensor:
    """Frames (f, h, w, 3) or (b, f, h, w, 3) in [0, 1] -> scaled latents (b, c, f, h, w), float32 on the device.

    With a (CPU) generator the posterior is sampled, else its mode is taken; `chunk` frames are encoded at a time.
    """
    latents, deviation = backbone.encode(vae, frames_to_pixels(frames), device, dtype, chunk)
    if generator is not None:
        noise = unfold_frames(torch.randn(fold_frames(latents).shape, generator=generator), len(latents))
        latents = latents + deviation * noise.to(latents.device)
    return backbone.scale(vae, latents)


def decode(
    backbone: Backbone, vae: nn.Module, latents: Tensor, device: torch.device, dtype: torch.dtype, chunk: int
) -> Tensor:
    """Scaled latents (b, c, f, h, w) -> frames (b, f, h, w, 3) in [0, 1], float32 on CPU, `chunk` at a time."""
    return pixels_to_frames(backbone.decode(vae, backbone.unscale(vae, latents), device, dtype, chunk))
