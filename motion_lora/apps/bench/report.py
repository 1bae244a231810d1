"""Writes what a benchmark found: results.csv, RESULTS.md, and plots."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...base.pipeline import VideoPipeline
from ...core.disk import write_atomically
from ...core.metadata import library_versions
from ...evaluate.statistics import Interval
from ...media.plots import Line, Point, plot_lines, plot_points
from ...media.write import write_png
from .measure import MEASURES
from .published import PUBLISHED
from .settings import TEST_MOTIONS, TUNING_MOTIONS, BenchSettings, what_captions_name
from .table import COMPARED, CellData, Check, Row, calibration, curves, noise_floor, over_clips, rows_of
from .variants import VARIANTS

_SHOWN = (
    "fidelity",
    "own_fidelity",
    "performs",
    "leakage",
    "free_leakage",
    "alignment",
    "found",
    "consistency",
)
# Between videos of one prompt, from other start noise.
_DIVERSITY = ("diversity", "size_diversity", "speed_diversity")
_FEW = 2
_AGAINST = ("leakage", "free_leakage")
_PLOTTED = {"fidelity": "motion fidelity", "leakage": "appearance leakage", "alignment": "text alignment"}


def write_report(
    output: Path,
    pipeline: VideoPipeline,
    settings: BenchSettings,
    found: Sequence[CellData],
    command: str,
    planned: int,
) -> dict[str, Any]:
    """Write every file into `output`; returns the same as plain values, for --json."""
    rows, checks = rows_of(found), calibration(found)
    machine = machine_facts(pipeline)
    write_atomically(output / "results.csv", _csv(rows).encode())
    write_atomically(output / "cells.csv", _cells_csv(found).encode())
    text = _markdown(rows, checks, settings, found, command, planned, machine)
    write_atomically(output / "RESULTS.md", text.encode())
    files = ["results.csv", "cells.csv", "RESULTS.md", *_plots(output, rows, found)]
    return {
        "files": [str(output / name) for name in files],
        "cells": len(found),
        "planned": planned,
        "command": command,
        "machine": machine,
        "settings": settings.to_json(),
        "rows": [_plain(row) for row in rows],
        "calibration": [{"name": check.name, "status": check.status, "text": check.text} for check in checks],
    }


def machine_facts(pipeline: VideoPipeline) -> dict[str, str]:
    """What the figures were measured on: base, device, processor, versions."""
    return {
        "base": f"{pipeline.identity.name} {pipeline.identity.weights_hash[:12]}",
        "device": _device(pipeline.device),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    }


def summary(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows for a console: variant, cells, and the measures that are shown, with intervals."""
    return [
        [row["variant"], str(row["cells"]), *(short_interval(row["measures"].get(name)) for name in _SHOWN)]
        for row in report["rows"]
    ]


SUMMARY_HEADER = ("variant", "cells", *(MEASURES[name][0] for name in _SHOWN))


# Markdown -----------------------------------------------------------------------------------------------------------


def _markdown(
    rows: Sequence[Row],
    checks: Sequence[Check],
    settings: BenchSettings,
    found: Sequence[CellData],
    command: str,
    planned: int,
    machine: Mapping[str, str],
) -> str:
    parts = [
        "# Benchmark: motion fidelity against leakage on the playground",
        _conditions(settings, found, command, planned, machine),
        "## Calibration of the instrument\n\n" + "\n".join(f"- **{c.status}**: {c.name}: {c.text}." for c in checks),
        "## Results\n\n" + _results_table(rows),
        "## Paired differences\n\n" + _difference_words(rows, found) + "\n\n" + _difference_table(rows),
        "## Leakage by attribute\n\nShare of frames with the reference's value where the prompt names another; the "
        "base's is what the network does by itself. A frame without an object shows none.\n\n" + _leak_table(rows),
        "## Diversity over start noises\n\nBetween the videos of one prompt, mean over the prompts. A dash: not "
        "measured when its cells were run.\n\n" + _diversity_table(rows),
        "## What the measures are\n\n"
        + "\n".join(f"- **{head}**: {what}{_arrow(better)}." for head, what, better in MEASURES.values())
        + "\n\nDefinitions in full: `motion_lora/playground/scores.py`, `motion_lora/core/trajectories.py`.",
        "## Noise floor\n\n" + _floor_table(found),
        "## Plots\n\n"
        + "\n\n".join(f"![motion fidelity against {MEASURES[name][0]}](fidelity_{name}.png)" for name in _AGAINST)
        + "\n\n"
        + "\n\n".join(f"![{title} over steps](curve_{name}.png)" for name, title in _PLOTTED.items()),
        "## Published figures, for comparison\n\n" + PUBLISHED,
    ]
    return "\n\n".join(parts) + "\n"


