"""Training with stops on the way: at some steps the LoRA as it is is shown to somebody, then training goes on.

A visit needs the device and the LoRA as it is, so training pauses itself: it writes its checkpoint and returns, the
visit is made, and training goes on from the checkpoint, to the same bits as without a visit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..core.lora import LoRA
from .reports import Callback, StepReport, TrainResult

Due = Callable[[StepReport], bool]
Visit = Callable[[LoRA, int], str]
"""Gets the LoRA and its step, answers "continue" or "stop"."""


def train_with_visits(
    run: Callable[[Callback], TrainResult], due: Due, visit: Visit, callback: Callback | None = None
) -> TrainResult:
    """Call `run(callback)`, which trains with a checkpoint folder, until it ends; `visit` at every step that is `due`.

    The end of a completed training is visited in any case. After a visit that answers "stop" the result is what there
    is, with the ending "stopped". A run that takes up a checkpoint visits only what lies beyond it.
    """
    visited: set[int] = set()
    while True:
        lap = _Lap(due, visited, callback)
        result = run(lap)
        if result.ending != "paused" or lap.at is None:
            break
        visited.add(lap.at)
        if visit(result.lora, lap.at) == "stop":
            return dataclasses.replace(result, ending="stopped")
    if result.ending == "completed" and result.losses:
        visit(result.lora, result.losses[-1].total)
    return result


class _Lap:
    """The callback of one call: asks the caller's, and pauses where a visit is due. `at` is where it did."""

    def __init__(self, due: Due, visited: set[int], callback: Callback | None) -> None:
        self._due, self._visited, self._callback = due, visited, callback
        self.at: int | None = None

    def __call__(self, report: StepReport) -> str:
        answer = self._callback(report) if self._callback is not None else "continue"
        new = report.step < report.total and report.step not in self._visited
        if answer == "continue" and new and self._due(report):
            self.at = report.step
            return "pause"
        return answer
