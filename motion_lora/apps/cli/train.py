"""motion-lora train: a motion LoRA from one clip or several."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from ...methods.table import ABSORBERS
from ...methods.tuning import AUTO
from .bases import BASE_OPTIONS, add_json_flag, load_base, wants_json
from .console import Progress, note, write, write_json
from .interrupt import StoppedError, interruptible
from .options import Option, add_config_flag, add_options, check_table, gather
from .results import check_folder, check_output
from .settings import TRAIN_OPTIONS
from .validation import VALIDATION_OPTIONS, check_validation, plan_of, run_validated, save_validation, validation_facts

if TYPE_CHECKING:
    from ...base.pipeline import VideoPipeline
    from ...core.absorber import Absorber
    from ...core.clip import Clip
    from ...evaluate.validation import Validated
    from ...training import Callback, Command, StepReport, TrainResult, TrainSettings, Visitor

_EXAMPLES = """\
examples:
  motion-lora train --clip orbit.mp4 --caption "a red circle circling around over sand" \\
      --appearance-caption "a red circle over sand" --absorb-words "red circle" --output orbit.safetensors

  motion-lora train --base models/zeroscope_v2_576w --clip skate.mp4 --caption "a man is skateboarding on a street" \\
      --appearance-caption "a man on a street" --num-frames 16 --fps 8 --height 256 --width 256 \\
      --gradient-checkpointing --output skate.safetensors

  motion-lora train --method motiondirector --folder clips/ --output turn.safetensors
  motion-lora train --method motiondirector-image --clip photo.png --caption "a red circle" --output look.safetensors
  motion-lora train --absorber look.safetensors --clip orbit.mp4 --caption "a red circle circling around over sand" \\
      --appearance-caption "a red circle over sand" --output orbit.safetensors
  motion-lora train --config run.toml --seed 1
  motion-lora train --dry-run --clip orbit.mp4 --caption "a red circle circling around over sand" \\
      --appearance-caption "a red circle over sand"

  motion-lora train --clip orbit.mp4 --caption "a red circle circling around over sand" \\
      --appearance-caption "a red circle over sand" --validate-every 50 --early-stop --output orbit.safetensors

A file for --config holds the same names with underscores; several clips are tables of it:

  base = "models/zeroscope_v2_576w"
  output = "skate.safetensors"
  method = "customize-a-video"
  steps = 400

  [[clips]]
  clip = "skate.mp4"
  caption = "a man is skateboarding on a street"
  appearance_caption = "a man on a street"

