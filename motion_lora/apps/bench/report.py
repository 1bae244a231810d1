"""Writes what a benchmark found: results.md, results.csv and one plot, and says what it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...base.pipeline import VideoPipeline
from ...core.disk import write_atomically
from ...core.metadata import library_versions
from ...evaluate.scores import MOTION, UNNAMED_LEAKAGE, plain_name
from ...evaluate.statistics import Interval
from ...media.plots import Point, plot_points
from ...media.tables import Cell, Table
from ...media.write import write_png
from .plan import BenchPlan, cells
from .results import SCORED, CellData, Check, RowResult, calibration, results_of


def write_report(
    output: Path, pipeline: VideoPipeline, plan: BenchPlan, found: Sequence[CellData], command: str
) -> dict[str, Any]:
    """Write every file into `output`; returns the same as plain values."""
    results, machine = results_of(found), machine_facts(pipeline)
    checks = calibration(results)
    files = [
        write_atomically(output / "results.csv", cells_table(found).csv().encode()),
        write_atomically(output / "results.md", _page(results, checks, plan, len(found), machine, command).encode()),
    ]
    if any({MOTION, UNNAMED_LEAKAGE} <= set(row.scores) for row in results):
        files.append(write_png(output / "results.png", _plot(results)))
    return {
        "files": [str(path) for path in files],
        "cells": len(found),
        "planned": len(cells(plan)),
        "machine": machine,
        "calibration": [asdict(check) for check in checks],
        "rows": [asdict(row) for row in results],
    }


def machine_facts(pipeline: VideoPipeline) -> dict[str, str]:
    """What figures were measured on: base, device, processor, versions."""
    return {
        "base": f"{pipeline.identity.name} {pipeline.identity.weights_hash[:12]}",
        "device": _device(pipeline.device),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    }


def results_table(results: Sequence[RowResult]) -> Table:
    """A line per row: every score with its interval over motions, seconds and steps."""
    head = ("row", *map(plain_name, SCORED), "seconds", "steps")
    rows = [
        (row.title, *(_interval(row.scores.get(name)) for name in SCORED), round(row.seconds), round(row.steps))
        for row in results
    ]
    return Table(head, rows)


def motions_table(results: Sequence[RowResult]) -> Table:
    """Motion fidelity in other looks, by row and motion."""
    motions = list(dict.fromkeys(motion for row in results for motion in row.by_motion[MOTION]))
    return Table(("row", *motions), [(r.title, *(r.by_motion[MOTION].get(m) for m in motions)) for r in results])


def cells_table(found: Sequence[CellData]) -> Table:
    """A line per cell."""
    about = ("row", "motion", "reference", "steps", "seconds")
    rows = [(*(cell[name] for name in about), *(cell["scores"].get(name) for name in SCORED)) for cell in found]
    return Table((*about, *SCORED), rows)


def _page(
    results: Sequence[RowResult],
    checks: Sequence[Check],
    plan: BenchPlan,
    done: int,
    machine: dict[str, str],
    command: str,
) -> str:
    parts = [
        "# Methods side by side on the playground",
        f"    {command}",
        f"{done} of {len(cells(plan))} cells. Every row has {plan.seconds:g} seconds of training, absorber and "
        f"redrawing included, on each of {len(plan.motions)} motions and {plan.references} reference look(s); then "
        f"{plan.noises} videos of the reference's caption and of each of {plan.other_looks} other looks and "
        f"{plan.open_noises} of a prompt that names no colour and no background. 95 % bootstrap "
        "intervals over motions.",
        "## Calibration\n\n" + "\n".join(f"- {check.status}: {check.name}: {check.text}." for check in checks),
        "## Results\n\n" + results_table(results).markdown(),
        "## Motion fidelity in other looks, by motion\n\n" + motions_table(results).markdown(),
        "![motion fidelity against the reference's look where unnamed](results.png)",
        "## What the columns are\n\n" + "\n".join(f"- {plain_name(name)}: {text}." for name, text in SCORED.items()),
        "## Machine\n\n" + "\n".join(f"- {name}: {value}" for name, value in machine.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _interval(interval: Interval | None) -> Cell:
    if interval is None:
        return None
    if interval.count == 1:
        return f"{interval.estimate:.2f}"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _plot(results: Sequence[RowResult]) -> Any:
    points = [
        Point(row.name, x.estimate, y.estimate, (x.low, x.high), (y.low, y.high))
        for row in results
        if (x := row.scores.get(UNNAMED_LEAKAGE)) is not None and (y := row.scores.get(MOTION)) is not None
    ]
    labels = {"x_label": plain_name(UNNAMED_LEAKAGE), "y_label": f"{plain_name(MOTION)} in other looks"}
    return plot_points(points, title="Motion that comes along against looks that do", **labels)


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
