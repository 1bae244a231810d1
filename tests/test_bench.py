"""The benchmark: rows that are legal, cells that resume, scores and a calibration with known answers, a real base."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import fails, succeeds, write_base, write_clip
from PIL import Image

from motion_lora.apps.bench import ROWS, BenchPlan, cells, run_cells, write_report
from motion_lora.apps.bench.cells import score_groups
from motion_lora.apps.bench.plan import REFERENCES, TUNING_MOTIONS, Unit, check_plan, perfect_copies, reference_scene
from motion_lora.apps.bench.results import FAILED, MISSING, PASSED, SCORED, calibration, results_of
from motion_lora.apps.bench.rows import BASE, CEILING, RECIPE, SPATIAL, TEMPORAL, find_rows
from motion_lora.apps.cli.bench import plan_of, shard_of
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.scores import LEAKAGE, MOTION, OWN_MOTION, PLACE, SIZE, UNNAMED_LEAKAGE
from motion_lora.methods.table import METHODS
from motion_lora.playground import world
from motion_lora.playground.probe import read_clip
from motion_lora.playground.prompts import other_looks

# The package has a function of this name.
running = importlib.import_module("motion_lora.apps.bench.cells")
# Words that the tiny tokenizer knows.
LOOK = {"shape": "circle", "colour": "red", "background": "sand", "fill": "plain"}
TINY = BenchPlan(
    rows=(BASE, TEMPORAL, "tap-k", "tap-k-highway-code"),
    motions=("diagonal",),
    other_looks=1,
    noises=1,
    open_noises=2,
    num_inference_steps=1,
    training=(("rank", 1),),
    looks=(LOOK,),
)


class KilledError(RuntimeError):
    """Stands for a process that is gone."""


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough for two steps, whatever the machine."""
    monkeypatch.setattr(running, "_speed", lambda *anything: {"before": 0.0, "per_step": 40.0})


# What is compared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.method], ids=lambda row: row.name)
def test_every_row_is_legal(row: Any, tiny_small: VideoPipeline) -> None:
    looks = {"looks": ("a blue square {motion}",)} if METHODS[row.method].needs_looks else {}
    settings = row.train_settings(tiny_small, {"steps": 7, "seed": 3, **({} if row.perfect_copies else looks)})
    assert (settings.steps, settings.seed) == (7, 3)
    assert all(getattr(settings, name) == value for name, value in row.settings.items())


def test_the_published_methods_and_presets_are_rows() -> None:
    on_joint_attention = {name for name in METHODS if name.startswith("joint-")}
    assert {row.method for row in ROWS.values() if row.method} == {*METHODS} - {
        "motiondirector-image"
    } - on_joint_attention
    assert {row.settings.get("absorber") for row in ROWS.values()} >= {"spatial", "textual-inversion", "dual"}
    assert {row.settings.get("targets") for row in ROWS.values()} >= {"tap-k", "tap-k-out", "tap-qk"}
    assert {row.highway.preset for row in ROWS.values() if row.highway} == {"code", "all"}
    with pytest.raises(SettingsError, match="row is 'unknown'; it must be one of"):
        find_rows(("unknown",))


def test_the_ceiling_has_the_recipes_targets_and_no_redrawing(tiny_small: VideoPipeline) -> None:
    recipe = ROWS[RECIPE].train_settings(tiny_small, {"looks": ("a blue square {motion}",)}).resolved()
    ceiling = ROWS[CEILING].train_settings(tiny_small, {}).resolved()
    assert (ceiling.targets, ceiling.rank, ceiling.timestep_low) == (recipe.targets, recipe.rank, recipe.timestep_low)
    assert (ceiling.looks, ceiling.absorber) == ((), "none")
    scene = reference_scene(Unit("orbit", 0), BenchPlan())
    captions = {clip.caption for clip in perfect_copies(tiny_small, scene)}
    assert len(captions) == 10 and not captions & {world.caption(look) for look in other_looks(scene, 4)}


