"""Windows over time: a long video from a network that sees few frames at once.

In every step each window is predicted by itself, and where windows overlap their predictions are averaged (as in
MultiDiffusion, Bar-Tal et al. 2023, along time), with weights that fall towards a window's ends, so that nothing
changes at once from one window to the next. In a loop the windows go round the end, and move on from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = (math.sqrt(5) - 1) / 2


def windows(frames: int, length: int, overlap: int, *, loop: bool = False, step: int = 0) -> list[list[int]]:
    """Frame numbers of each window, `length` long, spread evenly over `frames`; neighbours share at least `overlap`.

    One window of all frames where they fit into one. In a loop the first starts at another frame in each step, which
    covers the seam between last and first frame like any other place.
    """
    length = length or frames
    if frames <= length:
        first = _shift(step, frames) if loop else 0
        return [[(first + frame) % frames for frame in range(frames)]]
    stride = max(1, length - overlap)
    if loop:
        count = math.ceil(frames / stride)
        starts = [round(number * frames / count) + _shift(step, frames) for number in range(count)]
    else:
        count = math.ceil((frames - length) / stride) + 1
        starts = [round(number * (frames - length) / (count - 1)) for number in range(count)]
    return [[(start + frame) % frames for frame in range(length)] for start in starts]


def _shift(step: int, frames: int) -> int:
    """Well spread over the frames, whatever the number of steps; none in the first."""
    return int(step * _GOLDEN % 1 * frames)


def weights(length: int) -> Tensor:
    """(length,): of each frame by its distance from the nearer end of its window, 1 at the ends."""
    place = torch.arange(length)
    return (torch.minimum(place, length - 1 - place) + 1).float()


class Fusion:
    """The weighted average of what the windows predict, shaped (b, c, f, h, w)."""

    def __init__(self, like: Tensor) -> None:
        self._total = torch.zeros_like(like, dtype=torch.float32)
        self._weight = torch.zeros(like.shape[2], device=like.device)

    def add(self, window: Sequence[int], predicted: Tensor) -> None:
        """What was predicted for the frames of a window."""
        index = torch.tensor(window, device=self._total.device)
        weight = weights(len(window)).to(self._total.device)
        self._total.index_add_(2, index, predicted * weight.view(1, 1, -1, 1, 1))
        self._weight.index_add_(0, index, weight)

    def mean(self) -> Tensor:
        """Of all windows; every frame must be in one."""
        return self._total / self._weight.view(1, 1, -1, 1, 1)
