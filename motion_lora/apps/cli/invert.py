"""motion-lora invert: the noise from which a base comes back to a clip, as start noise for `sample --noise`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import LoRAFileError, SettingsError
from .bases import BASE_OPTIONS, add_json_flag, load_base, wants_json
from .console import Progress, write, write_json
from .options import Option, add_config_flag, add_options, gather
from .results import check_output

if TYPE_CHECKING:
    from torch import Tensor

    from ...base.pipeline import VideoPipeline
    from ...sampling.ddim import InvertedClip
    from ...sampling.settings import SampleSettings

_EXAMPLES = """\
examples:
  motion-lora invert --clip orbit.mp4 --output orbit.noise.safetensors
  motion-lora invert --base models/zeroscope_v2_576w --clip skate.mp4 --prompt "a man is skateboarding" \\
      --num-frames 16 --height 320 --width 576 --output skate.noise.safetensors
  motion-lora sample --prompt "a blue square over snow" --noise orbit.noise.safetensors --noise-prior 0.5 --output x.mp4
"""
_NAME = "inverted"
_OWN = "motion_lora."
_KIND = "kind"

OPTIONS = (
    Option("clip", Path, "video, GIF or folder of images (required)", metavar="FILE"),
    Option("output", Path, "file to write, .safetensors (required)", metavar="FILE"),
    Option("prompt", str, "text under which it is inverted (default: none)"),
    Option("num_inference_steps", int, "steps (default: 50)"),
    Option("num_frames", int, "frames (default: the base model's)"),
    Option("fps", float, "frames per second taken from the clip (default: the base model's)"),
    Option("start", float, "second at which the clip starts (default: 0)"),
    Option("height", int, "height in pixels (default: the base model's)"),
    Option("width", int, "width in pixels (default: the base model's)"),
    Option("overwrite", bool, "replace an output that exists (default: refuse)"),
)
_ALL_OPTIONS = (*OPTIONS, *BASE_OPTIONS)


def add(commands: Any) -> None:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "invert",
        help="DDIM inversion of a clip",
        description="Find the noise from which the base comes back to a clip (DDIM inversion, without guidance).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(parser)
    add_options(parser, OPTIONS, "clip and output")
    add_options(parser, BASE_OPTIONS, "base model")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Invert and write."""
    from ...core.disk import write_atomically
    from ...files.container import serialize
    from ...media.read import read_frames
    from ...sampling.ddim import invert

    values = gather(options, _ALL_OPTIONS)
    for name in ("clip", "output"):
        if name not in values:
            raise SettingsError(f"There is no --{name}.")
    if values["output"].suffix != ".safetensors":
        raise SettingsError(f"The output {values['output']} must end in .safetensors.")
    check_output(values["output"], overwrite=values.get("overwrite", False))
    pipeline = load_base(values)
    height, width = values.get("height", pipeline.default_height), values.get("width", pipeline.default_width)
    pipeline.check_size(height, width)
    frames, fps = read_frames(
        values["clip"],
        num_frames=values.get("num_frames", pipeline.default_num_frames),
        fps=values.get("fps", pipeline.default_fps),
        start=values.get("start", 0.0),
        height=height,
        width=width,
    )
    steps, prompt = values.get("num_inference_steps", 50), values.get("prompt", "")
    with Progress() as bar:
        noise = invert(
            pipeline,
            pipeline.encode_frames(frames),
            prompt=prompt,
            num_inference_steps=steps,
            callback=lambda step, total: bar.update("inverting", step, total),
        )
    facts = {"base_name": pipeline.identity.name, "prompt": prompt, "num_inference_steps": steps, "fps": fps}
    about = {_KIND: _NAME, "base_weights_hash": pipeline.identity.weights_hash, **facts}
    metadata = {f"{_OWN}{key}": str(value) for key, value in about.items()}
    write_atomically(values["output"], serialize({_NAME: noise}, metadata))
    if wants_json(options):
        write_json({"file": str(values["output"]), "shape": list(noise.shape), **facts})
    else:
        write(f"{values['output']}: noise of shape {tuple(noise.shape)}")
    return 0


def start_noise(pipeline: VideoPipeline, values: Mapping[str, Any], wanted: Sequence[SampleSettings]) -> Tensor | None:
    """Start noise (n, c, f, h, w) from `noise` and `noise_prior`, fresh noise by each video's seed; None without."""
    if "noise" not in values:
        if "noise_prior" in values:
            raise SettingsError("noise_prior is given but no --noise; name a file that motion-lora invert has written.")
        return None
    import torch

    from ...sampling.loop import prior_noise

    inverted = _read(values["noise"])
    return torch.cat([prior_noise(pipeline, one, inverted, values.get("noise_prior", 0.5)) for one in wanted])


def _read(path: Path) -> InvertedClip:
    from ...core.identity import BaseIdentity
    from ...files.container import read_header, read_tensors
    from ...sampling.ddim import InvertedClip

    header = read_header(path)
    said = {key.removeprefix(_OWN): value for key, value in header.metadata.items()}
    if said.get(_KIND) != _NAME or _NAME not in header.tensors:
        raise LoRAFileError(f"{path.name} holds no inverted clip; make one with motion-lora invert.")
    base = BaseIdentity(said.get("base_name", ""), "", said.get("base_weights_hash", ""))
    return InvertedClip(read_tensors(path, header)[_NAME], base, said.get("prompt", ""))
