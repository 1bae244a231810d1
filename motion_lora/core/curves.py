"""Strength as a function of a relative position: over sampling steps, or along the frames of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .errors import SettingsError

CURVES = ("constant", "linear", "cosine", "linear-in", "cosine-in")
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """A factor over a relative position in [0, 1]: `curve` inside [start, end), 0 outside; an `end` of 1 is inside.

    "linear" and "cosine" fall from 1 at `start` to 0 at `end`, "linear-in" and "cosine-in" rise from 0 to 1.
    Points are (position, factor) pairs, positions over the whole range and ascending, joined by straight lines and
    held beyond the first and the last; start and end cut them off as they do the others.
    """

    start: float = 0.0
    end: float = 1.0
    curve: str | Points = "constant"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise SettingsError(f"a curve needs 0 <= start < end <= 1, got start={self.start} and end={self.end}")
        if isinstance(self.curve, str):
            if self.curve not in CURVES:
                raise SettingsError(f"unknown curve {self.curve!r}: use one of {', '.join(CURVES)}, or points")
        else:
            object.__setattr__(self, "curve", _checked_points(self.curve))

    def value(self, position: float) -> float:
        """The factor at a relative position in [0, 1]."""
        if position < self.start or (position >= self.end and self.end < 1.0):
            return 0.0
        if not isinstance(self.curve, str):
            return _interpolate(self.curve, position)
        passed = (position - self.start) / (self.end - self.start)
        return _shape_value(self.curve, passed)

    @property
    def constant(self) -> float | None:
        """The factor, where it is the same everywhere; None where it varies."""
        if (self.start, self.end) != (0.0, 1.0):
            return None
        if isinstance(self.curve, str):
            return 1.0 if self.curve == "constant" else None
        factors = {factor for _, factor in self.curve}
        return factors.pop() if len(factors) == 1 else None

    def samples(self, count: int) -> list[float]:
        """The factor at `count` positions from 0 to 1: what happens at each step or frame, and what a plot draws."""
        return [self.value(place / max(count - 1, 1)) for place in range(count)]

    def describe(self) -> dict[str, Any]:
        """Json-able; `Schedule(**description)` gives it back."""
        points = self.curve if isinstance(self.curve, str) else [list(point) for point in self.curve]
        return {"start": self.start, "end": self.end, "curve": points}


@dataclass(frozen=True)
class Schedule(Curve):
    """Strength over sampling steps: position 0 is the first step, 1 the last. `end=0.5` is phased LoRA integration."""


@dataclass(frozen=True)
class FrameCurve(Curve):
    """Strength along the clip: position 0 is the first frame, 1 the last. Acts on temporal layers only."""


def _checked_points(points: Sequence[Sequence[float]]) -> Points:
    try:
        pairs = tuple((float(position), float(factor)) for position, factor in points)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"a curve is a name or (position, factor) pairs, got {points!r}") from error
    ascending = all(a[0] < b[0] for a, b in pairwise(pairs))
    if not pairs or not ascending or pairs[0][0] < 0.0 or pairs[-1][0] > 1.0:
        raise SettingsError(f"the positions of a curve must ascend within [0, 1], got {list(pairs)}")
    if not all(math.isfinite(number) for pair in pairs for number in pair):
        raise SettingsError(f"the points of a curve must be finite numbers, got {list(pairs)}")
    return pairs


def _interpolate(points: Points, position: float) -> float:
    if position <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if position <= right:
            return low + (high - low) * (position - left) / (right - left)
    return points[-1][1]


def _shape_value(curve: str, passed: float) -> float:
    if curve == "constant":
        return 1.0
    if curve.endswith("-in"):
        return 1.0 - _shape_value(curve.removesuffix("-in"), passed)
    return 1.0 - passed if curve == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed))
