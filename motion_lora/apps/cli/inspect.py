"""motion-lora inspect and verify: what a LoRA file is, and whether it is whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .bases import BASE_HELP, add_json_flag, empty_network, wants_json
from .console import write, write_json, write_table

_EXAMPLES = """\
examples:
  motion-lora inspect orbit.safetensors                    method, rank, targets, base, captions, norms by block
  motion-lora inspect orbit.safetensors --keys --json      ... and every layer, for a program
  motion-lora inspect friend.safetensors --base modelscope    does it fit?
  motion-lora verify orbit.safetensors                     keys, shapes, numbers, and the hashes that it carries

Understood: the own format, PEFT and diffusers, kohya, and the lists that MotionDirector writes.
"""


def add(commands: Any) -> None:
    """Add the parsers of both commands."""
    for name, summary, run in (
        ("inspect", "what a LoRA file is", run_inspect),
        ("verify", "check a LoRA file all the way", run_verify),
    ):
        parser: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}, of any format that is understood.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("file", type=Path, help="LoRA file, or a folder of PEFT or diffusers")
        parser.add_argument("--base", metavar="BASE", help=f"check that it fits: {BASE_HELP}")
        if name == "inspect":
            parser.add_argument("--keys", action="store_true", help="list every layer with rank, sizes and norm")
        add_json_flag(parser)
        parser.set_defaults(run=run)


def run_inspect(options: argparse.Namespace) -> int:
    """Print the report."""
    from ...files.inspection import inspect, report_text

    facts = inspect(options.file, empty_network(options.base) if options.base else None)
    layers = _layers(options.file) if options.keys and facts["kind"] == "lora" else []
    if wants_json(options):
        write_json({**facts, "keys": layers} if options.keys else facts)
        return 0
    write(report_text(facts))
    if layers:
        write()
        table = [(k["module"], k["rank"], k["in"], k["out"], f"{k['scale']:g}", f"{k['norm']:.5f}") for k in layers]
        write_table(table, ("layer", "rank", "in", "out", "scale", "norm"))
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Print what was checked; a fault is an error."""
    from ...files.inspection import verify

    facts = verify(options.file, empty_network(options.base) if options.base else None)
    if wants_json(options):
        write_json(facts)
        return 0
    for check in facts["checks"]:
        write(f"ok: {check}")
    for warning in facts["warnings"]:
        write(f"note: {warning}")
    return 0


def _layers(path: Path) -> list[dict[str, Any]]:
    from ...files.inspection import delta_norm
    from ...files.reader import load_any

    return [
        {
            "module": module,
            "rank": layer.rank,
            "in": layer.down[0].numel(),
            "out": layer.up.shape[0],
            "scale": layer.scale,
            "norm": delta_norm(layer),
        }
        for module, layer in load_any(path).lora.layers.items()
    ]
