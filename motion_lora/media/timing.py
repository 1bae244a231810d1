"""Which frames of a source are taken: the nearest one at every target time, and clear words where there are too few."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import ClipError

# A target time this many seconds past the end still counts: containers round their timestamps.
_ROUNDING = 1e-3
_RATE_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Request:
    """Frames asked for: `num_frames` (None: all there are) at `fps` (None: the source's) from `start` seconds on."""

    num_frames: int | None
    fps: float | None
    start: float

    def check(self, name: str) -> None:
        """Raise ClipError for numbers that no clip can satisfy."""
        if self.num_frames is not None and self.num_frames < 1:
            raise ClipError(f"{name}: num_frames is {self.num_frames}; a clip needs at least 1.")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ClipError(f"{name}: fps is {self.fps}; it must be above 0.")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ClipError(f"{name}: start is {self.start}; it must be 0 or more seconds.")

    @property
    def seconds(self) -> float | None:
        """Seconds of the source that are needed, None for all of it."""
        return self.num_frames / self.fps if self.num_frames and self.fps else None


@dataclass(frozen=True)
class Timeline:
    """When a source's frames are shown, in seconds from the first on, how long the last one stays, and the rate."""

    times: tuple[float, ...]
    last: float
    fps: float

    @classmethod
    def regular(cls, count: int, fps: float) -> Timeline:
        """`count` frames at a constant rate."""
        return cls(tuple(i / fps for i in range(count)), 1 / fps, fps)

    @classmethod
    def of(cls, times: Sequence[float], stated_fps: float) -> Timeline:
        """Decoded times; the last frame stays as long as most others do. The stated rate counts if it fits them."""
        gaps = [after - before for before, after in itertools.pairwise(times) if after > before]
        last = statistics.median(gaps) if gaps else 1 / stated_fps
        measured = len(times) / (times[-1] - times[0] + last)
        fps = stated_fps if abs(measured / stated_fps - 1) < _RATE_TOLERANCE else measured
        return cls(tuple(t - times[0] for t in times), last, fps)

    @property
    def seconds(self) -> float:
        return self.times[-1] + self.last

    @property
    def is_regular(self) -> bool:
        """Whether a frame's number says its time: no frame is half a frame away from its place."""
        gap = self.seconds / len(self.times)
        return all(abs(time - number * gap) < gap / 2 for number, time in enumerate(self.times))

    def nearest(self, time: float) -> int:
        """Index of the frame nearest to a time in seconds; of two as near, the earlier."""
        after = bisect.bisect_left(self.times, time)
        candidates = [i for i in (after - 1, after) if 0 <= i < len(self.times)]
        return min(candidates, key=lambda i: (round(abs(self.times[i] - time), 6), i))


def pick(timeline: Timeline, request: Request, name: str, *, beyond: str = "") -> tuple[list[int], float]:
    """Indices of the frames to take, one per target time, and the rate of the result.

    `timeline` begins at the start of the request. Raises ClipError when it ends too early; `beyond` says why it may.
    """
    fps = request.fps or timeline.fps
    available = max(1, math.floor((timeline.seconds + _ROUNDING) * fps))
    count = available if request.num_frames is None else request.num_frames
    if count > available:
        raise ClipError(_too_short(timeline, request, fps, available, name) + beyond)
    if request.fps is None and timeline.is_regular:
        return list(range(min(count, len(timeline.times)))), fps
    return [timeline.nearest(i / fps) for i in range(count)], fps


def _too_short(timeline: Timeline, request: Request, fps: float, available: int, name: str) -> str:
    count = request.num_frames or available
    frames = f"{len(timeline.times)} frame{'s' * (len(timeline.times) != 1)}"
    has = f"{name} has {timeline.seconds:.2f} s ({frames}) from {request.start:g} s on"
    ways = [f"at most {available} frame{'s' * (available != 1)}"]
    faster = math.ceil(count / timeline.seconds * 10) / 10
    if faster <= timeline.fps * 1.001:
        ways.append(f"an fps of {faster:g} or more")
    if request.start > 0:
        ways.append("an earlier start")
    return f"{has}, and {count} frames at {fps:g} fps need {count / fps:.2f} s: ask for {_either(ways)}."


def _either(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else ", ".join(ways[:-1]) + " or " + ways[-1]
