"""From finished cells to what they say: means with intervals by variant, paired differences, and the calibration.

A cell is the mean over its videos. Intervals are Student's: over reference clips, their seeds averaged, where there are
three clips or more, so that they say what another clip might give; over cells where there are fewer, and then they hold
for those clips alone. Cells of two variants on the same motion, reference, seed and start noise are pairs, so a
difference between variants is judged by the interval of the paired differences, which the spread between motions does
not widen.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluate.statistics import Interval, mean_interval, share_interval, student_quantile, studentized_range, within
from ...playground.motions import FOLLOWS
from .measure import MEASURES, RANGES
from .variants import CEILING, VARIANTS

CellData = Mapping[str, Any]
BASE, TEMPORAL, CONTROLS = "base", "temporal", ("spatial-lora", "spatial-temporal-lora")
# What the question is about: motion that came along, motion that was learned at all, and looks that came along.
COMPARED = ("fidelity", "own_fidelity", "leakage", "free_leakage")
HELD, NOT_HELD, TOO_FEW = "held", "NOT HELD", "too few cells"
# An ablation that is meant to leak does so clearly from here on, in share of frames above the base.
CLEAR_LEAK = 0.1
# Share of the base's videos that may perform the motion by chance.
MOST_BY_CHANCE = 0.1
# Share of perfect videos that have to be seen as such.
SEEN = 0.9
# A look that the base shows by itself in as many of the frames cannot be seen to leak: of colour and background the
# mean, one is the reference's nearly always (0.9).
ROOM = 0.45
# From so many reference clips on an interval is over clips.
CLIPS = 3


@dataclass(frozen=True)
class Row:
    """One variant. `to_base` and `to_temporal` are paired differences of `COMPARED`, where there are any.

    `leaks` is the leakage by attribute, where the prompt names another.
    """

    variant: str
    title: str
    cells: int
    measures: Mapping[str, Interval]
    steps: float
    seconds: float
    parameters: int
    to_base: Mapping[str, Interval]
    to_temporal: Mapping[str, Interval]
    leaks: Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One line of the calibration."""

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Floor:
    """What chance alone does: `cell` is the standard deviation between seeds of one variant on one reference.

    `mean` is the difference between two rows of the table that chance exceeds in 5 % of the cases, `spread` that
    between the highest and the lowest of all rows.
    """

    measure: str
    cell: float
    mean: float
    spread: float


def rows_of(found: Sequence[CellData]) -> list[Row]:
    """A row per variant that has cells, in the order of `VARIANTS`."""
    by_variant = _by_variant(with_room(found))
    return [_row(name, by_variant) for name in VARIANTS if by_variant.get(name)]


