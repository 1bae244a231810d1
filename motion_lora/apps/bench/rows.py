"""What the benchmark compares: a row is a method, with what it changes in training and in sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.errors import SettingsError
from ...core.highway import Highway
from ...core.lora import LoRA
from ...core.stack import AdapterStack, StackEntry
from ...training import TrainSettings, check_settings

BASE, CEILING, TEMPORAL, SPATIAL, RECIPE = "base", "perfect-copies", "temporal-lora", "s-lora", "many-looks"


@dataclass(frozen=True)
class Row:
    """One row. `method` "" is the base without a LoRA; `settings` are fields of `TrainSettings`.

    `perfect_copies` trains on ten clips that the world draws, the same motion in ten looks, with the targets and the
    tuning of the row's method: what a perfect redrawing would give. `most_steps` caps what the time allows.
    """

    name: str
    title: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    highway: Highway | None = None
    perfect_copies: bool = False
    most_steps: int | None = None

    def train_settings(self, pipeline: VideoPipeline, changes: Mapping[str, Any]) -> TrainSettings:
        """The method's defaults on this base, with the row's and then the caller's changes; raises SettingsError."""
        settings = TrainSettings.for_base(pipeline, self.method)
        if self.perfect_copies:
            settings = _on_given_copies(settings)
        settings = dataclasses.replace(settings, **{**self.settings, **changes})
        check_settings(settings)
        return settings

    def stack(self, lora: LoRA | None) -> AdapterStack:
        """What is sampled with."""
        entries = () if lora is None else (StackEntry(lora, name=self.name),)
        return AdapterStack(entries, self.highway)


def _on_given_copies(settings: TrainSettings) -> TrainSettings:
    """The same training without redrawing: a temporal LoRA with the method's targets and tuning, no absorber."""
    targets = settings.resolved().targets
    return dataclasses.replace(settings, method="temporal-only", targets=targets, absorber="none", looks=())


_CUSTOMIZE, _SEPARATE = "customize-a-video", "separate-motion-appearance"
_TAP = {"targets": "tap-k"}

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(BASE, "base model, no LoRA"),
        Row(CEILING, "ceiling: trained on ten perfect copies", RECIPE, perfect_copies=True),
        # The calibration asks what the papers' LoRA reaches in 500 steps, the number of Customize-A-Video's row.
        Row(TEMPORAL, "temporal LoRA alone", "temporal-only", most_steps=500),
        Row("cav-spatial", "Customize-A-Video, spatial-LoRA absorber", _CUSTOMIZE, {"absorber": "spatial"}),
        Row("cav-tokens", "Customize-A-Video, learned tokens", _CUSTOMIZE, {"absorber": "textual-inversion"}),
        Row("cav-dual", "Customize-A-Video, dual absorber", _CUSTOMIZE, {"absorber": "dual"}),
        Row("motiondirector", "MotionDirector", "motiondirector"),
        Row("tap-k", "TAP, key (paper)", _SEPARATE, _TAP),
        Row("tap-k-out", "TAP, key and output (code)", _SEPARATE, {"targets": "tap-k-out"}),
        Row("tap-qk", "TAP, query and key", _SEPARATE, {"targets": "tap-qk"}),
        Row("tap-k-highway-code", "TAP, key, highway 'code'", _SEPARATE, _TAP, Highway("code")),
        Row("tap-k-highway-all", "TAP, key, highway 'all'", _SEPARATE, _TAP, Highway("all")),
        Row(SPATIAL, "S-LoRA (ablation)", "spatial-only"),
        Row("st-lora", "ST-LoRA (ablation)", "spatial-temporal"),
        Row(RECIPE, "Many Looks (this project)", RECIPE),
    )
}


def find_rows(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, in the table's order; raises SettingsError that lists the names."""
    if unknown := [name for name in names if name not in ROWS]:
        raise SettingsError(f"row is {unknown[0]!r}; it must be one of: {', '.join(ROWS)}.")
    return tuple(row for name, row in ROWS.items() if name in names)
