"""Tests side by side: every worker of pytest-xdist computes on one core, or they would stand in each other's way."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
