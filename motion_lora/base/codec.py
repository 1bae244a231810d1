"""Clips as latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.clip import Clip

if TYPE_CHECKING:
    from .pipeline import VideoPipeline


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip with its latents (1, c, f, h, w), scaled by the VAE's scaling factor."""

    latents: Tensor
    clip: Clip


def encode_clips(
    pipeline: VideoPipeline, clips: Sequence[Clip], *, generator: torch.Generator | None = None
) -> list[EncodedClip]:
    """Latents of every clip, computed once; the posterior's mode, or a sample of it with a generator."""
    return [EncodedClip(pipeline.encode_frames(clip.frames, generator=generator), clip) for clip in clips]