def test_all_held_out_motions_are_asked_and_shards_are_the_whole() -> None:
    plan = BenchPlan()
    assert set(plan.motions) == set(world.HELD_OUT_MOTIONS) > set(TUNING_MOTIONS)
    parts = [cells(dataclasses.replace(plan, references=3), (number, 2)) for number in (1, 2)]
    assert len(parts[0]) + len(parts[1]) == 8 * 3 * len(ROWS)
    assert not {cell.unit for cell in parts[0]} & {cell.unit for cell in parts[1]}, "a clip's rows share trainings"


@pytest.mark.parametrize("number", range(len(REFERENCES)))
def test_prompts_share_no_look_with_the_reference(number: int) -> None:
    reference = reference_scene(Unit("bounce", number), BenchPlan())
    for scene in other_looks(reference, 4):
        assert all(getattr(scene, name) != getattr(reference, name) for name in ("shape", "colour", "background"))


def test_a_faulty_plan_is_refused_with_every_fault() -> None:
    plan = BenchPlan(motions=("flying",), references=9, seconds=0, other_looks=5)
    with pytest.raises(SettingsError, match=r"flying.*references is 9.*other_looks is 5.*seconds is 0"):
        check_plan(plan)


# Running --------------------------------------------------------------------------------------------------------------


def test_cells_are_measured_once_and_redone_when_anything_changed(
    tiny_small: VideoPipeline, two_steps: None, tmp_path: Path
) -> None:
    heard: list[str] = []

    def killer(what: str, step: int, total: int) -> None:
        heard.append(what)
        if what == "tap-k" and step == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_cells(tiny_small, tmp_path, TINY, tell=killer)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert {path.name for path in written} == {"base.diagonal-0.json", "temporal-lora.diagonal-0.json"}
    heard.clear()
    found = run_cells(tiny_small, tmp_path, TINY, tell=lambda what, step, total: heard.append(what))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert heard == ["tap-k"] * 2, "the interrupted cell is redone, and the highway's row takes its LoRA"
    assert [cell["row"] for cell in found] == list(TINY.rows)
    for cell in found:
        assert set(SCORED) - {PLACE, SIZE} <= set(cell["scores"])
        assert (cell["steps"], cell["seconds"] > 0) == ((0, False) if cell["row"] == BASE else (2, True))
    assert found[2]["steps"] == found[3]["steps"] and found[2]["seconds"] == found[3]["seconds"]
    runner = running._Runner(tiny_small, tmp_path, dataclasses.replace(TINY, guidance_scale=3.0), lambda *step: None)
    assert all(runner.finished(cell) is None for cell in cells(TINY)), "other settings"
    identity = dataclasses.replace(tiny_small.identity, weights_hash="0" * 64)
    other = running._Runner(dataclasses.replace(tiny_small, identity=identity), tmp_path, TINY, lambda *step: None)
    assert all(other.finished(cell) is None for cell in cells(TINY)), "another base"


