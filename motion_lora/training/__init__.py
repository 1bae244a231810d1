"""Training: settings, the loop, checkpoints, results. One function, `train`, does all of it."""

from __future__ import annotations

from ..inversion import Absorber, PlaceholderTokens, spatial_weights
from .checkpointing import gradient_checkpointing
from .checks import check_absorber, check_run, fingerprint
from .loop import fit, learning_rate_factor, train, train_absorber
from .settings import RANGES, TrainSettings, check_settings, step_plan
from .stage import StageRun
from .state import delete_checkpoint
from .values import Callback, Command, Ending, StepReport, TrainingAbortedError, TrainingPausedError, TrainResult

__all__ = [
    "RANGES",
    "Absorber",
    "Callback",
    "Command",
    "Ending",
    "PlaceholderTokens",
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
    "gradient_checkpointing",
    "learning_rate_factor",
    "spatial_weights",
    "step_plan",
    "train",
    "train_absorber",
]
