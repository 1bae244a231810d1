"""Leases: which server works on a job, for servers that share one user folder.

A job that waits or runs holds `lease.json` in its folder: process, host, and a heartbeat, the file's own time. A lease
counts while its process lives and its heart beats; a server on another host is known by the heartbeat alone. Who finds
a job leased to somebody else looks on and leaves it alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import platform
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.disk import remove_files, write_atomically, write_new
from ..core.errors import OutputError

_LOG = logging.getLogger(__name__)
LEASE = "lease.json"
# Seconds between two heartbeats, and after how many without one a lease counts no more.
BEAT, DEAD_AFTER = 10.0, 90.0
_HOST = platform.node()
# Leases of this very process: two runners in it know each other by them.
_alive: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    pid: int
    host: str
    token: str

    def __str__(self) -> str:
        return f"another server, process {self.pid}" + ("" if self.host == _HOST else f" on {self.host}")


class Leases:
    """The leases of one runner; a thread of its own keeps them fresh while there are any."""

    def __init__(self) -> None:
        self._me = Owner(os.getpid(), _HOST, secrets.token_hex(8))
        self._lock = threading.Lock()
        self._held: dict[Path, Path] = {}
        self._beating: threading.Thread | None = None
        self._closed = threading.Event()
        _alive.add(self._me.token)

    @property
    def mark(self) -> str:
        """This process as a part of a folder's name, see `maker_lives`."""
        return f"{_short(_HOST)}-{self._me.pid}"

    def owner(self, folder: Path) -> Owner | None:
        """Who else works on a job; None when nobody does, or this runner."""
        owner = _read(folder / LEASE)
        return None if owner is None or owner == self._me or not _counts(folder / LEASE, owner) else owner

    def take(self, folder: Path) -> Owner | None:
        """Take the lease, or say who has it. Where nothing can be written there is no lease, and work goes on."""
        if (owner := self.owner(folder)) is not None:
            return owner
        path = folder / LEASE
        try:
            if (former := _read(path)) != self._me:
                # One that cannot be read is what a power failure leaves of it.
                if os.path.lexists(path) and not _clear(path, former):
                    return self._beaten(folder, former or self._me)
                if write_new(path, self._content()) != path:
                    return self._beaten(folder, former or self._me)
        except (OutputError, OSError) as error:
            _LOG.warning("Motion LoRA: no lease for %s: %s", folder.name, error)
            return self.owner(folder)
        self.holds(folder)
        return None

    def _beaten(self, folder: Path, former: Owner) -> Owner:
        """Another came first: its file has the name, ours a number. Its owner, `former` until it can be read."""
        remove_files(path for path in folder.glob("lease-*.json") if _read(path) == self._me)
        return self.owner(folder) or former

    def sign(self, folder: Path) -> None:
        """Put the lease into a folder that nobody else sees yet; it is held from `holds` on. Raises OutputError."""
        write_atomically(folder / LEASE, self._content(), durable=False)

    def holds(self, folder: Path) -> None:
        """Keep this lease fresh until it is dropped."""
        with self._lock:
            self._held[folder] = folder / LEASE
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, name="motion-lora-leases", daemon=True)
                self._beating.start()

    def drop(self, folder: Path) -> None:
        """The job waits and runs no more."""
        with self._lock:
            held = self._held.pop(folder, None)
        if held is not None and _read(held) == self._me:
            remove_files([held])

    def held(self, folder: Path) -> bool:
        with self._lock:
            return folder in self._held

    def close(self) -> None:
        """Drop every lease."""
        with self._lock:
            folders = list(self._held)
        for folder in folders:
            self.drop(folder)
        self.abandon()

    def abandon(self) -> None:
        """Leave as a killed process does: the files stay and count no more."""
        self._closed.set()
        _alive.discard(self._me.token)

    def _content(self) -> bytes:
        return json.dumps({"pid": self._me.pid, "host": self._me.host, "token": self._me.token}).encode()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            with self._lock:
                paths = list(self._held.values())
                if not paths:
                    self._beating = None
                    return
            for path in paths:
                try:
                    os.utime(path)
                except OSError as error:
                    _LOG.debug("no heartbeat for %s: %s", path, error)


def maker_lives(mark: str, folder: Path) -> bool:
    """Whether the process that a name speaks of (see `Leases.mark`) may still be at it."""
    host, _, pid = mark.rpartition("-")
    if not host or not pid.isdigit():
        return False
    return _runs(int(pid)) if host == _short(_HOST) else _age(folder) < 24 * 3600


def _clear(path: Path, former: Owner | None) -> bool:
    """Take away the lease of a server that is gone; False where another is at it, or has put its own there meanwhile.

    Only who makes the claim named after the dead lease may remove it, so that no newer lease is ever touched.
    """
    claim = path.with_name(f".{LEASE}-{former.token if former else 'unreadable'}.tmp")
    if _age(claim) > DEAD_AFTER:
        remove_files([claim])
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        if _read(path) != former:
            return False
        remove_files([path])
        return True
    finally:
        remove_files([claim])


def _counts(path: Path, owner: Owner) -> bool:
    if owner.host == _HOST and owner.pid == os.getpid():
        return owner.token in _alive
    if owner.host == _HOST and not _runs(owner.pid):
        return False
    # On another machine, whose clock may be another: its heartbeat is held against the time of the disk itself.
    return _age(path, _disk_time(path.parent)) < DEAD_AFTER


def _age(path: Path, now: float | None = None) -> float:
    try:
        return (time.time() if now is None else now) - path.stat().st_mtime
    except OSError:
        return float("inf")


def _disk_time(folder: Path) -> float | None:
    """What time it is where the folder lies; None where nothing can be written."""
    probe = folder / f".{LEASE}-{secrets.token_hex(8)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _short(host: str) -> str:
    return hashlib.sha256(host.encode()).hexdigest()[:8]


def _read(path: Path) -> Owner | None:
    try:
        value: Any = json.loads(path.read_bytes())
        return Owner(int(value["pid"]), str(value["host"]), str(value["token"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _runs(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if sys.platform == "win32":
        return _runs_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _runs_on_windows(pid: int) -> bool:
    # os.kill would end it there.
    query, still_active = 0x1000, 259
    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return bool(code.value == still_active)
