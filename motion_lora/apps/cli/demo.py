"""motion-lora demo: the whole job on the built-in model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bases import BASE_OPTIONS, add_json_flag, load_base, wants_json
from .console import Progress, note, write, write_json
from .options import Option, add_config_flag, add_options, gather
from .results import check_folder

if TYPE_CHECKING:
    from ...training import Command, StepReport

_EXAMPLES = """\
examples:
  motion-lora demo                                  results in out/demo/
  motion-lora demo --motion zigzag --output out/zigzag
  motion-lora demo --absorber dual --seed 1 --json
"""

DEMO_OPTIONS = (
    Option("motion", str, "motion of the reference clip (default: orbit)"),
    Option("method", str, "training method (default: many-looks)"),
    Option("absorber", str, "dual, spatial, textual-inversion or none (default: the base's)"),
    Option("steps", int, "steps of the motion stage"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber"),
    Option("token_steps", int, "steps of the textual-inversion absorber"),
    Option("num_inference_steps", int, "denoising steps of the videos (default: 20)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 2.5)"),
    Option("seed", int, "of training and of the first video (default: 0)"),
)
_OUTPUT = Option("output", Path, "folder to write into (default: out/demo)", metavar="FOLDER")
_ALL_OPTIONS = (*DEMO_OPTIONS, _OUTPUT, *BASE_OPTIONS)


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="the whole job on the built-in model",
        description=(
            "Render a reference clip, learn its motion, sample three new subjects with and "
            "without the motion LoRA, and measure both. A few minutes on two CPU cores."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    add_options(parser, (*DEMO_OPTIONS, _OUTPUT), "what to show")
    add_options(parser, BASE_OPTIONS, "base model")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo and print its summary."""
    from ..demo import DemoSettings, check_demo, reference_scene, run_demo, summary

    values = gather(options, _ALL_OPTIONS)
    output: Path = values.get("output", Path("out") / "demo")
    check_folder(output)
    settings = dataclasses.replace(
        DemoSettings(), **{option.name: values[option.name] for option in DEMO_OPTIONS if option.name in values}
    )
    reference_scene(settings)
    pipeline = load_base(values)
    check_demo(pipeline, settings)
    note(f"Learning the motion {settings.motion!r} on {pipeline.identity.name} ({pipeline.device}).")
    with Progress() as bar:

        def on_step(step: StepReport) -> Command:
            bar.update(step.stage, step.step, step.total, step.loss)
            return "continue"

        report = run_demo(pipeline, output, settings, callback=on_step, progress=bar.update)
    if wants_json(options):
        write_json(report.to_json())
    else:
        for line in summary(report, output):
            write(line)
    return 0
