"""Motion of one object: how well a path follows a reference path, whatever its phase, place and size.

With u_i and v_i the displacements from frame i to i + 1 of reference and path, written as complex numbers x + iy, and
n of them, the correlation at a time shift s is

    C(s) = sum_i conj(u_i) v_(i + s) / (|u| |v|)            |u|^2 = sum_i |u_i|^2

Displacements do not see the place, the division takes out the size, and s is taken over all real shifts, cyclically:
a learned motion comes in another phase than its reference, which need not be a whole number of frames. Between the
samples C is interpolated by its Fourier series, which is exact for motions that repeat after the clip's length.

    motion fidelity                 max over s of Re C(s), in [-1, 1]
    rotation-free motion fidelity   max over s of |C(s)|, in [0, 1]: the same motion in any direction

An identical motion gives 1, a static clip 0. The maximum makes chance positive: random displacements of eight frames
do not average 0, so a figure means something only beside that of the base model. Displacements below `STILL_SPEED` per
frame count as noise: |v| is replaced by at least that speed, so a clip that only trembles scores near 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ClipError

STILL_SPEED = 0.01  # canvas sides per frame, root mean square
_SHIFTS_PER_FRAME = 16


@dataclass(frozen=True)
class MotionMatch:
    """A path against a reference path.

    fidelity, rotation_free_fidelity   see the module
    shift                              the path's lead in frames at which fidelity is reached, in [0, frames - 1)
    speed_ratio                        length of the path over that of the reference
    trajectory_error                   root mean square distance between the paths, the reference shifted likewise,
                                       after the best translation and scale, in units of the reference's own spread:
                                       0 for the same motion, 1 for no motion at all
    """

    fidelity: float
    rotation_free_fidelity: float
    shift: float
    speed_ratio: float
    trajectory_error: float


def match_motion(reference: Tensor, path: Tensor) -> MotionMatch:
    """Compare paths (f, 2) of equal length, in canvas sides. Raises ClipError for other shapes or gaps (NaN)."""
    u, v = _velocities(reference, path)
    correlation = _correlation(u, v)
    best = int(correlation.real.argmax())
    shift = best / _SHIFTS_PER_FRAME
    both_still = _is_still(u) and _is_still(v)
    length, own_length = float(u.abs().sum()), float(v.abs().sum())
    return MotionMatch(
        fidelity=1.0 if both_still else float(correlation.real[best]),
        rotation_free_fidelity=1.0 if both_still else float(correlation.abs().max()),
        shift=shift,
        speed_ratio=own_length / length if length > 0 else (1.0 if own_length == 0 else math.inf),
        trajectory_error=0.0 if both_still else _trajectory_error(_shifted(u, shift), v),
    )


def motion_fidelity(reference: Tensor, path: Tensor) -> float:
    """Motion fidelity of a path (f, 2) to a reference path (f, 2), in [-1, 1]; the module defines it."""
    return match_motion(reference, path).fidelity


def path_speed(path: Tensor) -> float:
    """Mean distance from frame to frame of a path (f, 2), in its unit."""
    return float(path.diff(dim=0).norm(dim=-1).mean())


def _velocities(reference: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    for name, points in (("reference", reference), ("path", path)):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise ClipError(f"The {name} has shape {tuple(points.shape)}; a path is (f, 2) with 3 frames or more.")
        if not bool(points.isfinite().all()):
            raise ClipError(f"The {name} has gaps: fill in the frames where the object was not found first.")
    if len(reference) != len(path):
        raise ClipError(f"The reference has {len(reference)} frames and the path {len(path)}; compare equal lengths.")
    u, v = (torch.view_as_complex(points.double().diff(dim=0).contiguous()) for points in (reference, path))
    return u, v


def _correlation(u: Tensor, v: Tensor) -> Tensor:
    """C(s) for s = 0, 1 / 16, ... below n, complex (16 n,)."""
    count = len(u)
    spectrum = torch.fft.fft(u).conj() * torch.fft.fft(v) / count
    frequencies = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64)
    shifts = torch.arange(count * _SHIFTS_PER_FRAME, dtype=torch.float64) / _SHIFTS_PER_FRAME
    turns = torch.exp(2j * math.pi * shifts[:, None] * frequencies / count)
    floor = STILL_SPEED * math.sqrt(count)
    scale = max(_norm(u), floor) * max(_norm(v), floor)
    return (turns @ spectrum) / scale


def _norm(values: Tensor) -> float:
    return float(values.abs().square().sum().sqrt())


def _is_still(velocities: Tensor) -> bool:
    return _norm(velocities) < STILL_SPEED * math.sqrt(len(velocities))


def _shifted(u: Tensor, shift: float) -> Tensor:
    """The cyclic sequence `shift` frames later in phase: u_(i - shift), interpolated by its Fourier series."""
    count = len(u)
    frequencies = torch.fft.fftfreq(count, 1 / count, dtype=torch.float64)
    result: Tensor = torch.fft.ifft(torch.fft.fft(u) * torch.exp(-2j * math.pi * shift * frequencies / count))
    return result


def _trajectory_error(u: Tensor, v: Tensor) -> float:
    """Of paths with these displacements: sqrt(1 - r^2), r the correlation of their positions, 1 if r is negative."""
    p, q = (torch.cat([z.new_zeros(1), z.cumsum(0)]) for z in (u, v))
    p, q = p - p.mean(), q - q.mean()
    scale = _norm(p) * _norm(q)
    r = float((p.conj() * q).sum().real) / scale if scale > 0 else 0.0
    return math.sqrt(max(0.0, 1 - max(r, 0.0) ** 2))
