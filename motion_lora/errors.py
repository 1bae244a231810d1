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
