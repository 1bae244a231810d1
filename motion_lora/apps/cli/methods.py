"""motion-lora methods: the table of methods, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ...core.errors import SettingsError
from ...methods.losses import DEBIASED, DENOISING
from ...methods.stages import Method, Pass, Stage
from ...methods.table import METHODS
from ...methods.tuning import AUTO, Tuning
from ...playground.defaults import PLAYGROUND_DEFAULTS, PLAYGROUND_TUNING
from .bases import add_json_flag, wants_json
from .console import write, write_json, write_table

_EXAMPLES = """\
examples:
  motion-lora methods                       every method in a row: stages, what learns, absorber, source
  motion-lora methods motiondirector        one of them in full, with its defaults
  motion-lora methods --json                everything, for a program
"""


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "methods",
        help="the training methods: stages, what learns, defaults, sources",
        description="List the training methods that --method of motion-lora train takes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", nargs="*", metavar="METHOD", help="show these in full (default: all, one row each)")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table, one method in full, or JSON."""
    if unknown := [name for name in options.method if name not in METHODS]:
        raise SettingsError(f"method is {unknown[0]!r}; it must be one of: {', '.join(METHODS)}.")
    chosen = [METHODS[name] for name in options.method or METHODS]
    rows = [describe_method(method) for method in chosen]
    if wants_json(options):
        write_json({"methods": rows})
    elif options.method:
        for row in rows:
            _write_in_full(row)
    else:
        header = ("method", "stages", "learns", "keeps", "absorber", "steps", "rank", "source")
        write_table([_short(method) for method in chosen], header)
        elsewhere, playground = Tuning().recommended, PLAYGROUND_TUNING.recommended
        write(f"\n{AUTO}, the default: {playground} on the playground, {elsewhere} on other base models")
    return 0


def describe_method(method: Method) -> dict[str, Any]:
    """One row of the table, json-able."""
    return {
        "name": method.name,
        "title": method.title,
        "source": method.source,
        "absorber": method.absorber,
        "keeps": list(method.keeps),
        "stages": [_stage(stage) for stage in method.stages],
        "defaults": dict(method.defaults),
        "playground_defaults": dict(PLAYGROUND_DEFAULTS.get(method.name, {})),
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "steps": stage.steps,
        "batch": stage.batch,
        "learns": {part.name: part.targets or "embedding rows" for part in stage.parts},
        "per_clip": [part.name for part in stage.parts if part.per_clip],
        "passes": [_sentence(a_pass) for a_pass in stage.passes],
        "source": stage.source,
    }


def _sentence(a_pass: Pass) -> str:
    """A pass in words: what learns, from what, with what held, and how."""
    words = [
        f"{' and '.join(a_pass.trains)} from {'one random frame' if a_pass.frames == 'one' else 'all that is drawn'}"
    ]
    if a_pass.holds:
        words.append(f"with {' and '.join(a_pass.holds)} active and frozen")
    words.append("temporal layers bypassed" if a_pass.bypass else "temporal layers on")
    words.append(f"{a_pass.caption} caption")
    if a_pass.loss == DEBIASED:
        words.append("appearance-debiased loss beside the plain one")
    elif a_pass.loss != DENOISING:
        words.append(f"loss {a_pass.loss}")
    if a_pass.optional:
        words.append("in a part of the steps")
    return ", ".join(words)


def _short(method: Method) -> tuple[object, ...]:
    learns = {part.name: part.targets or "rows" for stage in method.stages for part in stage.parts}
    return (
        method.name,
        " > ".join(stage.name for stage in method.stages),
        ", ".join(f"{name}: {targets}" for name, targets in learns.items()),
        "+".join(method.keeps),
        method.absorber,
        method.defaults.get("steps", ""),
        method.defaults.get("rank", ""),
        method.source,
    )


def _write_in_full(row: Mapping[str, Any]) -> None:
    write(f"{row['title']} ({row['name']})")
    write(f"  source:   {row['source']}")
    write(f"  keeps:    {' and '.join(row['keeps'])} LoRA")
    write(f"  absorber: {row['absorber']}")
    for number, stage in enumerate(row["stages"], start=1):
        learns = ", ".join(f"{name} ({targets})" for name, targets in stage["learns"].items())
        each = f"; one {' and '.join(stage['per_clip'])} LoRA for each clip" if stage["per_clip"] else ""
        seen = {"clip": "whole clips", "frames": "unordered frames"}[stage["batch"]]
        write(f"  stage {number}:  {stage['name']}, on {seen}: {learns}{each}")
        for sentence in stage["passes"]:
            write(f"            {sentence}")
        write(f"            {stage['source']}")
    for title, key in (("defaults", "defaults"), ("on the playground", "playground_defaults")):
        values = ", ".join(f"{name} {value}" for name, value in row[key].items())
        write(f"  {title}: {values}")
    write()
