"""What the benchmark compares: each variant is a row, a method with what is changed in training and in sampling.

Variants with the same training share it, so that what differs between them is the sampling alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.curves import Schedule
from ...core.errors import SettingsError
from ...core.highway import Highway
from ...core.lora import LoRA
from ...core.stack import AdapterStack, StackEntry
from ...training import TrainSettings, check_settings

# The row of this project's own recipe. Its files say in which steps they are to act.
RECIPE = "many-looks-dual"
# What a perfect transfer would score.
CEILING = "rendered"


@dataclass(frozen=True)
class Variant:
    """A row of the benchmark. `method` "" is the base without a LoRA; `settings` are fields of `TrainSettings`.

    `highway`, `schedule` and `strength` are those of sampling. A `control` has to fail: it shows that the instrument
    can see what it is to measure. A `rendered` row is no model's: the world draws what is asked for, which has to pass.
    """

    name: str
    title: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    highway: Highway | None = None
    schedule: Schedule | None = None
    strength: float = 1.0
    control: bool = False
    rendered: bool = False

    @property
    def trains(self) -> bool:
        """Whether there is a LoRA at all."""
        return bool(self.method)

    @property
    def plain(self) -> bool:
        """Whether it is sampled as every LoRA is: full strength in all steps, no highway."""
        return self.highway is None and self.schedule is None and self.strength == 1.0

    def train_settings(self, pipeline: VideoPipeline, changes: Mapping[str, Any]) -> TrainSettings:
        """The method's defaults on this base, with the variant's and then the caller's changes; raises SettingsError.

        `changes` are the budget and whatever else holds for every variant.
        """
        settings = dataclasses.replace(TrainSettings.for_base(pipeline, self.method), **{**self.settings, **changes})
        check_settings(settings)
        return settings

    def stack(self, lora: LoRA | None) -> AdapterStack:
        """What is sampled with."""
        entries = () if lora is None else (StackEntry(lora, self.strength, steps=self.schedule, name=self.name),)
        return AdapterStack(entries, self.highway)

    def sampling(self) -> dict[str, Any]:
        """The sampling half as plain values."""
        return {
            "highway": dataclasses.asdict(self.highway) if self.highway else None,
            "schedule": self.schedule.describe() if self.schedule else None,
            "strength": self.strength,
            **({"rendered": True} if self.rendered else {}),
        }


def _rows() -> tuple[Variant, ...]:
    no_absorber, temporal, separate = {"absorber": "none"}, "customize-a-video", "separate-motion-appearance"
    rows = (
        Variant("base", "base model, no LoRA"),
        Variant(CEILING, "drawn by the world, through the autoencoder (ceiling)", rendered=True),
        Variant("temporal", "temporal LoRA, no absorber", temporal, no_absorber),
        Variant(
            "temporal-all-noise",
            "temporal LoRA trained and used at all timesteps",
            temporal,
            {**no_absorber, "timestep_low": 0.0},
        ),
        Variant("spatial-absorber", "Customize-A-Video, spatial-LoRA absorber", temporal, {"absorber": "spatial"}),
        Variant("token-absorber", "Customize-A-Video, learned tokens", temporal, {"absorber": "textual-inversion"}),
        Variant("dual-absorber", "Customize-A-Video, dual absorber", temporal, {"absorber": "dual"}),
        Variant("motiondirector", "MotionDirector, same rank", "motiondirector"),
        # Half the rank: feed-forward layers beside attention make twice the parameters (Customize-A-Video, Table 1).
        Variant("motiondirector-small", "MotionDirector, same parameters", "motiondirector", {"rank": 16}),
        Variant("tap-k", "TAP, key only (paper)", separate, {"targets": "tap-k"}),
        Variant("tap-k-out", "TAP, key and output (code)", separate, {"targets": "tap-k-out"}),
        Variant("tap-qk", "TAP, query and key", separate, {"targets": "tap-qk"}),
        Variant("tap-k-highway-code", "TAP key + highway 'code'", separate, {"targets": "tap-k"}, Highway("code")),
        Variant("tap-k-highway-all", "TAP key + highway 'all'", separate, {"targets": "tap-k"}, Highway("all")),
        Variant("temporal-highway-code", "temporal LoRA + highway 'code'", temporal, no_absorber, Highway("code")),
        Variant("temporal-highway-all", "temporal LoRA + highway 'all'", temporal, no_absorber, Highway("all")),
        Variant(
            "temporal-unphased",
            "temporal LoRA in all steps, without phased integration",
            temporal,
            no_absorber,
            schedule=Schedule(),
        ),
        Variant("many-looks", "Many Looks without absorber", "many-looks", no_absorber),
        Variant(RECIPE, "Many Looks with dual absorber (this project)", "many-looks", {"absorber": "dual"}),
        Variant("spatial-lora", "S-LoRA (ablation)", "spatial-only", control=True),
        Variant("spatial-temporal-lora", "ST-LoRA (ablation)", "spatial-temporal", control=True),
    )
    return rows


VARIANTS: dict[str, Variant] = {row.name: row for row in _rows()}


def find_variants(names: Sequence[str]) -> tuple[Variant, ...]:
    """The rows of these names, in the table's order, and the base, which everything is compared with.

    Raises SettingsError that lists the names.
    """
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SettingsError(f"variant is {unknown[0]!r}; it must be one of: {', '.join(VARIANTS)}.")
    return tuple(row for name, row in VARIANTS.items() if name in names or name == "base")