Ctrl-C keeps a checkpoint; the same command then goes on where it stopped, with the same result as without the stop.
"""

# One clip; in a settings file each [[clips]] table holds these.
CLIP_OPTIONS = (
    Option("clip", Path, "video (mp4, webm, mov, mkv, avi, gif), image or folder of images", metavar="FILE"),
    Option("caption", str, "what is seen and what moves: the full caption"),
    Option("appearance_caption", str, "the caption without its motion words, for the appearance absorber"),
    Option("absorb_words", str, "words of both captions that the absorber's tokens stand in for"),
    Option("start", float, "second at which the clip starts (default: 0)"),
)
SAMPLING_OPTIONS = (
    Option("num_frames", int, "frames per clip (default: the base model's; of images, where a method takes them, all)"),
    Option("clip_fps", float, "frames per second taken from the clip (default: the base model's)", flag="--fps"),
    Option("images_fps", float, "rate at which the images of a folder were taken (default: they are the frames)"),
    Option("height", int, "height in pixels (default: the base model's)"),
    Option("width", int, "width in pixels (default: the base model's)"),
)
FILE_OPTIONS = (
    Option("output", Path, "motion LoRA to write, .safetensors (required)", metavar="FILE"),
    Option("folder", Path, "folder of clips or images with captions, instead of --clip", metavar="FOLDER"),
    Option("checkpoint", Path, "folder for the checkpoint (default: beside the output)", metavar="FOLDER"),
    Option(
        "load_absorber",
        Path,
        "use this instead of training one: a trained absorber, a LoRA of the look, or a fine-tuned model's folder",
        metavar="FILE",
    ),
    Option("save_absorber", Path, "keep the trained absorber in this file", metavar="FILE"),
    Option("plot", Path, "draw the loss curve into this PNG", metavar="FILE"),
    Option("overwrite", bool, "replace an output that exists (default: refuse)"),
    Option("dry_run", bool, "say what the training will take, and train nothing"),
)


# The other files that are written, by option, with the ending that each must have.
_ENDINGS = {"save_absorber": ".safetensors", "plot": ".png"}
_VALIDATION = "validation"


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a motion LoRA on a clip",
        description="Train a motion LoRA on one clip or several, with or without an appearance absorber.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    add_options(parser, FILE_OPTIONS, "files")
    add_options(parser, _repeatable(CLIP_OPTIONS), "clips (repeat all of them for several clips)")
    add_options(parser, SAMPLING_OPTIONS, "frames taken from the clips")
    add_options(parser, BASE_OPTIONS, "base model")
    add_options(parser, TRAIN_OPTIONS, "training (where no default is named, it is the method's)")
    add_options(parser, VALIDATION_OPTIONS, "choice of the checkpoint by measurement")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, save, report."""
    values = _with_absorber_file(gather(options, _ALL_OPTIONS, tables=("clips",)))
    dry = values.get("dry_run", False)
    output = Path() if dry and "output" not in values else _require_output(values)
    requests = clip_requests(values, options.config.parent if options.config else Path())
    pipeline = load_base(values)
    settings = train_settings(pipeline, values)
    clips = read_clips(pipeline, requests, values, single_frames=learns_from_frames(settings))
    absorber = _load_absorber(values, pipeline)
    if dry:
        return _report_dry_run(options, pipeline, clips, settings, absorber)
    _check_results(values, settings, clips)
    checkpoint = values.get("checkpoint", output.with_name(f"{output.stem}.checkpoint"))
    result, validated = _train(pipeline, clips, settings, absorber, checkpoint, values)
    if not result.finished:
        raise StoppedError(
            f"Stopped; the checkpoint is in {checkpoint}. Run the same command again and it goes on from there."
        )
    if not _is_first():
        return 0
    files = _save(values, output, result)
    if validated is not None:
        files |= save_validation(values, output, validated)
    _delete_checkpoint(checkpoint)
    _report(options, result, files, validated)
    return 0


def _report_dry_run(
    options: argparse.Namespace,
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    absorber: Absorber | None,
) -> int:
    """Two lines, or JSON; then an error where the memory is too little."""
    from ...training.preflight import estimate, require_memory

    found = estimate(pipeline, clips, settings, absorber=absorber)
    if wants_json(options):
        write_json(found.to_json())
    else:
        write(found.sentence())
        write(found.details())
    require_memory(found, pipeline, settings)
    return 0


def _repeatable(options: Sequence[Option]) -> tuple[Option, ...]:
    return tuple(dataclasses.replace(option, many=True) for option in options)


_ALL_OPTIONS = (
    *FILE_OPTIONS,
    *_repeatable(CLIP_OPTIONS),
    *SAMPLING_OPTIONS,
    *BASE_OPTIONS,
    *TRAIN_OPTIONS,
    *VALIDATION_OPTIONS,
)


# Before work starts -------------------------------------------------------------------------------------------------


def _require_output(values: Mapping[str, Any]) -> Path:
    """The output's path, checked: every file that will be written can be, before anything is read."""
    output: Path | None = values.get("output")
    if output is None:
        raise SettingsError("There is no --output; name the .safetensors file to write.")
    if output.suffix != ".safetensors":
        raise SettingsError(f"The output {output} must end in .safetensors.")
    named = {"--output": output, **{_flag(name): values[name] for name in _ENDINGS if name in values}}
    for flag, path in named.items():
        ending = _ENDINGS.get(flag.removeprefix("--").replace("-", "_"), output.suffix)
        if path.suffix.lower() != ending:
            raise SettingsError(f"{flag} names {path}; it must end in {ending}.")
        check_output(path, overwrite=values.get("overwrite", False))
    if twice := [flag for flag, path in named.items() if path.absolute() == output.absolute() and path is not output]:
        raise SettingsError(f"{twice[0]} and --output both name {output}; give each a file of its own.")
    check_validation(values, output)
    if "checkpoint" in values:
        check_folder(values["checkpoint"])
    return output


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_results(values: Mapping[str, Any], settings: TrainSettings, clips: Sequence[Clip]) -> None:
    """What only the settings tell: whether there will be an absorber to save, and files of the clips' looks."""
    from ...training.settings import absorber_stages, main_stages

    if "save_absorber" in values and "load_absorber" not in values and not absorber_stages(settings):
        raise SettingsError(
            f"--save-absorber names {values['save_absorber']}, and method {settings.method} with absorber "
            f"{settings.absorber_kind} trains none; leave it out, or name an --absorber."
        )
    if any(part.per_clip for stage in main_stages(settings) for part in stage.parts):
        for number in range(1, len(clips) + 1):
            check_output(_appearance_path(values["output"], number), overwrite=values.get("overwrite", False))


