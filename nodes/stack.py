"""Nodes that build an adapter stack, the value that a video is sampled with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..motion_lora.core.curves import FrameCurve, Schedule
from ..motion_lora.core.lora import LoRA
from ..motion_lora.core.stack import AdapterStack, StackEntry
from ..motion_lora.core.text_inputs import block_strengths_from
from . import files
from .comfy import folders, server
from .comfy.sockets import CATEGORY, Base, FrameStrength, MotionLoRA, Stack, StrengthSchedule, TextPart, io
from .widgets import files as listed
from .widgets.enums import HIGHWAY_PRESETS, MAX_HIGHWAY_SCALE

if TYPE_CHECKING:
    from ..motion_lora.base.pipeline import VideoPipeline

_MAX_STRENGTH = 10.0
_STACK_IN = "An earlier stack; nothing for the first. The order of a stack changes nothing."
_STACK_OUT = "For Sample Video, or for the next node of the stack."


def _strength(what: str, name: str = "strength", *, optional: bool = False) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-_MAX_STRENGTH,
        max=_MAX_STRENGTH,
        step=0.05,
        optional=optional,
        tooltip=f"How strongly {what} acts: 1 as trained, 0 not at all, negative the other way round.",
    )


def _schedule() -> io.Input:
    return StrengthSchedule.Input(
        "schedule", optional=True, tooltip="From Strength Schedule; nothing: the same in all sampling steps."
    )


def _block_strengths() -> io.String.Input:
    return io.String.Input(
        "block_strengths",
        default="",
        optional=True,
        tooltip="Strengths of single blocks, times the strength: down_blocks.0=0.5, mid_block=0. Blocks that are not "
        "named stay at 1; Inspect LoRA lists them.",
    )


def _blocks(text: str, lora: LoRA) -> dict[str, float]:
    """The block strengths of a widget; a block that the LoRA lacks is refused, as it would do nothing in silence."""
    from ..motion_lora.backbones.lora import blocks_of

    return block_strengths_from(text, list(blocks_of(lora)))


class MotionLoRAStack(io.ComfyNode):
    """One more motion LoRA on the stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_MotionLoRAStack",
            display_name="Motion LoRA Stack",
            category=f"{CATEGORY}/stack",
            description="Puts a motion LoRA on a stack. Chain several of these to combine motions.",
            search_aliases=["apply motion lora", "lora stack", "motion strength"],
            inputs=[
                MotionLoRA.Input("motion_lora", tooltip="From Train Motion LoRA or Load Motion LoRA."),
                Stack.Input("stack", optional=True, tooltip=_STACK_IN),
                _strength("the motion"),
                _schedule(),
                FrameStrength.Input(
                    "frame_curve", optional=True, tooltip="From Frame Strength; nothing: the same in all frames."
                ),
                _strength("its temporal part", "temporal_strength", optional=True),
                _strength("its spatial part", "spatial_strength", optional=True),
                _block_strengths(),
                TextPart.Input(
                    "text_part",
                    optional=True,
                    tooltip="From Load LoRA (any format): the text-encoder part, applied with the same strength.",
                ),
            ],
            outputs=[Stack.Output("stack_out", display_name="stack", tooltip=_STACK_OUT)],
        )

    @classmethod
    def execute(
        cls,
        motion_lora: LoRA,
        strength: float,
        stack: AdapterStack | None = None,
        schedule: Schedule | None = None,
        frame_curve: FrameCurve | None = None,
        temporal_strength: float = 1.0,
        spatial_strength: float = 1.0,
        block_strengths: str = "",
        text_part: LoRA | None = None,
    ) -> io.NodeOutput:
        from ..motion_lora.adapters.apply import check_frames

        entry = StackEntry(
            motion_lora,
            strength,
            temporal_strength,
            spatial_strength,
            _blocks(block_strengths, motion_lora),
            steps=schedule,
            frames=frame_curve,
            name=motion_lora.metadata.get("modelspec.title", ""),
            text_encoder=text_part,
        )
        check_frames(entry)
        return io.NodeOutput((stack or AdapterStack()).add(entry))


class AppearanceLoRA(listed.FromLoRAFile):
    """A look from a spatial LoRA on the same stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_AppearanceLoRA",
            display_name="Appearance LoRA",
            category=f"{CATEGORY}/stack",
            description="Puts a LoRA for a look (on the spatial layers) on the stack, beside the motions. Image LoRAs "
            "for Stable Diffusion 2.1 fit ModelScope and ZeroScope; what does not fit is refused with the reason.",
            search_aliases=["spatial lora", "image lora", "style lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folders.choices(folders.all_lora_names()),
                    tooltip="Any file in the loras folders, in the formats of this project, diffusers, PEFT or kohya.",
                ),
                Base.Input("base_model", tooltip="What it is going to be used on; every layer is checked against it."),
                Stack.Input("stack", optional=True, tooltip=_STACK_IN),
                _strength("the look"),
                _schedule(),
                io.Boolean.Input(
                    "text_encoder",
                    default=False,
                    optional=True,
                    label_on="apply it too",
                    label_off="leave it out",
                    tooltip="The text-encoder part that many image LoRAs have. It changes what every word means, for "
                    "the motion LoRAs too.",
                ),
                _block_strengths(),
            ],
            outputs=[Stack.Output("stack_out", display_name="stack", tooltip=_STACK_OUT)],
        )

    @classmethod
    def execute(
        cls,
        lora_name: str,
        base_model: VideoPipeline,
        strength: float,
        stack: AdapterStack | None = None,
        schedule: Schedule | None = None,
        text_encoder: bool = False,
        block_strengths: str = "",
    ) -> io.NodeOutput:
        report, text = files.read(lora_name, base_model, text_encoder=text_encoder)
        server.tell_node(cls.hidden.unique_id, text)
        entry = StackEntry(
            report.lora,
            strength,
            block_strengths=_blocks(block_strengths, report.lora),
            steps=schedule,
            name=lora_name,
            text_encoder=report.text_encoder,
        )
        return io.NodeOutput((stack or AdapterStack()).add(entry))


class AppearanceHighway(io.ComfyNode):
    """The switch that keeps the motion LoRA out of the skip connections."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_AppearanceHighway",
            display_name="Appearance Highway",
            category=f"{CATEGORY}/stack",
            description="Re-routes the skip connections around the temporal attention, so that a motion LoRA changes "
            "the motion and less of the look (Separate Motion from Appearance).",
            search_aliases=["AH", "skip connections", "highway"],
            inputs=[
                Stack.Input("stack", optional=True, tooltip=_STACK_IN),
                io.Boolean.Input("enabled", default=True, tooltip="Off: the stack goes through without a highway."),
                io.Combo.Input(
                    "preset",
                    options=list(HIGHWAY_PRESETS),
                    default="code",
                    tooltip="code: the deepest level only, as in the authors' code. all: every skip that starts at a "
                    "temporal attention, as in their paper.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.1,
                    min=0.0,
                    max=MAX_HIGHWAY_SCALE,
                    step=0.05,
                    tooltip="What the highway is multiplied by. 1.1 in the authors' command line, 1 re-routes only.",
                ),
            ],
            outputs=[Stack.Output("stack_out", display_name="stack", tooltip=_STACK_OUT)],
        )

    @classmethod
    def execute(cls, enabled: bool, preset: str, scale: float, stack: AdapterStack | None = None) -> io.NodeOutput:
        from ..motion_lora.core.highway import Highway

        highway = Highway(preset, scale) if enabled else None
        return io.NodeOutput((stack or AdapterStack()).with_highway(highway))
