"""Motions of the playground's world, seen by the probe: which one a clip performs and how faithfully."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..core.trajectories import MotionMatch, match_motion, motion_fidelities
from . import world
from .probe import Reading, path_of

# A motion is followed from here on: a world motion scores 0.94 or more against itself in another phase, place and
# size, and less than 0.9 against any other (a test says so).
FOLLOWS = 0.8
_ORIENTATIONS = 8
# Their phase is an orientation; of all others it is a mere delay.
PHASE_IS_SHAPE = ("spiral",)


def compare_motion(reference: Reading, reading: Reading) -> MotionMatch | None:
    """The motion of a clip against that of a reference clip with as many frames; None where no object was found."""
    path, wanted = path_of(reading), path_of(reference)
    return None if path is None or wanted is None else match_motion(wanted, path)


def motion_fidelity(reference: Reading, reading: Reading) -> float:
    """Motion fidelity in [-1, 1] (`core.trajectories` defines it); 0 where no object was found."""
    match = compare_motion(reference, reading)
    return 0.0 if match is None else match.fidelity


def nearest_motion(reading: Reading) -> tuple[str | None, float]:
    """The world's motion that the clip follows best, and its fidelity to it; None where no object was found."""
    path = path_of(reading)
    if path is None:
        return None, 0.0
    scores = {name: ideal_fidelity(path, name) for name in world.MOTIONS}
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def follows(reading: Reading, motion: str) -> bool:
    """Whether a clip performs a motion of the world: faithful to it, and to no other motion more."""
    best, fidelity = nearest_motion(reading)
    return best == motion and fidelity >= FOLLOWS


def ideal_fidelity(path: Tensor, motion: str) -> float:
    """Motion fidelity of a path (f, 2) to a motion of the world as it is drawn, in the best of its phases."""
    return max(match_motion(ideal, path).fidelity for ideal in _ideals(motion, len(path)))


def ideal_fidelities(paths: Tensor, motion: str) -> Tensor:
    """`ideal_fidelity` of many paths (n, f, 2) at once: (n,)."""
    return torch.stack([motion_fidelities(ideal, paths) for ideal in _ideals(motion, paths.shape[1])]).amax(dim=0)


@functools.cache
def _ideals(motion: str, num_frames: int) -> list[Tensor]:
    """The motion's path in the phases that are no mere delay of each other."""
    phases = torch.arange(_ORIENTATIONS) / _ORIENTATIONS if motion in PHASE_IS_SHAPE else torch.zeros(1)
    scenes = [world.Scene("circle", "red", "sand", motion, phase=float(phase)) for phase in phases]
    return [world.trajectory(scene, num_frames) for scene in scenes]