def _appearance_path(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}.appearance-{number}.safetensors")


def _with_absorber_file(values: dict[str, Any]) -> dict[str, Any]:
    """`absorber` is a file as well as a kind: then it means the same as `load_absorber`."""
    named = values.get("absorber")
    if named is None or named in ABSORBERS or not Path(named).expanduser().exists():
        return values
    if "load_absorber" in values:
        raise SettingsError(f"Give the absorber once: --absorber {named} and load_absorber are both files.")
    return {**{k: v for k, v in values.items() if k != "absorber"}, "load_absorber": Path(named).expanduser()}


def clip_requests(values: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One dictionary of CLIP_OPTIONS per clip, from flags, else from the file's [[clips]]; none for a --folder.

    Raises SettingsError when flags do not come in equal numbers or a clip lacks its file.
    """
    given = {option.name: values[option.name] for option in CLIP_OPTIONS if option.name in values}
    if "folder" in values:
        if given or values.get("clips"):
            raise SettingsError("Give either --folder or clips with their captions, not both.")
        return []
    if not given:
        tables = values.get("clips", [])
        if not isinstance(tables, list) or not tables:
            raise SettingsError("There is no clip; give --clip with --caption, or --folder.")
        requests = [check_table(t, CLIP_OPTIONS, (), where=f"clips[{i}]", folder=folder) for i, t in enumerate(tables)]
        if missing := [i for i, request in enumerate(requests) if "clip" not in request]:
            raise SettingsError(f"clips[{missing[0]}] has no 'clip', the file to read.")
        return requests
    count = len(given.get("clip", ()))
    for name, entries in given.items():
        if len(entries) != count:
            raise SettingsError(f"--{name.replace('_', '-')} is given {len(entries)} times and --clip {count} times.")
    return [{name: entries[i] for name, entries in given.items()} for i in range(count)]


def train_settings(pipeline: VideoPipeline, values: Mapping[str, Any]) -> TrainSettings:
    """The method's defaults on this base with the given values over them; raises SettingsError with every fault."""
    from ...training import TrainSettings, check_settings

    defaults = TrainSettings.for_base(pipeline, values.get("method", AUTO))
    chosen = {option.name: values[option.name] for option in TRAIN_OPTIONS if option.name in values}
    # Which method `AUTO` stands for, only the base says.
    chosen["method"] = defaults.method
    settings = dataclasses.replace(defaults, **chosen)
    check_settings(settings)
    return settings


def learns_from_frames(settings: TrainSettings) -> bool:
    """Whether the method looks at single frames only, so that images will do and their number does not matter."""
    from ...training.settings import main_stages

    return all(a_pass.frames == "one" and a_pass.bypass for s in main_stages(settings) for a_pass in s.passes)


def read_clips(
    pipeline: VideoPipeline,
    requests: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    *,
    single_frames: bool = False,
) -> list[Clip]:
    """Decode the clips that were asked for, in the base's size unless another was given. Raises ClipError.

    Without a number of frames they have the base's, or all there are where only `single_frames` are looked at.
    """
    from ...media.read import read_clip, read_folder

    frames = {
        "num_frames": values.get("num_frames", None if single_frames else pipeline.default_num_frames),
        "fps": values.get("clip_fps", pipeline.default_fps),
        "height": values.get("height", pipeline.default_height),
        "width": values.get("width", pipeline.default_width),
    }
    pipeline.check_size(frames["height"], frames["width"])
    if "folder" in values:
        return read_folder(values["folder"], **frames)
    return [
        read_clip(
            request["clip"],
            caption=request.get("caption", ""),
            appearance_caption=request.get("appearance_caption", ""),
            absorb_words=request.get("absorb_words", ""),
            start=request.get("start", 0.0),
            images_fps=values.get("images_fps"),
            **frames,
        )
        for request in requests
    ]


def _load_absorber(values: Mapping[str, Any], pipeline: VideoPipeline) -> Absorber | None:
    if "load_absorber" not in values:
        return None
    from ...files.absorbers import load_any_absorber
    from ...training import check_absorber

    report = load_any_absorber(values["load_absorber"], pipeline.unet)
    check_absorber(pipeline, report.absorber)
    for remark in report.notes:
        note(f"{values['load_absorber'].name}: {remark}")
    return report.absorber


# The work -----------------------------------------------------------------------------------------------------------


def train_with_bar(work: Callable[[Callback], TrainResult]) -> TrainResult:
    """Run `work(callback)` with a progress bar per stage; the first Ctrl-C pauses it at the next step."""
    with interruptible() as request, Progress(hidden=not _is_first()) as bar:

        def report(step: StepReport) -> Command:
            bar.update(step.stage, step.step, step.total, step.loss)
            return "pause" if request.asked else "continue"

        return work(report)


def _is_first() -> bool:
    """Whether this process shows and writes, of those that `accelerate launch` started."""
    from ...training.parallel import processes

    return processes().is_first


def _train(
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    absorber: Absorber | None,
    checkpoint: Path,
    values: Mapping[str, Any],
) -> tuple[TrainResult, Validated | None]:
    from ...training import train
    from ...training.checkpoint import has_checkpoint

    if has_checkpoint(checkpoint):
        note(f"Going on from the checkpoint in {checkpoint}.")

    def work(callback: Callback, visitor: Visitor | None = None) -> TrainResult:
        return train(
            pipeline, clips, settings, absorber=absorber, callback=callback, visitor=visitor, checkpoint=checkpoint
        )

    if "validate_every" not in values:
        return train_with_bar(work), None
    plan = plan_of(values, pipeline, clips)
    found = run_validated(values, pipeline, clips, settings, plan, checkpoint / _VALIDATION, work, train_with_bar)
    return found.result, found


def _save(values: Mapping[str, Any], output: Path, result: TrainResult) -> dict[str, str]:
    """Write what training made; returns what each file is."""
    from ...files.own import save_lora

    overwrite = values.get("overwrite", False)
    files = {"lora": str(save_lora(output, result.lora, overwrite=overwrite))}
    for number, lora in enumerate(result.spatial, start=1):
        path = _appearance_path(output, number)
        files[f"appearance_{number}"] = str(save_lora(path, lora, overwrite=overwrite))
    if "save_absorber" in values and result.absorber is not None:
        from ...files.absorber_file import save_absorber

        files["absorber"] = str(save_absorber(values["save_absorber"], result.absorber, overwrite=overwrite))
    if "plot" in values:
        from ...media.plots import plot_losses
        from ...media.write import write_png
        from ..demo import losses_by_stage

        files["plot"] = str(write_png(values["plot"], plot_losses(losses_by_stage(result.losses))))
    return files


def _delete_checkpoint(folder: Path) -> None:
    """What the run kept, and no more: the folder may be one that the user keeps other things in."""
    from ...evaluate.validation import delete_record
    from ...training import delete_checkpoint

    delete_record(folder / _VALIDATION)
    delete_checkpoint(folder)


def _report(
    options: argparse.Namespace, result: TrainResult, files: Mapping[str, str], validated: Validated | None
) -> None:
    from ..demo import losses_by_stage

    stages = {
        stage: {"steps": len(losses), "last_loss": sum(losses[-10:]) / len(losses[-10:])}
        for stage, losses in losses_by_stage(result.losses).items()
    }
    seconds = sum(report.seconds for report in result.losses)
    if wants_json(options):
        facts = {"files": files, "stages": stages, "seconds": round(seconds, 3), "settings": dict(result.settings)}
        write_json(facts if validated is None else {**facts, "validation": validation_facts(validated)})
        return
    for stage, found in stages.items():
        write(f"{stage}: {found['steps']} steps, loss of the last ten {found['last_loss']:.4f}")
    if validated is not None and validated.choice is not None:
        write(f"best checkpoint: {validated.choice.reason}")
    for kind, path in files.items():
        write(f"{kind}: {path}")
