"""From finished cells to what they say: means with intervals by variant, paired differences, and the calibration.

A cell is the mean over its videos; intervals are Student's, over cells. Cells of two variants on the same motion,
reference, seed and start noise are pairs, so a difference between variants is judged by the interval of the paired
differences, which the spread between motions does not widen.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import Interval, mean_interval
from ..playground.motions import FOLLOWS
from .measure import MEASURES
from .variants import VARIANTS

CellData = Mapping[str, Any]
BASE, TEMPORAL, CONTROLS = "base", "temporal", ("spatial-lora", "spatial-temporal-lora")
# What the question is about: motion that came along, and looks that did.
COMPARED = ("fidelity", "leakage", "free_leakage")
HELD, NOT_HELD, TOO_FEW = "held", "NOT HELD", "too few cells"
# An ablation that is meant to leak does so clearly from here on, in share of frames above the base.
CLEAR_LEAK = 0.1
# Share of the base's videos that may perform the motion by chance.
MOST_BY_CHANCE = 0.1
_NINETY_FIVE = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Row:
    """One variant. `to_base` and `to_temporal` are paired differences of `COMPARED`, where there are any."""

    variant: str
    title: str
    cells: int
    measures: Mapping[str, Interval]
    steps: float
    seconds: float
    parameters: int
    to_base: Mapping[str, Interval]
    to_temporal: Mapping[str, Interval]


@dataclass(frozen=True)
class Check:
    """One line of the calibration."""

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Floor:
    """What chance alone does: `cell` is the standard deviation between seeds of one variant on one reference.

    `mean` is the difference between two rows of the table that chance exceeds in 5 % of the cases.
    """

    measure: str
    cell: float
    mean: float


def rows_of(found: Sequence[CellData]) -> list[Row]:
    """A row per variant that has cells, in the order of `VARIANTS`."""
    by_variant = _by_variant(found)
    return [_row(name, by_variant) for name in VARIANTS if by_variant.get(name)]


def noise_floor(found: Sequence[CellData], measure: str) -> Floor | None:
    """The spread of identical settings over seeds; None where no variant has two seeds on one reference."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell in found:
        if cell[measure] is not None:
            groups[cell["variant"], cell["motion"], cell["reference"]].append(cell[measure])
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return None
    freedom = sum(len(values) - 1 for values in several)
    variance = sum(statistics.variance(values) * (len(values) - 1) for values in several) / freedom
    cells = statistics.fmean(len(cells) for cells in _by_variant(found).values())
    deviation = math.sqrt(variance)
    return Floor(measure, deviation, _NINETY_FIVE * deviation * math.sqrt(2 / cells))


def calibration(found: Sequence[CellData]) -> list[Check]:
    """Whether the instrument sees what it has to: one check per line of the issue."""
    rows = {row.variant: row for row in rows_of(found)}
    checks = [_base_check(rows[BASE], found)] if BASE in rows else []
    checks += [_leak_check(rows[name]) for name in CONTROLS if name in rows and BASE in rows]
    return [*checks, _floor_check(rows, found)]


def curves(found: Sequence[CellData], measure: str) -> dict[str, list[tuple[int, Interval]]]:
    """Per variant the mean over cells by training step."""
    points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in found:
        for point in cell["curve"]:
            points[cell["variant"]][int(point["step"])].append(point[measure])
    return {
        name: [(step, mean_interval(points[name][step])) for step in sorted(points[name])]
        for name in VARIANTS
        if name in points
    }


# Rows ---------------------------------------------------------------------------------------------------------------


def _by_variant(found: Sequence[CellData]) -> dict[str, list[CellData]]:
    groups: dict[str, list[CellData]] = defaultdict(list)
    for cell in found:
        groups[cell["variant"]].append(cell)
    return groups


def _row(name: str, by_variant: Mapping[str, Sequence[CellData]]) -> Row:
    group = by_variant[name]
    measured = {
        measure: mean_interval(values)
        for measure in MEASURES
        if (values := [cell[measure] for cell in group if cell[measure] is not None])
    }
    return Row(
        variant=name,
        title=VARIANTS[name].title,
        cells=len(group),
        measures=measured,
        steps=statistics.fmean(cell["steps"] for cell in group),
        seconds=statistics.fmean(cell["train_seconds"] + cell["absorber_seconds"] for cell in group),
        parameters=int(group[0]["parameters"]),
        to_base=_differences(group, by_variant.get(BASE, ())),
        to_temporal=_differences(group, by_variant.get(TEMPORAL, ())),
    )


def _differences(group: Sequence[CellData], others: Sequence[CellData]) -> dict[str, Interval]:
    """Paired differences, group less others, of the measures of `COMPARED`."""
    partners = {_unit(cell): cell for cell in others}
    pairs = [(cell, partners[_unit(cell)]) for cell in group if _unit(cell) in partners]
    if not pairs or group[0]["variant"] == others[0]["variant"]:
        return {}
    return {name: mean_interval([a[name] - b[name] for a, b in pairs]) for name in COMPARED}


def _unit(cell: CellData) -> tuple[str, str, int]:
    return cell["motion"], cell["reference"], cell["seed"]


# Calibration --------------------------------------------------------------------------------------------------------


def _base_check(row: Row, found: Sequence[CellData]) -> Check:
    performs, fidelity = row.measures["performs"].estimate, row.measures["fidelity"].estimate
    held = performs <= MOST_BY_CHANCE and fidelity < FOLLOWS
    text = (
        f"the base performs the motion in {performs:.1%} of its videos (at most {MOST_BY_CHANCE:.0%}), "
        f"motion fidelity {fidelity:.3f} (below {FOLLOWS:g})"
    )
    return Check("the base does not move like the reference", HELD if held else NOT_HELD, text)


def _leak_check(row: Row) -> Check:
    name, more = f"{row.title} leaks clearly", row.to_base["free_leakage"]
    text = (
        f"where looks are unnamed it leaks more than the base by {_signed(more)} (wanted: {CLEAR_LEAK:g} or more, "
        "interval above 0)"
    )
    if more.estimate < CLEAR_LEAK:
        return Check(name, NOT_HELD, text)
    if more.count < 2:
        return Check(name, TOO_FEW, text)
    return Check(name, HELD if more.low > 0 else NOT_HELD, text)


def _floor_check(rows: Mapping[str, Row], found: Sequence[CellData]) -> Check:
    """Chance has to be smaller than the largest difference there is, in every measure of `COMPARED`."""
    name = "the noise floor is below the differences that matter"
    floors = [noise_floor(found, measure) for measure in COMPARED]
    texts, held = [], True
    for floor in floors:
        if floor is None:
            return Check(name, TOO_FEW, "identical settings need two seeds or more")
        means = [row.measures[floor.measure].estimate for row in rows.values()]
        spread = max(means) - min(means)
        held = held and floor.mean < spread
        texts.append(
            f"{floor.measure}: seeds alone spread a cell by {floor.cell:.3f} and a difference of rows by "
            f"{floor.mean:.3f} (95 %), the rows differ by up to {spread:.3f}"
        )
    return Check(name, HELD if held else NOT_HELD, "; ".join(texts))


def _signed(interval: Interval) -> str:
    if interval.count < 2:
        return f"{interval.estimate:+.3f}"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
