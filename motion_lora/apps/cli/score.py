"""motion-lora score: the measures of videos that exist already; no base model is needed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from .bases import add_json_flag, wants_json
from .console import write, write_json
from .options import Option, add_config_flag, add_options, gather
from .results import check_output

if TYPE_CHECKING:
    from torch import Tensor

    from ...evaluate.judge import Judge
    from ...evaluate.sheet import Video

_EXAMPLES = """\
examples:
  motion-lora score moved.mp4 --reference skate.mp4 --prompt "a panda is skateboarding on a beach" \\
      --neutral base.mp4 --clip-model models/clip-vit-base-patch32 --lpips-weights models/alexnet-owt-7be5be79.pth
  motion-lora score seed0.mp4 seed1.mp4 seed2.mp4 --prompt "a panda is skateboarding" \\
      --lpips-weights models/alexnet-owt-7be5be79.pth --output scores.csv
  motion-lora score moved.mp4 --playground --reference orbit.mp4 \\
      --prompt "a blue square circling around over snow" --json

A score that cannot be had is left out, with the reason and what would give it. Several videos of one prompt are scored
for their diversity too. The reference is read at the first video's rate and number of frames.
"""

SCORE_OPTIONS = (
    Option("reference", Path, "clip whose motion was learned, for motion fidelity and leakage", metavar="FILE"),
    Option("prompt", str, "what the videos were asked for: once for all, or once per video, in order", many=True),
    Option("neutral", Path, "the base model's own video of the prompt, for leakage: once for all, or once per video",
           many=True, metavar="FILE"),
    Option("clip_model", Path, "folder of a CLIP model, for text alignment (and consistency, without LPIPS)",
           metavar="FOLDER"),
    Option("lpips_weights", Path, "torchvision's weights of a backbone, for consistency and diversity", metavar="FILE"),
    Option("lpips_backbone", str, "the backbone (default: the one that the file is named after, else alex)",
           choices=("alex", "vgg", "squeeze")),
    Option("playground", bool, "videos of the built-in model: read by its probe, exactly (default: off)"),
    Option("num_frames", int, "frames to read of every video (default: all of them)"),
    Option("fps", float, "frames per second to read (default: each video's own)"),
    Option("height", int, "height to crop and resize every video to (default: its own)"),
    Option("width", int, "width to crop and resize every video to (default: its own)"),
    Option("device", str, "where CLIP and LPIPS are computed: auto (default), cpu, or a device name of torch"),
    Option("output", Path, "write the scores into this .csv or .md file too", metavar="FILE"),
)  # fmt: skip


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="measures of videos that exist already",
        description="Measure videos: motion fidelity to a reference clip, leakage of its look, text alignment, "
        "consistency, and diversity of several. No base model is needed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="video, GIF, or folder of images")
    add_options(parser, SCORE_OPTIONS, "what they are measured by")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, score, print, write."""
    from ...evaluate.sheet import markdown_of, plain_of, score_videos, write_sheet

    values, paths = gather(options, SCORE_OPTIONS), list(options.videos)
    prompts, neutral = _each(values, "prompt", len(paths), ""), _each(values, "neutral", len(paths), None)
    _check(values)
    videos, fps = _read(values, paths, prompts, neutral)
    sheet = score_videos(_judge(values, _reference(values, videos[0].frames, fps)), videos)
    files = [str(write_sheet(values["output"], sheet))] if "output" in values else []
    if wants_json(options):
        write_json({**plain_of(sheet), "files": files})
        return 0
    write(markdown_of(sheet).rstrip())
    for path in files:
        write(path)
    return 0


def _each(values: Mapping[str, Any], name: str, count: int, nothing: Any) -> list[Any]:
    """A value for every video, of one for all or one for each."""
    given = values.get(name, [])
    if len(given) not in (0, 1, count):
        raise SettingsError(
            f"--{name} is given {len(given)} times and there are {count} videos; give it once for all, or once for "
            "each, in their order."
        )
    return list(given) * count if len(given) == 1 else list(given) or [nothing] * count


def _check(values: Mapping[str, Any]) -> None:
    """Raise for what cannot be written or loaded, before anything is read."""
    from ...evaluate.metrics import check_metric_models
    from ...evaluate.sheet import check_sheet_name

    if "output" in values:
        check_sheet_name(values["output"])
        check_output(values["output"])
    if "lpips_backbone" in values and "lpips_weights" not in values:
        raise SettingsError("--lpips-backbone needs --lpips-weights, the file with its weights.")
    if not values.get("playground", False):
        check_metric_models(values.get("clip_model"), values.get("lpips_weights"), values.get("lpips_backbone", ""))


def _read(
    values: Mapping[str, Any], paths: Sequence[Path], prompts: Sequence[str], neutral: Sequence[Path | None]
) -> tuple[list[Video], float]:
    """The videos, and the rate of the first."""
    from ...evaluate.sheet import Video
    from ...media.read import read_frames

    cut = {name: values[name] for name in ("num_frames", "fps", "height", "width") if name in values}
    cleared = {path: read_frames(path, **cut)[0] for path in dict.fromkeys(neutral) if path is not None}
    names = _labels(paths)
    found, rates = [], []
    for path, label, prompt, beside in zip(paths, names, prompts, neutral, strict=True):
        frames, fps = read_frames(path, **cut)
        found.append(Video(label, frames, prompt, None if beside is None else cleared[beside]))
        rates.append(fps)
    return found, rates[0]


def _labels(paths: Sequence[Path]) -> list[str]:
    """The files' names, or their whole paths where names alone would be equal."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if list(paths).count(path) > 1)
        raise SettingsError(f"{twice} is given twice; name every video once.")
    return [str(path) for path in paths]


def _reference(values: Mapping[str, Any], frames: Tensor, fps: float) -> Tensor | None:
    """The reference as long and as fast as the first video, in its own size unless one was asked for."""
    if "reference" not in values:
        return None
    from ...media.read import read_frames

    sizes = {name: values[name] for name in ("height", "width") if name in values}
    return read_frames(values["reference"], num_frames=len(frames), fps=fps, **sizes)[0]


def _judge(values: Mapping[str, Any], reference: Tensor | None) -> Judge:
    from ...evaluate.metrics import MetricModels
    from ...evaluate.playground_judge import playground_judge
    from ...evaluate.video_judge import video_judge

    named = values.get("clip_model"), values.get("lpips_weights")
    if values.get("playground", False):
        return playground_judge(reference, unused_models=any(path is not None for path in named))
    models = MetricModels.load(*named, backbone=values.get("lpips_backbone", ""), device=values.get("device", "auto"))
    return video_judge(reference, clip_scorer=models.clip_scorer, perceptual=models.perceptual)
