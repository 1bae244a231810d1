"""The main job end to end: a clip from a video file, its motion as a LoRA, new videos with and without it, measured.

What `make demo` runs, and an example of the library's use: every step is one call. The base is a parameter, so the
same job runs on any base that knows the playground's words.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .clips import Clip, read_clip
from .errors import TrainingError
from .files import check_fits, load_lora, save_lora
from .pictures import contact_sheet, plot_lines, write_image, write_video
from .pipeline import VideoPipeline
from .playground import world
from .sampling import SampleSettings, sample
from .stack import AdapterStack, StackEntry
from .storage import write_atomically
from .training import Callback, TrainResult, TrainSettings, train

# The reference's look shares no attribute with the prompts, so that whatever of it turns up has leaked.
REFERENCE_LOOK: Mapping[str, Any] = {
    "shape": "circle",
    "colour": "red",
    "background": "brick",
    "fill": "striped",
    "radius": 0.17,
    "scale": 0.22,
    "centre": (0.5, 0.5),
}
NEW_LOOKS: tuple[Mapping[str, str], ...] = (
    {"shape": "square", "colour": "blue", "background": "snow"},
    {"shape": "triangle", "colour": "yellow", "background": "night"},
    {"shape": "cross", "colour": "purple", "background": "sand"},
)


@dataclass(frozen=True)
class DemoSettings:
    """What the demo shows. `steps` and `absorber_steps` of None are the base's defaults."""

    motion: str = "orbit"
    method: str = "customize-a-video"
    absorber: str = "dual"
    seed: int = 0
    steps: int | None = None
    absorber_steps: int | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    looks: tuple[Mapping[str, str], ...] = NEW_LOOKS


@dataclass
class Stopwatch:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)