def _conditions(
    settings: BenchSettings, found: Sequence[CellData], command: str, planned: int, machine: Mapping[str, str]
) -> str:
    test = [motion for motion in settings.motions if motion not in TUNING_MOTIONS]
    tuning = [motion for motion in settings.motions if motion in TUNING_MOTIONS]
    budget = (
        f"{settings.steps} steps of the motion stage for every variant"
        if settings.budget == "steps"
        else f"{settings.seconds:g} seconds of training for every variant, its absorber's included"
    )
    lines = [
        f"    {command}",
        "",
        f"{len(found)} of {planned} cells; a cell is {settings.prompts} other looks x {settings.noises} start noises, "
        f"the clip's own caption x {settings.noises} and a prompt without colour and background x "
        f"{settings.free_noises}, "
        f"{settings.num_inference_steps} DDIM steps, guidance {settings.guidance_scale:g}. Intervals are 95 %, "
        f"Student's over {_over(found)}, Wilson's over videos for \"performs it\".",
        "",
        f"- budget: {budget}" + (f"; for all: {dict(settings.training)}" if settings.training else ""),
        f"- test motions (the methods' defaults are chosen on {', '.join(TUNING_MOTIONS)}): "
        + (", ".join(test) or "none"),
        f"- motions here that belong to the tuning set: {', '.join(tuning) or 'none'}",
        f"- all test motions there are: {', '.join(TEST_MOTIONS)}",
        f"- {what_captions_name(settings.captions)}",
        f"- {settings.references} reference looks, {settings.seeds} seeds; one absorber per reference clip and kind, "
        "trained with seed 0, is used by all variants and seeds",
        *(f"- {name}: {value}" for name, value in machine.items()),
    ]
    return "\n".join(lines)


def _results_table(rows: Sequence[Row]) -> str:
    head = ["variant", "cells", *(f"{MEASURES[n][0]}{_arrow(MEASURES[n][2])}" for n in _SHOWN)]
    head += ["steps", "training s", "parameters"]
    body = [
        [
            row.title,
            str(row.cells),
            *(short_interval(row.measures.get(name)) for name in _SHOWN),
            f"{row.steps:.0f}",
            f"{row.seconds:.1f}",
            f"{row.parameters:,}",
        ]
        for row in rows
    ]
    return markdown_table(head, body)


def _difference_table(rows: Sequence[Row]) -> str:
    others = ("base", "temporal LoRA")
    head = ["variant", *(f"{MEASURES[name][0]} - {other}" for other in others for name in COMPARED)]
    body = [
        [
            row.title,
            *(short_interval(pairs.get(name)) for pairs in (row.to_base, row.to_temporal) for name in COMPARED),
        ]
        for row in rows
        if row.to_base or row.to_temporal
    ]
    return markdown_table(head, body)


def _over(found: Sequence[CellData]) -> str:
    return "reference clips, their seeds averaged" if over_clips(found) else "cells, so for these clips alone"


def _difference_words(rows: Sequence[Row], found: Sequence[CellData]) -> str:
    count = sum(
        interval.count > 1 for row in rows for pairs in (row.to_base, row.to_temporal) for interval in pairs.values()
    )
    return (
        f"Same motion, reference, seed and start noise; intervals over {_over(found)}. An interval that excludes 0 is "
        f"unlikely by chance alone, but there are {count} of them, of which chance lets one in twenty exclude it."
    )


def _leak_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.leaks))
    body = [
        [row.title, *(f"{row.leaks[name]:.3f}" if name in row.leaks else "-" for name in names)]
        for row in rows
        if row.leaks
    ]
    return markdown_table(["variant", *names], body) if body else "No videos were kept."


def _diversity_table(rows: Sequence[Row]) -> str:
    body = [[row.title, *(short_interval(row.measures.get(name)) for name in _DIVERSITY)] for row in rows]
    return markdown_table(["variant", *(MEASURES[name][0].removeprefix("diversity of ") for name in _DIVERSITY)], body)


