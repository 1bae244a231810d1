"""Frames to the size that a network takes: resized with their aspect kept, cropped around the middle."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ClipError


def check_sizes(name: str, height: int | None, width: int | None, multiple: int) -> None:
    """Raise ClipError unless both or none are given, positive and multiples of `multiple`."""
    if (height is None) != (width is None):
        raise ClipError(f"{name}: height is {height} and width is {width}; give both, or neither to keep the size.")
    if height is None or width is None:
        return
    if min(height, width) < 1 or height % multiple or width % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        raise ClipError(
            f"{name}: height x width is {height} x {width}; the base model takes multiples of {multiple} pixels, "
            f"the nearest size is {near[0]} x {near[1]}."
        )


def fit(frames: Tensor, height: int | None, width: int | None, multiple: int, name: str) -> Tensor:
    """Frames (f, h, w, 3) -> (f, height, width, 3): the smallest resize that covers the size, then a centre crop.

    Without a size only what exceeds a multiple is cropped. Frames that have the size already come back as they are.
    """
    if height is None or width is None:
        height, width = (side // multiple * multiple for side in frames.shape[1:3])
        if not height or not width:
            raise ClipError(
                f"{name} is {frames.shape[2]} x {frames.shape[1]} pixels; the base model needs at least "
                f"{multiple} x {multiple}: give height and width to enlarge it."
            )
        return _crop(frames, height, width)
    return _crop(_cover(frames, height, width), height, width)


def _cover(frames: Tensor, height: int, width: int) -> Tensor:
    scale = max(height / frames.shape[1], width / frames.shape[2])
    if scale == 1:
        return frames
    size = (max(height, round(frames.shape[1] * scale)), max(width, round(frames.shape[2] * scale)))
    resized = F.interpolate(frames.movedim(-1, 1), size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).movedim(1, -1)


def _crop(frames: Tensor, height: int, width: int) -> Tensor:
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width].contiguous()
