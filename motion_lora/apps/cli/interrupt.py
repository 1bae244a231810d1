"""Ctrl-C during long work: the first asks for an orderly stop after the current step, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .console import note


class StoppedError(Exception):
    """Ctrl-C during work that can be continued; the message says how."""


class StopRequest:
    """Whether the user has pressed Ctrl-C."""

    def __init__(self) -> None:
        self.asked = False

    def press(self, *unused: Any) -> None:
        """The signal handler."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        note("Stopping after this step; press Ctrl-C again to stop at once.")


@contextmanager
def interruptible() -> Iterator[StopRequest]:
    """Inside the context Ctrl-C sets the request instead of raising. Outside the main thread it changes nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = signal.signal(signal.SIGINT, request.press)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, former)
