"""A disk that fails once, at any one of the things that a job does to it, and a toy job that does all of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from motion_lora.core import disk
from motion_lora.core.disk import check_target, path_inside, write_atomically, write_new
from motion_lora.core.errors import MotionLoRAError
from motion_lora.jobs import DONE, FAILED, JobRunner, JobSpec, JobStore, Outcome, Reporter, registry

# What may go wrong: (name, error number, how often in a row).
FAULTS = (
    ("disk full", errno.ENOSPC, 1),
    ("no permission", errno.EACCES, 1000),
    ("broken disk", errno.EIO, 1),
    ("sharing violation once", errno.EACCES, 1),
)
STEPS = 4
_WRITING = set("wax+")


@dataclass
class FaultyDisk:
    """Counts what is done to files below `folder`; the `fail_at`th thing, from 0, fails `times` times."""

    folder: Path
    fail_at: int = -1
    number: int = errno.EIO
    times: int = 1
    done: list[str] = field(default_factory=list)
    failed: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meets(self, what: str, path: Any) -> None:
        """Something is about to be done; raises where it is the one that fails."""
        if isinstance(path, str | os.PathLike) and not Path(path).is_relative_to(self.folder):
            return
        with self._lock:
            again = self.failed == what and self.times > 0
            if len(self.done) == self.fail_at or again:
                self.failed, self.times = what, self.times - 1
                if not again:
                    self.done.append(what)
                raise OSError(self.number, os.strerror(self.number), str(path))
            self.done.append(what)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, every write, flush, rename, link, folder and removal goes through `meets`."""
        opened = Path.open

        def open_(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if _WRITING & set(mode):
                self.meets("open", path)
            return opened(path, mode, *args, **options)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(Path, "open", open_))
            for owner, name in (
                (Path, "mkdir"),
                (Path, "rename"),
                (Path, "unlink"),
                (os, "replace"),
                (os, "link"),
                (shutil, "rmtree"),
            ):
                stack.enter_context(mock.patch.object(owner, name, self._wrapped(name, getattr(owner, name))))
            # Counted and not done: what is tried here is the order of things, and a real disk takes its time.
            stack.enter_context(mock.patch.object(os, "fsync", lambda number: self.meets("fsync", number)))
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            self.meets(name, path)
            return real(path, *args, **options)

        return call


class Payload:
    """Nothing that has to be kept."""


@dataclass(frozen=True)
class Step:
    step: int
    stage: str = "motion"
    total: int = STEPS
    loss: float = 0.5
    learning_rate: float = 0.1


class Toy:
    """Adds up 1..STEPS with a checkpoint after each, and puts the sum where a user looks for it."""

    def __init__(self, results: Path) -> None:
        self._results = results

    def keep(self, spec: JobSpec, payload: object, folder: Path) -> None:
        check_target(path_inside(self._results, spec.name))
        write_atomically(folder / "inputs" / "clips", b"clips")

    def restore(self, spec: JobSpec, folder: Path) -> object:
        assert (folder / "inputs" / "clips").read_bytes() == b"clips"
        return Payload()

    def run(self, spec: JobSpec, payload: object, folder: Path, reporter: Reporter) -> Outcome:
        checkpoint = folder / "checkpoint" / "state.json"
        at, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
        for step in range(at + 1, STEPS + 1):
            total += step
            if reporter.step(Step(step)) != "continue":
                return Outcome(finished=False, saved=False)
            write_atomically(checkpoint, json.dumps([step, total]).encode())
        write_atomically(folder / "result.safetensors", str(total).encode())
        return Outcome(finished=True, saved=True)

    def publish(self, spec: JobSpec, folder: Path, step: int) -> str:
        return write_new(path_inside(self._results, spec.name), (folder / "result.safetensors").read_bytes()).name


def toy_spec(name: str) -> JobSpec:
    return JobSpec("motion-lora", name, name.encode().hex().ljust(16, "0")[:16], plan={"motion": STEPS})


def weather(folder: Path, faulty: FaultyDisk) -> list[str]:
    """Run a toy job on a faulty disk, then another; what was lost, empty when nothing was."""
    runner, lost = None, []
    with mock.patch.object(disk, "_PAUSES", (0.0, 0.0)), mock.patch.object(registry, "_SAVE_STATUS_EVERY", 0.0):
        try:
            with faulty.in_place():
                runner = JobRunner(JobStore(folder / "jobs"), Toy(folder / "loras"), interval=0.01)
                try:
                    job = runner.wait(runner.submit(toy_spec("first"), Payload()).id, timeout=20)
                except MotionLoRAError:
                    job = None  # said at once, before a step
            faulty.times = 0
            if job is not None and job.state not in (DONE, FAILED):
                lost.append(f"the job is {job.state}")
            job = runner.wait(runner.submit(toy_spec("first"), Payload()).id, timeout=20)
            if job.state != DONE:
                lost.append(f"asked again it is {job.state}: {job.status.message}")
            following = runner.wait(runner.submit(toy_spec("second"), Payload()).id, timeout=20)
            if following.state != DONE:
                lost.append(f"the next job is {following.state}: {following.status.message}")
        finally:
            if runner is not None:
                runner.close(timeout=10)
        lost += _left_behind(folder)
    return lost


def _left_behind(folder: Path) -> list[str]:
    again = JobRunner(JobStore(folder / "jobs"), Toy(folder / "loras"))
    found = {job.spec.name: job.state for job in again.jobs()}
    # A half-written file that could not be removed at the same moment has a hidden name.
    results = {path.name: path.read_text() for path in (folder / "loras").iterdir() if path.name[0] != "."}
    again.close()
    wrong = [] if found == {"first": DONE, "second": DONE} else [f"after a restart the jobs are {found}"]
    if results != {"first.safetensors": "10", "second.safetensors": "10"}:
        wrong.append(f"the user finds {results}")
    return wrong
