"""Tells a listener what changed, at most once per interval: many steps a second become a few messages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

_LOG = logging.getLogger(__name__)

Listener = Callable[[Mapping[str, Any]], None]


class Announcer:
    """Collects ids that changed; a short-lived thread hands `describe(ids)` to the listener and rests in between."""

    def __init__(self, listener: Listener, describe: Callable[[list[str]], Mapping[str, Any]], interval: float) -> None:
        self._listener, self._describe, self._interval = listener, describe, interval
        self._lock = threading.Lock()
        self._changed: dict[str, None] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def mark(self, job_id: str) -> None:
        """Something about this job is new."""
        with self._lock:
            self._changed[job_id] = None
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="motion-lora-messages", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Send what is left and send nothing more."""
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._tell_all()
        finally:
            with self._lock:
                # Whatever ended it, the next change starts another.
                if self._thread is threading.current_thread():
                    self._thread = None

    def _tell_all(self) -> None:
        while (ids := self._take()) is not None:
            try:
                self._listener(self._describe(ids))
            except (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                # A panel that cannot be told must never end a training run.
                _LOG.warning("Motion LoRA: a progress message could not be sent", exc_info=True)
            self._closed.wait(self._interval)

    def _take(self) -> list[str] | None:
        with self._lock:
            ids = list(self._changed)
            self._changed.clear()
            if not ids:
                self._thread = None
                return None
            return ids
