"""CLIP and LPIPS from the user's disk: checked before work starts, loaded together, handed to a judge as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .clip_score import ClipScorer, check_clip_folder
from .optional import require
from .perceptual import Perceptual, backbone_of, check_lpips_weights


@dataclass(frozen=True, eq=False)
class MetricModels:
    """What scores of natural video need beside the video; None where the user named nothing."""

    clip_scorer: ClipScorer | None = None
    perceptual: Perceptual | None = None

    @classmethod
    def load(
        cls, clip_model: Path | None, lpips_weights: Path | None, *, backbone: str = "", device: str = "auto"
    ) -> MetricModels:
        """Load those that are named. `backbone` is LPIPS'; "" takes the one that the file is named after.

        Raises ModelError or SettingsError, as `check_metric_models` does before anything is loaded.
        """
        scorer = None if clip_model is None else ClipScorer.load(clip_model, device=device)
        if lpips_weights is None:
            return cls(scorer)
        named = backbone or backbone_of(lpips_weights)
        return cls(scorer, Perceptual.load(lpips_weights, backbone=named, device=device))


def check_metric_models(clip_model: Path | None, lpips_weights: Path | None, backbone: str = "") -> None:
    """Raise ModelError or SettingsError for what is named and is not there, or lacks its library; loads nothing."""
    if clip_model is not None:
        check_clip_folder(clip_model.expanduser())
    if lpips_weights is not None:
        check_lpips_weights(lpips_weights, backbone or backbone_of(lpips_weights))
        require("lpips", "lpips", "LPIPS")
