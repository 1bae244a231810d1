"""Background jobs: a store on disk, a runner with one thread per device, and training as the work that it runs."""

from __future__ import annotations

from .devices import AUTO, choose_device
from .job import (
    ACTIVE,
    APPEARANCE_ABSORBER,
    BEST,
    CANCELLED,
    CLIP_MODEL,
    DONE,
    FAILED,
    INTERRUPTED,
    LAST,
    LPIPS_WEIGHTS,
    MOTION_LORA,
    PAUSED,
    QUEUED,
    RESUMABLE,
    RUNNING,
    STOPPED,
    WITH_RESULT,
    YIELDING,
    Job,
    JobSpec,
    JobStatus,
    PreviewPlan,
)
from .runner import JobRunner
from .store import CURVE_FILES, RESULT, JobStore
from .worker import Outcome, Reporter, Work

__all__ = [
    "ACTIVE",
    "APPEARANCE_ABSORBER",
    "AUTO",
    "BEST",
    "CANCELLED",
    "CLIP_MODEL",
    "CURVE_FILES",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "LAST",
    "LPIPS_WEIGHTS",
    "MOTION_LORA",
    "PAUSED",
    "QUEUED",
    "RESULT",
    "RESUMABLE",
    "RUNNING",
    "STOPPED",
    "WITH_RESULT",
    "YIELDING",
    "Job",
    "JobRunner",
    "JobSpec",
    "JobStatus",
    "JobStore",
    "Outcome",
    "PreviewPlan",
    "Reporter",
    "Work",
    "choose_device",
]
