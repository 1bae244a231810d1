"""What training reports, hands back and asks: small values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.absorber import Absorber
from ..core.errors import TrainingError
from ..core.lora import LoRA

Command = Literal["continue", "pause", "stop", "abort"]
Ending = Literal["completed", "stopped", "paused"]


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: `step` of `total` in `stage` is done, in `seconds`.

    `loss` is the sum over the step's passes, so where a pass is optional it is higher in the steps that have it.
    """

    stage: str
    step: int
    total: int
    loss: float
    learning_rate: float
    seconds: float


COMMANDS: tuple[Command, ...] = ("continue", "pause", "stop", "abort")
Callback = Callable[[StepReport], str]
"""Called after a step, answers with one of COMMANDS: "pause" saves a checkpoint and returns, "stop" returns what there
is, "abort" leaves nothing."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What training made.

    lora       what the method keeps, with metadata for its file; empty (`len(lora) == 0`) when training was stopped or
               paused before the motion stage had taken a step
    absorber   the absorber that was trained or given
    spatial    MotionDirector's spatial LoRAs, one per clip, in order
    losses     every step's report, absorber stages first
    ending     "completed" all steps, "stopped" on request, or "paused", to be resumed from the checkpoint
    settings   the resolved settings that decided the result, json-able
    """

    lora: LoRA
    absorber: Absorber | None
    spatial: tuple[LoRA, ...] = ()
    losses: tuple[StepReport, ...] = ()
    ending: Ending = "completed"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether there is nothing to resume: all steps were taken, or the caller asked to stop with what there is."""
        return self.ending != "paused"


class TrainingAbortedError(TrainingError):
    """The callback asked to abort; the checkpoint is gone and there is no result."""


class TrainingPausedError(TrainingError):
    """The callback paused `train_absorber`, whose result is an absorber or nothing; the checkpoint is kept."""
