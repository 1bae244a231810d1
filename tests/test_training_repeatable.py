"""Trainings that overlap share the switches of repeatable kernels, and the last one puts them back."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from motion_lora.training.repeatable import repeatable_kernels


def test_the_first_to_end_leaves_the_switches_to_the_others() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert not before[0]
    first, second = ExitStack(), ExitStack()
    first.enter_context(repeatable_kernels())
    second.enter_context(repeatable_kernels())
    first.close()
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    second.close()
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
