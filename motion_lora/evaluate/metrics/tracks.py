"""Motion fidelity on any video, by tracked points. A proxy: it sees all motion, the camera's and the background's too.

The score is that of Yatim et al. 2023 (Space-Time Diffusion Features): with the unit displacements a_k, b_k of two
tracklets from frame k to k + 1,

    corr(a, b) = mean over k of a_k . b_k
    score      = (mean over tracklets a of max_b corr(a, b) + mean over tracklets b of max_a corr(a, b)) / 2

halved so that it lies in [-1, 1]. Points that stand still have no direction: displacements below `STILL` of the
diagonal are 0, k runs over the frames in which either point moves, and tracklets that move in less than `MOVING_SHARE`
of the frames take no part. Two videos in which nothing moves score 1, one against a moving one 0. The maximum makes
chance positive: compare with what the base model scores. And it does not see who moves: where two things pass each
other, or a camera follows what moves, a mirrored or reversed copy finds the like of every tracklet too.

Tracklets come from sparse optical flow (OpenCV's pyramidal Lucas-Kanade on corners, which needs no weights), chained
from the middle frame both ways; those that are lost on the way are left out. It loses what moves by more than about a
twentieth of the diagonal from one frame to the next. Any function with the signature of `flow_tracks` can stand in,
such as a learned tracker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import ClipError
from .optional import check_frames, require

# Frames (f, h, w, 3) -> points (n, f, 2) as x, y in units of the frame's diagonal, seen in every frame.
Tracker = Callable[[Tensor], Tensor]

STILL = 0.002
MOVING_SHARE = 0.3
_MOST_POINTS = 600
_SMALLEST_SIDE = 128
_WINDOW = 21  # pixels around a point that are matched, at each of the halved sizes
_HALVINGS = 4
_RETURN_ERROR = 0.01  # of the diagonal: how far flow forth and back may miss its start


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
    """The score of tracklets (n, f, 2) and (m, f, 2), in units of the diagonal; the module defines it.

    Raises ClipError where the reference has none: nothing can be said of it.
    """
    if not len(reference):
        raise ClipError("No point of the reference clip can be followed: it has no corners, or moves too fast.")
    a, b = _moving(_directions(reference)), _moving(_directions(tracks))
    if not len(a) or not len(b):
        return float(len(a) == len(b) and len(tracks) > 0)
    products = a.flatten(1) @ b.flatten(1).T
    moves, others = (directions.square().sum(-1) for directions in (a, b))
    either_moves = moves.sum(1)[:, None] + others.sum(1)[None] - moves @ others.T
    correlation = products / either_moves.clamp(min=1)
    return float((correlation.amax(dim=1).mean() + correlation.amax(dim=0).mean()) / 2)


def flow_tracks(frames: Tensor) -> Tensor:
    """Corners of the middle frame, followed both ways by optical flow: (n, f, 2) in units of the diagonal.

    A point whose flow once does not lead back to where it came from is dropped.
    """
    cv2 = require("cv2", "opencv-python-headless", "Tracking points")
    pictures = _grey(frames)
    diagonal = float(np.hypot(*pictures[0].shape))
    middle = len(pictures) // 2
    corners = cv2.goodFeaturesToTrack(pictures[middle], _MOST_POINTS, 0.01, max(3.0, 0.02 * diagonal))
    if corners is None:
        return torch.zeros(0, len(pictures), 2)
    start = np.asarray(corners, dtype=np.float32).reshape(-1, 2)
    forth, held_forth = _follow(cv2, pictures[middle:], start, diagonal)
    back, held_back = _follow(cv2, pictures[middle::-1], start, diagonal)
    points = np.concatenate([back[::-1][:-1], forth])[:, held_forth & held_back]
    return torch.from_numpy(points).movedim(0, 1) / diagonal


def _directions(tracks: Tensor) -> Tensor:
    """Unit displacements (n, f - 1, 2); zero where a point stands still."""
    steps = tracks.float().diff(dim=1)
    length = steps.norm(dim=-1, keepdim=True)
    return torch.where(length > STILL, steps / length.clamp(min=1e-9), torch.zeros_like(steps))


def _moving(directions: Tensor) -> Tensor:
    share = directions.square().sum(-1).mean(dim=1)
    return directions[share >= MOVING_SHARE]


def _grey(frames: Tensor) -> list[np.ndarray]:
    """Brightness as uint8; small pictures enlarged, or the window would hold all of them."""
    images = (frames @ frames.new_tensor([0.299, 0.587, 0.114]))[:, None]
    scale = max(1.0, _SMALLEST_SIDE / min(images.shape[2:]))
    if scale > 1:
        images = F.interpolate(images, scale_factor=scale, mode="bicubic", align_corners=False)
    return list((images[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _follow(cv2: Any, pictures: list[np.ndarray], start: np.ndarray, diagonal: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (f, n, 2) through the pictures from `start` (n, 2) in the first, and which were held to the end (n,)."""

    def flow(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved, status, _ = cv2.calcOpticalFlowPyrLK(
            before, after, points[:, None], None, winSize=(_WINDOW, _WINDOW), maxLevel=_HALVINGS
        )
        return moved.reshape(-1, 2), status.reshape(-1) > 0

    points, held = [start], np.ones(len(start), dtype=bool)
    for before, after in itertools.pairwise(pictures):
        there, forth = flow(before, after, points[-1])
        again, back = flow(after, before, there)
        held = held & forth & back & (np.linalg.norm(again - points[-1], axis=-1) < _RETURN_ERROR * diagonal)
        points.append(there)
    return np.stack(points), held
