"""Widgets of sampling whose 0 stands for the base model's own value, which the web extension shows below them."""

from __future__ import annotations

from ..comfy.sockets import io

HINT = "0: the base model's own."


def sizes(*, advanced: bool = False) -> list[io.Input]:
    """Frames, width and height; `advanced` folds the last two."""
    side = {"default": 0, "min": 0, "max": 4096, "step": 8, "advanced": advanced or None}
    return [
        io.Int.Input("num_frames", "num_frames (0: auto)", default=0, min=0, max=1024, tooltip=f"Frames. {HINT}"),
        io.Int.Input("width", "width (0: auto)", tooltip=f"Width in pixels. {HINT}", **side),
        io.Int.Input("height", "height (0: auto)", tooltip=f"Height in pixels. {HINT}", **side),
    ]


def guidance() -> io.Input:
    return io.Float.Input(
        "guidance_scale",
        "guidance_scale (0: auto)",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip=f"How strictly the prompt is followed. {HINT} 1: no guidance, twice as fast.",
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
        tooltip=f"Frames per second of the video. {HINT}",
    )
