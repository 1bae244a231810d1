"""motion-lora sample: videos from prompts, with any number of LoRAs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from ...core.text_inputs import block_strengths_from, curve_from
from .bases import BASE_OPTIONS, add_json_flag, load_base, wants_json
from .console import Progress, note, write, write_json
from .invert import start_noise
from .options import Option, add_config_flag, add_options, check_table, file_and_strength, gather, named_words
from .results import VIDEO_ENDINGS, check_folder, check_rate, check_video_output, write_frames
from .settings import SAMPLE_OPTIONS

if TYPE_CHECKING:
    from ...base.pipeline import VideoPipeline
    from ...core.stack import AdapterStack, StackEntry
    from ...sampling.loop import Sample
    from ...sampling.settings import SampleSettings

_EXAMPLES = """\
examples:
  motion-lora sample --prompt "a blue square circling around over snow" --lora orbit.safetensors --output orbit.mp4

  motion-lora sample --base models/zeroscope_v2_576w --prompt "a panda is skateboarding" \\
      --prompt "a robot is skateboarding" --seed 1 --seed 2 --lora skate.safetensors 0.9 \\
      --height 320 --width 576 --num-frames 24 --output out/skate/

  motion-lora sample --prompt "a pink ring over night" --lora orbit.safetensors --lora style.safetensors 0.6 \\
      --highway code --scheduler dpmpp-2m-karras --num-inference-steps 20 --output ring.gif

  motion-lora sample --prompt "a pink ring over night" --lora orbit.safetensors 0.8 end=0.5 curve=cosine \\
      --lora style.safetensors start=0.4 block_strengths=mid_block=0,up_blocks.1=0.5 --output ring.mp4

--output is one .mp4 or .gif, or a folder when there are several videos. A file for --config holds the same names with
underscores; its LoRAs are tables that can say more:

  [[loras]]
  lora = "orbit.safetensors"
  strength = 1.0
  temporal_strength = 1.0
  spatial_strength = 0.5
  block_strengths = "down_blocks.0=0.5, mid_block=0"
  start = 0.0           # part of the denoising steps in which it acts
  end = 0.6
  curve = "constant"    # or linear, cosine, linear-in, cosine-in, or points: "0:1, 0.5:0.2, 1:0"
  frame_start = 0.0     # the same along the frames of the video, for motion LoRAs
  frame_end = 1.0
  frame_curve = "linear-in"

