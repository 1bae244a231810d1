"""Tests side by side: every worker of pytest-xdist computes on one core, or they would stand in each other's way."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def levels_as_found() -> Iterator[None]:
    """A command sets the level of our log for its process; here the next test lives in the same process."""
    ours = logging.getLogger("motion_lora")
    found = ours.level
    yield
    ours.setLevel(found)
