"""motion-lora bench: measurements that anyone can rerun."""

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
    from ...base.pipeline import VideoPipeline
    from ...core.clip import Clip
    from ...evaluate.judge import Judge
    from ..bench import BasePlan, BenchPlan

_METHODS_EXAMPLES = """\
examples:
  motion-lora bench methods --output out/bench              the whole table: about two hours on two cores, as below
  motion-lora bench methods --output out/quick --rows base,temporal-lora,many-looks --motions bounce --seconds 30

To use several cores or machines, start it once per core with the same folder, --threads 1 and its own --shard:

  motion-lora bench methods --output out/bench --shard 1/2 &
  motion-lora bench methods --output out/bench --shard 2/2

Stop it at any time: the same command goes on with the cells that are missing. The last one to end writes the report.
"""

_BASE_EXAMPLES = """\
examples:
  motion-lora bench base models/zeroscope_v2_576w --clip skate.mp4 --caption "a man is skateboarding on a street" \\
      --appearance-caption "a man on a street" --num-frames 16 --fps 8 --height 256 --width 256 \\
      --prompt "a bear is skateboarding in a forest" --clip-model models/clip-vit-base-patch32 --output out/base
"""

METHODS_OPTIONS = (
    Option("output", Path, "folder to write into (default: out/bench)", metavar="FOLDER"),
    Option("rows", str, "rows to measure, separated by commas (default: all)"),
    Option("motions", str, "motions of the references, separated by commas (default: the eight held-out ones)"),
    Option("references", int, "looks of the references, 1 to 3 (default: 1)"),
    Option("seconds", float, "seconds of training per row and clip, absorber and redrawing included (default: 90)"),
    Option("other_looks", int, "looks that are asked for, up to 4 (default: 4)"),
    Option("noises", int, "videos of each look and of the reference's caption (default: 2)"),
    Option("open_noises", int, "videos of a prompt without colour and background (default: 6)"),
    Option("num_inference_steps", int, "denoising steps of the videos (default: 15)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 2.5)"),
    Option("seed", int, "seed of training and start noise (default: 0)"),
    Option("shard", str, "run only this part of the clips, for several processes: 1/2", metavar="I/N"),
    Option("threads", int, "threads of torch on the CPU (default: 1)"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber, for all rows (default: the method's)"),
    Option("token_steps", int, "steps of the textual-inversion absorber, for all rows (default: the method's)"),
)
_LISTS, _TRAINING = ("rows", "motions"), ("absorber_steps", "token_steps")
BENCH_BASE_OPTIONS = (
    Option("clip", Path, "video or GIF whose motion is learned", metavar="FILE"),
    Option("caption", str, "what is seen and what moves"),
    Option("appearance_caption", str, "the caption without its motion words"),
    Option("absorb_words", str, "words of both captions that the absorber's tokens stand in for"),
    Option("num_frames", int, "frames of the clip and the videos (default: the base model's)"),
    Option("fps", float, "frames per second taken from the clip (default: the base model's)"),
    Option("height", int, "height in pixels (default: the base model's)"),
    Option("width", int, "width in pixels (default: the base model's)"),
    Option("prompt", str, "what to sample: the motion with another look; repeat it", many=True),
    Option("prompts", Path, "text file with one prompt per line", metavar="FILE"),
    Option("methods", str, "methods, separated by commas (default: the published ones; Many Looks needs --look)"),
    Option("look", str, "caption of a redrawn copy for Many Looks, with {motion}; repeat it", many=True),
    Option("steps", int, "steps of every method's motion stage (default: each method's own)"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber (default: each method's own)"),
    Option("token_steps", int, "steps of the textual-inversion absorber (default: each method's own)"),
    Option("num_inference_steps", int, "denoising steps of the videos (default: 25)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 9)"),
    Option("seed", int, "seed of training and start noise (default: 0)"),
    Option("gradient_checkpointing", bool, "a third more time for a fraction of the memory"),
    Option("clip_model", Path, "folder of a CLIP model, for text alignment", metavar="FOLDER"),
    Option("lpips_weights", Path, "LPIPS weights, for consistency", metavar="FILE"),
    Option("output", Path, "folder to write into (default: out/bench-base)", metavar="FOLDER"),
)
_BASE_TRAINING = ("absorber_steps", "token_steps", "gradient_checkpointing")
_PLACE_OPTIONS = tuple(option for option in BASE_OPTIONS if option.name != "base")


def add(commands: Any) -> None:
    """Add the parsers of this command."""
    parser = commands.add_parser("bench", help="measurements that anyone can rerun", description=__doc__)
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    methods: argparse.ArgumentParser = actions.add_parser(
        "methods",
        help="all methods under equal time on the built-in model",
        description="Train every method on clips of held-out motions for the same seconds, ask for the motion in other "
        "looks, and let the probe measure what came along. Writes results.md, results.csv and results.png.",
        epilog=_METHODS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(methods)
    add_options(methods, METHODS_OPTIONS, "what is compared")
    add_options(methods, BASE_OPTIONS, "base model")
    add_json_flag(methods)
    methods.set_defaults(run=run_methods)
    base: argparse.ArgumentParser = actions.add_parser(
        "base",
        help="methods side by side on your base model and clip",
        description="Train methods on one clip with your base model, sample the prompts from equal noise, and score "
        "the videos by the metrics of natural video. Writes README.md, a table, a contact sheet and a grid to share.",
        epilog=_BASE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(base)
    base.add_argument("folder", metavar="FOLDER", help="model folder in diffusers' layout, or playground")
    add_options(base, BENCH_BASE_OPTIONS, "what is compared")
    add_options(base, _PLACE_OPTIONS, "where it runs")
    add_json_flag(base)
    base.set_defaults(run=run_base)


def run_methods(options: argparse.Namespace) -> int:
    """Run the cells that are missing and write the report."""
    from ..bench import run_cells, write_report
    from ..bench.plan import check_plan

    values = gather(options, (*METHODS_OPTIONS, *BASE_OPTIONS))
    plan = plan_of(values)
    check_plan(plan)
    shard = shard_of(values.get("shard", "1/1"))
    output: Path = values.get("output", Path("out") / "bench")
    check_folder(output)
    set_threads(values.get("threads", 1))
    pipeline = load_base(values)
    with Progress() as bar:
        found = run_cells(
            pipeline,
            output,
            plan,
            shard=shard,
            tell=bar.update,
            done=lambda name, number, total: note(f"{number} of {total}: {name}"),
        )
    report = write_report(output, pipeline, plan, found, command_line())
    if wants_json(options):
        write_json(report)
        return 0
    for check in report["calibration"]:
        write(f"{check['status']}: {check['name']}: {check['text']}")
    write(f"\n{report['cells']} of {report['planned']} cells")
    for path in report["files"]:
        write(path)
    return 0


def run_base(options: argparse.Namespace) -> int:
    """Train, sample, score, write."""
    from ..bench import bench_base

    values = gather(options, (*BENCH_BASE_OPTIONS, *_PLACE_OPTIONS))
    plan = base_plan_of(values)
    output: Path = values.get("output", Path("out") / "bench-base")
    check_folder(output)
    _check_models(options.folder, values)
    pipeline = load_base({**values, "base": options.folder})
    clip = _clip(pipeline, values)
    with Progress() as bar:
        report = bench_base(
            pipeline,
            clip,
            plan,
            _judge(pipeline, clip, values),
            output,
            command=command_line(),
            callback=lambda method, step: bar.update(f"{method}: {step.stage}", step.step, step.total),
            progress=lambda step, total: bar.update("sampling", step, total),
        )
    if wants_json(options):
        write_json(report)
        return 0
    names = list(dict.fromkeys(name for scores in report["scores"].values() for name in scores))
    rows = [
        [label, *(f"{scores[name]:.3f}" if name in scores else "-" for name in names)]
        for label, scores in report["scores"].items()
    ]
    write_table(rows, ("method", *(name.replace("_", " ") for name in names)))
    for path in report["files"]:
        write(path)
    return 0


# Parts ----------------------------------------------------------------------------------------------------------------
def plan_of(values: dict[str, Any]) -> BenchPlan:
    """The plan with the given values."""
    from ..bench import BenchPlan

    fields = {entry.name for entry in dataclasses.fields(BenchPlan)}
    given = {name: value for name, value in values.items() if name in fields}
    given |= {name: split_list(values[name]) for name in _LISTS if name in values}
    training = tuple((name, values[name]) for name in _TRAINING if name in values)
    return BenchPlan(**given, training=training)


def base_plan_of(values: dict[str, Any]) -> BasePlan:
    """The plan with the given values; raises SettingsError for what is missing."""
    from ...evaluate.compare import prompts_of
    from ..bench import BasePlan

    if missing := [name for name in ("clip", "caption") if name not in values]:
        raise SettingsError(f"There is no --{missing[0]}; a clip and its caption are needed.")
    prompts = tuple(values.get("prompt", ()))
    if "prompts" in values:
        prompts += prompts_of(_text(values["prompts"]))
    if not prompts:
        raise SettingsError("There is no prompt; give --prompt, once for each, or --prompts, a file of them.")
    plain = ("steps", "num_inference_steps", "guidance_scale", "seed")
    given: dict[str, Any] = {name: values[name] for name in plain if name in values}
    if "methods" in values:
        given["methods"] = split_list(values["methods"])
    training = {name: values[name] for name in _BASE_TRAINING if name in values}
    return BasePlan(prompts, looks=tuple(values.get("look", ())), training=training, **given)


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


def set_threads(threads: int) -> None:
    """What --threads asks for."""
    if threads < 1:
        raise SettingsError(f"threads is {threads}; it must be 1 or more.")
    import torch

    torch.set_num_threads(threads)


def command_line() -> str:
    """The command as it was typed, for the report."""
    return shlex.join(["motion-lora", *sys.argv[1:]])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--prompts {path} cannot be read as text: {error}") from error


def _clip(pipeline: VideoPipeline, values: dict[str, Any]) -> Clip:
    from ...media.read import read_clip

    texts = {name: values[name] for name in ("appearance_caption", "absorb_words") if name in values}
    return read_clip(
        values["clip"],
        caption=values["caption"],
        num_frames=values.get("num_frames", pipeline.default_num_frames),
        fps=values.get("fps", pipeline.default_fps),
        height=values.get("height", pipeline.default_height),
        width=values.get("width", pipeline.default_width),
        **texts,
    )


def _check_models(folder: str, values: dict[str, Any]) -> None:
    """Raise for models that cannot be loaded, before the base is."""
    from ...evaluate.metrics import check_metric_models

    if folder != "playground":
        check_metric_models(values.get("clip_model"), values.get("lpips_weights"))


def _judge(pipeline: VideoPipeline, clip: Clip, values: dict[str, Any]) -> Judge:
    from ...evaluate.judge import load_judge

    models = {name: values.get(name) for name in ("clip_model", "lpips_weights")}
    return load_judge(pipeline, clip.frames, **models)
