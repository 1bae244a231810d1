"""motion-lora compare: LoRAs, strengths or checkpoints side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.decoding import decode_text
from ...core.errors import SettingsError
from .bases import BASE_OPTIONS, PLAYGROUND, add_json_flag, load_base, wants_json
from .console import Progress, note, write, write_json
from .options import Option, add_config_flag, add_options, file_and_strength, gather
from .results import check_folder
from .settings import SAMPLE_OPTIONS

if TYPE_CHECKING:
    from torch import Tensor

    from ...base.pipeline import VideoPipeline
    from ...evaluate.compare import Candidate
    from ...evaluate.judge import Judge

_EXAMPLES = """\
examples:
  motion-lora compare --lora orbit.safetensors --lora other.safetensors \\
      --prompt "a blue square circling around over snow" --output out/compare/
  motion-lora compare --lora orbit.safetensors 0.5 --lora orbit.safetensors 1.0 --label weak --label full \\
      --prompt "a pink ring circling around over night" --reference orbit.mp4 --output out/strengths/
  motion-lora compare --lora last.safetensors --lora last.best.safetensors --prompts-file prompts.txt \\
      --output out/checkpoints/ --json

The base without a LoRA is always the first row. Writes grid.mp4, sheet.png, table.md and table.csv.
"""
_SHARED = ("seed", "prompt")
COMPARE_OPTIONS = (
    Option("output", Path, "folder to write into (required)", metavar="FOLDER"),
    Option("prompts_file", Path, "text file with one prompt per line, beside or instead of --prompt", metavar="FILE"),
    Option("prompt", str, "what to show; may be given several times", many=True),
    Option("label", str, "label of a LoRA, in the same order; default: its file's name", many=True),
    Option("reference", Path, "reference clip, for motion fidelity and leakage", metavar="FILE"),
    Option("clip_model", Path, "folder of a CLIP model, for text alignment on other bases", metavar="FOLDER"),
    Option(
        "lpips_weights",
        Path,
        "torchvision's weights of AlexNet (VGG16, SqueezeNet), for consistency on other bases",
        metavar="FILE",
    ),
    Option("seed", int, "seed of the first prompt's start noise; each further prompt has the next (default: 0)"),
    *(option for option in SAMPLE_OPTIONS if option.name not in _SHARED),
)
_ALL_OPTIONS = (*COMPARE_OPTIONS, *BASE_OPTIONS)
_NOT_SAMPLING = ("output", "prompts_file", "prompt", "label", "reference", "clip_model", "lpips_weights")


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="LoRAs side by side: a labelled grid and a table",
        description="Sample the same prompts and start noise with several LoRAs, strengths or checkpoints, and score "
        "them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    parser.add_argument(
        "--lora", nargs="+", action="append", metavar="FILE [STRENGTH]", help="a LoRA and its strength; repeat it"
    )
    add_options(parser, COMPARE_OPTIONS, "what is compared")
    add_options(parser, BASE_OPTIONS, "base model")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample, score, write."""
    from ...evaluate.compare import compare, markdown_of, plain_of, write_comparison
    from ...sampling.settings import SampleSettings, resolve

    values = gather(options, _ALL_OPTIONS)
    output = values.get("output")
    if output is None:
        raise SettingsError("There is no --output; name the folder to write into.")
    prompts, labelled = _prompts(values), _labelled(options.lora, values.get("label"))
    check_folder(output)
    _check_models(values)
    pipeline = load_base(values)
    sampling = {name: value for name, value in values.items() if name in _sampling_names()}
    settings = resolve(pipeline, SampleSettings(prompts[0], **sampling))
    reference = _reference(values, settings)
    judge = _judge(pipeline, reference, values)
    candidates = [_candidate(pipeline, label, path, strength) for label, path, strength in labelled]
    with Progress() as bar:
        found = compare(
            pipeline,
            candidates,
            prompts,
            settings,
            judge,
            reference=reference,
            callback=lambda step, total: bar.update("sampling", step, total),
        )
    files = [str(path) for path in write_comparison(output, found)]
    if wants_json(options):
        write_json({"files": files, **plain_of(found)})
        return 0
    write(markdown_of(found))
    for path in files:
        write(path)
    return 0


def _sampling_names() -> set[str]:
    return {option.name for option in COMPARE_OPTIONS} - set(_NOT_SAMPLING)


def _prompts(values: Mapping[str, Any]) -> tuple[str, ...]:
    from ...evaluate.compare import prompts_of

    text = list(values.get("prompt", []))
    if "prompts_file" in values:
        try:
            text.append(decode_text(values["prompts_file"].read_bytes()))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{values['prompts_file']} cannot be read as text: {error}.") from error
    if not text:
        raise SettingsError("There is no --prompt; say what to show, or name a --prompts-file.")
    return prompts_of("\n".join(text))


def _labelled(loras: Sequence[Sequence[str]] | None, labels: Sequence[str] | None) -> list[tuple[str, Path, float]]:
    """(label, file, strength) of every --lora; raises SettingsError where labels and LoRAs do not match."""
    if not loras:
        raise SettingsError("There is no --lora; name one or more files to compare.")
    pairs = [file_and_strength(entry, "--lora") for entry in loras]
    if labels is not None and len(labels) != len(pairs):
        raise SettingsError(f"--label is given {len(labels)} times and --lora {len(pairs)} times; label all or none.")
    named = labels or [path.stem if strength == 1 else f"{path.stem} x{strength:g}" for path, strength in pairs]
    return [(label, path, strength) for label, (path, strength) in zip(named, pairs, strict=True)]


def _candidate(pipeline: VideoPipeline, label: str, path: Path, strength: float) -> Candidate:
    from ...adapters.fit import check_fits
    from ...core.stack import AdapterStack, StackEntry
    from ...evaluate.compare import Candidate
    from ...files.reader import load_any

    report = load_any(path, pipeline.unet)
    for remark in (*report.notes, *check_fits(report.lora, pipeline.unet, pipeline.identity).warnings):
        note(f"{path.name}: {remark}")
    return Candidate(label, AdapterStack((StackEntry(report.lora, strength, name=path.stem),)))


def _reference(values: Mapping[str, Any], settings: Any) -> Tensor | None:
    if "reference" not in values:
        return None
    from ...media.read import read_frames

    frames, _ = read_frames(
        values["reference"],
        num_frames=settings.num_frames,
        fps=settings.fps,
        height=settings.height,
        width=settings.width,
    )
    return frames


def _check_models(values: Mapping[str, Any]) -> None:
    """Raise for models that cannot be loaded, before the base is; the built-in one's judge needs none."""
    if values.get("base", PLAYGROUND) != PLAYGROUND:
        from ...evaluate.metrics import check_metric_models

        check_metric_models(values.get("clip_model"), values.get("lpips_weights"))


def _judge(pipeline: VideoPipeline, reference: Tensor | None, values: Mapping[str, Any]) -> Judge:
    from ...evaluate.judge import load_judge

    return load_judge(
        pipeline, reference, clip_model=values.get("clip_model"), lpips_weights=values.get("lpips_weights")
    )
