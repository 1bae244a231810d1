"""The loss log of a job: one line per step, appended as it happens, cut back when a checkpoint is taken up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO


class LossPoint(NamedTuple):
    """One step of one stage."""

    stage: str
    step: int
    loss: float
    learning_rate: float


class LossLog:
    """Appends to a file and keeps the points in memory; not for use by two threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points = _read(path)
        self._stream: TextIO | None = None
        self._last = self.points[-1] if self.points else None

    def append(self, point: LossPoint) -> None:
        """Add a step. A step that was there before means that training took up a checkpoint: what lay beyond is cut."""
        if self._repeats(point):
            self._cut_to(point)
        self.points.append(point)
        self._last = point
        stream = self._open()
        stream.write(json.dumps(point) + "\n")
        stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _repeats(self, point: LossPoint) -> bool:
        last = self._last
        if last is None or (last.stage == point.stage and point.step > last.step):
            return False
        return any(old.stage == point.stage and old.step >= point.step for old in self.points)

    def _cut_to(self, point: LossPoint) -> None:
        place = next(i for i, old in enumerate(self.points) if old.stage == point.stage and old.step >= point.step)
        del self.points[place:]
        self.close()
        with self.path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(json.dumps(old) + "\n" for old in self.points)

    def _open(self) -> TextIO:
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8", newline="\n")
        return self._stream


def thin(points: Sequence[LossPoint], limit: int = 400) -> list[LossPoint]:
    """At most about `limit` points evenly over the whole curve, the last one always among them."""
    if len(points) <= limit:
        return list(points)
    stride = -(-len(points) // limit)
    kept = list(points[::stride])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _read(path: Path) -> list[LossPoint]:
    """The points on disk; a last line that a crash cut short is dropped."""
    points = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                stage, step, loss, rate = json.loads(line)
                points.append(LossPoint(str(stage), int(step), float(loss), float(rate)))
            except (ValueError, TypeError):
                continue
    return points
