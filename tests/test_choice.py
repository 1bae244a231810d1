"""The choice of a checkpoint: the rule on known curves, validation while training, what it leaves on disk."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cli_helpers import CAPTIONS, fails, succeeds, write_base, write_clip
from PIL import Image
from training_samples import Listener, quick, sample_clip, small_pipeline

from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.checkpoints import Checkpoint, Limits, choose, curve_csv, excess, has_settled, write_curve
from motion_lora.evaluate.scores import ALIGNMENT, LEAKAGE, MOTION
from motion_lora.evaluate.validation import (
    Record,
    Validation,
    ValidationPlan,
    Validator,
    check_plan,
    check_validation,
    train_validated,
)
from motion_lora.files.own import load_lora
from motion_lora.media.write import write_video
from motion_lora.training import train

BASE = {MOTION: 0.2, LEAKAGE: 0.05, ALIGNMENT: 0.9}


def curve(*rows: tuple[float, float, float]) -> list[Checkpoint]:
    """(fidelity, leakage, alignment) every 50 steps."""
    return [
        Checkpoint(50 * n, {MOTION: fidelity, LEAKAGE: leakage, ALIGNMENT: alignment})
        for n, (fidelity, leakage, alignment) in enumerate(rows, start=1)
    ]


# The rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "step", "admissible"),
    [
        pytest.param(curve((0.3, 0.05, 0.9), (0.8, 0.1, 0.9), (0.7, 0.1, 0.9)), 100, True, id="highest"),
        pytest.param(curve((0.3, 0.05, 0.9), (0.7, 0.14, 0.9), (0.95, 0.4, 0.9)), 100, True, id="the last leaks"),
        pytest.param(curve((0.3, 0.05, 0.9), (0.7, 0.1, 0.82), (0.95, 0.1, 0.6)), 100, True, id="the last forgets"),
        pytest.param(curve((0.78, 0.1, 0.9), (0.82, 0.1, 0.9), (0.79, 0.1, 0.9)), 150, True, id="a tie, the latest"),
        pytest.param(curve((0.80, 0.1, 0.9), (0.82, 0.1, 0.9), (0.76, 0.1, 0.9)), 100, True, id="no tie"),
        pytest.param(curve((0.9, 0.5, 0.9), (0.8, 0.3, 0.9), (0.95, 0.6, 0.9)), 100, False, id="all leak"),
        pytest.param(curve((0.5, 0.3, 0.9), (0.8, 0.3, 0.9)), 100, False, id="all leak alike, the more faithful"),
        pytest.param([Checkpoint(50, {MOTION: 0.4}), Checkpoint(100, {MOTION: 0.5})], 100, True, id="motion alone"),
    ],
)
def test_the_rule(points: Sequence[Checkpoint], step: int, admissible: bool) -> None:
    choice = choose(points, BASE)
    assert (choice.step, choice.admissible) == (step, admissible)
    assert f"step {step}" in choice.reason
    assert choose(list(reversed(points)), BASE) == choice, "the order in which they come does not matter"


def test_limits_are_relative_to_the_base() -> None:
    assert excess({LEAKAGE: 0.15, ALIGNMENT: 0.81}, BASE, Limits()) == pytest.approx(0)
    assert excess({LEAKAGE: 0.25, ALIGNMENT: 0.9}, BASE, Limits()) == pytest.approx(0.1)
    assert excess({LEAKAGE: 0.0, ALIGNMENT: 0.72}, BASE, Limits()) == pytest.approx(0.1)
    # CLIP's scale: the same share of the base's alignment, the same verdict.
    scores, base = {LEAKAGE: 0.0, ALIGNMENT: 24.0}, {LEAKAGE: 0.0, ALIGNMENT: 30.0}
    assert excess(scores, base, Limits()) == pytest.approx(0.1)
    assert choose(curve((0.5, 0.1, 0.9), (0.9, 0.3, 0.9)), BASE, Limits(more_leakage=0.3)).step == 100
    with pytest.raises(SettingsError, match="no checkpoint"):
        choose([], BASE)


def test_settling() -> None:
    limits = Limits(patience=2)
    rising = curve((0.3, 0, 0.9), (0.5, 0, 0.9), (0.7, 0, 0.9), (0.74, 0, 0.9))
    assert not has_settled(rising, BASE, limits)
    assert has_settled([*rising, *curve((0.7, 0, 0.9))], BASE, limits)
    leaking = curve((0.5, 0, 0.9), (0.9, 0.5, 0.9), (0.95, 0.5, 0.9))
    assert has_settled(leaking, BASE, limits), "what leaks is no improvement"
    assert not has_settled(curve((0.5, 0.5, 0.9), (0.6, 0.5, 0.9), (0.7, 0.5, 0.9)), BASE, limits)
    assert not has_settled([], BASE, limits)


def test_curve_files(tmp_path: Path) -> None:
    points = [*curve((0.5, 0.1, 0.9)), Checkpoint(100, {MOTION: 0.25})]
    rows = list(csv.DictReader(io.StringIO(curve_csv(points, BASE, 50))))
    assert [(row["step"], row[MOTION], row[LEAKAGE], row["best"]) for row in rows] == [
        ("0", "0.2", "0.05", "0"),
        ("50", "0.5", "0.1", "1"),
        ("100", "0.25", "", "0"),
    ]
    table, picture = write_curve(tmp_path / "run.validation", points, BASE, 50)
    assert (table.name, picture.name) == ("run.validation.csv", "run.validation.png")
    assert Image.open(picture).width > 400


# While training -------------------------------------------------------------------------------------------------------


class KnownJudge:
    """Scores by the number of the call: the base's video, then each checkpoint's."""

    notes, forms, identity = (), {}, "known"

    def __init__(self, *fidelities: float) -> None:
        self.left, self.neutrals = list(fidelities), []

    def gaps(self, prompt: str, shape: tuple[int, int, int], *, neutral: bool) -> dict[str, str]:
        return {}

    def score(self, prompt: str, frames: torch.Tensor, neutral: torch.Tensor | None = None) -> dict[str, float]:
        self.neutrals.append(torch.equal(frames, neutral))
        return {MOTION: self.left.pop(0), LEAKAGE: 0.0, ALIGNMENT: 1.0}


PLAN = ValidationPlan(
    2, ("a red circle",), num_inference_steps=1, guidance_scale=1.0, num_frames=3, height=16, width=16
)


def validated(folder: Path, judge: KnownJudge, plan: ValidationPlan = PLAN, callback=None, steps: int = 6):
    pipeline, clip = small_pipeline(), sample_clip()
    settings = quick(absorber="none", steps=steps)
    heard: list[int] = []
    validation = Validation(
        Validator(pipeline, judge, plan),
        folder / "validation",
        settings,
        limits=Limits(patience=1),
        heard=lambda point, base: heard.append(point.step),
    )
    found = train_validated(
        lambda visitor: train(
            pipeline, [clip], settings, callback=callback, visitor=visitor, checkpoint=folder / "run"
        ),
        validation,
    )
    return found, heard


@pytest.fixture(scope="module")
def straight() -> str:
    """What training gives without validations."""
    return train(small_pipeline(), [sample_clip()], quick(absorber="none", steps=6)).lora.fingerprint()


def test_best_is_kept_beside_last_and_training_is_not_changed(tmp_path: Path, straight: str) -> None:
    judge = KnownJudge(0.1, 0.3, 0.8, 0.5)
    found, heard = validated(tmp_path, judge)
    assert heard == [2, 4, 6] and [point.step for point in found.points] == [2, 4, 6]
    assert found.base[MOTION] == 0.1 and judge.neutrals == [True, False, False, False]
    assert found.choice is not None and found.choice.step == 4 and found.best is not None
    assert found.result.lora.fingerprint() == straight and not found.stopped_early
    half = train(
        small_pipeline(), [sample_clip()], quick(absorber="none", steps=6), callback=Listener(("motion", 4), "stop")
    )
    assert found.best.fingerprint() == half.lora.fingerprint()


def test_early_stop(tmp_path: Path) -> None:
    plan = ValidationPlan(**{**vars(PLAN), "early_stop": True})
    found, heard = validated(tmp_path, KnownJudge(0.1, 0.8, 0.5), plan)
    assert heard == [2, 4] and found.stopped_early and found.result.ending == "stopped"
    assert found.choice is not None and found.choice.step == 2 and len(found.result.lora)


def test_an_interrupted_run_keeps_its_validations(tmp_path: Path, straight: str) -> None:
    found, heard = validated(tmp_path, KnownJudge(0.1, 0.9), callback=Listener(("motion", 3), "pause"))
    assert found.result.ending == "paused" and heard == [2]
    judge = KnownJudge(0.3, 0.5)
    found, heard = validated(tmp_path, judge)
    assert heard == [4, 6] and [point.step for point in found.points] == [2, 4, 6]
    assert not judge.left and found.base[MOTION] == 0.1, "the base is not scored again"
    assert found.choice is not None and found.choice.step == 2
    assert found.result.lora.fingerprint() == straight
    assert Record(tmp_path / "validation", PLAN, "known").lora(2).fingerprint() == found.best.fingerprint()


def test_a_pause_at_a_validation_leaves_none_out(tmp_path: Path) -> None:
    found, heard = validated(tmp_path, KnownJudge(), callback=Listener(("motion", 2), "pause"))
    assert found.result.ending == "paused" and heard == []
    found, heard = validated(tmp_path, KnownJudge(0.1, 0.9, 0.3, 0.5))
    assert heard == [2, 4, 6] and found.choice is not None and found.choice.step == 2


class BrokenJudge(KnownJudge):
    """Goes away at its last call, as a process that is killed."""

    def score(self, prompt: str, frames: torch.Tensor, neutral: torch.Tensor | None = None) -> dict[str, float]:
        if len(self.left) == 1:
            raise KeyboardInterrupt
        return super().score(prompt, frames, neutral)


def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path: Path, straight: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        validated(tmp_path, BrokenJudge(0.1, 0.3, 0.0))
    found, heard = validated(tmp_path, KnownJudge(0.9, 0.5))
    assert heard == [4, 6] and [point.scores[MOTION] for point in found.points] == [0.3, 0.9, 0.5]
    assert found.result.lora.fingerprint() == straight and found.choice is not None and found.choice.step == 4


def test_a_finished_run_is_not_scored_again_but_for_another_plan(tmp_path: Path) -> None:
    validated(tmp_path, KnownJudge(0.1, 0.3, 0.8, 0.5))
    found, heard = validated(tmp_path, KnownJudge())
    assert heard == [] and found.choice is not None and found.choice.step == 4
    other = ValidationPlan(**{**vars(PLAN), "prompts": ("a blue square",)})
    found, heard = validated(tmp_path, KnownJudge(0.2, 0.5), other)
    assert heard == [6] and found.base[MOTION] == 0.2 and len(found.points) == 1


def test_a_plan_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiple of report_every"):
        check_plan(PLAN, quick(report_every=3))
    with pytest.raises(SettingsError, match="no prompt"):
        check_plan(ValidationPlan(2, ()), quick())


class OtherJudge(KnownJudge):
    """One whose figures are not the other's."""

    identity = "other"


