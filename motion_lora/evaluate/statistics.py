"""95 % intervals of means by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.errors import SettingsError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, from `count` values."""

    estimate: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean with the percentile bootstrap (Efron 1979), which assumes no shape; it never leaves the values' range.

    With fewer than about eight values it is too narrow.
    """
    numbers = torch.tensor(_finite(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = numbers[torch.randint(len(numbers), (resamples, len(numbers)), generator=generator)].mean(dim=1)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Interval(float(numbers.mean()), low, high, len(numbers))


def _finite(values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise SettingsError(f"An interval needs at least one value, all finite, not {numbers[:5]}.")
    return numbers
