"""The seam between the runner, which knows threads, states and disk, and the work, which knows training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .job import JobSpec

CONTINUE, PAUSE, STOP, ABORT = "continue", "pause", "stop", "abort"


class Step(Protocol):
    """What work reports per step; `motion_lora.training.StepReport` is one."""

    @property
    def stage(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...


class Reporter(Protocol):
    """What work tells while it runs."""

    def step(self, step: Step) -> str:
        """A step is done; the answer is what to do next: continue, pause, stop (and save), or abort."""
        ...

    def preview(self, name: str) -> None:
        """A preview file of this name is there."""
        ...

    def validated(self, curve: Mapping[str, Any]) -> None:
        """Another checkpoint is scored; `curve` is all that the panel draws."""
        ...

    def note(self, message: str) -> None:
        """One line for the user."""
        ...


class Outcome(NamedTuple):
    """How a run of the work ended: all steps done, and whether a usable result was written."""

    finished: bool
    saved: bool
    note: str = ""


class Work(Protocol):
    """What a job does. `payload` is whatever the work needs in memory; the runner drops it as soon as it can."""

    def keep(self, spec: JobSpec, payload: object, folder: Path) -> None:
        """Write what a restart needs."""
        ...

    def restore(self, spec: JobSpec, folder: Path) -> object:
        """The payload again, from what `keep` wrote."""
        ...

    def run(self, spec: JobSpec, payload: object, folder: Path, reporter: Reporter) -> Outcome:
        """Go on from the checkpoint in `folder`, or start; write a result when done or when told to stop."""
        ...

    def publish(self, spec: JobSpec, folder: Path, step: int) -> str:
        """Put the result where users look for it and say under which name ("" where there is no such place).

        `step` is how far it got, over all stages: all of them for a finished one.
        """
        ...
