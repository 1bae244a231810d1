"""Errors that a user meets. Each message names the thing, the value and the way out, in one line.

All are `ValueError`s, so a notebook can catch them as such; the command line prints the message and exits with 2.
"""

from __future__ import annotations


class MotionLoRAError(ValueError):
    """Base of every error that this library raises on purpose."""


class SettingsError(MotionLoRAError):
    """A setting is out of range, unknown, or contradicts another."""


class ClipError(MotionLoRAError):
    """A reference clip cannot be read or does not fit."""


class ModelError(MotionLoRAError):
    """A base model folder is missing parts, or holds another kind of model."""


class LoRAFileError(MotionLoRAError):
    """A LoRA file cannot be read, or does not fit the base model."""


class OutputError(MotionLoRAError):
    """A result cannot be written: no permission, no space, or a name that leads out of the folder."""


class TrainingError(MotionLoRAError):
    """Training cannot go on: the loss is not finite, or the device ran out of memory."""


# How the CPU allocator and some backends say it in a bare RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device. Without torch, which names its own error so."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)
