"""Errors for a full device that are ours and torch's at once.

A host such as ComfyUI frees its models when it sees torch's own error, and then may try again; a message that says what
to lower must not hide from it what happened.
"""

from __future__ import annotations

import torch

from .errors import SettingsError, TrainingError


class TrainingMemoryError(TrainingError, torch.cuda.OutOfMemoryError):
    """Training ran out of memory."""


class SamplingMemoryError(SettingsError, torch.cuda.OutOfMemoryError):
    """Sampling ran out of memory."""
