"""Appearance leakage on any video, by colours and texture. A proxy: it knows no objects, only what pixels look like.

    similarity   of two clips: mean of the intersection of their colour histograms (8 x 8 x 8 in RGB, each pixel spread
                 over its neighbouring bins) and of their texture histograms (8 orientations of the brightness gradient
                 at 3 scales, weighted by its strength, and the share without any), over all frames; in [0, 1]
    leakage      with s the similarity to the reference: (s(video) - s(neutral)) / (1 - s(neutral)), at least 0, where
                 neutral is what the base model draws for the same prompt without the LoRA

So what the prompt itself explains does not count as leakage: 0 where the video is no more like the reference than the
base's own, 1 where it looks exactly like the reference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .optional import check_frames

_BINS = 8
_ORIENTATIONS = 8
_SCALES = 3
_FAINT = 0.02  # gradients below count as no texture


def appearance_leakage(frames: Tensor, reference: Tensor, neutral: Tensor) -> float:
    """Leakage in [0, 1] of the look of `reference` into `frames`, each (f, h, w, 3); the module defines it."""
    return excess(appearance_similarity(frames, reference), appearance_similarity(neutral, reference))


def excess(similarity: float, neutral: float) -> float:
    """(similarity - neutral) / (1 - neutral), in [0, 1]: what is beyond the neutral, of what could be beyond it."""
    return min(1.0, max(0.0, (similarity - neutral) / max(1 - neutral, 1e-6)))


def appearance_similarity(first: Tensor, second: Tensor) -> float:
    """How alike two clips (f, h, w, 3) look, whatever their sizes, in [0, 1]; the module defines it."""
    a, b = (check_frames(clip, 1, "Appearance") for clip in (first, second))
    colour = torch.minimum(colour_histogram(a), colour_histogram(b)).sum()
    texture = torch.minimum(texture_histogram(a), texture_histogram(b)).sum()
    return float((colour + texture) / 2)


def colour_histogram(frames: Tensor) -> Tensor:
    """Frames (f, h, w, 3) -> (8 * 8 * 8,), summing to 1; a pixel between two bins counts in both."""
    place = frames.reshape(-1, 3).clamp(0, 1) * (_BINS - 1)
    low = place.floor().clamp(max=_BINS - 2)
    share = place - low
    histogram = torch.zeros(_BINS**3)
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        weight = torch.where(offset.bool(), share, 1 - share).prod(dim=-1)
        index = ((low.long() + offset) * torch.tensor([_BINS**2, _BINS, 1])).sum(dim=-1)
        histogram.index_add_(0, index, weight)
    return histogram / histogram.sum()


def texture_histogram(frames: Tensor) -> Tensor:
    """Frames (f, h, w, 3) -> (3 * 9,), summing to 1: per scale the shares of the orientations, and of no gradient."""
    grey = (frames @ frames.new_tensor([0.299, 0.587, 0.114]))[:, None]
    scales = []
    for _ in range(_SCALES):
        scales.append(_orientations(grey))
        if min(grey.shape[2:]) >= 4:
            grey = F.avg_pool2d(grey, 2)
    return torch.cat(scales) / _SCALES


def _orientations(grey: Tensor) -> Tensor:
    """(f, 1, h, w) -> (9,): shares of pixels by the orientation of their gradient, the last without a clear one."""
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    strength = torch.hypot(dx, dy)
    angle = (torch.atan2(dy, dx) % math.pi) / math.pi * _ORIENTATIONS
    low = angle.floor()
    clear = strength / (strength + _FAINT)
    histogram = torch.zeros(_ORIENTATIONS + 1)
    for step, weight in ((0, 1 - (angle - low)), (1, angle - low)):
        index = (low.long() + step) % _ORIENTATIONS
        histogram.index_add_(0, index.flatten(), (weight * clear).flatten())
    histogram[-1] = (1 - clear).sum()
    return histogram / histogram.sum()