After --lora FILE [STRENGTH] the same names go as name=value.
"""

OUTPUT_OPTIONS = (
    Option("output", Path, "video to write (.mp4 or .gif), or a folder for several (required)"),
    Option("batch_size", int, "videos that are denoised together (default: 4)"),
)
ADAPTER_OPTIONS = (
    Option("text_part", bool, "apply the text-encoder part of image LoRAs too (default: leave it out)"),
    Option("highway", str, "re-route skips around the temporal layers", choices=("none", "code", "all")),
    Option("highway_scale", float, "scale of the highway (default: 1.1)"),
)
EDIT_OPTIONS = (
    Option("source", Path, "clip to edit: denoising starts from it", metavar="FILE"),
    Option("edit_strength", float, "share of the steps that are run on it, 0 to 1 (default: 1)"),
)
NOISE_OPTIONS = (
    Option("noise", Path, "start from this inverted clip (motion-lora invert)", metavar="FILE"),
    Option("noise_prior", float, "share of it in the start noise, 0 to 1 (default: 0.5)"),
)
LORA_OPTIONS = (
    Option("lora", Path, "file"),
    Option("strength", float, "of the whole"),
    Option("temporal_strength", float, "of its temporal layers"),
    Option("spatial_strength", float, "of its spatial layers"),
    Option("start", float, "first part of the denoising in which it acts"),
    Option("end", float, "last part"),
    Option("curve", str, "how its strength runs from start to end"),
    Option("frame_start", float, "first part of the video in which it acts"),
    Option("frame_end", float, "last part"),
    Option("frame_curve", str, "how its strength runs along the frames"),
    Option("block_strengths", str, "of single blocks"),
)
_ALL_OPTIONS = (*OUTPUT_OPTIONS, *SAMPLE_OPTIONS, *ADAPTER_OPTIONS, *EDIT_OPTIONS, *NOISE_OPTIONS, *BASE_OPTIONS)


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sample",
        help="make videos from prompts, with motion LoRAs",
        description="Make one video per prompt and seed, with any number of LoRAs. The same seed gives the same video.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    add_options(parser, OUTPUT_OPTIONS, "output")
    add_options(parser, SAMPLE_OPTIONS, "what to sample")
    loras = parser.add_argument_group("LoRAs")
    loras.add_argument(
        "--lora",
        nargs="+",
        action="append",
        metavar=("FILE", "STRENGTH"),
        help="LoRA file in any format that motion-lora inspect knows, its strength (default: 1, may be negative), and "
        "name=value for more, such as end=0.5 (see below)",
    )
    add_options(parser, ADAPTER_OPTIONS, "more on LoRAs, appearance highway")
    add_options(parser, EDIT_OPTIONS, "video to video")
    add_options(parser, NOISE_OPTIONS, "noise prior")
    add_options(parser, BASE_OPTIONS, "base model")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sample and write the videos."""
    from ...sampling.loop import sample
    from ...sampling.settings import resolve

    values = gather(options, _ALL_OPTIONS, tables=("loras",))
    wanted = sample_requests(values)
    paths = output_paths(values, wanted)
    requests = lora_requests(options.lora, values, options.config.parent if options.config else Path())
    pipeline = load_base(values)
    for path, one in zip(paths, wanted, strict=True):
        resolve(pipeline, one, editing="source" in values)
        check_rate(path, float(one.fps or pipeline.default_fps))
    stack = build_stack(pipeline, requests, values)
    source = _encode_source(pipeline, values, resolve(pipeline, wanted[0], editing="source" in values))
    latents = start_noise(pipeline, values, wanted)
    with Progress() as bar:
        videos = sample(
            pipeline,
            wanted,
            stack=stack,
            source=source,
            latents=latents,
            batch_size=values.get("batch_size", 4),
            callback=lambda step, total: bar.update("sampling", step, total),
        )
    written = [
        write_frames(path, video.frames, float(video.settings.fps or pipeline.default_fps))
        for path, video in zip(paths, videos, strict=True)
    ]
    _report(options, written, videos, stack)
    return 0


# Before work starts -------------------------------------------------------------------------------------------------


def sample_requests(values: Mapping[str, Any]) -> list[SampleSettings]:
    """Every prompt with every seed; raises SettingsError when there is no prompt."""
    from ...sampling.settings import SampleSettings

    if not values.get("prompt"):
        raise SettingsError("There is no --prompt; say what to show.")
    names = {option.name for option in (*SAMPLE_OPTIONS, *EDIT_OPTIONS)} - {"prompt", "seed", "source"}
    shared = {name: values[name] for name in names if name in values}
    seeds = values.get("seed", [0])
    return [SampleSettings(prompt=prompt, seed=seed, **shared) for prompt in values["prompt"] for seed in seeds]


def output_paths(values: Mapping[str, Any], wanted: Sequence[SampleSettings]) -> list[Path]:
    """A file per video, checked to be writable: the output itself for one, numbered names in it for several."""
    output: Path | None = values.get("output")
    if output is None:
        raise SettingsError("There is no --output; name a .mp4 or .gif file, or a folder for several videos.")
    if output.suffix.lower() in VIDEO_ENDINGS:
        if len(wanted) > 1:
            raise SettingsError(f"{len(wanted)} videos do not go into the one file {output}; give a folder.")
        check_video_output(output)
        return [output]
    if output.is_file() or (output.suffix and not output.is_dir()):
        raise SettingsError(f"The output {output} must end in one of {', '.join(VIDEO_ENDINGS)}, or be a folder.")
    check_folder(output)
    return [output / f"{number:02d}-{_slug(one.prompt)}-{one.seed}.mp4" for number, one in enumerate(wanted)]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "video"


