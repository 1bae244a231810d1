"""Tests side by side: every worker of pytest-xdist computes on one core, or they would stand in each other's way."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_pipeline

from motion_lora.base.pipeline import VideoPipeline

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# What is imported stays: half a million objects that the collector would go through again and again, for a tenth of the
# time of a training. It pauses while they are made, and never looks at them afterwards.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Files whose tests train, sample many videos, or start other programs: `make check` leaves them to `make test`.
SLOW_FILES = {
    f"test_{name}.py"
    for name in [
        "ade",
        "animatediff_files",
        "animatediff_jobs",
        "animatediff_training",
        "backbone_matrix",
        "bench",
        "choice",
        "cli",
        "cli_errors",
        "cli_loras",
        "cli_train",
        "clips",
        "compare",
        "compile",
        "composed",
        "convolution_targets",
        "ddim",
        "demo",
        "fast_layers",
        "faults",
        "full_size",
        "fuzz",
        "gpu_check",
        "highway",
        "host",
        "inversion",
        "jobs",
        "jobs_training",
        "jobs_validation",
        "memory",
        "metrics_networks",
        "metrics_video",
        "nodes_files",
        "nodes_methods",
        "nodes_training",
        "older_files",
        "parallel",
        "plans",
        "preflight",
        "pretrain",
        "pretrain_wan",
        "probe",
        "real_clips",
        "restyle",
        "sampling",
        "scoring",
        "stack",
        "storage",
        "surroundings",
        "threads",
        "training",
        "training_checkpointing",
        "training_loop",
        "training_resume",
        "training_visits",
        "transfer",
        "web",
        "windows",
        "workflows",
    ]
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; files with slow tests first, or one worker is busy with them when the other has none left."""
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def levels_as_found() -> Iterator[None]:
    """A command sets the level of our log for its process; here the next test lives in the same process."""
    ours = logging.getLogger("motion_lora")
    found = ours.level
    yield
    ours.setLevel(found)


# Networks are built once: a training or a stack leaves its base as it was, and a test that changes one builds its own.
@pytest.fixture(scope="session")
def tiny_base() -> VideoPipeline:
    """The tiny base in ModelScope's layout."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def tiny_small() -> VideoPipeline:
    """The tiny base in the playground's layout, two levels."""
    return tiny_pipeline(levels=2)
