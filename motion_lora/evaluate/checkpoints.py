"""Which checkpoint to keep: the rule that picks the best of those that were validated (validation.py), and their curve.

The rule, in the words of `Limits`:

    A checkpoint is admissible when its leakage is at most `more_leakage` above the base's and its text alignment at
    least 1 - `less_alignment` times the base's. Of the admissible ones the best is that of the highest motion
    fidelity; among those within `tie` of it, the latest. Where none is admissible, it is the one that is least
    beyond the limits.

The latest of equals, as a learning rate that falls leaves less to chance in late checkpoints, and what a few validation
videos tell apart is little. The numbers and the playground's count of videos were chosen on its tuning motions.

Training has settled when `patience` validations in a row did not raise the highest admissible fidelity by more than
`tie`, not counting from before there was an admissible one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.disk import write_atomically
from ..core.errors import SettingsError
from ..media.plots import Line, plot_lines
from ..media.tables import Table
from ..media.write import write_png
from .scores import ALIGNMENT, LEAKAGE, MOTION, SCORES, Scores


@dataclass(frozen=True)
class Limits:
    """The rule's numbers; the module says what each means."""

    more_leakage: float = 0.1
    less_alignment: float = 0.1
    tie: float = 0.05
    patience: int = 4


@dataclass(frozen=True)
class Checkpoint:
    """The LoRA after `step`, scored."""

    step: int
    scores: Scores


@dataclass(frozen=True)
class Choice:
    """What the rule picked; `reason` is one sentence, `admissible` whether it keeps the limits."""

    step: int
    admissible: bool
    reason: str


def excess(scores: Scores, base: Scores, limits: Limits) -> float:
    """How far beyond the limits, 0 for an admissible checkpoint; what was not measured sets no limit."""
    leaked = scores.get(LEAKAGE, 0.0) - (base.get(LEAKAGE, 0.0) + limits.more_leakage)
    floor = base.get(ALIGNMENT, 0.0) * (1 - limits.less_alignment)
    # In parts of the base's own alignment: CLIP's scale is 100, the probe's 1.
    missed = (floor - scores.get(ALIGNMENT, floor)) / max(base.get(ALIGNMENT, 0.0), 1e-9)
    return max(leaked, 0.0) + max(missed, 0.0)


def choose(points: Sequence[Checkpoint], base: Scores, limits: Limits | None = None) -> Choice:
    """The rule; raises SettingsError where there is nothing to choose from."""
    limits = limits or Limits()
    if not points:
        raise SettingsError("There is no checkpoint to choose from: no validation was made.")
    admissible = [point for point in points if excess(point.scores, base, limits) <= 0]
    if not admissible:
        best = min(points, key=lambda point: (excess(point.scores, base, limits), -_fidelity(point), point.step))
        beyond = excess(best.scores, base, limits)
        return Choice(
            best.step, False, f"no checkpoint keeps the limits; step {best.step} is the least beyond ({beyond:.3f})"
        )
    highest = max(_fidelity(point) for point in admissible)
    best = max((p for p in admissible if _fidelity(p) >= highest - limits.tie), key=lambda point: point.step)
    out = len(points) - len(admissible)
    text = f"motion fidelity {_fidelity(best):.3f} at step {best.step}, of {len(admissible)} within the limits"
    if highest > _fidelity(best):
        text += f" the latest that is no more than {limits.tie:g} below the highest, {highest:.3f}"
    else:
        text += " the highest"
    return Choice(best.step, True, text + (f" ({out} beyond them)" if out else ""))


def has_settled(points: Sequence[Checkpoint], base: Scores, limits: Limits | None = None) -> bool:
    """Whether going on is not worth it; the module defines it."""
    limits = limits or Limits()
    highest, since = -math.inf, 0
    for point in points:
        admissible = excess(point.scores, base, limits) <= 0
        if admissible and _fidelity(point) > highest + limits.tie:
            highest, since = _fidelity(point), 0
        elif highest > -math.inf:
            since += 1
    return since >= limits.patience


def _fidelity(point: Checkpoint) -> float:
    return point.scores.get(MOTION, 0.0)


# Curve and table ------------------------------------------------------------------------------------------------------


def curve_csv(points: Sequence[Checkpoint], base: Scores, chosen: int | None = None) -> str:
    """The curve as comma-separated lines; step 0 is the base, the last column marks the chosen checkpoint."""
    names = [name for name in SCORES if name in base or any(name in point.scores for point in points)]
    every = (Checkpoint(0, base), *points)
    rows = [(point.step, *(point.scores.get(name) for name in names), int(point.step == chosen)) for point in every]
    return Table(("step", *names, "best"), rows).csv()


def write_curve(path: Path, points: Sequence[Checkpoint], base: Scores, chosen: int | None = None) -> tuple[Path, Path]:
    """Write the curve as `path`.csv and `path`.png and return both."""
    table = write_atomically(path.with_name(f"{path.name}.csv"), curve_csv(points, base, chosen).encode())
    title = "Validation" + (f": step {chosen} is the best" if chosen is not None else "")
    every = [Checkpoint(0, base), *points]
    lines = [
        # CLIP's text alignment runs to 100, the others to 1.
        Line(name.replace("_", " "), *_series(every, name))
        for name in (MOTION, LEAKAGE, ALIGNMENT)
        if any(name in point.scores for point in every)
    ]
    picture = plot_lines(lines, title=title, x_label="step", y_label="score (text alignment relative to the base)")
    return table, write_png(path.with_name(f"{path.name}.png"), picture)


def _series(points: Sequence[Checkpoint], name: str) -> tuple[list[float], list[float]]:
    kept = [point for point in points if name in point.scores]
    scale = kept[0].scores[name] if name == ALIGNMENT and kept[0].scores[name] > 0 else 1.0
    return [float(point.step) for point in kept], [point.scores[name] / scale for point in kept]
