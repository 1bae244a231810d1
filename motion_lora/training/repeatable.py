"""Repeatable kernels. The switches are torch's, for the whole process, so trainings that overlap share them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOG = logging.getLogger(__name__)
_LOCK = threading.Lock()
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class _Switches:
    """How many trainings want repeatable kernels, and what the switches were before the first."""

    def __init__(self) -> None:
        self.users = 0
        self.former: tuple[bool, bool, bool, bool] = (False, False, False, False)


_STATE = _Switches()


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Only repeatable kernels inside; the last of those that overlap puts the switches back.

    On CPUs every kernel in use is repeatable anyway. cuBLAS is repeatable only where the environment variable
    CUBLAS_WORKSPACE_CONFIG was set before its first use, which a library cannot do for its host: it is warned of.
    """
    with _LOCK:
        if not _STATE.users:
            _STATE.former = _switches()
            _switch(True, True, False, False)
        _STATE.users += 1
    if torch.cuda.is_available() and _CUBLAS not in os.environ:
        _LOG.warning("set %s=:4096:8 before the program starts, or cuBLAS may give other bits each time", _CUBLAS)
    try:
        yield
    finally:
        with _LOCK:
            _STATE.users -= 1
            if not _STATE.users:
                _switch(*_STATE.former)


def _switches() -> tuple[bool, bool, bool, bool]:
    """Deterministic, only warned of, cuDNN's benchmark, whether new memory is filled."""
    filling: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        filling.fill_uninitialized_memory,
    )


def _switch(deterministic: bool, warn_only: bool, benchmark: bool, fills: bool) -> None:
    filling: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    filling.fill_uninitialized_memory = fills
