"""Metrics: motion fidelity, text alignment, consistency, diversity, leakage, and their 95 % intervals.

    trajectories   exact motion fidelity of one object's path to another (the playground's probe gives paths)
    intervals      95 % intervals of means and shares
    clip_score     CLIP: text alignment and temporal consistency on any video
    perceptual     LPIPS: temporal consistency and diversity on any video
    tracks         motion fidelity on any video, by tracked points; a proxy
    appearance     appearance leakage on any video, by colour and texture; a proxy
    models         CLIP and LPIPS from the user's disk, as one value

The exact scores of playground clips are in `playground.scores`. Libraries and weights that only a metric needs are
asked for when it is used, with one clear line where they are missing.
"""

from __future__ import annotations

from .appearance import appearance_leakage, appearance_similarity
from .clip_score import ClipScorer, clip_temporal_consistency, text_alignment
from .intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    share_interval,
    student_quantile,
    studentized_range,
    within,
)
from .models import MetricModels, check_metric_models
from .perceptual import Perceptual, lpips_diversity, lpips_temporal_consistency
from .tracks import Tracker, flow_tracks, track_fidelity, tracklet_fidelity
from .trajectories import MotionMatch, match_motion, motion_fidelity

__all__ = [
    "ClipScorer",
    "Interval",
    "MetricModels",
    "MotionMatch",
    "Perceptual",
    "Tracker",
    "appearance_leakage",
    "appearance_similarity",
    "bootstrap_interval",
    "check_metric_models",
    "clip_temporal_consistency",
    "flow_tracks",
    "lpips_diversity",
    "lpips_temporal_consistency",
    "match_motion",
    "mean_interval",
    "motion_fidelity",
    "share_interval",
    "student_quantile",
    "studentized_range",
    "text_alignment",
    "track_fidelity",
    "tracklet_fidelity",
    "within",
]
