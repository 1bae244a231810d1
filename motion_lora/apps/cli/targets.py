"""motion-lora targets: which modules a preset adapts on a network, with module and parameter counts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .bases import BASE_HELP, add_json_flag, empty_network, wants_json
from .console import write, write_json, write_table

if TYPE_CHECKING:
    from torch import nn

_EXAMPLES = """\
examples:
  motion-lora targets                                      every preset on ModelScope's network, at rank 4
  motion-lora targets --base playground --rank 1           ... on the built-in one
  motion-lora targets --base models/zeroscope --preset tap-qk --modules
  motion-lora targets --base unet/config.json --json       a config is enough; no weights are read
"""


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "targets",
        help="which modules a target preset adapts on a base, with counts",
        description="List target presets on a network: modules and parameters of a LoRA of the given rank.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base",
        default="modelscope",
        metavar="BASE",
        help=f"{BASE_HELP} (default: modelscope)",
    )
    parser.add_argument("--preset", action="append", metavar="NAME", help="only this preset; may be repeated")
    parser.add_argument("--rank", type=int, default=4, metavar="N", help="rank to count parameters for (default: 4)")
    parser.add_argument("--modules", action="store_true", help="list every module's name")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table, or JSON."""
    from ...adapters.targets import TARGETS, find_preset
    from ...backbones.registry import of_network

    unet = empty_network(options.base)
    own = of_network(unet)
    takes = [name for name, row in TARGETS.items() if own.select(unet, row.selection)]
    presets = [find_preset(name).name for name in options.preset or takes]
    rows = [describe_target(unet, preset, options.rank) for preset in presets]
    if wants_json(options):
        write_json({"base": options.base, "rank": options.rank, "presets": rows})
        return 0
    header = ("preset", "layers", "modules", f"parameters at rank {options.rank}", "source")
    table = [(r["preset"], r["layer"], len(r["modules"]), f"{r['parameters']:,}", r["source"]) for r in rows]
    write_table(table, header)
    if options.modules:
        for row in rows:
            write(f"\n{row['preset']}:")
            for name in row["modules"]:
                write(f"  {name}")
    return 0


def describe_target(unet: nn.Module, preset: str, rank: int) -> dict[str, Any]:
    """One preset on one network as a JSON-able row."""
    from ...adapters.targets import find_preset, parameter_count, target_modules

    row = find_preset(preset)
    return {
        "preset": preset,
        "layer": row.layer,
        "parameters": parameter_count(unet, preset, rank),
        "source": row.source,
        "modules": list(target_modules(unet, preset)),
    }
