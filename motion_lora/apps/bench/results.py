"""From finished cells to what they say: means with bootstrap intervals over motions, and the calibration.

A row's value for a motion is the mean over its reference looks; the interval is the percentile bootstrap over motions,
so it says what other motions of this kind might give.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluate.scores import ALIGNMENT, LEAKAGE, MOTION, OWN_MOTION, PLACE, SIZE, UNNAMED_LEAKAGE
from ...evaluate.statistics import Interval, bootstrap_interval
from .rows import BASE, CEILING, ROWS, SPATIAL, TEMPORAL

CellData = Mapping[str, Any]
# Score -> what it is here; the names are those of evaluate/scores.py.
SCORED: Mapping[str, str] = {
    OWN_MOTION: "motion fidelity under the reference's own caption, -1 to 1: was the motion learned at all?",
    MOTION: "motion fidelity in other looks, -1 to 1: does it come along?",
    UNNAMED_LEAKAGE: "share of frames with the reference's colour or background where the prompt names neither; lower "
    "is better, the base's is chance",
    LEAKAGE: "share of frames with the reference's look where the prompt names another; lower is better",
    ALIGNMENT: "share of background, colour, shape and fill that are as asked, 0 to 1",
    PLACE: "spread of the mean places over start noises, in canvas sides",
    SIZE: "spread of the logarithm of the size over start noises",
}
PASSED, FAILED, MISSING = "passed", "FAILED", "not measured"
MOST_OF_BASE, LEAST_OF_CEILING = 0.5, 0.9
REPRODUCED, SHARE_REPRODUCED, MOST_STEPS = 0.85, 0.75, 500
CLEAR_LEAK = 0.1


@dataclass(frozen=True)
class RowResult:
    """One row: intervals by score, their values by motion, mean seconds and steps, and how many cells there are."""

    name: str
    title: str
    scores: Mapping[str, Interval]
    by_motion: Mapping[str, Mapping[str, float]]
    seconds: float
    steps: float
    cells: int


@dataclass(frozen=True)
class Check:
    """One line of the calibration."""

    name: str
    status: str
    text: str


def results_of(found: Sequence[CellData]) -> list[RowResult]:
    """A result per row that has cells, in the order of `ROWS`."""
    groups: dict[str, list[CellData]] = defaultdict(list)
    for cell in found:
        groups[cell["row"]].append(cell)
    return [_result(name, groups[name]) for name in ROWS if name in groups]


def calibration(results: Sequence[RowResult]) -> list[Check]:
    """Whether the instrument can tell: a base that does not perform, a ceiling that does, a LoRA that reproduces."""
    rows = {row.name: row for row in results}
    return [_base_check(rows), _ceiling_check(rows), _reproduces_check(rows), _leak_check(rows)]


def _result(name: str, group: Sequence[CellData]) -> RowResult:
    by_motion = {score: _by_motion(group, score) for score in SCORED}
    return RowResult(
        name,
        ROWS[name].title,
        {score: bootstrap_interval(list(values.values())) for score, values in by_motion.items() if values},
        by_motion,
        statistics.fmean(cell["seconds"] for cell in group),
        statistics.fmean(cell["steps"] for cell in group),
        len(group),
    )


def _by_motion(group: Sequence[CellData], score: str) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for cell in group:
        if score in cell["scores"]:
            values[cell["motion"]].append(cell["scores"][score])
    return {motion: statistics.fmean(each) for motion, each in values.items()}


def _base_check(rows: Mapping[str, RowResult]) -> Check:
    name = "the base does not perform the motions"
    if BASE not in rows:
        return Check(name, MISSING, f"row {BASE} is missing")
    value = rows[BASE].scores[OWN_MOTION]
    text = f"under the references' captions its motion fidelity is {value} (at most {MOST_OF_BASE:g})"
    return Check(name, PASSED if value.estimate <= MOST_OF_BASE else FAILED, text)


def _ceiling_check(rows: Mapping[str, RowResult]) -> Check:
    name = "a LoRA of perfect copies transfers"
    if CEILING not in rows:
        return Check(name, MISSING, f"row {CEILING} is missing")
    value = rows[CEILING].scores[MOTION]
    text = f"in other looks its motion fidelity is {value} (at least {LEAST_OF_CEILING:g})"
    return Check(name, PASSED if value.estimate >= LEAST_OF_CEILING else FAILED, text)


def _reproduces_check(rows: Mapping[str, RowResult]) -> Check:
    name = "the papers' temporal LoRA reproduces its clip"
    if TEMPORAL not in rows:
        return Check(name, MISSING, f"row {TEMPORAL} is missing")
    values = rows[TEMPORAL].by_motion[OWN_MOTION]
    good = [motion for motion, value in values.items() if value >= REPRODUCED]
    text = (
        f"{len(good)} of {len(values)} motions at {REPRODUCED:g} or more within {MOST_STEPS} steps "
        f"({SHARE_REPRODUCED:.0%} are wanted; mean steps {rows[TEMPORAL].steps:.0f})"
    )
    held = len(good) >= SHARE_REPRODUCED * len(values) and rows[TEMPORAL].steps <= MOST_STEPS
    return Check(name, PASSED if held else FAILED, text)


def _leak_check(rows: Mapping[str, RowResult]) -> Check:
    name = "a spatial LoRA leaks"
    if SPATIAL not in rows or BASE not in rows:
        return Check(name, MISSING, f"rows {SPATIAL} and {BASE} are needed")
    ours, theirs = (rows[row].by_motion[UNNAMED_LEAKAGE] for row in (SPATIAL, BASE))
    pairs = [ours[motion] - theirs[motion] for motion in ours if motion in theirs]
    if not pairs:
        return Check(name, MISSING, "no motion was measured for both")
    more = bootstrap_interval(pairs)
    text = f"where the look is unnamed it shows the reference's more than the base by {more} (at least {CLEAR_LEAK:g})"
    return Check(name, PASSED if more.estimate >= CLEAR_LEAK and more.low > 0 else FAILED, text)
