"""The job store: one folder per job, written so that a crash at any moment leaves something readable.

    <root>/<id>/job.json       what was asked
                status.json    where it stands, replaced as a whole
                losses.jsonl   [stage, step, loss, learning rate] per step, appended
                inputs/        what a restart needs to go on; removed when the job is done
                checkpoint/    likewise
                result.*       what came out
                validation/    scored checkpoints; removed when the job is done
                validation.*   their curve
                previews/      small videos by step
                notes/         small JSON values that the host keeps with the job
                lease.json     which server works on it, see lease.py

Names that come from outside are job ids and file names of one fixed form; everything else is refused.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.disk import fault_of, move, remove_files, remove_tree, retried, write_atomically
from ..core.errors import OutputError, SettingsError
from .job import CANCELLED, DONE, FAILED, Job, JobSpec, JobStatus
from .lease import Leases, maker_lives

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}-[0-9a-f]{4}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESULT = "result.safetensors"
INPUTS, CHECKPOINT, PREVIEWS, NOTES = "inputs", "checkpoint", "previews", "notes"
VALIDATION, CURVE = "validation", "validation"
CURVE_FILES = (f"{CURVE}.csv", f"{CURVE}.png")


class JobStore:
    """Jobs on disk under `root`: at most `max_jobs` finished ones, of about `max_bytes`; the oldest of them go first.

    A job that can go on from a checkpoint is work of the user's: it counts for neither and is never removed here.
    """

    def __init__(self, root: Path, *, max_jobs: int = 200, max_bytes: int = 8 * 2**30) -> None:
        self.root = root
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.leases = Leases()

    def create(self, spec: JobSpec, status: JobStatus, fill: Callable[[Path], None] = lambda folder: None) -> Path:
        """A new folder for a job; it appears under its final name only when it is complete, and `fill` has put the rest
        into it. Raises OutputError, and what `fill` raises; nothing is left then."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(status.created))
        job_id = f"{stamp}-{spec.fingerprint[:8]}-{secrets.token_hex(2)}"
        # Named after its maker: who finds it left behind can tell a crash from a job that is being made.
        fresh, folder = self.root / f".new-{job_id}-{self.leases.mark}", self.root / job_id
        made = False
        try:
            retried(lambda: fresh.mkdir(parents=True))
            self.leases.sign(fresh)
            _write(fresh / "job.json", spec.to_json())
            _write(fresh / "status.json", status.to_json())
            fill(fresh)
            # Before it can be seen, or somebody takes it for one that a crash left.
            self.leases.holds(folder)
            move(fresh, folder)
            made = True
        except OSError as error:
            raise OutputError(fault_of(folder, error)) from error
        finally:
            if not made:
                self.leases.drop(folder)
                remove_tree(fresh)
        return folder

    def load(self) -> list[Job]:
        """Every readable job, oldest first; a folder that cannot be read is reported once in the log and left alone."""
        return [job for job_id in self.ids() if (job := self.read(job_id)) is not None]

    def folder(self, job_id: str) -> Path:
        """The folder of a job by its id; ids of any other form raise `SettingsError`."""
        if not _ID.fullmatch(job_id):
            raise SettingsError(f"{job_id[:60]!r} is not a job id")
        return self.root / job_id

    def file(self, job_id: str, part: str, name: str) -> Path:
        """An existing file in one part of a job ("previews" ...), by plain name; `SettingsError` for anything else."""
        if part not in (PREVIEWS, NOTES) or not _NAME.fullmatch(name):
            raise SettingsError(f"{name[:60]!r} is not a file of a job")
        return self._existing(job_id, self.folder(job_id) / part / name)

    def curve(self, job_id: str, name: str) -> Path:
        """An existing file of the validation curve, one of CURVE_FILES; `SettingsError` for anything else."""
        if name not in CURVE_FILES:
            raise SettingsError(f"{name[:60]!r} is not one of {', '.join(CURVE_FILES)}")
        return self._existing(job_id, self.folder(job_id) / name)

    def _existing(self, job_id: str, path: Path) -> Path:
        if path.is_symlink() or not path.is_file():
            raise SettingsError(f"job {job_id} has no file {path.name!r}")
        return path

    def save_status(self, job_id: str, status: JobStatus) -> None:
        """Raises OutputError."""
        _write(self.folder(job_id) / "status.json", status.to_json())

    def note_status(self, job_id: str, status: JobStatus) -> None:
        """The same without waiting for the disk: for one that the next steps replace. Raises OutputError."""
        write_atomically(self.folder(job_id) / "status.json", _json(status.to_json()), durable=False)

    def save_spec(self, job_id: str, spec: JobSpec) -> None:
        """Raises OutputError."""
        _write(self.folder(job_id) / "job.json", spec.to_json())

    def whole(self, job_id: str) -> bool:
        """Whether a later server can read the job: somebody may have removed its folder."""
        return (self.folder(job_id) / "job.json").is_file()

    def read(self, job_id: str) -> Job | None:
        """One job as it is on disk now; None where it cannot be read."""
        return self._read(self.folder(job_id))

    def stamp(self, job_id: str) -> int:
        """Changes whenever somebody writes the status; 0 where there is none."""
        try:
            return (self.folder(job_id) / "status.json").stat().st_mtime_ns
        except OSError:
            return 0

    def put_note(self, job_id: str, name: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON value with the job."""
        _write(self._note(job_id, name), value)

    def take_note(self, job_id: str, name: str) -> dict[str, Any] | None:
        """Read and remove a note: of several who ask, one gets it."""
        path = self._note(job_id, name)
        claimed = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            move(path, claimed)
        except FileNotFoundError:
            return None
        value = _read_json(claimed)
        remove_files([claimed])
        return value

    def has_note(self, job_id: str, name: str) -> bool:
        return self._note(job_id, name).is_file()

    def forget_inputs(self, job_id: str) -> None:
        """Drop what only an unfinished job needs."""
        self._remove(job_id, CHECKPOINT, VALIDATION, INPUTS)

    def forget_work(self, job_id: str) -> None:
        """Drop the work done so far; a later run starts anew."""
        self._remove(job_id, CHECKPOINT, VALIDATION)
        remove_files(self.folder(job_id) / name for name in CURVE_FILES)

    def _remove(self, job_id: str, *parts: str) -> None:
        for part in parts:
            if (folder := self.folder(job_id) / part).is_dir():
                remove_tree(folder)

    def delete(self, job_id: str) -> None:
        """Remove a job: first out of sight in one step, then from the disk. Raises OutputError; it is whole then."""
        folder, trash = self.folder(job_id), self.root / f".old-{job_id}"
        self.leases.drop(folder)
        try:
            move(folder, trash)
        except FileNotFoundError:
            return
        except OutputError as error:
            raise OutputError(
                f"{folder.name} cannot be deleted: a file in it is open in another program, or the folder may not be "
                "changed; close the program and delete it again"
            ) from error
        remove_tree(trash)

    def tidy(self, keep: frozenset[str] = frozenset()) -> list[str]:
        """Remove leftovers of crashes, and the oldest finished jobs beyond the bounds; returns the ids removed.

        Never raises for what the disk refuses: that stays until the next time.
        """
        for leftover in self._leftovers():
            remove_tree(leftover)
        finished = [job for job in self.load() if job.id not in keep and self._is_over(job)]
        # Newest first, so that the bounds keep what the user looked at last; of equal age, results are kept longer.
        finished.sort(key=lambda job: (job.status.finished or job.status.created, job.state == DONE), reverse=True)
        removed, size = [], 0
        for place, job in enumerate(finished):
            size += folder_size(job.folder)
            if place >= self.max_jobs or (size > self.max_bytes and place > 0):
                try:
                    self.delete(job.id)
                except (OutputError, OSError) as error:
                    _LOG.warning("Motion LoRA: %s", error)
                    continue
                removed.append(job.id)
        return removed

    def _is_over(self, job: Job) -> bool:
        """Whether nothing of the user's is lost with it but a finished job's own files."""
        over = job.state in (DONE, CANCELLED) or (job.state == FAILED and not (job.folder / CHECKPOINT).is_dir())
        return over and self.leases.owner(job.folder) is None

    def _leftovers(self) -> list[Path]:
        """What crashes left; not what another server, or another thread, is making at this very moment."""
        try:
            found = [path for path in self.root.iterdir() if path.name.startswith((".new-", ".old-"))]
        except OSError:
            return []
        made = re.compile(rf"\.new-{_ID.pattern}-(.+)")
        return [path for path in found if not ((m := made.fullmatch(path.name)) and maker_lives(m[1], path))]

    def _note(self, job_id: str, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name[:60]!r} is not the name of a note")
        return self.folder(job_id) / NOTES / f"{name}.json"

    def ids(self) -> list[str]:
        """The ids of all folders that look like jobs, oldest first; none where the root cannot be read."""
        try:
            return sorted(path.name for path in self.root.iterdir() if _ID.fullmatch(path.name) and path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            _LOG.warning("Motion LoRA: the folder of jobs %s cannot be read: %s", self.root, error)
            return []

    def _read(self, folder: Path) -> Job | None:
        spec, status = _read_json(folder / "job.json"), _read_json(folder / "status.json")
        if spec is None:
            return None
        try:
            return Job(folder.name, folder, JobSpec.from_json(spec), JobStatus.from_json(status or {}))
        except (TypeError, ValueError, AttributeError) as error:
            _LOG.warning("Motion LoRA: cannot read the job folder %s (%s); delete it if not needed", folder, error)
            return None


def folder_size(folder: Path) -> int:
    """Bytes in all files below a folder; files that vanish meanwhile count nothing."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return size


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, _json(value))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _LOG.warning("Motion LoRA: cannot read %s: %s", path, error)
        return None
    return value if isinstance(value, dict) else None
