"""Motion fidelity on any video, by tracked points. A proxy: it sees all motion, the camera's and the background's too.

The score is that of Yatim et al. 2023 (Space-Time Diffusion Features): with the unit displacements a_k, b_k of two
tracklets from frame k to k + 1,

    corr(a, b) = mean over k of a_k . b_k
    score      = (mean over tracklets a of max_b corr(a, b) + mean over tracklets b of max_a corr(a, b)) / 2

halved so that it lies in [-1, 1]. Points that stand still have no direction: displacements below `STILL` of the
diagonal are 0, k runs over the frames in which either point moves, and tracklets that hardly move at all take no part.
Two videos without moving points score 1, one without against one with them 0.

Tracklets come from optical flow (OpenCV's DIS, which needs no weights), chained from the middle frame both ways; any
function with the signature of `flow_tracks` can stand in, such as a learned tracker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ClipError
from .optional import check_frames, require

# Frames (f, h, w, 3) -> points (n, f, 2) as x, y in units of the frame's diagonal, seen in every frame.
Tracker = Callable[[Tensor], Tensor]

STILL = 0.002
MOVING_SHARE = 0.3
_GRID = 24
_SMALLEST_SIDE = 256
_RETURN_ERROR = 0.004  # of the diagonal: how far flow forth and back may miss its start


def track_fidelity(reference: Tensor, frames: Tensor, tracker: Tracker | None = None) -> float:
    """Motion fidelity in [-1, 1] of frames (f, h, w, 3) to a reference with as many; sizes may differ.

    Raises ClipError for different lengths, SettingsError where the tracker needs a package that is missing.
    """
    reference, frames = (check_frames(clip, 2, "Motion fidelity") for clip in (reference, frames))
    if len(reference) != len(frames):
        raise ClipError(
            f"The reference has {len(reference)} frames and the video {len(frames)}; compare equal lengths."
        )
    track = tracker or flow_tracks
    return tracklet_fidelity(track(reference), track(frames))


def tracklet_fidelity(reference: Tensor, tracks: Tensor) -> float:
    """The score of tracklets (n, f, 2) and (m, f, 2), in units of the diagonal; the module defines it."""
    a, b = _moving(_directions(reference)), _moving(_directions(tracks))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    products = a.flatten(1) @ b.flatten(1).T
    moves, others = (directions.square().sum(-1) for directions in (a, b))
    either = moves.sum(1)[:, None] + others.sum(1)[None] - moves @ others.T
    correlation = products / either.clamp(min=1)
    return float((correlation.amax(dim=1).mean() + correlation.amax(dim=0).mean()) / 2)


def flow_tracks(frames: Tensor) -> Tensor:
    """Points of a regular grid on the middle frame, followed by optical flow: (n, f, 2) in units of the diagonal.

    Points whose flow does not lead back to where it came from, or out of the picture, are dropped.
    """
    cv2 = require("cv2", "opencv-python-headless", "Tracking points")
    pictures = _grey(frames)
    height, width = pictures[0].shape
    diagonal = float(np.hypot(height, width))
    middle = len(pictures) // 2
    start = _grid(height, width)
    forth, good_forth = _follow(cv2, pictures[middle:], start, diagonal)
    back, good_back = _follow(cv2, pictures[middle::-1], start, diagonal)
    points = torch.cat([back.flip(0)[:-1], forth])
    return points[:, good_forth & good_back].movedim(0, 1) / diagonal


def _directions(tracks: Tensor) -> Tensor:
    """Unit displacements (n, f - 1, 2); zero where a point stands still."""
    steps = tracks.float().diff(dim=1)
    length = steps.norm(dim=-1, keepdim=True)
    return torch.where(length > STILL, steps / length.clamp(min=1e-9), torch.zeros_like(steps))


def _moving(directions: Tensor) -> Tensor:
    share = directions.square().sum(-1).mean(dim=1)
    return directions[share >= MOVING_SHARE]


def _grey(frames: Tensor) -> list[np.ndarray]:
    """Brightness as uint8; small pictures enlarged, or a point would move by fractions of a pixel."""
    images = (frames @ frames.new_tensor([0.299, 0.587, 0.114]))[:, None]
    scale = max(1.0, _SMALLEST_SIDE / min(images.shape[2:]))
    if scale > 1:
        images = F.interpolate(images, scale_factor=scale, mode="bicubic", align_corners=False)
    return list((images[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _grid(height: int, width: int) -> Tensor:
    step = max(height, width) / _GRID
    y, x = torch.meshgrid(torch.arange(step / 2, height, step), torch.arange(step / 2, width, step), indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def _follow(cv2: Any, pictures: list[np.ndarray], start: Tensor, diagonal: float) -> tuple[Tensor, Tensor]:
    """Points (f, n, 2) through the pictures from `start` in the first, and which could be followed to the end (n,)."""
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    points, good = [start], torch.ones(len(start), dtype=torch.bool)
    height, width = pictures[0].shape
    for before, after in itertools.pairwise(pictures):
        forth, back = estimator.calc(before, after, None), estimator.calc(after, before, None)
        moved = points[-1] + _sample(forth, points[-1])
        miss = (moved + _sample(back, moved) - points[-1]).norm(dim=-1)
        inside = (moved >= 0).all(dim=-1) & (moved[:, 0] <= width - 1) & (moved[:, 1] <= height - 1)
        good = good & inside & (miss < _RETURN_ERROR * diagonal)
        points.append(moved)
    return torch.stack(points), good


def _sample(flow: np.ndarray, points: Tensor) -> Tensor:
    """Flow (h, w, 2) at points (n, 2) in pixels, bilinear."""
    field = torch.from_numpy(np.ascontiguousarray(flow, dtype=np.float32)).movedim(-1, 0)[None]
    height, width = flow.shape[:2]
    place = points / points.new_tensor([max(width - 1, 1), max(height - 1, 1)]) * 2 - 1
    sampled = F.grid_sample(field, place.view(1, 1, -1, 2), align_corners=True, padding_mode="border")
    return sampled[0, :, 0].T
