"""Training: settings, the loop, checkpoints, results. One function, `train`, does all of it."""

from __future__ import annotations

from .checkpoint import delete_checkpoint
from .checks import check_absorber, check_run, fingerprint
from .loop import fit, learning_rate_factor, train, train_absorber
from .reports import Callback, Command, Ending, StepReport, TrainingAbortedError, TrainingPausedError, TrainResult
from .settings import RANGES, TrainSettings, check_settings, step_plan
from .stage import StageRun
from .stops import View, Visitor

__all__ = [
    "RANGES",
    "Callback",
    "Command",
    "Ending",
    "StageRun",
    "StepReport",
    "TrainResult",
    "TrainSettings",
    "TrainingAbortedError",
    "TrainingPausedError",
    "View",
    "Visitor",
    "check_absorber",
    "check_run",
    "check_settings",
    "delete_checkpoint",
    "fingerprint",
    "fit",
    "learning_rate_factor",
    "step_plan",
    "train",
    "train_absorber",
]
