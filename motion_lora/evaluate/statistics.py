"""95 % intervals: of a mean over a few seeds, of a share, and of any statistic by the bootstrap."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean with Student's interval: mean -+ t s / sqrt(n), t of n - 1 degrees of freedom; one value gives no bounds.

    Right for a handful of seeds, whose spread is itself uncertain. Values that are not finite raise SettingsError.
    """
    numbers = _finite(values)
    count, mean = len(numbers), statistics.fmean(numbers)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    reach = student_quantile((1 + confidence) / 2, count - 1) * statistics.stdev(numbers) / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach, count)


def within(interval: Interval, low: float, high: float) -> Interval:
    """An interval of something that lies from `low` to `high`, and no wider; one value's stays without bounds."""
    if interval.count == 1:
        return interval
    return replace(interval, low=max(interval.low, low), high=min(interval.high, high))


def share_interval(hits: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """A share of yes with Wilson's interval (Wilson 1927), which holds near 0 and 1 and for small counts."""
    if not 0 <= hits <= count or count < 1:
        raise SettingsError(f"A share needs 0 <= hits <= count and a count of 1 or more, not {hits} of {count}.")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if hits == 0 else middle - reach
    high = 1.0 if hits == count else middle + reach
    return Interval(share, low, high, count)


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.fmean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Any statistic with the percentile bootstrap (Efron 1979): for skewed values and medians.

    With fewer than about eight values it is too narrow; take `mean_interval` there.
    """
    numbers = _finite(values)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(numbers), (resamples, len(numbers)), generator=generator).tolist()
    found = torch.tensor([statistic([numbers[i] for i in draw]) for draw in draws], dtype=torch.float64)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = found.quantile(ends).tolist()
    return Interval(statistic(numbers), low, high, len(numbers))


@functools.cache
def studentized_range(groups: int, freedom: int, probability: float = CONFIDENCE) -> float:
    """The range of `groups` means of one truth that chance stays below, in standard errors of one mean (Tukey 1949).

    The standard error is estimated with that many degrees of freedom. Simulated with a fixed seed, good to 1 %.
    """
    generator = torch.Generator().manual_seed(0)
    draws = 20_000
    means = torch.randn(draws, groups, generator=generator, dtype=torch.float64)
    errors = torch.randn(draws, freedom, generator=generator, dtype=torch.float64).square().mean(dim=1).sqrt()
    ranges = (means.amax(dim=1) - means.amin(dim=1)) / errors
    return float(ranges.quantile(probability))


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
    """The value below which Student's t with that many degrees of freedom falls with a probability in (0.5, 1)."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(value: float, freedom: int) -> float:
    """P(T <= value), value >= 0. With t = sqrt(k) tan(a) the density is c cos(a)^(k - 1): Simpson's rule over a."""
    log_c = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    end, steps = math.atan(value / math.sqrt(freedom)), 200
    total = sum(
        (1 if i in (0, steps) else 4 if i % 2 else 2) * math.cos(end * i / steps) ** (freedom - 1)
        for i in range(steps + 1)
    )
    return 0.5 + math.exp(log_c) * total * end / steps / 3


def _finite(values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise SettingsError(f"An interval needs at least one value, all finite, not {numbers[:5]}.")
    return numbers
