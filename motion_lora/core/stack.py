"""The adapter stack as a value: a small frozen list of (LoRA, strengths, curves) plus the appearance highway.

It can be hashed and written into the metadata of an output. `adapters.apply` puts it to work.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .curves import FrameCurve, Schedule
from .errors import SettingsError
from .highway import Highway
from .lora import ALL_NOISE, SPATIAL, TEMPORAL, Layer, LoRA


@dataclass(frozen=True, eq=False)
class StackEntry:
    """One LoRA in a stack. Strengths multiply, may be negative, and act on the change of the weights once.

    A layer's strength is strength * (temporal_strength or spatial_strength, of a joint layer neither) *
    block_strengths of its block (1 where the block is not named; names are the backbone's), times `steps`, times
    `frames` where the layer is temporal.
    `text_encoder` is the text part of an imported image LoRA, if it is wanted; its strength is `strength`.
    Without `steps`, a LoRA that was trained on a part of the noise (`LoRA.acts_in`) acts in that part of the steps;
    `Schedule()` makes it act in all of them.
    """

    lora: LoRA
    strength: float = 1.0
    temporal_strength: float = 1.0
    spatial_strength: float = 1.0
    block_strengths: Mapping[str, float] = field(default_factory=dict)
    steps: Schedule | None = None
    frames: FrameCurve | None = None
    name: str = ""
    text_encoder: LoRA | None = None

    def __post_init__(self) -> None:
        named = {"strength": self.strength, "temporal_strength": self.temporal_strength}
        named |= {"spatial_strength": self.spatial_strength}
        named |= {f"block_strengths[{block!r}]": value for block, value in self.block_strengths.items()}
        for what, value in named.items():
            if not math.isfinite(value):
                raise SettingsError(f"{what} of LoRA {self.name or '(unnamed)'} must be a finite number, got {value}")

    @property
    def schedule(self) -> Schedule | None:
        """The strength over steps: `steps`, or what the LoRA was trained for; None where it is the same in all."""
        return trained_schedule(self.lora) if self.steps is None else self.steps

    def strength_of(self, layer: Layer, block: str) -> float:
        """The strength of one layer, by its path and its block, before the curves over steps and frames."""
        path = {TEMPORAL: self.temporal_strength, SPATIAL: self.spatial_strength}.get(layer, 1.0)
        return self.strength * path * self.block_strengths.get(block, 1.0)

    def describe(self) -> dict[str, Any]:
        """Json-able; the LoRAs by fingerprint, by which their files are found."""
        return {
            "name": self.name,
            "lora": self.lora.fingerprint(),
            "strength": self.strength,
            "temporal_strength": self.temporal_strength,
            "spatial_strength": self.spatial_strength,
            "block_strengths": dict(sorted(self.block_strengths.items())),
            "steps": self.schedule.describe() if self.schedule else None,
            "frames": self.frames.describe() if self.frames else None,
            "text_encoder": self.text_encoder.fingerprint() if self.text_encoder else None,
        }


@dataclass(frozen=True, eq=False)
class AdapterStack:
    """What is sampled with, besides the base: LoRAs in any order (it does not matter) and the appearance highway."""

    entries: tuple[StackEntry, ...] = ()
    highway: Highway | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: StackEntry) -> AdapterStack:
        """A new stack with one entry more; this one stays as it is."""
        return AdapterStack((*self.entries, entry), self.highway)

    def with_highway(self, highway: Highway | None) -> AdapterStack:
        return AdapterStack(self.entries, highway)

    def describe(self) -> dict[str, Any]:
        """Json-able: everything that determines what the stack does, LoRAs by name and fingerprint."""
        highway = None if self.highway is None else asdict(self.highway)
        return {"entries": [entry.describe() for entry in self.entries], "highway": highway}

    def fingerprint(self) -> str:
        """SHA-256 of what the stack does: names and the order of the entries are left out, they change nothing."""
        description = self.describe()
        entries = sorted(json.dumps({**entry, "name": ""}, sort_keys=True) for entry in description["entries"])
        text = json.dumps({"entries": entries, "highway": description["highway"]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def trained_schedule(lora: LoRA) -> Schedule | None:
    """The steps that a LoRA was trained for, by the part of the noise it acts in; None for all.

    Sampling runs from noise to the clip in about equal parts of the timesteps, so the part of the noise above
    `timestep_low` is the first 1 - timestep_low of the steps.
    """
    low, high = lora.acts_in
    return None if lora.acts_in == ALL_NOISE else Schedule(start=1.0 - high, end=1.0 - low)


def title_of(metadata: Mapping[str, str]) -> str:
    """What to call a LoRA in a message: its title, on one line, or "this LoRA"."""
    return " ".join(metadata.get("modelspec.title", "").split())[:80] or "this LoRA"
