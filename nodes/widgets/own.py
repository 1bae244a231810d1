"""Widgets of sampling whose 0 stands for the base model's own value, which the web extension shows below them."""

from __future__ import annotations

from ...motion_lora.sampling.settings import SAMPLING
from ..comfy.sockets import io

HINT = "0: the base model's own."


def _said(name: str) -> str:
    return f"{SAMPLING[name].help} {HINT}"


def sizes(*, advanced: bool = False) -> list[io.Input]:
    """Frames, width and height; `advanced` folds the last two."""
    side = {"default": 0, "min": 0, "max": 4096, "step": 8, "advanced": advanced or None}
    return [
        io.Int.Input("num_frames", "num_frames (0: auto)", default=0, min=0, max=1024, tooltip=_said("num_frames")),
        io.Int.Input("width", "width (0: auto)", tooltip=_said("width"), **side),
        io.Int.Input("height", "height (0: auto)", tooltip=_said("height"), **side),
    ]


def guidance() -> io.Input:
    return io.Float.Input(
        "guidance_scale",
        "guidance_scale (0: auto)",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip=_said("guidance_scale"),
    )


def fps(*, advanced: bool = False) -> io.Input:
    return io.Float.Input(
        "fps",
        "fps (0: auto)",
        default=0.0,
        min=0.0,
        max=240.0,
        step=0.5,
        advanced=advanced or None,
        tooltip=_said("fps"),
    )


def steps(default: int) -> io.Int.Input:
    about = SAMPLING["num_inference_steps"]
    return io.Int.Input(
        "num_inference_steps", default=default, min=int(about.low or 1), max=int(about.high or 1), tooltip=about.help
    )
