"""Metrics of natural video: motion fidelity, text alignment, consistency, diversity, leakage.

    clip_score     CLIP: text alignment and temporal consistency on any video
    perceptual     LPIPS: temporal consistency and diversity on any video
    tracks         motion fidelity on any video, by tracked points; a proxy
    appearance     appearance leakage on any video, by colour and texture; a proxy
    models         CLIP and LPIPS from the user's disk, as one value

The exact scores of playground clips are in `playground.scores`, intervals of means in `evaluate.statistics`. Libraries
and weights that only a metric needs are asked for when it is used, with one clear line where they are missing.
"""

from __future__ import annotations

from .appearance import appearance_leakage, appearance_similarity
from .clip_score import ClipScorer, clip_temporal_consistency, text_alignment
from .models import MetricModels, check_metric_models
from .perceptual import Perceptual, lpips_diversity, lpips_temporal_consistency
from .tracks import Tracker, flow_tracks, track_fidelity, tracklet_fidelity

__all__ = [
    "ClipScorer",
    "MetricModels",
    "Perceptual",
    "Tracker",
    "appearance_leakage",
    "appearance_similarity",
    "check_metric_models",
    "clip_temporal_consistency",
    "flow_tracks",
    "lpips_diversity",
    "lpips_temporal_consistency",
    "text_alignment",
    "track_fidelity",
    "tracklet_fidelity",
]