def test_a_row_trains_for_as_long_as_it_may(
    tiny_small: VideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The absorber is trained within the time, a step is timed once, and too little time is refused."""
    heard: list[str] = []

    def trained(row: str, seconds: float, **changes: Any) -> running.Trained:
        cell = cells(dataclasses.replace(TINY, rows=(row,)))[0]
        settings = cell.row.train_settings(tiny_small, {"rank": 1, "absorber_steps": 2})
        clips = [running.clip_of(tiny_small, reference_scene(cell.unit, TINY))]
        one = dataclasses.replace(cell.row, **changes)
        return running.train_for(
            tiny_small, clips, settings, seconds, one, tmp_path, lambda what, *_: heard.append(what)
        )

    for _ in range(2):
        assert trained("cav-spatial", 1e4, most_steps=1).steps == 1
    assert heard.count("cav-spatial: timing") == 6 and heard.count("cav-spatial: absorber") == 4
    monkeypatch.setattr(running, "_speed", lambda *anything: {"before": 2.0, "per_step": 1.5})
    assert trained(TEMPORAL, 5.1).steps == 2
    with pytest.raises(
        SettingsError, match=r"seconds is 3, and temporal-lora needs 2\.0 .* 1\.50 for a step; give more"
    ):
        trained(TEMPORAL, 3)


# Scores ---------------------------------------------------------------------------------------------------------------


def test_scores_of_known_videos() -> None:
    scene = reference_scene(Unit("orbit", 0), BenchPlan())
    asked = other_looks(scene, 2)
    perfect = [[world.render(dataclasses.replace(one, scale=0.2))] for one in asked]
    placed = [dataclasses.replace(asked[0], scale=0.2, centre=(x, 0.5)) for x in (0.42, 0.52)]
    reference = world.render(scene)
    scores = score_groups(reference, scene, [reference], asked, perfect, [world.render(one) for one in placed])
    assert set(scores) == set(SCORED)
    assert scores[MOTION] > 0.95 and scores[OWN_MOTION] > 0.99 and scores[LEAKAGE] == scores[UNNAMED_LEAKAGE] == 0
    assert scores[PLACE] == pytest.approx(0.05, abs=0.01) and scores[SIZE] < 0.02
    still = world.render(dataclasses.replace(scene, motion="still"))
    leaked = score_groups(reference, scene, [still], asked, [[reference]] * 2, [reference] * 2)
    assert leaked[LEAKAGE] == leaked[UNNAMED_LEAKAGE] == 1 and leaked[OWN_MOTION] < 0.1
    unseen = dataclasses.replace(read_clip(reference), found=torch.zeros(len(reference), dtype=torch.bool))
    assert running._diversity([unseen, unseen, read_clip(reference)]) == {}


# Results --------------------------------------------------------------------------------------------------------------


def made_cells(**own: Any) -> list[dict[str, Any]]:
    """Cells of an instrument that can tell; `own` gives own_motion_fidelity by row, a value per motion."""
    values = {BASE: (0.3, 0.1), CEILING: (0.99, 0.1), TEMPORAL: (0.9, 0.1), SPATIAL: (0.6, 0.7), RECIPE: (0.95, 0.1)}
    found = []
    for row, (fidelity, leak) in values.items():
        for number, motion in enumerate(world.HELD_OUT_MOTIONS):
            scores = dict.fromkeys(SCORED, 0.5) | {MOTION: fidelity, OWN_MOTION: fidelity, UNNAMED_LEAKAGE: leak}
            if row in own:
                scores[OWN_MOTION] = own[row][number]
            found.append(
                {"row": row, "motion": motion, "reference": 0, "steps": 400, "seconds": 90.0, "scores": scores}
            )
    return found


def statuses(found: list[dict[str, Any]]) -> list[str]:
    return [check.status for check in calibration(results_of(found))]


def test_the_calibration_passes_and_each_check_can_fail() -> None:
    good = made_cells()
    assert statuses(good) == [PASSED] * 4
    for row, fault, place in (
        (BASE, {OWN_MOTION: 0.6}, 0),
        (CEILING, {MOTION: 0.8}, 1),
        (SPATIAL, {UNNAMED_LEAKAGE: 0.15}, 3),
    ):
        bad = [{**c, "scores": {**c["scores"], **fault}} if c["row"] == row else c for c in good]
        assert statuses(bad)[place] == FAILED and statuses(bad).count(PASSED) == 3
    assert statuses(made_cells(**{TEMPORAL: [0.86] * 6 + [0.2] * 2}))[2] == PASSED, "six of eight"
    assert statuses(made_cells(**{TEMPORAL: [0.86] * 5 + [0.2] * 3}))[2] == FAILED
    assert statuses([{**cell, "steps": 900} for cell in good])[2] == FAILED, "more steps than the papers'"
    assert statuses([cell for cell in good if cell["row"] == RECIPE]) == [MISSING] * 4


def test_intervals_are_over_motions_and_looks_are_averaged() -> None:
    found = made_cells(**{RECIPE: [0.1 * number for number in range(8)]})
    twice = found + [{**cell, "reference": 1} for cell in found]
    row = next(row for row in results_of(twice) if row.name == RECIPE)
    interval = row.scores[OWN_MOTION]
    assert interval.count == 8 and interval.estimate == pytest.approx(0.35) and row.cells == 16
    assert 0.15 < interval.low < 0.35 < interval.high < 0.55


def test_report(tiny_small: VideoPipeline, tmp_path: Path) -> None:
    found = made_cells()
    plain = write_report(tmp_path, tiny_small, BenchPlan(), found, "motion-lora bench methods")
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.csv", "results.png"}
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (
        "40 of 120 cells" in page and "passed: a spatial LoRA leaks" in page and "| Many Looks (this project) |" in page
    )
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 40 and float(rows[0][MOTION]) == 0.3
    assert Image.open(tmp_path / "results.png").width > 400
    assert json.loads(json.dumps(plain))["rows"][0]["by_motion"][MOTION]["orbit"] == 0.3
    assert "0 of 120 cells" in Path(write_report(tmp_path, tiny_small, BenchPlan(), [], "x")["files"][1]).read_text()


# Command line ---------------------------------------------------------------------------------------------------------


def test_methods_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], two_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motion_lora.apps.cli.bench.set_threads", lambda threads: None)
    words = (
        "bench",
        "methods",
        "--base",
        write_base(tmp_path, levels=2),
        "--output",
        tmp_path / "out",
        "--rows",
        "base,temporal-lora",
    )
    few = ("--motions", "diagonal", "--other-looks", 1, "--noises", 1, "--open-noises", 1, "--num-inference-steps", 1)
    succeeds(*words, *few, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["cells"], report["planned"]) == (2, 2) and all(Path(path).is_file() for path in report["files"])
    assert "row is 'x'" in fails(capsys, *words[:-1], "x")
    assert "shard is '3/2'" in fails(capsys, *words, "--shard", "3/2")
    assert shard_of("2/3") == (2, 3)
    assert plan_of({"absorber_steps": 5, "motions": "swing, eight"}).motions == ("swing", "eight")


def test_base_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, clip, output = write_base(tmp_path, levels=2), write_clip(tmp_path), tmp_path / "out"
    words = ("bench", "base", base, "--clip", clip, "--caption", "a red square moving right over sand")
    look = ("--appearance-caption", "a red square over sand", "--absorb-words", "red square")
    few = ("--steps", 2, "--absorber-steps", 1, "--token-steps", 1, "--num-inference-steps", 1, "--num-frames", 3)
    told = (*words, *look, *few, "--prompt", "a blue circle moving right over snow", "--output", output, "--json")
    methods = ("--methods", "temporal-only,motiondirector", "--height", 16, "--width", 16)
    succeeds(*told, *methods)
    report = json.loads(capsys.readouterr().out)
    assert set(report["scores"]) == {"base", "temporal-only", "motiondirector"}
    assert {path.name for path in output.iterdir()} == {
        "README.md",
        "grid.mp4",
        "loras",
        "sheet.png",
        "table.csv",
        "table.md",
    }
    page = (output / "README.md").read_text(encoding="utf-8")
    assert "| motiondirector | 2 |" in page and "sheet.png" in page and "no text alignment" in page
    succeeds(*told, *methods)
    assert json.loads(capsys.readouterr().out)["seconds"] == report["seconds"], "what is trained is kept"
    assert "There is no --caption" in fails(capsys, "bench", "base", base, "--clip", clip)
    assert "There is no prompt" in fails(capsys, *words)
    assert "looks" in fails(capsys, *told, "--methods", "many-looks")
