"""The settings of training and sampling as options: of training from the descriptions of its fields.

Where no default is named, it is the method's (and on the built-in model its own, where its size needs another). The
options of sampling are written out, so that `--help` needs no torch; `tests/test_cli.py` compares them with the fields.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...core.fields import type_of
from ...methods.table import ABSORBERS, METHODS
from ...training.settings import SETTINGS, TrainSettings
from .options import Option

_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
_ALSO = {
    "method": "motion-lora methods lists them (default: auto, the base's own)",
    "absorber": "or a file as for --load-absorber",
    "targets": "motion-lora targets lists them",
}


def _option(name: str, default: Any) -> Option:
    kind, about = type_of(TrainSettings, name), SETTINGS[name]
    text = "; ".join(part for part in (about.help.rstrip("."), _names(name), _ALSO.get(name, "")) if part)
    many = kind not in _KINDS
    return Option(
        name,
        _KINDS.get(kind, str),
        f"{text}{_default(name, default)}",
        many=many,
        metavar="CAPTION" if many else None,
        names=tuple(ABSORBERS) if name == "absorber" else (),
    )


def _names(name: str) -> str:
    """The legal names, where there are few of them and no command that lists them."""
    choices = SETTINGS[name].choices
    return "" if choices is None or name in ("method", "targets", "spatial_targets") else ", ".join(choices())


def _default(name: str, default: Any) -> str:
    """The default, unless it is another from method to method or there is nothing to name."""
    if name == "method" or default is None or default == () or any(name in row.defaults for row in METHODS.values()):
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"


TRAIN_OPTIONS = tuple(_option(field.name, field.default) for field in dataclasses.fields(TrainSettings))

# `prompt` and `seed` may be given several times; every prompt is sampled with every seed.
SAMPLE_OPTIONS = (
    Option("prompt", str, "what to show; may be given several times (required)", many=True),
    Option("negative_prompt", str, "what to stay away from"),
    Option("num_frames", int, "frames (default: the base model's)"),
    Option("height", int, "height in pixels (default: the base model's)"),
    Option("width", int, "width in pixels (default: the base model's)"),
    Option("num_inference_steps", int, "denoising steps (default: 30)"),
    Option("guidance_scale", float, "classifier-free guidance (default: the base model's)"),
    Option("scheduler", str, "ddim (default), dpmpp-2m-karras, euler, euler-ancestral or unipc"),
    Option("seed", int, "seed of a video; may be given several times (default: 0)", many=True),
    Option("fps", float, "frames per second of the file (default: the base model's)"),
    Option("context_frames", int, "denoise a longer video in windows of so many frames (default: all at once)"),
    Option("context_overlap", int, "frames that neighbouring windows share (default: 4)"),
    Option("loop", bool, "join the end of a video in windows to its beginning (default: off)"),
)