def noise_floor(found: Sequence[CellData], measure: str) -> Floor | None:
    """The spread of identical settings over seeds; None where no variant has two seeds on one reference."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    found = with_room(found)
    for cell in found:
        if cell[measure] is not None and cell["variant"] != CEILING:
            groups[cell["variant"], cell["motion"], cell["reference"]].append(cell[measure])
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return None
    freedom = sum(len(values) - 1 for values in several)
    variance = sum(statistics.variance(values) * (len(values) - 1) for values in several) / freedom
    rows = [len(group) for name, group in _by_variant(found).items() if name != CEILING]
    cells, deviation = statistics.harmonic_mean(rows), math.sqrt(variance)
    two = student_quantile(0.975, freedom) * deviation * math.sqrt(2 / cells)
    spread = studentized_range(len(rows), freedom) * deviation / math.sqrt(cells) if len(rows) > 1 else 0.0
    return Floor(measure, deviation, two, spread)


def calibration(found: Sequence[CellData]) -> list[Check]:
    """Whether the instrument sees what it has to: one check per line of the issue."""
    rows = {row.variant: row for row in rows_of(found)}
    checks = [_base_check(rows[BASE])] if BASE in rows else []
    checks += [_room_check(found)] if BASE in rows else []
    checks += [_ceiling_check(rows[CEILING])] if CEILING in rows else []
    checks += [_learned_check(rows[TEMPORAL])] if TEMPORAL in rows and BASE in rows else []
    checks += [_leak_check(rows[name]) for name in CONTROLS if name in rows and BASE in rows]
    return [*checks, *(_floor_check(rows, found, measure) for measure in COMPARED)]


def curves(found: Sequence[CellData], measure: str) -> dict[str, list[tuple[int, Interval]]]:
    """Per variant the mean over cells after the same parts of the training, at their mean step.

    Under equal time the steps differ between cells, and each alone would be a point of its own.
    """
    points: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for cell in found:
        for number, point in enumerate(cell["curve"]):
            points[cell["variant"]][number].append((int(point["step"]), point[measure]))
    return {
        name: [
            (round(statistics.fmean(step for step, _ in part)), mean_interval([value for _, value in part]))
            for _, part in sorted(points[name].items())
        ]
        for name in VARIANTS
        if name in points
    }


def crowded(found: Sequence[CellData]) -> dict[tuple[str, str], float]:
    """Clips whose look the base shows by itself so often that none can be seen to leak -> in what share of frames."""
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in found:
        if cell["variant"] == BASE and cell["free_leakage"] is not None:
            shares[_clip(cell)].append(cell["free_leakage"])
    means = {clip: statistics.fmean(values) for clip, values in shares.items()}
    return {clip: share for clip, share in means.items() if share >= ROOM}


def with_room(found: Sequence[CellData]) -> list[CellData]:
    """The cells, without leakage where unnamed on clips that are `crowded`."""
    full = crowded(found)
    return [{**cell, "free_leakage": None} if _clip(cell) in full else cell for cell in found]


def over_clips(found: Sequence[CellData]) -> bool:
    """Whether there are clips enough for intervals over them."""
    return len({_clip(cell) for cell in found}) >= CLIPS


# Rows ---------------------------------------------------------------------------------------------------------------


def _by_variant(found: Sequence[CellData]) -> dict[str, list[CellData]]:
    groups: dict[str, list[CellData]] = defaultdict(list)
    for cell in found:
        groups[cell["variant"]].append(cell)
    return groups


def _row(name: str, by_variant: Mapping[str, Sequence[CellData]]) -> Row:
    group = by_variant[name]
    measured = {
        measure: _share(group, measure) if measure == "performs" else _interval(measure, values)
        for measure in MEASURES
        if (values := _values([(cell, cell.get(measure)) for cell in group]))
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
        leaks=_leaks(group),
    )


def _values(measured: Sequence[tuple[CellData, float | None]]) -> list[float]:
    """What an interval is over: a value per clip, or per cell where clips are few."""
    known = [(cell, value) for cell, value in measured if value is not None]
    if not over_clips([cell for cell, _ in known]):
        return [value for _, value in known]
    clips: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell, value in known:
        clips[_clip(cell)].append(value)
    return [statistics.fmean(values) for values in clips.values()]


def _interval(measure: str, values: Sequence[float]) -> Interval:
    """Student's, no further than the measure can go."""
    return within(mean_interval(values), *RANGES[measure])


def _share(group: Sequence[CellData], measure: str) -> Interval:
    """A share of videos with Wilson's interval: a few cells that all have none would give none to Student's."""
    videos = [len(cell.get("videos", ())) for cell in group]
    if not all(videos):
        return _interval(measure, _values([(cell, cell[measure]) for cell in group]))
    return share_interval(
        round(sum(cell[measure] * count for cell, count in zip(group, videos, strict=True))), sum(videos)
    )


def _leaks(group: Sequence[CellData]) -> dict[str, float]:
    """Mean over all videos, by attribute."""
    found: dict[str, list[float]] = defaultdict(list)
    for cell in group:
        for video in cell.get("videos", ()):
            for name, share in video["leakage"].items():
                found[name].append(share)
    return {name: statistics.fmean(shares) for name, shares in found.items()}


def _differences(group: Sequence[CellData], others: Sequence[CellData]) -> dict[str, Interval]:
    """Paired differences, group less others, of the measures of `COMPARED`."""
    partners = {_unit(cell): cell for cell in others}
    pairs = [(cell, partners[_unit(cell)]) for cell in group if _unit(cell) in partners]
    if not pairs or group[0]["variant"] == others[0]["variant"]:
        return {}
    differences = {
        name: _values([(a, a[name] - b[name]) for a, b in pairs if None not in (a[name], b[name])]) for name in COMPARED
    }
    return {name: mean_interval(values) for name, values in differences.items() if values}


