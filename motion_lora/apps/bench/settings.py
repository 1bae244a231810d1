"""What a benchmark run consists of: motions, references, seeds, budget, and the cells that follow from them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.clip import Clip
from ...core.errors import SettingsError
from ...playground import world
from .variants import VARIANTS, Variant, find_variants

# Defaults are chosen by looking at the tuning motions alone. The test motions are for reporting.
TUNING_MOTIONS = ("orbit", "zigzag")
TEST_MOTIONS = tuple(motion for motion in world.HELD_OUT_MOTIONS if motion not in TUNING_MOTIONS)

REFERENCES: tuple[Mapping[str, Any], ...] = (
    {"shape": "circle", "colour": "red", "background": "brick", "fill": "striped"},
    {"shape": "triangle", "colour": "cyan", "background": "meadow", "fill": "plain"},
    {"shape": "square", "colour": "yellow", "background": "night", "fill": "striped"},
)
_PLACE: Mapping[str, Any] = {"radius": 0.17, "scale": 0.22, "phase": 0.0, "centre": (0.5, 0.5)}
BUDGETS = ("steps", "seconds")

# What the references' captions leave out. A caption that names every look lets a LoRA leave all of them to the prompt,
# so that nothing can leak; captions of real clips name few.
CAPTIONS: Mapping[str, tuple[str, ...]] = {"short": ("colour", "background"), "full": ()}

QUICK_VARIANTS = (
    "base",
    "temporal",
    "dual-absorber",
    "motiondirector",
    "tap-k",
    "tap-k-highway-code",
    "temporal-unphased",
    "spatial-lora",
    "spatial-temporal-lora",
    "many-looks-dual",
)


@dataclass(frozen=True)
class BenchSettings:
    """A run. Every variant meets every motion, reference and seed, with the same prompts and start noise.

    budget, steps, seconds   every training gets the same steps, or as many as fit into the same seconds with its
                             absorber's
    training                 changes to the settings of every variant
    prompts, noises          looks that are asked for per cell, and videos of each
    free_noises              videos of a prompt that names neither colour nor background
    curve                    parts of the training after which the LoRA is measured too
    captions                 "short": the references' captions name shape, fill and motion; "full": all there is
    looks                    the references' appearances, of which the first `references` are used
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    motions: tuple[str, ...] = ("bounce", "swing")
    references: int = 2
    seeds: int = 2
    budget: str = "steps"
    steps: int = 200
    seconds: float = 80.0
    training: Mapping[str, Any] = field(default_factory=dict)
    prompts: int = 3
    noises: int = 2
    free_noises: int = 8
    curve: tuple[float, ...] = (0.25, 0.5, 0.75)
    num_inference_steps: int = 15
    guidance_scale: float = 2.5
    captions: str = "short"
    looks: tuple[Mapping[str, Any], ...] = REFERENCES

    @classmethod
    def quick(cls) -> BenchSettings:
        """A few minutes: whether the instrument works, too short to judge methods."""
        return cls(
            variants=tuple(name for name in QUICK_VARIANTS if name in VARIANTS),
            motions=TEST_MOTIONS[:1],
            references=1,
            seeds=2,
            steps=60,
            seconds=30.0,
            training={"absorber_steps": 30, "token_steps": 30},
            prompts=2,
            noises=2,
            free_noises=2,
            curve=(0.5,),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Unit:
    """What all variants share: a reference clip by motion and number of its look, and a seed."""

    motion: str
    reference: int
    seed: int

    @property
    def clip_name(self) -> str:
        """Name of the reference clip."""
        return f"{self.motion}-{self.reference}"


@dataclass(frozen=True)
class Cell:
    """One variant on one unit."""

    unit: Unit
    variant: Variant

    @property
    def name(self) -> str:
        """Names its file."""
        return f"{self.variant.name}.{self.unit.clip_name}.{self.unit.seed}"


def check_bench(settings: BenchSettings) -> None:
    """Raise one SettingsError that names every fault."""
    faults = [
        f"motion is {name!r}, it must be one of: {', '.join(world.MOTIONS)}"
        for name in settings.motions
        if name not in world.MOTIONS
    ]
    find_variants(settings.variants)
    most = {
        "references": len(settings.looks),
        "seeds": 1000,
        "steps": 1_000_000,
        "prompts": 4,
        "noises": 100,
        "free_noises": 100,
    }
    for name, high in most.items():
        value = getattr(settings, name)
        if not 1 <= value <= high:
            faults.append(f"{name} is {value}, it must be from 1 to {high}")
    if settings.budget not in BUDGETS:
        faults.append(f"budget is {settings.budget!r}, it must be one of: {', '.join(BUDGETS)}")
    if settings.captions not in CAPTIONS:
        faults.append(f"captions is {settings.captions!r}, it must be one of: {', '.join(CAPTIONS)}")
    if not settings.seconds > 0:
        faults.append(f"seconds is {settings.seconds}, it must be above 0")
    if not settings.motions:
        faults.append("there is no motion; name one or more")
    faults += [f"curve holds {part}, it must lie between 0 and 1" for part in settings.curve if not 0 < part < 1]
    if faults:
        raise SettingsError("; ".join(faults) + ".")


def what_captions_name(captions: str) -> str:
    """Half a sentence for a report."""
    unnamed = CAPTIONS[captions]
    return "the references' captions name " + (f"no {' and no '.join(unnamed)}" if unnamed else "every look")


def units(settings: BenchSettings, shard: tuple[int, int] = (1, 1)) -> list[Unit]:
    """Every unit, or the `shard[0]`th of `shard[1]` parts: all seeds of a clip are in one part, with its absorber."""
    if not 1 <= shard[0] <= shard[1]:
        raise SettingsError(f"shard is {shard[0]}/{shard[1]}; it must be from 1/{shard[1]} to {shard[1]}/{shard[1]}.")
    clips = list(itertools.product(settings.motions, range(settings.references)))
    chosen = clips[shard[0] - 1 :: shard[1]]
    return [Unit(motion, number, seed) for seed in range(settings.seeds) for motion, number in chosen]


def cells(settings: BenchSettings, shard: tuple[int, int] = (1, 1)) -> list[Cell]:
    """Every cell, unit by unit, so that a run that is cut short has measured all variants on the units it did."""
    rows = find_variants(settings.variants)
    return [Cell(unit, row) for unit in units(settings, shard) for row in rows]


def reference_scene(unit: Unit, looks: Sequence[Mapping[str, Any]]) -> world.Scene:
    """The scene of the reference clip."""
    return world.Scene(motion=unit.motion, **{**_PLACE, **looks[unit.reference]})


def reference_clip(pipeline: VideoPipeline, scene: world.Scene, captions: str) -> Clip:
    """The clip, in the base's size and length, with the `CAPTIONS` of this name."""
    unnamed = CAPTIONS[captions]
    frames = world.render(scene, pipeline.default_num_frames, pipeline.default_height)
    return Clip(
        frames,
        float(pipeline.default_fps),
        world.caption(scene, unnamed),
        world.appearance_caption(scene, unnamed),
        world.appearance_words(scene, unnamed),
    )
