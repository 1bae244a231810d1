"""The loss log of a job: one line per step, appended as it happens, cut back when a checkpoint is taken up."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ..core.disk import write_atomically
from ..core.errors import OutputError

_LOG = logging.getLogger(__name__)
# Seconds until a disk that refused is asked again.
_AGAIN_AFTER = 5.0


class LossPoint(NamedTuple):
    """One step of one stage."""

    stage: str
    step: int
    loss: float
    learning_rate: float


class LossLog:
    """Appends to a file and keeps the points in memory; not for use by two threads at once.

    Never raises for what the disk refuses: a curve is no reason to end a training. What could not be written is
    written later, with all the rest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points, whole = _read(path)
        self._stream: TextIO | None = None
        self._last = self.points[-1] if self.points else None
        # A last line that was cut short would swallow the next one.
        self._behind, self._again_at = not whole, 0.0

    def append(self, point: LossPoint) -> None:
        """Add a step. A step that was there before means that training took up a checkpoint: what lay beyond is cut."""
        if self._repeats(point):
            self._cut_to(point)
        self.points.append(point)
        self._last = point
        if self._behind:
            self._write_all()
            return
        try:
            stream = self._open()
            stream.write(json.dumps(point) + "\n")
            stream.flush()
        except (OSError, ValueError) as error:
            self._fell_behind(error)

    def close(self) -> None:
        if self._behind:
            self._again_at = 0.0
            self._write_all()
        self._shut()

    def _shut(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                self._fell_behind(error)

    def _repeats(self, point: LossPoint) -> bool:
        last = self._last
        if last is None or (last.stage == point.stage and point.step > last.step):
            return False
        return any(old.stage == point.stage and old.step >= point.step for old in self.points)

    def _cut_to(self, point: LossPoint) -> None:
        place = next(i for i, old in enumerate(self.points) if old.stage == point.stage and old.step >= point.step)
        del self.points[place:]
        self._behind, self._again_at = True, 0.0

    def _write_all(self) -> None:
        """The whole file anew, in one step; not again for a while where that fails."""
        if time.monotonic() < self._again_at:
            return
        self._shut()
        text = "".join(json.dumps(point) + "\n" for point in self.points)
        try:
            write_atomically(self.path, text.encode(), durable=False)
            self._behind = False
        except OutputError as error:
            self._fell_behind(error)

    def _fell_behind(self, error: Exception) -> None:
        if not self._behind:
            _LOG.warning("Motion LoRA: the loss curve is kept in memory for now: %s", error)
        self._behind, self._again_at = True, time.monotonic() + _AGAIN_AFTER

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


def _read(path: Path) -> tuple[list[LossPoint], bool]:
    """The points on disk, and whether that is all: a last line that a crash cut short is dropped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], True
    except OSError as error:
        _LOG.warning("Motion LoRA: the loss curve %s cannot be read: %s", path, error)
        return [], True
    points, whole = [], not text or text.endswith("\n")
    for line in text.splitlines():
        try:
            stage, step, loss, rate = json.loads(line)
            point = LossPoint(str(stage), int(step), float(loss), float(rate))
            if not (math.isfinite(point.loss) and math.isfinite(point.learning_rate)):
                raise ValueError("no step has such a loss")
            points.append(point)
        except (ValueError, TypeError, OverflowError, RecursionError):
            whole = False
    return points, whole
