"""Socket types, and the one place that imports ComfyUI's node API.

Socket types, node ids and input ids are for ever: saved workflows name them.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, InputImpl, Types, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

__all__ = [
    "Absorber",
    "Base",
    "Clips",
    "ComfyExtension",
    "ExecutionBlocker",
    "FrameStrength",
    "InputImpl",
    "MotionLoRA",
    "Noise",
    "Stack",
    "StrengthSchedule",
    "TextPart",
    "TrainOptions",
    "Types",
    "io",
    "ui",
]

# What travels on them: VideoPipeline, a tuple of Clip, Absorber, LoRA, AdapterStack, Schedule, FrameCurve, and the
# text-encoder part of an image LoRA as a LoRA, or None where the file has none.
Base = io.Custom("MOTION_LORA_BASE")
Clips = io.Custom("MOTION_LORA_CLIPS")
Absorber = io.Custom("MOTION_LORA_ABSORBER")
MotionLoRA = io.Custom("MOTION_LORA")
Stack = io.Custom("MOTION_LORA_STACK")
StrengthSchedule = io.Custom("MOTION_LORA_SCHEDULE")
FrameStrength = io.Custom("MOTION_LORA_FRAME_CURVE")
TextPart = io.Custom("MOTION_LORA_TEXT_PART")
# InvertedClip, and the settings of advanced.Options.
Noise = io.Custom("MOTION_LORA_NOISE")
TrainOptions = io.Custom("MOTION_LORA_TRAIN_OPTIONS")

CATEGORY = "MotionLoRA"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
