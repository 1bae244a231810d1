"""Tests side by side: every worker of pytest-xdist computes on one core, or they would stand in each other's way."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, or one worker is still busy with them when the other has nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def levels_as_found() -> Iterator[None]:
    """A command sets the level of our log for its process; here the next test lives in the same process."""
    ours = logging.getLogger("motion_lora")
    found = ours.level
    yield
    ours.setLevel(found)
