"""Motion of one object: how well a path follows a reference path, whatever its phase, place and size.

Positions are written as complex numbers x + iy. With u_i and v_i the n displacements from frame i to i + 1 of
reference and path, and u(s) the reference's displacements s frames earlier, cyclically,

    C_v(s) = sum_i conj(u_i(s)) v_i / (|u| |v|)          do they move alike?
    C_p(s) = the same of the positions                   do they go the same way?
    motion fidelity                 max over s of Re (C_v(s) + C_p(s)) / 2, in [-1, 1]
    rotation-free motion fidelity   max over s of   |C_v(s) + C_p(s)| / 2, in [0, 1]: in whatever direction

where |u|^2 = sum_i |u_i|^2 and positions are the sums of the displacements less their mean. So the place falls out, the
norms take out the size, and s, over all real shifts, the phase: a learned motion comes in another phase than its
reference, which need not be a whole number of frames. Between its samples u is its Fourier series, which is exact for
motions that repeat after the clip's length. Displacements alone would take a zigzag for a bounce, whose slow drift they
hardly feel; positions alone would not feel a tremor.

An identical motion gives 1, a static clip 0, the opposite direction -1 if the motion has one. The maximum makes chance
positive, so a figure means something only beside that of the base model. What moves less than `STILL` per frame counts
as noise: the norms are never taken below it, so a clip that only trembles scores near 0. For motions whose phase turns
them, as a spiral's does, only the rotation-free form is blind to the phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ClipError

STILL = 0.01  # canvas sides, root mean square: per frame of displacements, around the mean of positions
_SHIFTS_PER_FRAME = 16


@dataclass(frozen=True)
class MotionMatch:
    """A path against a reference path.

    fidelity, rotation_free_fidelity   see the module
    velocity_correlation               max over s of Re C_v(s), in [-1, 1]: displacements alone
    shift                              frames by which the reference is delayed for the best fidelity, in [0, n)
    speed_ratio                        length of the path over that of the reference
    trajectory_error                   root mean square distance from the reference's path, delayed likewise, after
                                       the best translation and scale of the path, in units of the reference's own
                                       spread: sqrt(1 - C_p^2), 0 for the same motion, 1 for nothing in common
    """

    fidelity: float
    rotation_free_fidelity: float
    velocity_correlation: float
    shift: float
    speed_ratio: float
    trajectory_error: float


def match_motion(reference: Tensor, path: Tensor) -> MotionMatch:
    """Compare paths (f, 2) of equal length, in canvas sides. Raises ClipError for other shapes or gaps (NaN)."""
    u, v = _displacements(reference, path)
    speed_ratio = _ratio(float(v.abs().sum()), float(u.abs().sum()))
    if max(float(_spread(u)), float(_spread(v))) <= STILL:
        return MotionMatch(1.0, 1.0, 1.0, 0.0, speed_ratio, 0.0)
    delayed = _delayed(u)
    moving = _correlation(delayed, v[None])
    going = _correlation(_positions(delayed), _positions(v[None]))
    both = (moving + going) / 2
    best = int(both.real.argmax())
    return MotionMatch(
        fidelity=float(both.real[best]),
        rotation_free_fidelity=float(both.abs().max()),
        velocity_correlation=float(moving.real.max()),
        shift=best / _SHIFTS_PER_FRAME,
        speed_ratio=speed_ratio,
        trajectory_error=math.sqrt(max(0.0, 1 - max(float(going.real[best]), 0.0) ** 2)),
    )


def motion_fidelity(reference: Tensor, path: Tensor) -> float:
    """Motion fidelity of a path (f, 2) to a reference path (f, 2), in [-1, 1]; the module defines it."""
    return match_motion(reference, path).fidelity


def motion_fidelities(reference: Tensor, paths: Tensor) -> Tensor:
    """Motion fidelity of many paths (n, f, 2) to one reference path (f, 2) at once: (n,), as `motion_fidelity` each."""
    u = _displacements(reference, reference)[0]
    v = torch.view_as_complex(paths.double().diff(dim=1).contiguous())
    delayed = _delayed(u)
    both = (_correlations(delayed, v) + _correlations(_positions(delayed), _positions(v))).real / 2
    still = (_spread(v) <= STILL) & (_spread(u) <= STILL)
    return torch.where(still, 1.0, both.amax(dim=0))


def path_speed(path: Tensor) -> float:
    """Mean distance from frame to frame of a path (f, 2), in its unit."""
    return float(path.diff(dim=0).norm(dim=-1).mean())


def _displacements(reference: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    for name, points in (("reference", reference), ("path", path)):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise ClipError(f"The {name} has shape {tuple(points.shape)}; a path is (f, 2) with 3 frames or more.")
        if not bool(points.isfinite().all()):
            raise ClipError(f"The {name} has gaps: fill in the frames where the object was not found first.")
    if len(reference) != len(path):
        raise ClipError(f"The reference has {len(reference)} frames and the path {len(path)}; compare equal lengths.")
    u, v = (torch.view_as_complex(points.double().diff(dim=0).contiguous()) for points in (reference, path))
    return u, v


def _delayed(u: Tensor) -> Tensor:
    """The cyclic sequence u (n,) delayed by 0, 1 / 16, ... frames: (16 n, n), by its Fourier series."""
    count = len(u)
    frequencies = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64)
    shifts = torch.arange(count * _SHIFTS_PER_FRAME, dtype=torch.float64) / _SHIFTS_PER_FRAME
    turns = torch.exp(-2j * math.pi * shifts[:, None] * frequencies / count)
    delayed: Tensor = torch.fft.ifft(torch.fft.fft(u) * turns)
    return delayed


def _positions(displacements: Tensor) -> Tensor:
    """(k, n) displacements -> (k, n + 1) positions around their mean."""
    path = torch.cat([displacements.new_zeros(len(displacements), 1), displacements.cumsum(dim=1)], dim=1)
    return path - path.mean(dim=1, keepdim=True)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """sum conj(a) b / (|a| |b|) of each row of a (k, n) with b (1, n): complex (k,)."""
    return (a.conj() * b).mean(dim=1) / (_spread(a) * _spread(b))


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """`_correlation` of each row of a (k, n) with each row of b (m, n): complex (k, m)."""
    return (a.conj() @ b.mT) / a.shape[1] / (_spread(a)[:, None] * _spread(b))


def _spread(values: Tensor) -> Tensor:
    """Root mean square of each row, at least `STILL`."""
    return values.abs().square().mean(dim=-1).sqrt().clamp(min=STILL)


def _ratio(length: float, reference_length: float) -> float:
    if reference_length > 0:
        return length / reference_length
    return 1.0 if length == 0 else math.inf
