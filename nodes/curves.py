"""Nodes that draw a strength: over the sampling steps, or along the frames of the video."""

from __future__ import annotations

from ..motion_lora.core.curves import CURVES, Curve, FrameCurve, Schedule
from ..motion_lora.core.text_inputs import curve_from
from .comfy.sockets import CATEGORY, FrameStrength, StrengthSchedule, io
from .widgets import previews

_POINTS = "points"


def _inputs(what: str, first: str, last: str) -> list[io.Input]:
    return [
        io.Float.Input(
            "start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"Where the LoRA begins to act, as a part of the {what}: 0 is the {first}. Before it, nothing.",
        ),
        io.Float.Input(
            "end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"Where it ends: 1 is the {last}. From there on, nothing.",
        ),
        io.Combo.Input(
            "curve",
            options=[*CURVES, _POINTS],
            default="constant",
            tooltip="Between start and end: linear and cosine fall from full strength to nothing, linear-in and "
            "cosine-in rise. points: the line below.",
        ),
        io.String.Input(
            "points",
            default="0:1, 0.5:0.5, 1:0",
            tooltip="Only for the curve points: position:factor pairs over the whole range, joined by straight lines. "
            "Factors multiply the LoRA's strength and may be negative or above 1.",
        ),
    ]


class StrengthScheduleNode(io.ComfyNode):
    """How strongly a LoRA acts over the sampling steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_StrengthSchedule",
            display_name="Strength Schedule",
            category=f"{CATEGORY}/stack",
            description="Lets a LoRA act in a part of the sampling steps only, or more in some than in others. The "
            "node shows the curve.",
            search_aliases=["phased integration", "lora schedule", "strength over steps", "timestep range"],
            inputs=_inputs("sampling steps", "first step", "last step"),
            outputs=[
                StrengthSchedule.Output(
                    "schedule", display_name="schedule", tooltip="For Motion LoRA Stack or Appearance LoRA."
                )
            ],
        )

    @classmethod
    def execute(cls, start: float, end: float, curve: str, points: str) -> io.NodeOutput:
        schedule = Schedule(start, end, curve_from(points if curve == _POINTS else curve))
        return _drawn(cls, schedule, "part of the sampling steps")


class FrameStrengthNode(io.ComfyNode):
    """How strongly a motion LoRA acts along the video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_FrameStrength",
            display_name="Frame Strength",
            category=f"{CATEGORY}/stack",
            description="Lets a motion LoRA act more in some frames of the video than in others: a motion that sets "
            "in, fades, or changes into another. The node shows the curve.",
            search_aliases=["strength over time", "frame curve", "motion fade"],
            inputs=_inputs("video", "first frame", "last frame"),
            outputs=[FrameStrength.Output("frame_curve", display_name="frame_curve", tooltip="For Motion LoRA Stack.")],
        )

    @classmethod
    def execute(cls, start: float, end: float, curve: str, points: str) -> io.NodeOutput:
        frames = FrameCurve(start, end, curve_from(points if curve == _POINTS else curve))
        return _drawn(cls, frames, "part of the video")


def _drawn(node: type[io.ComfyNode], curve: Curve, along: str) -> io.NodeOutput:
    return io.NodeOutput(curve, ui=previews.in_node(previews.curve_plot(curve, along), node))
