"""Axis conventions, and the only conversions between them.

frames    (f, h, w, 3) or (b, f, h, w, 3), float32 in [0, 1]: ComfyUI's IMAGE, what files hold, what metrics read
pixels    (b, f, 3, h, w) in [-1, 1]: what the VAE sees
latents   (b, c, f, h, w), scaled by the VAE's scaling factor: what the UNet sees
images    (b * f, c, h, w): either of the last two with the frames on the batch axis, frames of a clip adjacent
"""

from __future__ import annotations

from torch import Tensor


def frames_to_pixels(frames: Tensor) -> Tensor:
    """(f, h, w, 3) or (b, f, h, w, 3) in [0, 1] -> (b, f, 3, h, w) in [-1, 1]."""
    if frames.ndim == 4:
        frames = frames[None]
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (f, h, w, 3) or (b, f, h, w, 3), got {tuple(frames.shape)}")
    return frames.movedim(-1, 2) * 2 - 1


def pixels_to_frames(pixels: Tensor) -> Tensor:
    """(b, f, 3, h, w) in about [-1, 1] -> (b, f, h, w, 3), clamped to [0, 1]."""
    if pixels.ndim != 5 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be (b, f, 3, h, w), got {tuple(pixels.shape)}")
    return ((pixels + 1) / 2).clamp(0, 1).movedim(2, -1)


def fold_frames(latents: Tensor) -> Tensor:
    """(b, c, f, h, w) -> (b * f, c, h, w)."""
    return latents.movedim(2, 1).flatten(0, 1)


def unfold_frames(images: Tensor, batch: int) -> Tensor:
    """(b * f, c, h, w) -> (b, c, f, h, w)."""
    return images.unflatten(0, (batch, -1)).movedim(1, 2)
