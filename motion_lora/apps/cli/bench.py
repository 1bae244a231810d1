"""motion-lora bench: measurements on the playground that anyone can rerun."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from .bases import BASE_OPTIONS, add_json_flag, load_base, wants_json
from .console import Progress, note, write, write_json, write_table
from .options import Option, add_config_flag, add_options, gather
from .results import check_folder

if TYPE_CHECKING:
    from ..bench import BenchSettings

_EXAMPLES = """\
examples:
  motion-lora bench quality --quick                        few of everything: does the instrument work?
  motion-lora bench quality --output bench/quality         the full table
  motion-lora bench quality --budget seconds --seconds 100 --output bench/quality-seconds
  motion-lora bench quality --variants temporal,dual-absorber --motions bounce,swing --seeds 4 --json

Stop it at any time: the same command goes on where it was, and does only the cells that are missing. To use two cores
fully, run it twice at once with --threads 1 and --shard 1/2 and --shard 2/2, then once more without --shard.
"""

_CHOICE_EXAMPLES = """\
examples:
  motion-lora bench choice --quick                         two references, few steps
  motion-lora bench choice --output bench/choice           four references
  motion-lora bench choice --train-variant motiondirector --every 25 --motions bounce,swing --json
"""

_CAPTIONS = Option(
    "captions",
    str,
    "what the references' captions name: shape, fill and motion, or every look (default: short)",
    choices=("short", "full"),
)
QUALITY_OPTIONS = (
    Option("variants", str, "variants to compare, separated by commas (default: all)"),
    Option("motions", str, "motions of the references, separated by commas (default: two of the test set)"),
    Option("references", int, "looks of the references (default: 2)"),
    Option("seeds", int, "seeds of training and start noise (default: 2)"),
    Option("budget", str, "what every training gets alike (default: steps)", choices=("steps", "seconds")),
    Option("steps", int, "steps of the motion stage with --budget steps (default: 200)"),
    Option("seconds", float, "seconds of training, absorber included, with --budget seconds (default: 80)"),
    _CAPTIONS,
    Option("prompts", int, "looks that are asked for per cell, up to 4 (default: 3)"),
    Option("noises", int, "videos of each (default: 2)"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber, for all (default: the method's)"),
    Option("token_steps", int, "steps of the textual-inversion absorber, for all (default: the method's)"),
    Option("num_inference_steps", int, "denoising steps of the videos (default: 15)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 2.5)"),
)
RUN_OPTIONS = (
    Option("output", Path, "folder to write into (default: out/bench-quality)", metavar="FOLDER"),
    Option("quick", bool, "the quick setting: fewer of everything, the other flags on top of it"),
    Option("shard", str, "run only this part of the cells, for several processes: 1/2", metavar="I/N"),
    Option("threads", int, "threads of torch on the CPU (default: torch's own)"),
)
CHOICE_OPTIONS = (
    Option(
        "train_variant",
        str,
        "what is trained, a variant of bench quality (default: the recipe, or the temporal LoRA where there is none)",
    ),
    Option("every", int, "steps between checkpoints (default: a tenth of the steps)"),
    Option("motions", str, "motions of the references, separated by commas (default: two of the test set)"),
    Option("references", int, "looks of the references (default: 2)"),
    Option("steps", int, "steps of the motion stage (default: 200)"),
    _CAPTIONS,
    Option("noises", int, "videos of each prompt that the choice sees (default: 4)"),
    Option("truth_noises", int, "videos of each prompt that judge it (default: 4)"),
    Option("prompts", int, "looks that the choice sees, up to 4 (default: 3)"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber (default: the method's)"),
    Option("token_steps", int, "steps of the textual-inversion absorber (default: the method's)"),
    Option("num_inference_steps", int, "denoising steps of the videos (default: 15)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 2.5)"),
)
_CHOICE_RUN = tuple(option for option in RUN_OPTIONS if option.name != "shard")
_LISTS = ("variants", "motions")
_TRAINING = ("absorber_steps", "token_steps")


def add(commands: Any) -> None:
    """Add the parsers of this command."""
    parser = commands.add_parser("bench", help="measurements on the built-in model", description=__doc__)
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    quality: argparse.ArgumentParser = actions.add_parser(
        "quality",
        help="motion fidelity against leakage, method by method",
        description="Train every method on clips of held-out motions, ask for the motion with other looks, and let "
        "the probe measure motion fidelity, leakage and more, each with a 95 % interval. Writes RESULTS.md, CSV and "
        "plots.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(quality)
    add_options(quality, RUN_OPTIONS, "the run")
    add_options(quality, QUALITY_OPTIONS, "what is compared")
    add_options(quality, BASE_OPTIONS, "base model")
    add_json_flag(quality)
    quality.set_defaults(run=run_quality)
    choice: argparse.ArgumentParser = actions.add_parser(
        "choice",
        help="does the choice of a checkpoint pick well?",
        description="Train on several references, let the rule of --validate-every choose a checkpoint, and compare it "
        "with the best possible and the last on videos that the choice never saw. Writes CHOICE.md, JSON and plots.",
        epilog=_CHOICE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(choice)
    add_options(choice, _CHOICE_RUN, "the run")
    add_options(choice, CHOICE_OPTIONS, "what is compared")
    add_options(choice, BASE_OPTIONS, "base model")
    add_json_flag(choice)
    choice.set_defaults(run=run_choice)


def run_quality(options: argparse.Namespace) -> int:
    """Run the cells that are missing and write the report."""
    from ..bench import SUMMARY_HEADER, cells, check_bench, run_cells, summary, write_report

    values = gather(options, (*RUN_OPTIONS, *QUALITY_OPTIONS, *BASE_OPTIONS))
    settings = quality_settings(values)
    check_bench(settings)
    shard = shard_of(values.get("shard", "1/1"))
    output: Path = values.get("output", Path("out") / "bench-quality")
    check_folder(output)
    set_threads(values)
    pipeline = load_base(values)
    with Progress() as bar:
        found = run_cells(
            pipeline,
            output,
            settings,
            shard=shard,
            tell=bar.update,
            done=lambda name, number, total: note(f"{number} of {total}: {name}"),
        )
    report = write_report(output, pipeline, settings, found, command_line(), len(cells(settings)))
    if wants_json(options):
        write_json(report)
        return 0
    for check in report["calibration"]:
        write(f"{check['status']}: {check['name']}: {check['text']}")
    write()
    write_table(summary(report), SUMMARY_HEADER)
    write(f"\n{output / 'RESULTS.md'}")
    return 0


def run_choice(options: argparse.Namespace) -> int:
    """Train and measure the references that are missing, and write the report."""
    from ..bench import ChoiceSettings, run_choices, write_choices

    values = gather(options, (*_CHOICE_RUN, *CHOICE_OPTIONS, *BASE_OPTIONS))
    several = {"references": 2} if values.get("quick") else {}
    settings = quality_settings({**several, **{name: value for name, value in values.items() if name != "noises"}})
    given: dict[str, Any] = {name: values[name] for name in ("noises", "truth_noises") if name in values}
    if "train_variant" in values:
        given["variant"] = values["train_variant"]
    every = values.get("every", max(1, settings.steps // 10))
    chosen = ChoiceSettings(settings, every=every, **given)
    output: Path = values.get("output", Path("out") / "bench-choice")
    check_folder(output)
    set_threads(values)
    pipeline = load_base(values)
    with Progress() as bar:
        found = run_choices(
            pipeline,
            output,
            chosen,
            tell=bar.update,
            done=lambda name, number, total: note(f"{number} of {total}: {name}"),
        )
    report = write_choices(output, pipeline, chosen, found, command_line())
    if wants_json(options):
        write_json(report)
    else:
        write((output / "CHOICE.md").read_text(encoding="utf-8"))
    return 0


def quality_settings(values: dict[str, Any]) -> BenchSettings:
    """The full or the quick setting with the given values over it."""
    from ..bench import BenchSettings

    defaults = BenchSettings.quick() if values.get("quick") else BenchSettings()
    plain = [option.name for option in QUALITY_OPTIONS if option.name not in (*_LISTS, *_TRAINING)]
    given: dict[str, Any] = {name: values[name] for name in plain if name in values}
    given |= {name: split_list(values[name]) for name in _LISTS if name in values}
    training = {**defaults.training, **{name: values[name] for name in _TRAINING if name in values}}
    return dataclasses.replace(defaults, **given, training=training)


def split_list(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def shard_of(text: str) -> tuple[int, int]:
    """ "1/2" -> (1, 2); raises SettingsError."""
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise SettingsError(f"shard is {text!r}; it must be like 1/2, the first of two parts.") from error
    if not 1 <= number <= count:
        raise SettingsError(f"shard is {text!r}; the first number must be from 1 to {count}.")
    return number, count


def set_threads(values: dict[str, Any]) -> None:
    """What --threads asks for."""
    threads = values.get("threads")
    if threads is None:
        return
    if threads < 1:
        raise SettingsError(f"threads is {threads}; it must be 1 or more.")
    import torch

    torch.set_num_threads(threads)


def command_line() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["motion-lora", *sys.argv[1:]])
