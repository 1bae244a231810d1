"""The board: every job's present status in memory, on disk and to whoever listens. One lock guards all of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import OutputError, SettingsError
from . import job as records
from .job import Job, JobSpec, JobStatus
from .lease import Owner
from .loss_log import LossLog, LossPoint, thin
from .messages import Announcer, Listener
from .store import INPUTS, JobStore
from .worker import Step

_LOG = logging.getLogger(__name__)
_SAVE_STATUS_EVERY = 2.0
# Seconds between two looks at what other servers have done in the same folder.
_SYNC_EVERY = 1.0
_RATE_MEMORY = 0.9


@dataclass(eq=False)
class Entry:
    """A job on the board; `payload` is what the work needs in memory, dropped when the job leaves its device."""

    id: str
    folder: Path
    spec: JobSpec
    status: JobStatus
    log: LossLog
    payload: object = None
    command: str = ""
    told: int = 0
    told_validation: Mapping[str, Any] | None = None
    saved_at: float = 0.0
    began_at: float = 0.0
    stepped_at: float | None = None
    fresh_run: bool = True
    stamp: int = 0
    unsaved: bool = False

    @property
    def has_result(self) -> bool:
        return any(self.folder.glob("result*"))

    def view(self) -> Job:
        return Job(self.id, self.folder, self.spec, self.status, self.command)


class Board:
    """Entries by id. Every method may be called from any thread; `changed` is notified after each change.

    What the disk refuses is noted and tried again, and never raised: the board goes on in memory.
    """

    def __init__(self, store: JobStore, listener: Listener | None, interval: float) -> None:
        self.store = store
        self.changed = threading.Condition(threading.RLock())
        self.entries: dict[str, Entry] = {}
        self._announcer = Announcer(listener, self._deltas, interval) if listener else None
        self._synced_at = 0.0
        store.tidy()
        for job in store.load():
            self._adopt(job)

    # ------------------------------------------------------------------ looking

    def entry(self, job_id: str) -> Entry:
        with self.changed:
            if job_id not in self.entries:
                self.sync()
            entry = self.entries.get(job_id)
            if entry is None:
                raise SettingsError(f"there is no job {job_id[:60]!r}; it may have been deleted")
            return entry

    def current(self, job_id: str) -> Entry:
        """The entry, as the disk has it now where another server may have worked on it."""
        with self.changed:
            entry = self.entry(job_id)
            self._refresh(entry)
            return self.entry(job_id)

    def newest(self, fingerprint: str) -> Entry | None:
        with self.changed:
            self.sync()
            matches = [e for e in self.entries.values() if e.spec.fingerprint == fingerprint]
            return max(matches, key=lambda e: (e.status.created, e.id), default=None)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        with self.changed:
            self.sync()
            newest_first = sorted(self.entries.values(), key=lambda e: (e.status.created, e.id), reverse=True)
            return [entry.view() for entry in newest_first]

    def losses(self, job_id: str, limit: int) -> list[LossPoint]:
        with self.changed:
            return thin(self.entry(job_id).log.points, limit)

    def describe(self, job_id: str, limit: int) -> dict[str, Any]:
        """One job as a panel draws it, with its loss curve thinned to about `limit` points."""
        with self.changed:
            return {**self.entry(job_id).view().to_json(), "losses": [list(p[:3]) for p in self.losses(job_id, limit)]}

    # ------------------------------------------------------------------ changing

    def add(self, entry: Entry) -> None:
        with self.changed:
            self.entries[entry.id] = entry
            self.touch(entry)

    def update(self, entry: Entry, status: JobStatus, *, quietly: bool = False) -> None:
        """Replace the status; written to disk at once, or, without waiting for it, every few seconds when `quietly`."""
        with self.changed:
            entry.status = status
            now = time.monotonic()
            if not quietly or now - entry.saved_at >= _SAVE_STATUS_EVERY:
                entry.saved_at = now
                self._save(entry, durable=not quietly)
            self.touch(entry)

    def _save(self, entry: Entry, *, durable: bool = True) -> bool:
        """Whether the status is on disk now."""
        try:
            if not self.store.whole(entry.id):
                # Somebody removed the folder; what is in memory is all that there is.
                self.store.save_spec(entry.id, entry.spec)
            save = self.store.save_status if durable else self.store.note_status
            save(entry.id, entry.status)
        except (OutputError, OSError) as error:
            if not entry.unsaved:
                _LOG.warning("Motion LoRA: the state of %s is kept in memory for now: %s", entry.id, error)
            entry.unsaved = True
            return False
        entry.unsaved, entry.stamp = False, self.store.stamp(entry.id)
        return True

    def describe_anew(self, entry: Entry, spec: JobSpec) -> None:
        """The same job under another name, or made in another way."""
        with self.changed:
            if spec == entry.spec:
                return
            entry.spec = spec
            try:
                self.store.save_spec(entry.id, spec)
            except (OutputError, OSError) as error:
                _LOG.warning("Motion LoRA: what %s is called is kept in memory for now: %s", entry.id, error)
            self.touch(entry)

    def touch(self, entry: Entry) -> None:
        with self.changed:
            self.changed.notify_all()
        self._announce(entry.id)

    def begin_run(self, entry: Entry) -> None:
        """A worker takes the job up."""
        entry.began_at, entry.stepped_at, entry.fresh_run = time.monotonic(), None, True
        self.update(entry, replace(entry.status, state=records.RUNNING, started=time.time(), message=""))

    def advance(self, entry: Entry, step: Step) -> None:
        """A step is done: loss log, position, speed."""
        with self.changed:
            entry.log.append(LossPoint(step.stage, step.step, float(step.loss), float(step.learning_rate)))
            entry.told = min(entry.told, len(entry.log.points) - 1)
            done, planned = _progress(entry.spec.plan, step)
            status = replace(
                entry.status,
                stage=step.stage,
                step=step.step,
                total=step.total,
                done_steps=done,
                all_steps=planned,
                loss=float(step.loss),
                rate=self._rate(entry),
            )
            if entry.fresh_run:
                entry.fresh_run = False
                message = f"resumed at step {done - 1}" if done > 1 else ""
                status = replace(status, resumed_at=done - 1, message=message)
            self.update(entry, status, quietly=True)

    def previewed(self, entry: Entry, name: str) -> None:
        """A preview is there; the time it took is no step's time."""
        with self.changed:
            entry.stepped_at = None
            others = tuple(known for known in entry.status.previews if known != name)
            self.update(entry, replace(entry.status, previews=(*others, name)))

    def validated(self, entry: Entry, curve: Mapping[str, Any]) -> None:
        """Another checkpoint is scored; nor is that a step's time."""
        with self.changed:
            entry.stepped_at = None
            self.update(entry, replace(entry.status, validation=curve))

    def conclude(self, entry: Entry, state: str, message: str = "") -> None:
        """The job leaves its device: payload dropped, log closed, what nobody needs any more removed."""
        with self.changed:
            worked = entry.status.state in (records.RUNNING, records.YIELDING)
            lap = time.monotonic() - entry.began_at if worked else 0.0
            entry.command, entry.payload = "", None
            entry.log.close()
            status = replace(
                entry.status,
                state=state,
                message=message or _epitaph(entry.status, state),
                finished=time.time(),
                seconds=entry.status.seconds + lap,
            )
            if state == records.CANCELLED:
                status = replace(status, done_steps=0, step=0, validation={})
            self.update(entry, status)
            self._forget(entry)
            self.store.leases.drop(entry.folder)

    def _forget(self, entry: Entry) -> None:
        """Remove what an ended job needs no more; only when its end is on disk, or a crash would start it anew."""
        if entry.unsaved:
            return
        if entry.status.state == records.DONE and (entry.folder / INPUTS).is_dir():
            self.store.forget_inputs(entry.id)
        if entry.status.state == records.CANCELLED:
            self.store.forget_work(entry.id)

    def delete(self, job_id: str) -> None:
        with self.changed:
            entry = self.entry(job_id)
            entry.log.close()
            # What cannot be deleted stays on the board too.
            self.store.delete(job_id)
            del self.entries[job_id]
            self.changed.notify_all()
        self._announce(job_id)

    def tidy(self) -> None:
        """Keep the store within its bounds, and write down what could not be written before."""
        with self.changed:
            for entry in self.entries.values():
                if entry.unsaved and not entry.status.active and self._save(entry):
                    self._forget(entry)
            removed = self.store.tidy(frozenset(e.id for e in self.entries.values() if e.status.active))
            for job_id in removed:
                self.entries.pop(job_id, None)
        for job_id in removed:
            self._announce(job_id)

    def close(self) -> None:
        if self._announcer:
            self._announcer.close()

    def _rate(self, entry: Entry) -> float | None:
        now, before = time.monotonic(), entry.stepped_at
        entry.stepped_at = now
        if before is None:
            return entry.status.rate
        old = entry.status.rate
        return now - before if old is None else _RATE_MEMORY * old + (1 - _RATE_MEMORY) * (now - before)

    def _adopt(self, job: Job) -> None:
        """A job found on disk. One that was active belongs to another server, or to one that is gone."""
        entry = Entry(job.id, job.folder, job.spec, job.status, LossLog(job.folder / "losses.jsonl"))
        entry.told = len(entry.log.points)
        entry.stamp = self.store.stamp(job.id)
        self.entries[entry.id] = entry
        self._judge(entry, self.store.leases.owner(entry.folder))

    def _judge(self, entry: Entry, owner: Owner | None) -> None:
        """What is to be made of an entry as it lies on disk; `owner` is who had it before it was read."""
        status = entry.status
        if owner is not None:
            if status.active:
                entry.status = replace(status, message=f"at work in {owner}")
        elif status.active:
            message = f"interrupted by a restart at step {status.done_steps} of {status.all_steps}"
            entry.status = replace(status, state=records.INTERRUPTED, message=message, rate=None)
            self._save(entry)
        else:
            self._forget(entry)

    # ------------------------------------------------------------------ other servers on the same folder

    def owner(self, entry: Entry) -> Owner | None:
        """The other server that has the job at work."""
        return None if self.store.leases.held(entry.folder) else self.store.leases.owner(entry.folder)

    def sync(self) -> None:
        """Take in what other servers did in the folder: new jobs, new states, jobs that are gone."""
        with self.changed:
            if time.monotonic() - self._synced_at < _SYNC_EVERY:
                return
            self._synced_at = time.monotonic()
            for job_id in self.store.ids():
                if job_id in self.entries or self.store.leases.held(self.store.folder(job_id)):
                    continue
                if (job := self.store.read(job_id)) is not None:
                    self._adopt(job)
                    self._announce(job_id)
            for entry in list(self.entries.values()):
                self._refresh(entry)

    def _refresh(self, entry: Entry) -> None:
        if entry.unsaved or self.store.leases.held(entry.folder):
            return
        if not entry.folder.exists():
            del self.entries[entry.id]
            self._announce(entry.id)
            return
        # Asked before the status is read: it is written before the lease is given back.
        owner = self.store.leases.owner(entry.folder) if entry.status.active else None
        lapsed = entry.status.active and owner is None
        if not lapsed and self.store.stamp(entry.id) == entry.stamp:
            return
        if (job := self.store.read(entry.id)) is not None:
            entry.spec, entry.status, entry.stamp = job.spec, job.status, self.store.stamp(entry.id)
            entry.log = LossLog(entry.folder / "losses.jsonl")
            if owner is None and job.status.active and not lapsed:
                owner = self.store.leases.owner(entry.folder)
            self._judge(entry, owner)
            self.touch(entry)

    # ------------------------------------------------------------------ telling

    def _announce(self, job_id: str) -> None:
        if self._announcer:
            self._announcer.mark(job_id)

    def _deltas(self, ids: list[str]) -> Mapping[str, Any]:
        """What changed since the last message: statuses, of each loss curve only the new points, and the validations
        only where there is a new one."""
        with self.changed:
            changes: list[dict[str, Any]] = []
            for job_id in ids:
                entry = self.entries.get(job_id)
                if entry is None:
                    changes.append({"id": job_id, "deleted": True})
                    continue
                fresh = entry.log.points[entry.told :]
                change = {**entry.view().to_json(), "new_losses": [list(p[:3]) for p in thin(fresh)]}
                entry.told = len(entry.log.points)
                if entry.told_validation is entry.status.validation:
                    del change["validation"]
                entry.told_validation = entry.status.validation
                changes.append(change)
            return {"jobs": changes}


def _epitaph(status: JobStatus, state: str) -> str:
    if not status.done_steps:
        return ""
    at = f"at step {status.done_steps} of {status.all_steps}"
    return {records.STOPPED: f"stopped and saved {at}", records.INTERRUPTED: f"interrupted {at}"}.get(state, "")


def _progress(plan: Mapping[str, int], step: Step) -> tuple[int, int]:
    """Steps done and planned over all stages."""
    if step.stage not in plan:
        return step.step, step.total
    stages = list(plan)
    before = sum(plan[stage] for stage in stages[: stages.index(step.stage)])
    return before + step.step, sum(plan.values())
