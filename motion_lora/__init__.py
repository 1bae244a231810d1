"""Motion LoRAs for text-to-video diffusion models: learn the motion of a clip, put it into new videos.

    import motion_lora as ml

    base = ml.load_playground()                       # or ml.VideoPipeline.load("models/zeroscope_v2_576w")
    clip = ml.read_clip("clip.mp4", caption="a red circle circling around over sand",
                        appearance_caption="a red circle over sand",
                        num_frames=base.default_num_frames, fps=base.default_fps,
                        height=base.default_height, width=base.default_width)
    result = ml.train(base, [clip], ml.TrainSettings.for_base(base))
    ml.save_lora("orbit.safetensors", result.lora)
    stack = ml.AdapterStack().add(ml.StackEntry(result.lora))
    video = ml.sample(base, ml.SampleSettings("a blue square circling around over snow"), stack=stack)[0]
    ml.write_video("out.mp4", video.frames, fps=8)

Names are imported when they are first used, so that `import motion_lora` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .playground import defaults as _defaults  # noqa: F401 - registers what the playground asks for in training

if TYPE_CHECKING:
    from .adapters.targets import TARGETS
    from .base.pipeline import VideoPipeline
    from .core.clip import Clip
    from .core.curves import Schedule
    from .core.errors import MotionLoRAError
    from .core.lora import LoRA, LoRALayer
    from .core.stack import AdapterStack, StackEntry
    from .files.own import load_lora, save_lora
    from .files.reader import load_any
    from .media.read import clip_from_frames, read_clip
    from .media.write import write_video
    from .methods.table import METHODS
    from .playground.model import load_playground
    from .sampling.loop import sample
    from .sampling.settings import SampleSettings
    from .training import TrainSettings, train, train_absorber

__version__ = "0.1.0"

_HOME: dict[str, str] = {
    "AdapterStack": "core.stack",
    "Clip": "core.clip",
    "LoRA": "core.lora",
    "LoRALayer": "core.lora",
    "METHODS": "methods.table",
    "MotionLoRAError": "core.errors",
    "SampleSettings": "sampling.settings",
    "Schedule": "core.curves",
    "StackEntry": "core.stack",
    "TARGETS": "adapters.targets",
    "TrainSettings": "training",
    "VideoPipeline": "base.pipeline",
    "clip_from_frames": "media.read",
    "load_any": "files.reader",
    "load_lora": "files.own",
    "load_playground": "playground.model",
    "read_clip": "media.read",
    "sample": "sampling.loop",
    "save_lora": "files.own",
    "train": "training",
    "train_absorber": "training",
    "write_video": "media.write",
}

__all__ = [
    "METHODS",
    "TARGETS",
    "AdapterStack",
    "Clip",
    "LoRA",
    "LoRALayer",
    "MotionLoRAError",
    "SampleSettings",
    "Schedule",
    "StackEntry",
    "TrainSettings",
    "VideoPipeline",
    "__version__",
    "clip_from_frames",
    "load_any",
    "load_lora",
    "load_playground",
    "read_clip",
    "sample",
    "save_lora",
    "train",
    "train_absorber",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
