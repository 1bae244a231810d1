"""Validation while `motion-lora train` runs: its options, its plan, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from .bases import PLAYGROUND
from .console import note
from .options import Option
from .results import check_output

if TYPE_CHECKING:
    from ...base.pipeline import VideoPipeline
    from ...core.clip import Clip
    from ...evaluate.checkpoints import Checkpoint
    from ...evaluate.scores import Scores
    from ...evaluate.validation import Validated, ValidationPlan
    from ...training import Callback, TrainResult, TrainSettings, Visitor

VALIDATION_OPTIONS = (
    Option("validate_every", int, "steps between validations: a few videos are made and scored (default: none)"),
    Option("validate_prompt", str, "prompt of those videos, with a look of its own; may be repeated (built-in model: "
           "other looks than the clip's)", many=True),
    Option("validate_steps", int, "denoising steps of those videos (default: 15)"),
    Option("keep_best", bool, "keep the checkpoint that validated best, as NAME.best.safetensors (default: on)"),
    Option("early_stop", bool, "stop when validations no longer improve (default: off)"),
    Option("clip_model", Path, "folder of a CLIP model, to validate text alignment on other bases too",
           metavar="FOLDER"),
    Option("lpips_weights", Path, "weights as for compare, to validate consistency on other bases too", metavar="FILE"),
)  # fmt: skip


def check_validation(values: Mapping[str, Any], output: Path) -> None:
    """Raise SettingsError or OutputError for options that cannot be followed, before anything is read."""
    others = [o.spelling for o in VALIDATION_OPTIONS if o.name != "validate_every" and o.name in values]
    if "validate_every" not in values:
        if others:
            raise SettingsError(f"{others[0]} needs --validate-every, the steps between two validations.")
        return
    if values["validate_every"] < 1:
        raise SettingsError(f"validate_every is {values['validate_every']}; it must be 1 or more.")
    kept = [best_path(output)] if values.get("keep_best", True) else []
    for path in (*kept, *(curve_path(output).with_name(f"{curve_path(output).name}{end}") for end in (".csv", ".png"))):
        check_output(path, overwrite=values.get("overwrite", False))
    # The built-in model's judge needs neither.
    if values.get("base", PLAYGROUND) != PLAYGROUND:
        from ...evaluate.metrics import check_metric_models

        check_metric_models(values.get("clip_model"), values.get("lpips_weights"))


def curve_path(output: Path) -> Path:
    """Where the curve goes, less its two endings."""
    return output.with_name(f"{output.stem}.validation")


def best_path(output: Path) -> Path:
    """Where the best checkpoint goes."""
    return output.with_name(f"{output.stem}.best.safetensors")


def plan_of(values: Mapping[str, Any], pipeline: VideoPipeline, clips: Sequence[Clip]) -> ValidationPlan:
    """The plan that the options ask for."""
    from ...evaluate.validation import validation_plan

    return validation_plan(
        pipeline,
        clips[0],
        values["validate_every"],
        values.get("validate_prompt", ()),
        num_inference_steps=values.get("validate_steps", 15),
        early_stop=values.get("early_stop", False),
    )


def run_validated(
    values: Mapping[str, Any],
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    plan: ValidationPlan,
    folder: Path,
    train: Callable[[Callback, Visitor], TrainResult],
    with_bar: Callable[[Callable[[Callback], TrainResult]], TrainResult],
) -> Validated:
    """Train by `train(callback, visitor)` inside `with_bar`, with validations whose record is kept in `folder`."""
    from ...evaluate.judge import load_judge, notes_for
    from ...evaluate.validation import Validation, Validator, check_validation, train_validated

    clip = clips[0]
    check_validation(plan, pipeline, clip.frames, settings, keep_best=values.get("keep_best", True))
    judge = load_judge(
        pipeline, clip.frames, clip_model=values.get("clip_model"), lpips_weights=values.get("lpips_weights")
    )
    for remark in notes_for(judge, plan.prompts, (clip.num_frames, clip.height, clip.width)):
        note(f"validation: {remark}")
    made: list[Validated] = []

    def work(callback: Callback) -> TrainResult:
        validation = Validation(Validator(pipeline, judge, plan), folder, settings, heard=_tell)
        if again := validation.record.unscored():
            note(f"validation: scoring the checkpoints of steps {', '.join(map(str, again))}, which have no scores yet")
        made.append(train_validated(lambda visitor: train(callback, visitor), validation))
        return made[0].result

    with_bar(work)
    return made[0]


def save_validation(values: Mapping[str, Any], output: Path, validated: Validated) -> dict[str, str]:
    """Write the curve, and the best LoRA where there is one and it is wanted; returns what each file is."""
    from ...evaluate.checkpoints import write_curve
    from ...files.own import save_lora

    if not validated.points:
        return {}
    chosen = validated.choice.step if validated.choice is not None else None
    table, picture = write_curve(curve_path(output), validated.points, validated.base, chosen)
    files = {"validation": str(table), "validation_plot": str(picture)}
    if validated.best is not None and values.get("keep_best", True):
        overwrite = values.get("overwrite", False)
        files["best"] = str(save_lora(best_path(output), validated.best, overwrite=overwrite))
    return files


def validation_facts(validated: Validated) -> dict[str, Any]:
    """Plain values for --json."""
    choice = validated.choice
    return {
        "base": dict(validated.base),
        "checkpoints": [{"step": point.step, **point.scores} for point in validated.points],
        "best": {"step": choice.step, "admissible": choice.admissible, "reason": choice.reason} if choice else None,
        "stopped_early": validated.stopped_early,
    }


def _tell(point: Checkpoint, base: Scores) -> None:
    scores = ", ".join(
        f"{name} {value:.3f}" + (f" (base {base[name]:.3f})" if name in base else "")
        for name, value in point.scores.items()
    )
    note(f"step {point.step}: {scores}")
