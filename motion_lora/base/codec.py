"""Frames as latents and back, on a VAE of single images."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..backbones.base import Backbone
from ..core.axes import fold_frames, frames_to_pixels, pixels_to_frames, unfold_frames


def scaling_factor(vae: AutoencoderKL) -> float:
    """What the VAE's own latents are multiplied by, so that the UNet sees about unit variance."""
    return float(vae.config["scaling_factor"])


def encode(
    backbone: Backbone,
    vae: AutoencoderKL,
    frames: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    chunk: int,
) -> Tensor:
    """Frames (f, h, w, 3) or (b, f, h, w, 3) in [0, 1] -> scaled latents (b, c, f, h, w), float32 on the device.

    With a (CPU) generator the posterior is sampled, else its mode is taken; `chunk` frames are encoded at a time.
    """
    pixels = frames_to_pixels(frames)
    batch = pixels.shape[0]
    images = pixels.flatten(0, 1)
    posteriors = [vae.encode(part.to(device, dtype)).latent_dist for part in images.split(chunk)]
    latents = torch.cat([posterior.mean for posterior in posteriors]).float()
    if generator is not None:
        deviation = torch.cat([posterior.std for posterior in posteriors]).float()
        noise = torch.randn(latents.shape, generator=generator)
        latents = latents + deviation * noise.to(latents.device)
    return backbone.scale(vae, unfold_frames(latents, batch))


def decode(
    backbone: Backbone, vae: AutoencoderKL, latents: Tensor, device: torch.device, dtype: torch.dtype, chunk: int
) -> Tensor:
    """Scaled latents (b, c, f, h, w) -> frames (b, f, h, w, 3) in [0, 1], float32 on CPU, `chunk` at a time."""
    images = fold_frames(backbone.unscale(vae, latents))
    decoded = [vae.decode(part.to(device, dtype)).sample.float().cpu() for part in images.split(chunk)]
    return pixels_to_frames(torch.cat(decoded).unflatten(0, (latents.shape[0], -1)))
