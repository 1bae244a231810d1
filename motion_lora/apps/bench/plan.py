"""What a benchmark run consists of: motions, reference looks, a budget of time, and the cells that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.clip import Clip
from ...core.errors import SettingsError
from ...playground import world
from .rows import ROWS, Row, find_rows

# Defaults of the methods are chosen by looking at these alone; the others are for reporting.
TUNING_MOTIONS = ("orbit", "zigzag")

# The first is that of a run with one reference look.
REFERENCES: tuple[Mapping[str, Any], ...] = (
    {"shape": "circle", "colour": "red", "background": "brick", "fill": "striped"},
    {"shape": "triangle", "colour": "cyan", "background": "meadow", "fill": "plain"},
    {"shape": "square", "colour": "yellow", "background": "night", "fill": "striped"},
)
_PLACE: Mapping[str, Any] = {"radius": 0.17, "scale": 0.22, "phase": 0.0, "centre": (0.5, 0.5)}
# What the references' captions leave out. A caption that names every look lets a LoRA leave all of them to the prompt,
# so that nothing can leak; captions of real clips name few.
UNNAMED = ("colour", "background")


@dataclass(frozen=True)
class BenchPlan:
    """A run: every row meets every motion and reference with the same prompts and start noises.

    seconds      of training per row, absorber and redrawing included
    other_looks  looks that are asked for (up to 4), `noises` videos of each and of the reference's own caption
    open_noises  videos of a prompt that names neither colour nor background
    training     changes to the settings of every row, for quick runs
    """

    rows: tuple[str, ...] = tuple(ROWS)
    motions: tuple[str, ...] = tuple(world.HELD_OUT_MOTIONS)
    references: int = 1
    seed: int = 0
    seconds: float = 90.0
    other_looks: int = 4
    noises: int = 2
    open_noises: int = 6
    num_inference_steps: int = 15
    guidance_scale: float = 2.5
    training: tuple[tuple[str, Any], ...] = ()
    looks: tuple[Mapping[str, Any], ...] = REFERENCES


@dataclass(frozen=True)
class Unit:
    """What all rows share: a reference clip, by motion and number of its look."""

    motion: str
    reference: int


@dataclass(frozen=True)
class Cell:
    """One row on one unit."""

    unit: Unit
    row: Row

    @property
    def name(self) -> str:
        """Names its file."""
        return f"{self.row.name}.{self.unit.motion}-{self.unit.reference}"


def check_plan(plan: BenchPlan) -> None:
    """Raise one SettingsError that names every fault."""
    find_rows(plan.rows)
    faults = [
        f"motion is {name!r}, it must be one of: {', '.join(world.MOTIONS)}"
        for name in plan.motions
        if name not in world.MOTIONS
    ]
    highest = {"references": len(plan.looks), "other_looks": 4, "noises": 100, "open_noises": 100}
    faults += [
        f"{name} is {getattr(plan, name)}, it must be from 1 to {high}"
        for name, high in highest.items()
        if not 1 <= getattr(plan, name) <= high
    ]
    if not plan.seconds > 0:
        faults.append(f"seconds is {plan.seconds}, it must be above 0")
    if not plan.rows or not plan.motions:
        faults.append("there is no row or no motion; name one or more of both")
    if faults:
        raise SettingsError("; ".join(faults) + ".")


def cells(plan: BenchPlan, shard: tuple[int, int] = (1, 1)) -> list[Cell]:
    """Every cell, or the `shard[0]`th of `shard[1]` parts; all rows of a clip are in one part, in the rows' order.

    Unit by unit, so that a run that is cut short has measured all rows on the clips it did. Raises SettingsError.
    """
    if not 1 <= shard[0] <= shard[1]:
        raise SettingsError(f"shard is {shard[0]}/{shard[1]}; it must be from 1/{shard[1]} to {shard[1]}/{shard[1]}.")
    units = [Unit(motion, number) for number, motion in itertools.product(range(plan.references), plan.motions)]
    return [Cell(unit, row) for unit in units[shard[0] - 1 :: shard[1]] for row in find_rows(plan.rows)]


def reference_scene(unit: Unit, plan: BenchPlan) -> world.Scene:
    """The scene of the reference clip."""
    return world.Scene(motion=unit.motion, **{**_PLACE, **plan.looks[unit.reference]})


def clip_of(pipeline: VideoPipeline, scene: world.Scene, unnamed: tuple[str, ...] = UNNAMED) -> Clip:
    """The world's clip of a scene in the base's size and length, its captions without what is `unnamed`."""
    return Clip(
        world.render(scene, pipeline.default_num_frames, pipeline.default_height),
        float(pipeline.default_fps),
        world.caption(scene, unnamed),
        world.appearance_caption(scene, unnamed),
        world.appearance_words(scene, unnamed),
    )


def perfect_copies(pipeline: VideoPipeline, scene: world.Scene, count: int = 10) -> list[Clip]:
    """The reference's motion in `count` looks; every caption names all of its look."""
    shapes, colours, backgrounds = world.SHAPES, tuple(world.COLOURS), world.BACKGROUNDS
    scenes = [
        world.Scene(
            motion=scene.motion,
            shape=shapes[n % len(shapes)],
            colour=colours[(3 * n + 1) % len(colours)],
            background=backgrounds[(2 * n + n // len(backgrounds)) % len(backgrounds)],
            fill="plain" if n % 2 else "striped",
            **_PLACE,
        )
        for n in range(count)
    ]
    return [clip_of(pipeline, one, ()) for one in scenes]