def test_scores_of_another_judge_count_for_nothing_and_are_made_again(tmp_path: Path, straight: str) -> None:
    found, heard = validated(tmp_path, KnownJudge(0.1, 0.9, 0.8), callback=Listener(("motion", 5), "pause"))
    assert found.result.ending == "paused" and heard == [2, 4]
    found, heard = validated(tmp_path, OtherJudge(0.2, 0.3, 0.4, 0.35))
    assert heard == [2, 4, 6] and found.base[MOTION] == 0.2
    assert [point.scores[MOTION] for point in found.points] == [0.3, 0.4, 0.35]
    assert found.choice is not None and found.choice.step == 4 and found.result.lora.fingerprint() == straight


def test_a_record_from_before_judges_were_named_is_taken_as_it_is(tmp_path: Path) -> None:
    validated(tmp_path, KnownJudge(0.1, 0.3, 0.8, 0.5))
    path = tmp_path / "validation" / "validation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("judge") == "known"
    path.write_text(json.dumps(content), encoding="utf-8")
    found, heard = validated(tmp_path, OtherJudge())
    assert heard == [] and found.base[MOTION] == 0.1 and len(found.points) == 3


class LooksJudge(KnownJudge):
    """Has no motion fidelity."""

    def score(self, prompt: str, frames: torch.Tensor, neutral: torch.Tensor | None = None) -> dict[str, float]:
        return {LEAKAGE: super().score(prompt, frames, neutral)[MOTION]}