def _unit(cell: CellData) -> tuple[str, str, int]:
    return (*_clip(cell), cell["seed"])


def _clip(cell: CellData) -> tuple[str, str]:
    return cell["motion"], cell["reference"]


# Calibration --------------------------------------------------------------------------------------------------------


def _base_check(row: Row) -> Check:
    performs, fidelity = row.measures["performs"].estimate, row.measures["fidelity"].estimate
    held = performs <= MOST_BY_CHANCE and fidelity < FOLLOWS
    text = (
        f"the base performs the motion in {performs:.1%} of its videos (at most {MOST_BY_CHANCE:.0%}), "
        f"motion fidelity {fidelity:.3f} (below {FOLLOWS:g})"
    )
    return Check("the base does not move like the reference", HELD if held else NOT_HELD, text)


def _room_check(found: Sequence[CellData]) -> Check:
    full = crowded(found)
    clips = {_clip(cell) for cell in found if cell["variant"] == BASE}
    named = ", ".join(f"{reference} ({share:.2f})" for (_, reference), share in full.items())
    text = (
        f"where looks are unnamed the base shows the reference's in less than {ROOM:g} of the frames on "
        f"{len(clips) - len(full)} of {len(clips)} clips"
    )
    if full:
        text += f"; left out of {MEASURES['free_leakage'][0]!r}: {named}"
    return Check("leakage has room", NOT_HELD if full else HELD, text)


def _ceiling_check(row: Row) -> Check:
    performs, fidelity = row.measures["performs"].estimate, row.measures["fidelity"].estimate
    text = (
        f"videos that the world draws as asked are seen to perform it in {performs:.1%} (at least {SEEN:.0%}), "
        f"motion fidelity {fidelity:.3f} (at least {FOLLOWS:g})"
    )
    held = performs >= SEEN and fidelity >= FOLLOWS
    return Check("a perfect transfer is seen as one", HELD if held else NOT_HELD, text)


def _learned_check(row: Row) -> Check:
    name, more = "the temporal LoRA learns the motion of its clip", row.to_base["own_fidelity"]
    text = f"under the clip's own caption its motion fidelity is above the base's by {_signed(more)} (wanted: above 0)"
    if more.count < 2:
        return Check(name, TOO_FEW, text)
    return Check(name, HELD if more.low > 0 else NOT_HELD, text)


def _leak_check(row: Row) -> Check:
    name, more = f"{row.title} leaks clearly", row.to_base.get("free_leakage")
    if more is None:
        return Check(name, TOO_FEW, "no clip leaves it room to leak")
    text = (
        f"where looks are unnamed it leaks more than the base by {_signed(more)} (wanted: {CLEAR_LEAK:g} or more, "
        "interval above 0)"
    )
    if more.estimate < CLEAR_LEAK:
        return Check(name, NOT_HELD, text)
    if more.count < 2:
        return Check(name, TOO_FEW, text)
    return Check(name, HELD if more.low > 0 else NOT_HELD, text)


def _floor_check(rows: Mapping[str, Row], found: Sequence[CellData], measure: str) -> Check:
    """The rows have to differ by more than seeds alone would spread as many rows."""
    name, floor = f"rows differ beyond chance in {MEASURES[measure][0]}", noise_floor(found, measure)
    if floor is None:
        return Check(name, TOO_FEW, "identical settings need two seeds or more")
    means = [
        row.measures[measure].estimate for row in rows.values() if row.variant != CEILING and measure in row.measures
    ]
    spread = max(means) - min(means)
    text = (
        f"by up to {spread:.3f}; seeds alone spread a cell by {floor.cell:.3f}, two rows by {floor.mean:.3f} and "
        f"{len(means)} rows by {floor.spread:.3f} (95 %)"
    )
    return Check(name, HELD if spread > floor.spread else NOT_HELD, text)


def _signed(interval: Interval) -> str:
    if interval.count < 2:
        return f"{interval.estimate:+.3f}"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
