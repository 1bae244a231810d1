"""What node widgets offer, as plain values.

The library's own tables sit in modules that import diffusers and transformers, which takes seconds that every start of
ComfyUI would pay for. So the nodes repeat the names here, and a test holds them against the tables.
"""

from __future__ import annotations

from ...motion_lora.core.fields import type_of
from ...motion_lora.training.settings import HIGHWAYS, SETTINGS, TrainSettings

DTYPES = ("auto", "fp32", "fp16", "bf16")
SCHEDULERS = ("ddim", "dpmpp-2m-karras", "euler", "euler-ancestral", "unipc")
HIGHWAY_PRESETS = tuple(name for name in HIGHWAYS if name != "none")
MAX_HIGHWAY_SCALE = SETTINGS["highway_scale"].high
TEMPORAL_TARGETS = (
    "temporal-attention", "temporal-all", "temporal-conv", "temporal-difference", "temporal-full", "tap-k",
    "tap-k-out", "tap-qk",
)  # fmt: skip
SPATIAL_TARGETS = ("spatial-attention", "spatial-self-ff", "spatial-conv", "spatial-full")


def _highest(kind: str, low: float, high: float) -> dict[str, float]:
    """The highest legal value of the numbers whose lowest is between these."""
    return {
        name: about.high
        for name, about in SETTINGS.items()
        if about.has_effect
        and name != "seed"
        and type_of(TrainSettings, name) == kind
        and about.low is not None
        and about.high is not None
        and low <= about.low <= high
    }


# Highest legal value of the training settings that widgets set; 0 in a widget stands for the method's default.
COUNTS = {name: int(high) for name, high in _highest("int", 0, 1).items()}
AMOUNTS = _highest("float", 1e-9, 1e-7) | {"memory": SETTINGS["memory"].high or 0.0}
# Of these 0 is a legal value, or nearly; -1 in a widget stands for the method's default.
SHARES = _highest("float", 0.0, 0.0) | _highest("float", 1e-3, 1.0)