def test_without_motion_nothing_is_chosen_and_nothing_stops(tmp_path: Path, straight: str) -> None:
    plan = ValidationPlan(**{**vars(PLAN), "early_stop": True})
    found, heard = validated(tmp_path, LooksJudge(0.1, 0.2, 0.2, 0.2), plan)
    assert heard == [2, 4, 6] and found.choice is None and found.best is None and not found.stopped_early
    assert found.result.lora.fingerprint() == straight


def test_a_validation_without_measurable_motion_is_refused_where_something_hangs_on_it() -> None:
    pipeline, clip, settings = small_pipeline(), sample_clip(), quick(absorber="none")
    blank = torch.zeros(3, 32, 32, 3)
    check_validation(PLAN, pipeline, clip.frames, settings, keep_best=False)
    check_validation(PLAN, pipeline, blank, settings, keep_best=False)
    for keep_best, early_stop in ((True, False), (False, True)):
        plan = ValidationPlan(**{**vars(PLAN), "early_stop": early_stop})
        with pytest.raises(SettingsError, match=r"cannot be told.*No point.*--no-keep-best"):
            check_validation(plan, pipeline, blank, settings, keep_best=keep_best)
    with pytest.raises(SettingsError, match="learns a look"):
        check_validation(PLAN, pipeline, blank, quick(method="motiondirector-image"), keep_best=False)


