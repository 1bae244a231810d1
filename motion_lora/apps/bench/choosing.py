"""Does the rule of `choice` pick well? Chosen checkpoint against the best possible and the last, over references.

For each reference one training is kept at every validation step. A small validation sample makes the choice, as in
`motion-lora train --validate-every`. A larger sample of other start noises and one more look, which the choice never
saw, says what each checkpoint is worth; the best possible is what the same rule picks when it sees that sample.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.disk import write_atomically
from ...core.errors import SettingsError
from ...core.stack import AdapterStack, StackEntry
from ...evaluate.checkpoints import Checkpoint, Limits, choose, has_settled
from ...evaluate.scores import ALIGNMENT, LEAKAGE, MOTION
from ...evaluate.statistics import Interval, mean_interval, within
from ...media.plots import Line, plot_lines
from ...media.write import write_png
from ...playground.probe import read_clip
from ...playground.prompts import other_looks
from .measure import MEASURES_VERSION, Ask, measure
from .report import machine_facts, markdown_table, plain_interval, short_interval
from .settings import BenchSettings, Unit, check_bench, reference_clip, reference_scene, units, what_captions_name
from .trainings import Tell, Workshop
from .variants import RECIPE, VARIANTS

CHOICES = "choices"
PICKS = ("chosen", "best possible", "last", "early stop")
# Start noises of validation and of the judging sample must not be the same ones.
_VALIDATION_SEED, _TRUTH_SEED = 1_000, 2_000
_BOUNDS = {"step": (0.0, math.inf), MOTION: (-1.0, 1.0), LEAKAGE: (0.0, 1.0), ALIGNMENT: (0.0, 1.0)}
_NAMES = {"fidelity": MOTION, "leakage": LEAKAGE, "alignment": ALIGNMENT}


@dataclass(frozen=True)
class ChoiceSettings:
    """A run: `bench` gives references, steps and sampling; its first seed only. `truth_noises` judge a checkpoint."""

    bench: BenchSettings
    variant: str = RECIPE if RECIPE in VARIANTS else "temporal"
    every: int = 50
    noises: int = 4
    truth_noises: int = 4
    limits: Limits = field(default_factory=Limits)

    @property
    def marks(self) -> tuple[int, ...]:
        """The steps of the checkpoints."""
        return tuple(sorted({*range(self.every, self.bench.steps + 1, self.every), self.bench.steps}))


def run_choices(
    pipeline: VideoPipeline,
    output: Path,
    settings: ChoiceSettings,
    *,
    tell: Tell | None = None,
    done: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """What was chosen for every reference; those that are done are not done again. Raises SettingsError."""
    check_bench(settings.bench)
    if settings.variant not in VARIANTS or not VARIANTS[settings.variant].trains:
        trained = ", ".join(name for name, row in VARIANTS.items() if row.trains)
        raise SettingsError(f"variant is {settings.variant!r}; it must be one of: {trained}.")
    if not 1 <= settings.every <= settings.bench.steps:
        raise SettingsError(f"every is {settings.every}; it must be from 1 to the {settings.bench.steps} steps.")
    plan = units(replace(settings.bench, seeds=1))
    workshop, found = Workshop(pipeline, output / "work", tell or _silent), []
    for number, unit in enumerate(plan, start=1):
        found.append(_choice_of(pipeline, workshop, output / CHOICES, settings, unit))
        if done is not None:
            done(unit.clip_name, number, len(plan))
    return found


def _choice_of(
    pipeline: VideoPipeline, workshop: Workshop, folder: Path, settings: ChoiceSettings, unit: Unit
) -> dict[str, Any]:
    path = folder / f"{unit.clip_name}.json"
    mark = _mark(pipeline, settings, unit)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if content.get("fingerprint") != mark:
        content = {"fingerprint": mark, "reference": unit.clip_name, **_measured(pipeline, workshop, settings, unit)}
        write_atomically(path, (json.dumps(content) + "\n").encode())
    # The rule picks from what was measured, so another rule measures nothing anew.
    return {**content, "picks": picks_of(content["validation"], content["truth"], settings.limits)}


def _measured(
    pipeline: VideoPipeline, workshop: Workshop, settings: ChoiceSettings, unit: Unit
) -> dict[str, list[dict[str, Any]]]:
    """Scores of the base (step 0) and of every checkpoint, by the validation sample and by the larger one."""
    bench, variant = settings.bench, VARIANTS[settings.variant]
    scene = reference_scene(unit, bench.looks)
    clip = reference_clip(pipeline, scene, bench.captions)
    changes = {**bench.training, "seed": unit.seed, "steps": bench.steps}
    trained = workshop.train(clip, variant.train_settings(pipeline, changes), settings.marks, variant.name)
    sampling = (bench.num_inference_steps, bench.guidance_scale)
    looks = other_looks(scene, _judged_looks(settings))
    asks = {
        "validation": Ask(tuple(looks[: bench.prompts]), settings.noises, _VALIDATION_SEED, *sampling),
        "truth": Ask(tuple(looks), settings.truth_noises, _TRUTH_SEED, *sampling),
    }
    reading = read_clip(clip.frames)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asks}
    for step in (0, *settings.marks):
        entry = StackEntry(trained.lora(step), variant.strength, steps=variant.schedule) if step else None
        stack = AdapterStack((entry,), variant.highway) if entry else AdapterStack()
        for name, ask in asks.items():
            measured = measure(pipeline, stack, ask, reading)
            scores = {ours: measured[theirs] for theirs, ours in _NAMES.items()}
            found[name].append({"step": step, "scores": scores})
    return found


def _judged_looks(settings: ChoiceSettings) -> int:
    """One more than the choice saw, if the world has one more."""
    return min(settings.bench.prompts + 1, 4)


def picks_of(
    validation: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], limits: Limits
) -> dict[str, dict[str, Any]]:
    """Step and true scores of every pick. Both lists begin with the base, step 0."""
    seen, real = ([Checkpoint(point["step"], point["scores"]) for point in points] for points in (validation, truth))
    stopped = next(
        (n for n in range(2, len(seen)) if has_settled(seen[1 : n + 1], seen[0].scores, limits)), len(seen) - 1
    )
    steps = {
        "chosen": choose(seen[1:], seen[0].scores, limits).step,
        "best possible": choose(real[1:], real[0].scores, replace(limits, tie=0.0)).step,
        "last": seen[-1].step,
        "early stop": choose(seen[1 : stopped + 1], seen[0].scores, limits).step,
    }
    scores = {point.step: point.scores for point in real}
    picks: dict[str, dict[str, Any]] = {name: {"step": step, **scores[step]} for name, step in steps.items()}
    picks["early stop"]["trained"] = seen[stopped].step
    return picks


def write_choices(
    output: Path, pipeline: VideoPipeline, settings: ChoiceSettings, found: Sequence[Mapping[str, Any]], command: str
) -> dict[str, Any]:
    """Write CHOICE.md, choices.json and a plot of every reference; returns plain values for --json."""
    rows, lost = pick_rows(found), regrets(found)
    machine = machine_facts(pipeline)
    report = {
        "command": command,
        "machine": machine,
        "variant": settings.variant,
        "limits": asdict(settings.limits),
        "settings": settings.bench.to_json(),
        "picks": {
            pick: {name: plain_interval(interval) for name, interval in row.items()} for pick, row in rows.items()
        },
        "fidelity_lost": {pick: plain_interval(interval) for pick, interval in lost.items()},
        "references": list(found),
    }
    write_atomically(output / "choices.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(output / "CHOICE.md", _markdown(settings, found, rows, lost, command, machine).encode())
    for one in found:
        write_png(output / f"choice_{one['reference']}.png", _plot(one))
    return report


def pick_rows(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    """Mean step and true scores of every pick over the references."""
    return {
        pick: {
            name: within(mean_interval([float(one["picks"][pick][name]) for one in found]), *bounds)
            for name, bounds in _BOUNDS.items()
        }
        for pick in PICKS
    }


def regrets(found: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """True motion fidelity that a pick loses against the best possible, paired by reference.

    Below 0 where a pick that breaks the limits is more faithful than the best that keeps them.
    """
    return {
        pick: mean_interval([one["picks"]["best possible"][MOTION] - one["picks"][pick][MOTION] for one in found])
        for pick in PICKS
        if pick != "best possible"
    }


def _markdown(
    settings: ChoiceSettings,
    found: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Interval]],
    lost: Mapping[str, Interval],
    command: str,
    machine: Mapping[str, str],
) -> str:
    head = ["pick", "step", "motion fidelity", "leakage", "text alignment", "fidelity lost to the best possible"]
    body = [
        [pick, *(short_interval(interval) for interval in row.values()), short_interval(lost.get(pick))]
        for pick, row in rows.items()
    ]
    each = [
        [str(one["reference"]), *(f"{one['picks'][pick]['step']} ({one['picks'][pick][MOTION]:.3f})" for pick in PICKS)]
        for one in found
    ]
    saved = mean_interval([float(one["picks"]["early stop"]["trained"]) for one in found])
    limits = settings.limits
    lines = [
        "# Checkpoint choice on the playground",
        f"    {command}",
        f"Variant {settings.variant}, {len(found)} references, checkpoints every {settings.every} of "
        f"{settings.bench.steps} steps; "
        f"{what_captions_name(settings.bench.captions)}. The choice saw {settings.bench.prompts} prompts x "
        f"{settings.noises} start noises; all figures are from other start noises, {settings.truth_noises} of each of "
        f"{_judged_looks(settings)} looks. Means with 95 % intervals over references.",
        f"Rule: leakage at most {limits.more_leakage:g} above the base's, text alignment at least "
        f"{1 - limits.less_alignment:.0%} of the base's, then the highest motion fidelity, the latest within "
        f"{limits.tie:g} of it. Early stop after {limits.patience} validations without improvement: it would have "
        f"trained {short_interval(saved)} steps.",
        markdown_table(head, body),
        "Step chosen, and its true motion fidelity, by reference:",
        markdown_table(["reference", *PICKS], each),
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
    ]
    return "\n\n".join(lines) + "\n"


def _plot(one: Mapping[str, Any]) -> Any:
    lines = [
        Line(f"{name.replace('_', ' ')}, {sample}", *_series(one[sample], name))
        for name in (MOTION, LEAKAGE)
        for sample in ("validation", "truth")
    ]
    return plot_lines(lines, title=f"{one['reference']}: step {one['picks']['chosen']['step']} chosen", x_label="step")


def _series(points: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [float(point["step"]) for point in points], [point["scores"][name] for point in points]


def _mark(pipeline: VideoPipeline, settings: ChoiceSettings, unit: Unit) -> str:
    """Fingerprint of all that decides a reference's measured figures; what the rule picks of them is not in it."""
    variant, bench = VARIANTS[settings.variant], settings.bench
    changes = {**bench.training, "seed": unit.seed, "steps": bench.steps}
    content = {
        "measures": MEASURES_VERSION,
        "base": [pipeline.identity.config_hash, pipeline.identity.weights_hash],
        "look": dict(bench.looks[unit.reference]),
        "captions": bench.captions,
        "training": variant.train_settings(pipeline, changes).hashed(),
        "sampling": [variant.sampling(), bench.num_inference_steps, bench.guidance_scale, bench.prompts],
        "plan": [settings.marks, settings.noises, settings.truth_noises],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _silent(what: str, step: int, total: int) -> None:
    pass
