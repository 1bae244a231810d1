"""The job runner: one worker thread per device, a queue in front of each, every job known by its fingerprint.

    queued -> running <-> yielding -> done | stopped | paused | interrupted | cancelled | failed
    paused, interrupted, stopped, failed, cancelled -> queued        (resume)

A thread lives only while its device has work, and no job and no disk ends it before. Commands (pause, stop, cancel
...) are left with the job and picked up at its next step, so work is never torn out of the middle of one. Nothing here
knows torch or ComfyUI.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..core.disk import plain_fault
from ..core.errors import MotionLoRAError, SettingsError
from ..core.surroundings import way_out_of
from . import job as records
from .job import ACTIVE, RESUMABLE, WITH_RESULT, Job, JobSpec, JobStatus
from .lease import Owner
from .loss_log import LossLog, LossPoint
from .messages import Listener
from .registry import Board, Entry
from .store import CHECKPOINT, INPUTS, JobStore
from .worker import ABORT, CONTINUE, PAUSE, STOP, Outcome, Step, Work

_LOG = logging.getLogger(__name__)
_LOOK_AGAIN_AFTER = 0.5

# What a command left with a job answers to the training loop, and the state that it leads to.
_ANSWERS = {"pause": PAUSE, "interrupt": PAUSE, "yield": PAUSE, "stop": STOP, "cancel": ABORT}
_ENDS = {"pause": records.PAUSED, "stop": records.STOPPED, "cancel": records.CANCELLED}
_WEAK = ("", "pause", "interrupt", "yield")


class JobRunner:
    """Runs the jobs of a store; `listener` hears of changes, `busy` says when a yielding job has to step aside."""

    def __init__(
        self,
        store: JobStore,
        work: Work,
        *,
        listener: Listener | None = None,
        interval: float = 0.25,
        busy: Callable[[Job], bool] | None = None,
    ) -> None:
        self.store = store
        self._work = work
        self._busy = busy or (lambda job: False)
        self._board = Board(store, listener, interval)
        self._changed = self._board.changed
        self._submitting = threading.Lock()
        self._closing = False
        self._queues: dict[str, deque[str]] = {}
        self._threads: dict[str, threading.Thread] = {}

    # ------------------------------------------------------------------ asking for work

    def submit(self, spec: JobSpec, payload: object, *, retrain: bool = False, background: bool = False) -> Job:
        """Ask for a job. One with the same fingerprint is used where there is one: finished, running, or to be resumed.

        `retrain` passes over a finished one. `background` says that nobody waits for it, so that a waiting
        node that is interrupted leaves it running.
        """
        with self._submitting:
            known = self._board.newest(spec.fingerprint)
            # Who asks again for what is there may have corrected its name, or how it is made.
            renamed = known is not None and known.spec.name != spec.name
            job = self._reuse(spec, payload, retrain, background)
            if job is None:
                return self._create(spec, payload, background)
            if renamed and job.state in WITH_RESULT:
                return self._publish(self._board.entry(job.id)).view()
            return job

    def _reuse(self, spec: JobSpec, payload: object, retrain: bool, background: bool) -> Job | None:
        with self._changed:
            entry = self._board.newest(spec.fingerprint)
            if entry is None or entry.command == "cancel" or entry.status.state == records.CANCELLED:
                return None
            self._require_ours(entry)
            if entry.status.state in ACTIVE:
                self._unpause(entry)
                self._board.describe_anew(entry, replace(entry.spec, name=spec.name))
                background = background or entry.status.background
            elif entry.status.state in WITH_RESULT and entry.has_result:
                if retrain:
                    return None
                self._board.describe_anew(entry, replace(entry.spec, name=spec.name))
                return entry.view()
            elif (entry.folder / INPUTS).is_dir():
                # On the device that it is now asked for on.
                self._board.describe_anew(entry, spec)
                self._enqueue(entry)
                entry.payload = payload
            else:
                return None
            self._board.update(entry, replace(entry.status, background=background))
            return entry.view()

    def _create(self, spec: JobSpec, payload: object, background: bool) -> Job:
        status = JobStatus(created=time.time(), background=background, all_steps=sum(spec.plan.values()))
        folder = self.store.create(spec, status, lambda fresh: self._work.keep(spec, payload, fresh))
        with self._changed:
            entry = Entry(folder.name, folder, spec, status, LossLog(folder / "losses.jsonl"), payload)
            entry.stamp = self.store.stamp(entry.id)
            self._board.add(entry)
            self._enqueue(entry)
            return entry.view()

    # ------------------------------------------------------------------ looking

    def get(self, job_id: str) -> Job:
        return self._board.entry(job_id).view()

    def find(self, fingerprint: str) -> Job | None:
        """The newest job with this fingerprint."""
        entry = self._board.newest(fingerprint)
        return entry.view() if entry else None

    def waiting(self, device: str) -> int:
        """How many jobs are on a device or wait for it, those of other servers on the same folder among them."""
        return sum(job.status.active and job.spec.device == device for job in self._board.jobs())

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return self._board.jobs()

    def losses(self, job_id: str, limit: int = 400) -> list[LossPoint]:
        """The loss curve, thinned to about `limit` points."""
        return self._board.losses(job_id, limit)

    def describe(self, job_id: str, limit: int = 1000) -> dict[str, Any]:
        """One job with its loss curve, as JSON."""
        return self._board.describe(job_id, limit)

    def snapshot(self, limit: int = 200) -> dict[str, Any]:
        """Everything a panel draws, as JSON; loss curves thinned to about `limit` points."""
        with self._changed:
            return {"jobs": [self._board.describe(job.id, limit) for job in self._board.jobs()]}

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Block until the job is no longer active, or `timeout` seconds passed; the job as it is then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (entry := self._board.entry(job_id)).status.active:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._board.sync()
                self._changed.wait(_LOOK_AGAIN_AFTER if left is None else min(left, _LOOK_AGAIN_AFTER))
            return entry.view()

    # ------------------------------------------------------------------ commands

    def pause(self, job_id: str) -> Job:
        """Stop at the next step with a checkpoint, give the device to the next job, and stay until resumed."""
        return self._command(job_id, "pause")

    def interrupt(self, job_id: str) -> Job:
        """As `pause`, for a job whose waiting node was cancelled."""
        return self._command(job_id, "interrupt")

    def cancel(self, job_id: str) -> Job:
        """Stop at the next step and throw the work away; a job that is not running is cancelled at once."""
        return self._command(job_id, "cancel")

    def stop(self, job_id: str) -> Job:
        """Stop at the next step and save a usable result as it is then; wakes a paused job for that one step."""
        with self._changed:
            entry = self._ours(job_id)
            state = entry.status.state
            if state in (records.STOPPED, records.DONE):
                return entry.view()
            waiting = state not in (records.RUNNING, records.YIELDING)
            if entry.status.done_steps == 0 or (waiting and not (entry.folder / CHECKPOINT).is_dir()):
                raise SettingsError(f"{entry.spec.name} has no step to save yet; cancel it instead")
            if state in RESUMABLE:
                self._enqueue(entry, front=True)
            return self._command(job_id, "stop")

    def resume(self, job_id: str) -> Job:
        """Go on from the checkpoint: a paused, interrupted, stopped, failed or cancelled job enters the queue again."""
        with self._changed:
            entry = self._ours(job_id)
            if entry.status.active:
                self._unpause(entry)
            elif entry.status.state == records.DONE or not (entry.folder / INPUTS).is_dir():
                raise SettingsError(f"{entry.spec.name} is {entry.status.state}; train it again from its node")
            else:
                self._enqueue(entry, front=True)
            return entry.view()

    def delete(self, job_id: str) -> None:
        """Remove a job that is not active, with everything in its folder; what was published stays.

        Raises OutputError when a file in it is in use; the job is whole then.
        """
        with self._changed:
            entry = self._ours(job_id)
            if entry.status.active:
                raise SettingsError(f"{entry.spec.name} is {entry.status.state}; cancel it before deleting it")
            self._board.delete(job_id)

    def close(self, timeout: float = 10.0) -> None:
        """Leave: every running job is asked for a checkpoint, and its thread is given `timeout` seconds to write it."""
        with self._changed:
            self._closing = True
            for entry in self._board.entries.values():
                if entry.status.active and not entry.command:
                    entry.command = "interrupt"
            self._changed.notify_all()
            threads = list(self._threads.values())
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._board.close()
        if not any(thread.is_alive() for thread in threads):
            self.store.leases.close()

    def _ours(self, job_id: str) -> Entry:
        """The entry, as it is now. Raises SettingsError when another server works on it."""
        entry = self._board.current(job_id)
        self._require_ours(entry)
        return entry

    def _require_ours(self, entry: Entry) -> None:
        if (owner := self._board.owner(entry)) is not None:
            raise _elsewhere(entry, owner)

    def _command(self, job_id: str, command: str) -> Job:
        with self._changed:
            entry = self._ours(job_id)
            state = entry.status.state
            at_work = state in (records.RUNNING, records.YIELDING)
            if at_work or (state == records.QUEUED and command == "stop"):
                # Cancelling beats saving beats pausing: a weaker wish does not undo a stronger one.
                if command == "cancel" or entry.command in _WEAK:
                    entry.command = command
                self._board.touch(entry)
            elif state == records.QUEUED or (command == "cancel" and state in RESUMABLE):
                self._leave_queue(entry)
                self._board.conclude(entry, _ENDS.get(command, records.INTERRUPTED))
            return entry.view()

    def _unpause(self, entry: Entry) -> None:
        if entry.command in ("pause", "interrupt"):
            entry.command = ""
            self._board.touch(entry)

    # ------------------------------------------------------------------ the worker threads

    def _enqueue(self, entry: Entry, *, front: bool = False) -> None:
        if self._closing:
            raise SettingsError("the server is shutting down; no job can be started")
        if (owner := self.store.leases.take(entry.folder)) is not None:
            raise _elsewhere(entry, owner)
        device = entry.spec.device
        queue = self._queues.setdefault(device, deque())
        queue.insert(0 if front else len(queue), entry.id)
        entry.command = ""
        self._board.update(entry, replace(entry.status, state=records.QUEUED, message="", finished=None))
        if device not in self._threads:
            self._start(device)

    def _start(self, device: str) -> None:
        thread = threading.Thread(target=self._serve, args=(device,), name=f"motion-lora-{device}", daemon=True)
        self._threads[device] = thread
        thread.start()

    def _leave_queue(self, entry: Entry) -> None:
        queue = self._queues.get(entry.spec.device)
        if queue is not None and entry.id in queue:
            queue.remove(entry.id)

    def _serve(self, device: str) -> None:
        try:
            while (entry := self._next(device)) is not None:
                with _Guard(self._board, entry):
                    self._run(entry)
                self._board.tidy()
        finally:
            self._leave(device)

    def _next(self, device: str) -> Entry | None:
        with self._changed:
            queue = self._queues[device]
            while queue and not self._closing:
                entry = self._board.entries.get(queue.popleft())
                if entry is not None:
                    self._board.begin_run(entry)
                    return entry
            del self._threads[device]
            self._changed.notify_all()
            return None

    def _leave(self, device: str) -> None:
        """A thread that something unforeseen ended is followed by another, while there is work."""
        with self._changed:
            if self._threads.get(device) is threading.current_thread():
                del self._threads[device]
                if self._queues[device] and not self._closing:
                    self._start(device)
            self._changed.notify_all()

    def _run(self, entry: Entry) -> None:
        """Work until it is finished or a command ends it; stepping aside for a generation only interrupts it."""
        reporter = _Reporter(self, entry)
        while True:
            payload, entry.payload = entry.payload, None
            if payload is None:
                payload = self._work.restore(entry.spec, entry.folder)
            outcome = self._work.run(entry.spec, payload, entry.folder, reporter)
            del payload
            aside = not outcome.finished and entry.command == "yield"
            if not aside or not self._step_aside(entry):
                self._end(entry, outcome)
                return

    def _step_aside(self, entry: Entry) -> bool:
        """Wait while the device is wanted elsewhere; False when a command came that needs no more work."""
        with self._changed:
            entry.command = ""
            message = "waiting for a generation to end"
            self._board.update(entry, replace(entry.status, state=records.YIELDING, message=message))
        while self._busy(entry.view()) and not entry.command:
            with self._changed:
                self._changed.wait(_LOOK_AGAIN_AFTER)
        with self._changed:
            if entry.command in ("pause", "interrupt", "cancel"):
                return False
            entry.stepped_at = None
            self._board.update(entry, replace(entry.status, state=records.RUNNING, message=""))
            return True

    def _end(self, entry: Entry, outcome: Outcome) -> None:
        """After the work returned: publish what it saved, and say how it ended."""
        stopped = entry.command == "stop" and outcome.saved
        if outcome.saved and (outcome.finished or stopped):
            self._publish(entry, finished=outcome.finished)
        with self._changed:
            if outcome.finished:
                state = records.DONE
            elif entry.command == "stop" and not stopped:
                state = records.PAUSED
            else:
                state = _ENDS.get(entry.command, records.INTERRUPTED)
            self._board.conclude(entry, state, outcome.note)

    def _publish(self, entry: Entry, *, finished: bool | None = None) -> Entry:
        """Put the result where users look for it. Raises OutputError where it cannot be put there."""
        status = entry.status
        # One that ended early by itself is finished for all that.
        whole = status.state == records.DONE if finished is None else finished
        name = self._work.publish(entry.spec, entry.folder, status.all_steps if whole else status.done_steps)
        self._board.update(entry, replace(entry.status, published=name))
        return entry

    def _step(self, entry: Entry, step: Step) -> str:
        wanted = entry.spec.yields and self._busy(entry.view())
        with self._changed:
            self._board.advance(entry, step)
            if wanted and not entry.command:
                entry.command = "yield"
            return _ANSWERS.get(entry.command, CONTINUE)


def _elsewhere(entry: Entry, owner: Owner) -> SettingsError:
    return SettingsError(f"{entry.spec.name} is at work in {owner}: use the panel there, or wait for its end")


class _Reporter:
    """What the work of one job sees of the runner."""

    def __init__(self, runner: JobRunner, entry: Entry) -> None:
        self._runner, self._entry = runner, entry

    def step(self, step: Step) -> str:
        return self._runner._step(self._entry, step)

    def preview(self, name: str) -> None:
        self._runner._board.previewed(self._entry, name)

    def validated(self, curve: Mapping[str, Any]) -> None:
        self._runner._board.validated(self._entry, curve)

    def note(self, message: str) -> None:
        board, entry = self._runner._board, self._entry
        board.update(entry, replace(entry.status, message=message))


class _Guard:
    """Turns whatever the work raises into a failed job, so that one job never takes the queue down with it.

    The job says why and keeps its last checkpoint; the thread goes on with the next one.
    """

    def __init__(self, board: Board, entry: Entry) -> None:
        self._board, self._entry = board, entry

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        if isinstance(error, MotionLoRAError | OSError):
            message = plain_fault(error) if isinstance(error, OSError) else str(error)
            _LOG.error("Motion LoRA job %s failed: %s", self._entry.id, error)
        elif isinstance(error, ImportError):
            message = way_out_of(error)
            _LOG.error("Motion LoRA job %s failed", self._entry.id, exc_info=error)
        else:
            first_line = (str(error).strip().splitlines() or ["no message"])[0]
            message = f"{type(error).__name__}: {first_line}"
            _LOG.error("Motion LoRA job %s failed", self._entry.id, exc_info=error)
        self._board.conclude(self._entry, records.FAILED, message)
        return True
