"""Training: settings, the loop, checkpoints, results. One function, `train`, does all of it."""

from __future__ import annotations

from .checkpoint import delete_checkpoint
from .checks import check_absorber, check_run, fingerprint
from .legal import check_settings
from .loop import fit, learning_rate_factor, train, train_absorber
from .recipe import Recipe, make_recipe
from .reports import Callback, Command, Ending, StepReport, TrainingAbortedError, TrainingPausedError, TrainResult
from .settings import RANGES, SETTINGS, TrainSettings, step_plan
from .stage import StageRun

__all__ = [
    "RANGES",
    "SETTINGS",
    "Callback",
    "Command",
    "Ending",
    "Recipe",
    "StageRun",
    "StepReport",
    "TrainResult",
    "TrainSettings",
    "TrainingAbortedError",
    "TrainingPausedError",
    "check_absorber",
    "check_run",
    "check_settings",
    "delete_checkpoint",
    "fingerprint",
    "fit",
    "learning_rate_factor",
    "make_recipe",
    "step_plan",
    "train",
    "train_absorber",
]
