"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def gradients_stay_on() -> Iterator[None]:
    """Gradients are on when a test begins, whatever ran before it.

    The nodes' training tests (test_nodes_training.py) leave their thread with gradients off: several coroutines enter
    and leave inference mode in turn, as in ComfyUI's executor.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