def _floor_table(found: Sequence[CellData]) -> str:
    floors = [noise_floor(found, name) for name in (*COMPARED, "alignment")]
    body = [
        [MEASURES[f.measure][0], f"{f.cell:.3f}", f"{f.mean:.3f}", f"{f.spread:.3f}"] for f in floors if f is not None
    ]
    if not body:
        return "Identical settings were run with one seed only, so chance cannot be told."
    head = ["measure", "standard deviation of a cell over seeds", "difference of two rows by chance (95 %)"]
    head.append("highest less lowest row by chance (95 %)")
    return markdown_table(head, body)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _arrow(better: bool | None) -> str:
    return "" if better is None else (" (higher is better)" if better else " (lower is better)")


def short_interval(interval: Interval | Mapping[str, Any] | None) -> str:
    """Like 0.850 [0.645, 1.055], without ends where there is one value or all are equal, a dash where there is none."""
    if interval is None:
        return "-"
    if isinstance(interval, Interval):
        interval = vars(interval)
    estimate, low, high = interval["estimate"], interval["low"], interval["high"]
    if interval["count"] < 2 or low is None or low == high:
        return f"{estimate:.3f}"
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


# CSV and plain values -----------------------------------------------------------------------------------------------


def _csv(rows: Sequence[Row]) -> str:
    names = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    table: list[list[Any]] = [["variant", "title", "cells", "steps", "train_seconds", "parameters", *names]]
    for row in rows:
        values: list[Any] = []
        for name in MEASURES:
            plain = plain_interval(row.measures[name]) if name in row.measures else {}
            values += [plain.get(key) for key in ("estimate", "low", "high")]
        table.append([row.variant, row.title, row.cells, row.steps, row.seconds, row.parameters, *values])
    return csv_text(table)


def _cells_csv(found: Sequence[CellData]) -> str:
    head = ["variant", "motion", "reference", "seed", "steps", "train_seconds", "absorber_seconds", *MEASURES]
    return csv_text([head, *([cell.get(name) for name in head] for cell in found)])


def csv_text(table: Sequence[Sequence[Any]]) -> str:
    """Comma-separated lines."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    return buffer.getvalue()


def _plain(row: Row) -> dict[str, Any]:
    return {
        "variant": row.variant,
        "title": row.title,
        "control": VARIANTS[row.variant].control,
        "cells": row.cells,
        "steps": row.steps,
        "train_seconds": row.seconds,
        "parameters": row.parameters,
        "measures": {name: plain_interval(interval) for name, interval in row.measures.items()},
        "to_base": {name: plain_interval(interval) for name, interval in row.to_base.items()},
        "to_temporal": {name: plain_interval(interval) for name, interval in row.to_temporal.items()},
        "leakage_by_attribute": dict(row.leaks),
    }


def plain_interval(interval: Interval) -> dict[str, Any]:
    """JSON has no infinity: the ends of an interval of one value are null."""
    bounded = interval.count > 1
    return {
        "estimate": interval.estimate,
        "low": interval.low if bounded else None,
        "high": interval.high if bounded else None,
        "count": interval.count,
    }


# Plots --------------------------------------------------------------------------------------------------------------


def _plots(output: Path, rows: Sequence[Row], found: Sequence[CellData]) -> list[str]:
    if not rows:
        return []
    files = [_against(output / f"fidelity_{name}.png", rows, name) for name in _AGAINST]
    for name, heading in _PLOTTED.items():
        lines = [
            Line(variant, [step for step, _ in curve], [interval.estimate for _, interval in curve])
            for variant, curve in curves(found, name).items()
        ]
        if lines:
            drawn = plot_lines(lines, title=f"{heading} over training steps", x_label="step", y_label=heading)
            files.append(write_png(output / f"curve_{name}.png", drawn).name)
    return files


def _against(path: Path, rows: Sequence[Row], measure: str) -> str:
    """Every row as a point, motion fidelity against a measure of leakage, with the intervals."""
    points = [
        Point(
            row.variant if row.cells > _FEW else f"{row.variant} (n={row.cells})",
            row.measures[measure].estimate,
            row.measures["fidelity"].estimate,
            _reach(row.measures[measure]),
            _reach(row.measures["fidelity"]),
        )
        for row in rows
        if measure in row.measures
    ]
    heading = MEASURES[measure][0]
    title = f"Motion fidelity against {heading} (95 %)"
    return write_png(path, plot_points(points, title=title, x_label=heading, y_label="motion fidelity")).name


def _reach(interval: Interval) -> tuple[float, float] | None:
    """Two values give an interval that is wider than the plot; their number stands by the name instead."""
    return (interval.low, interval.high) if interval.count > _FEW else None


def _device(device: torch.device) -> str:
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    name = getattr(module, "get_device_name", None)
    return f"{device} ({name(device)})" if name is not None else str(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
