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
    "InputImpl",
    "MotionLoRA",
    "Stack",
    "Types",
    "io",
    "ui",
]

# What travels on them: VideoPipeline, a tuple of Clip, Absorber, LoRA, AdapterStack.
Base = io.Custom("MOTION_LORA_BASE")
Clips = io.Custom("MOTION_LORA_CLIPS")
Absorber = io.Custom("MOTION_LORA_ABSORBER")
MotionLoRA = io.Custom("MOTION_LORA")
Stack = io.Custom("MOTION_LORA_STACK")

CATEGORY = "MotionLoRA"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
