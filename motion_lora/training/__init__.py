"""Training: settings, the loop, checkpoints, results. One function, `train`, does all of it.

Names are imported when they are first used: the settings are described without torch, which the rest needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import delete_checkpoint
    from .checks import check_absorber, check_run, fingerprint, run_fingerprint
    from .legal import check_settings
    from .loop import fit, learning_rate_factor, train, train_absorber
    from .preflight import Estimate, Speeds, require_memory
    from .recipe import Recipe, make_recipe
    from .reports import Callback, Command, Ending, StepReport, TrainingAbortedError, TrainingPausedError, TrainResult
    from .settings import RANGES, SETTINGS, TrainSettings, step_plan
    from .stage import StageRun
    from .stops import View, Visitor

_HOME = {
    "RANGES": "settings",
    "SETTINGS": "settings",
    "Callback": "reports",
    "Command": "reports",
    "Ending": "reports",
    "Recipe": "recipe",
    "StageRun": "stage",
    "StepReport": "reports",
    "TrainResult": "reports",
    "TrainSettings": "settings",
    "TrainingAbortedError": "reports",
    "TrainingPausedError": "reports",
    "View": "stops",
    "Visitor": "stops",
    "Estimate": "preflight",
    "Speeds": "preflight",
    "check_absorber": "checks",
    "check_run": "checks",
    "check_settings": "legal",
    "delete_checkpoint": "checkpoint",
    "fingerprint": "checks",
    "run_fingerprint": "checks",
    "fit": "loop",
    "learning_rate_factor": "loop",
    "make_recipe": "recipe",
    "require_memory": "preflight",
    "step_plan": "settings",
    "train": "loop",
    "train_absorber": "loop",
}

__all__ = [
    "RANGES",
    "SETTINGS",
    "Callback",
    "Command",
    "Ending",
    "Estimate",
    "Recipe",
    "Speeds",
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
    "make_recipe",
    "require_memory",
    "run_fingerprint",
    "step_plan",
    "train",
    "train_absorber",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
