"""The job store: one folder per job, written so that a crash at any moment leaves something readable.

    <root>/<id>/job.json       what was asked, written once
                status.json    where it stands, replaced as a whole
                losses.jsonl   [stage, step, loss, learning rate] per step, appended
                inputs/        what a restart needs to go on; removed when the job is done
                checkpoint/    likewise
                result.*       what came out
                validation/    scored checkpoints; removed when the job is done
                validation.*   their curve
                previews/      small videos by step
                notes/         small JSON values that the host keeps with the job

Names that come from outside are job ids and file names of one fixed form; everything else is refused.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.disk import write_atomically
from ..core.errors import OutputError, SettingsError
from .job import DONE, Job, JobSpec, JobStatus

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}-[0-9a-f]{4}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESULT = "result.safetensors"
INPUTS, CHECKPOINT, PREVIEWS, NOTES = "inputs", "checkpoint", "previews", "notes"
VALIDATION, CURVE = "validation", "validation"
CURVE_FILES = (f"{CURVE}.csv", f"{CURVE}.png")


class JobStore:
    """Jobs on disk under `root`: at most `max_jobs` finished ones, about `max_bytes` in all; the oldest go first."""

    def __init__(self, root: Path, *, max_jobs: int = 200, max_bytes: int = 8 * 2**30) -> None:
        self.root = root
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self._making: set[str] = set()

    def create(self, spec: JobSpec, status: JobStatus) -> Path:
        """A new folder for a job; it appears under its final name only when it is complete."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(status.created))
        job_id = f"{stamp}-{spec.fingerprint[:8]}-{secrets.token_hex(2)}"
        fresh = self.root / f".new-{job_id}"
        self._making.add(fresh.name)
        try:
            fresh.mkdir(parents=True)
            _write(fresh / "job.json", spec.to_json())
            _write(fresh / "status.json", status.to_json())
            return fresh.rename(self.root / job_id)
        except OSError as error:
            raise OutputError(
                f"cannot write the job folder {fresh}: {error.strerror}; free space or choose another user directory"
            ) from error
        finally:
            self._making.discard(fresh.name)

    def load(self) -> list[Job]:
        """Every readable job, oldest first; a folder that cannot be read is reported once in the log and left alone."""
        return [job for folder in self._folders() if (job := self._read(folder)) is not None]

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
        _write(self.folder(job_id) / "status.json", status.to_json())

    def put_note(self, job_id: str, name: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON value with the job."""
        _write(self._note(job_id, name), value)

    def take_note(self, job_id: str, name: str) -> dict[str, Any] | None:
        """Read and remove a note: of several who ask, one gets it."""
        path = self._note(job_id, name)
        claimed = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            path.rename(claimed)
        except FileNotFoundError:
            return None
        value = _read_json(claimed)
        claimed.unlink(missing_ok=True)
        return value

    def has_note(self, job_id: str, name: str) -> bool:
        return self._note(job_id, name).is_file()

    def forget_inputs(self, job_id: str) -> None:
        """Drop what only an unfinished job needs."""
        for part in (CHECKPOINT, VALIDATION, INPUTS):
            shutil.rmtree(self.folder(job_id) / part, ignore_errors=True)

    def forget_work(self, job_id: str) -> None:
        """Drop the work done so far; a later run starts anew."""
        for part in (CHECKPOINT, VALIDATION):
            shutil.rmtree(self.folder(job_id) / part, ignore_errors=True)
        for name in CURVE_FILES:
            (self.folder(job_id) / name).unlink(missing_ok=True)

    def delete(self, job_id: str) -> None:
        """Remove a job: first out of sight in one step, then from the disk."""
        folder = self.folder(job_id)
        trash = self.root / f".old-{job_id}"
        if folder.exists():
            folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def tidy(self, keep: frozenset[str] = frozenset()) -> list[str]:
        """Remove leftovers of crashes, and the oldest finished jobs beyond the bounds; returns the ids removed."""
        for pattern in (".new-*", ".old-*"):
            for leftover in self.root.glob(pattern):
                # Another thread may be making a job at this very moment.
                if leftover.name in self._making:
                    continue
                shutil.rmtree(leftover, ignore_errors=True)
        finished = [job for job in self.load() if job.id not in keep and not job.status.active]
        # Newest first, so that the bounds keep what the user looked at last; of equal age, results are kept longer.
        finished.sort(key=lambda job: (job.status.finished or job.status.created, job.state == DONE), reverse=True)
        removed, size = [], 0
        for place, job in enumerate(finished):
            size += folder_size(job.folder)
            if place >= self.max_jobs or (size > self.max_bytes and place > 0):
                self.delete(job.id)
                removed.append(job.id)
        return removed

    def _note(self, job_id: str, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name[:60]!r} is not the name of a note")
        return self.folder(job_id) / NOTES / f"{name}.json"

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            yield from sorted(path for path in self.root.iterdir() if _ID.fullmatch(path.name) and path.is_dir())

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
    write_atomically(path, json.dumps(value, indent=1).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _LOG.warning("Motion LoRA: cannot read %s: %s", path, error)
        return None
    return value if isinstance(value, dict) else None