# Command line ---------------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, clip, output = write_base(tmp_path, levels=2), write_clip(tmp_path), tmp_path / "lora.safetensors"
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, "--absorber", "none", "--steps", 4, "--output", output)
    validate = ("--validate-every", 2, "--validate-prompt", "a blue square", "--validate-steps", 1)
    succeeds(*words, *validate, "--json")
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert [point["step"] for point in facts["validation"]["checkpoints"]] == [2, 4]
    assert facts["validation"]["best"]["step"] in (2, 4) and "step 2:" in err
    names = {"lora.safetensors", "lora.best.safetensors", "lora.validation.csv", "lora.validation.png"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "clip.mp4", "tiny"}
    best = load_lora(tmp_path / "lora.best.safetensors")
    same = best.fingerprint() == load_lora(output).fingerprint()
    assert same == (facts["validation"]["best"]["step"] == 4)
    assert "exists already" in fails(capsys, *words, *validate)
    output.unlink()
    assert "lora.best.safetensors exists already" in fails(capsys, *words, *validate)
    assert "--validate-prompt needs --validate-every" in fails(
        capsys, *words, "--validate-prompt", "x", "--no-overwrite"
    )
    (tmp_path / "lora.best.safetensors").unlink()
    assert "lora.validation.csv exists already" in fails(capsys, *words, *validate)
    assert "lora.validation.csv exists already" in fails(capsys, *words, *validate, "--no-keep-best")
    (tmp_path / "lora.validation.csv").unlink()
    assert "lora.validation.png exists already" in fails(capsys, *words, *validate)
    (tmp_path / "lora.validation.png").unlink()
    assert "validate_every is 0" in fails(capsys, *words, "--validate-every", 0)
    other = [str(word) for word in words]
    other[other.index("--caption") + 1] = other[other.index("--appearance-caption") + 1] = "a red square on the road"
    assert "There is no prompt to validate with" in fails(capsys, *other, "--validate-every", 2)
    assert "is not a folder" in fails(capsys, *words, *validate, "--clip-model", tmp_path / "no_clip")
    assert "is not a file" in fails(capsys, *words, *validate, "--lpips-weights", tmp_path / "alexnet.pth")


def test_command_line_without_measurable_motion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, output = write_base(tmp_path, levels=2), tmp_path / "lora.safetensors"
    clip = write_video(tmp_path / "blank.mp4", torch.full((4, 32, 32, 3), 0.5), 8)
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, "--absorber", "none", "--steps", 4, "--output", output)
    validate = ("--validate-every", 2, "--validate-prompt", "a blue square", "--validate-steps", 1)
    assert "motion fidelity cannot be measured" in fails(capsys, *words, *validate)
    assert not output.exists()
    succeeds(*words, *validate, "--no-keep-best", "--json")
    facts = json.loads(capsys.readouterr().out)["validation"]
    assert facts["best"] is None and [set(point) for point in facts["checkpoints"]] == [{"step", LEAKAGE}] * 2
    assert (tmp_path / "lora.validation.csv").exists() and not (tmp_path / "lora.best.safetensors").exists()
