"""Runs the cells of a benchmark. Every cell that is done is one file of one line; a rerun does only what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.clip import Clip
from ...core.disk import write_atomically
from ...core.stack import AdapterStack, StackEntry
from ...playground import world
from ...playground.probe import Reading, read_clip
from ...playground.prompts import other_looks
from ...training import TrainSettings
from .measure import MEASURES_VERSION, Ask, measure, measure_rendered
from .settings import CAPTIONS, BenchSettings, Cell, Unit, cells, check_bench, reference_clip, reference_scene
from .trainings import Tell, Trained, Workshop, marks_of
from .variants import find_variants

CELLS = "cells"
WORK = "work"


@dataclass(frozen=True, eq=False)
class _Material:
    """What the variants of a unit share."""

    clip: Clip
    reference: str
    reading: Reading
    ask: Ask
    own: Ask
    free: Ask


def run_cells(
    pipeline: VideoPipeline,
    output: Path,
    settings: BenchSettings,
    *,
    shard: tuple[int, int] = (1, 1),
    tell: Tell | None = None,
    done: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing of a shard and return every finished cell of the whole plan, as its file holds it.

    `tell` hears of training steps, `done(name, number, total)` of cells. Raises SettingsError before work starts.
    """
    check_bench(settings)
    bench = _Bench(pipeline, output, settings, tell or _silent)
    bench.check()
    plan = cells(settings, shard)
    for number, cell in enumerate(plan, start=1):
        if bench.finished(cell) is None:
            bench.run(cell)
        if done is not None:
            done(cell.name, number, len(plan))
    return bench.all_finished()


class _Bench:
    def __init__(self, pipeline: VideoPipeline, output: Path, settings: BenchSettings, tell: Tell) -> None:
        self._pipeline, self._output, self._settings = pipeline, output, settings
        self._workshop = Workshop(pipeline, output / WORK, tell)
        self._materials: dict[Unit, _Material] = {}

    def check(self) -> None:
        """Raise SettingsError where a variant's settings are not legal."""
        for variant in find_variants(self._settings.variants):
            if variant.trains:
                variant.train_settings(self._pipeline, self._settings.training)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """What the cell's file holds, if it was made with these very settings."""
        try:
            content: dict[str, Any] = json.loads(self._path(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if content.get("fingerprint") == self._fingerprint(cell) else None

    def all_finished(self) -> list[dict[str, Any]]:
        """Every finished cell of the plan, other shards' too."""
        return [content for cell in cells(self._settings) if (content := self.finished(cell)) is not None]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train where it has to be, sample, score, and write the file."""
        material, variant = self._material(cell.unit), cell.variant
        trained = self._trained(cell) if variant.trains else None
        began = time.perf_counter()
        own, free = material.own, material.free
        if variant.rendered:
            measured = measure_rendered(self._pipeline, material.ask, material.reading, own=own, free=free)
        else:
            stack = variant.stack(trained.lora() if trained else None)
            measured = measure(self._pipeline, stack, material.ask, material.reading, own=own, free=free)
        content = {
            "fingerprint": self._fingerprint(cell),
            "variant": variant.name,
            "motion": cell.unit.motion,
            "reference": material.reference,
            "seed": cell.unit.seed,
            "steps": trained.steps if trained else 0,
            "train_seconds": trained.seconds if trained else 0.0,
            "absorber_seconds": trained.absorber_seconds if trained else 0.0,
            "parameters": trained.parameters if trained else 0,
            "sample_seconds": time.perf_counter() - began,
            "curve": self._curve(trained, material, measured) if trained and variant.plain else [],
            **measured,
        }
        write_atomically(self._path(cell), (json.dumps(content) + "\n").encode())
        return content

    # ------------------------------------------------------------------ parts

    def _trained(self, cell: Cell) -> Trained:
        settings = self._train_settings(cell)
        marks = marks_of(settings.steps, self._settings.curve)
        return self._workshop.train(self._material(cell.unit).clip, settings, marks, cell.variant.name)

    def _train_settings(self, cell: Cell) -> TrainSettings:
        changes = {**self._settings.training, "seed": cell.unit.seed, "steps": self._settings.steps}
        settings = cell.variant.train_settings(self._pipeline, changes)
        if self._settings.budget == "seconds":
            clip, name = self._material(cell.unit).clip, cell.variant.name
            steps = self._workshop.steps_that_fit(clip, settings, self._settings.seconds, name)
            settings = dataclasses.replace(settings, steps=steps)
        return settings

    def _curve(self, trained: Trained, material: _Material, last: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The scores on the way, with one start noise per prompt; the last point is the cell's own."""
        ask = dataclasses.replace(material.ask, noises=1)
        points = []
        for step in sorted(trained.loras):
            stack = AdapterStack().add(StackEntry(trained.lora(step)))
            measured = last if step == trained.steps else measure(self._pipeline, stack, ask, material.reading)
            points.append({"step": step, **{name: measured[name] for name in ("fidelity", "leakage", "alignment")}})
        return points

    def _material(self, unit: Unit) -> _Material:
        if unit not in self._materials:
            settings = self._settings
            scene = reference_scene(unit, settings.looks)
            clip = reference_clip(self._pipeline, scene, settings.captions)
            asked = tuple(other_looks(scene, settings.prompts))
            ask = Ask(asked, settings.noises, unit.seed, settings.num_inference_steps, settings.guidance_scale)
            own = dataclasses.replace(ask, scenes=(scene,), unnamed=CAPTIONS[settings.captions])
            free = dataclasses.replace(ask, scenes=asked[:1], noises=settings.free_noises, unnamed=CAPTIONS["short"])
            self._materials[unit] = _Material(clip, world.caption(scene), read_clip(clip.frames), ask, own, free)
        return self._materials[unit]

    def _path(self, cell: Cell) -> Path:
        return self._output / CELLS / f"{cell.name}.json"

    def _fingerprint(self, cell: Cell) -> str:
        """Of all that decides the cell's figures. The budget counts as it was asked for: timing would start work."""
        material, settings = self._material(cell.unit), self._settings
        training: Mapping[str, Any] = {}
        if cell.variant.trains:
            changes = {**settings.training, "seed": cell.unit.seed, "steps": settings.steps}
            training = cell.variant.train_settings(self._pipeline, changes).hashed()
        content = {
            "measures": MEASURES_VERSION,
            "base": [self._pipeline.identity.config_hash, self._pipeline.identity.weights_hash],
            "clip": material.clip.fingerprint(),
            "asks": [ask.to_json() for ask in (material.ask, material.own, material.free)],
            "training": training,
            "sampling": cell.variant.sampling(),
            "seconds": settings.seconds if settings.budget == "seconds" else None,
            "curve": settings.curve,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _silent(what: str, step: int, total: int) -> None:
    pass