def lora_requests(
    flags: Sequence[Sequence[str]] | None, values: Mapping[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """One dictionary of LORA_OPTIONS per LoRA, from the flags, else from the file's [[loras]]."""
    if flags is None:
        tables = values.get("loras", [])
        if not isinstance(tables, list):
            raise SettingsError("loras must be tables: [[loras]].")
        requests = [check_table(t, LORA_OPTIONS, (), where=f"loras[{i}]", folder=folder) for i, t in enumerate(tables)]
        if missing := [i for i, request in enumerate(requests) if "lora" not in request]:
            raise SettingsError(f"loras[{missing[0]}] has no 'lora', the file to read.")
        return requests
    return [_words_of(entry) for entry in flags]


def _words_of(entry: Sequence[str]) -> dict[str, Any]:
    """What follows one --lora: a file, perhaps its strength, and name=value words."""
    plain = [word for word in entry[1:] if "=" not in word]
    path, strength = file_and_strength([entry[0], *plain], "--lora")
    settings = [option for option in LORA_OPTIONS if option.name != "lora"]
    named = named_words([word for word in entry[1:] if "=" in word], settings, f"--lora {path.name}")
    if plain and "strength" in named:
        raise SettingsError(f"--lora {path.name}: the strength is given twice, {plain[0]} and {named['strength']}.")
    return {"lora": path, "strength": strength, **named}


def build_stack(
    pipeline: VideoPipeline, requests: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> AdapterStack:
    """Read the LoRAs, check each against the base, and put them together. Raises LoRAFileError or SettingsError."""
    from ...core.highway import Highway
    from ...core.stack import AdapterStack

    entries = tuple(_entry(pipeline, request, bool(values.get("text_part"))) for request in requests)
    preset = values.get("highway", "none")
    if preset == "none":
        if "highway_scale" in values:
            raise SettingsError("highway_scale is given but the highway is off; add --highway code or all.")
        return AdapterStack(entries)
    return AdapterStack(entries, Highway(preset, values.get("highway_scale", Highway.scale)))


def _entry(pipeline: VideoPipeline, request: Mapping[str, Any], text: bool) -> StackEntry:
    from ...adapters.fit import check_fits
    from ...backbones.lora import blocks_of
    from ...core.curves import FrameCurve, Schedule
    from ...core.stack import StackEntry
    from ...files.reader import load_any

    path: Path = request["lora"]
    report = load_any(path, pipeline.unet, text_encoder=pipeline.text_encoder if text else None)
    for remark in (*report.notes, *check_fits(report.lora, pipeline.unet, pipeline.identity).warnings):
        note(f"{path.name}: {remark}")
    steps, frames = _curve_settings(request, ""), _curve_settings(request, "frame_")
    strengths = {n: request[n] for n in ("strength", "temporal_strength", "spatial_strength") if n in request}
    blocks = list(blocks_of(report.lora))
    return StackEntry(
        report.lora,
        **strengths,
        block_strengths=block_strengths_from(request.get("block_strengths", ""), blocks),
        steps=Schedule(**steps) if steps else None,
        frames=FrameCurve(**frames) if frames else None,
        name=path.stem,
        text_encoder=report.text_encoder,
    )


def _curve_settings(request: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What a request says of one curve, by the names of Curve."""
    said = {name: request[prefix + name] for name in ("start", "end", "curve") if prefix + name in request}
    return {**said, "curve": curve_from(said["curve"])} if "curve" in said else said


def _encode_source(pipeline: VideoPipeline, values: Mapping[str, Any], settings: SampleSettings) -> Any:
    if "source" not in values:
        return None
    from ...media.read import read_frames

    frames, _ = read_frames(
        values["source"],
        num_frames=settings.num_frames,
        fps=settings.fps,
        height=settings.height,
        width=settings.width,
    )
    return pipeline.encode_frames(frames)


def _report(options: argparse.Namespace, paths: Sequence[Path], videos: Sequence[Sample], stack: AdapterStack) -> None:
    from dataclasses import asdict

    if wants_json(options):
        rows = [{"file": str(path), **asdict(video.settings)} for path, video in zip(paths, videos, strict=True)]
        write_json({"videos": rows, "stack": stack.describe()})
        return
    for path, video in zip(paths, videos, strict=True):
        write(f"{path}: {video.settings.prompt!r}, seed {video.settings.seed}")
