"""The benchmark: legal variants, cells that survive a kill, shared trainings, and a table with known answers."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, succeeds, write_base
from tiny import tiny_pipeline

from motion_lora.apps import bench
from motion_lora.apps.bench import TEST_MOTIONS, TUNING_MOTIONS, VARIANTS, BenchSettings, cells, run_cells
from motion_lora.apps.bench.choosing import PICKS, picks_of, regrets
from motion_lora.apps.bench.measure import MEASURES, Ask, free_leakage, score_videos
from motion_lora.apps.bench.report import write_report
from motion_lora.apps.bench.settings import REFERENCES, Unit, reference_scene, units
from motion_lora.apps.bench.table import HELD, NOT_HELD, TOO_FEW, calibration, crowded, curves, noise_floor, rows_of
from motion_lora.apps.bench.trainings import Workshop, marks_of
from motion_lora.apps.bench.variants import CEILING, RECIPE
from motion_lora.core.curves import Schedule
from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.checkpoints import Limits
from motion_lora.evaluate.scores import ALIGNMENT, LEAKAGE, MOTION
from motion_lora.evaluate.statistics import mean_interval, within
from motion_lora.methods.table import METHODS
from motion_lora.playground import world
from motion_lora.playground.defaults import PLAYGROUND_DEFAULTS, PLAYGROUND_TUNING
from motion_lora.playground.model import load_playground
from motion_lora.playground.probe import ATTRIBUTES, read_clip
from motion_lora.playground.prompts import other_looks

# Words that the tiny tokenizer knows.
LOOK = {"shape": "circle", "colour": "red", "background": "sand", "fill": "plain"}
TINY = BenchSettings(
    variants=("base", "temporal", "temporal-unphased", "spatial-absorber"),
    motions=("diagonal",),
    references=1,
    seeds=1,
    steps=4,
    training={"absorber_steps": 2, "rank": 1},
    prompts=1,
    noises=2,
    curve=(0.5,),
    num_inference_steps=1,
    looks=(LOOK,),
)


class KilledError(RuntimeError):
    """Stands for a process that is gone."""


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(levels=2)


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory: pytest.TempPathFactory):
    """A run without a break: its folder, its cells, and the trainings that were begun, in order."""
    folder, begun = tmp_path_factory.mktemp("whole"), []
    found = run_cells(pipeline, folder, TINY, tell=lambda what, step, total: begun.append(what) if step == 1 else None)
    return folder, found, begun


def without_times(found: list[dict]) -> list[dict]:
    timed = ("train_seconds", "absorber_seconds", "sample_seconds")
    return [{name: value for name, value in cell.items() if name not in timed} for cell in found]


# What is compared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_legal(variant: bench.Variant, pipeline) -> None:
    assert variant.title and (variant.trains or variant.name in ("base", CEILING))
    if variant.trains:
        settings = variant.train_settings(pipeline, {"steps": 7, "seed": 3})
        assert (settings.steps, settings.seed) == (7, 3)
        assert all(getattr(settings, name) == value for name, value in variant.settings.items())


def test_variants_differ_and_the_issues_rows_are_there() -> None:
    rows = [(v.method, tuple(sorted(v.settings.items())), json.dumps(v.sampling())) for v in VARIANTS.values()]
    assert len(set(rows)) == len(rows)
    absorbers = {v.settings.get("absorber") for v in VARIANTS.values() if v.method == "customize-a-video"}
    assert absorbers >= {"none", "spatial", "textual-inversion", "dual"}
    assert {v.settings.get("targets") for v in VARIANTS.values()} >= {"tap-k", "tap-k-out", "tap-qk"}
    assert {v.highway.preset for v in VARIANTS.values() if v.highway} == {"code", "all"}
    assert {v.method for v in VARIANTS.values() if v.control} == {"spatial-only", "spatial-temporal"}
    # A LoRA trained on noisy steps acts in those alone: phased integration is the rule, and its lack a row.
    assert VARIANTS["temporal-unphased"].schedule == Schedule()
    assert VARIANTS[RECIPE].method == METHODS[PLAYGROUND_TUNING.recommended].name
    assert VARIANTS[RECIPE].settings == {"absorber": METHODS[VARIANTS[RECIPE].method].absorber}


def test_same_parameters_are_nearly_the_same() -> None:
    """MotionDirector's smaller rank is that which comes nearest to the temporal LoRA's size."""
    from motion_lora.adapters.targets import parameter_count

    unet = load_playground(device="cpu").unet
    wanted = parameter_count(unet, "temporal-attention", PLAYGROUND_DEFAULTS["customize-a-video"]["rank"])
    sizes = {rank: parameter_count(unet, "temporal-all", rank) for rank in (4, 8, 12, 16, 20, 24, 32)}
    assert min(sizes, key=lambda rank: abs(sizes[rank] - wanted)) == VARIANTS["motiondirector-small"].settings["rank"]


def test_test_motions_are_not_the_tuning_motions() -> None:
    assert not set(TEST_MOTIONS) & set(TUNING_MOTIONS)
    assert set(TEST_MOTIONS) | set(TUNING_MOTIONS) == set(world.HELD_OUT_MOTIONS)
    assert not set(BenchSettings().motions) & set(TUNING_MOTIONS)
    assert not set(BenchSettings.quick().motions) & set(TUNING_MOTIONS)


@pytest.mark.parametrize("number", range(len(REFERENCES)))
def test_prompts_share_no_look_with_the_reference(number: int) -> None:
    reference = reference_scene(Unit("bounce", number, 0), REFERENCES)
    asked = other_looks(reference, 4)
    for scene in asked:
        assert scene.motion == reference.motion
        assert all(getattr(scene, name) != getattr(reference, name) for name in ("shape", "colour", "background"))
    assert len({(scene.shape, scene.colour, scene.background) for scene in asked}) == 4


def test_captions_of_references_name_few_looks_or_all(pipeline) -> None:
    """Short ones leave to the training what a LoRA could leave to the prompt; they are asked for as they are."""
    scene = reference_scene(Unit("orbit", 0, 0), REFERENCES)
    short, full = (bench.settings.reference_clip(pipeline, scene, name) for name in ("short", "full"))
    assert (short.caption, short.appearance_caption) == ("a striped circle circling around", "a striped circle")
    assert short.absorb_words == "striped circle"
    assert full.caption == world.caption(scene) and full.absorb_words == "striped red circle"
    assert torch.equal(short.frames, full.frames)
    with pytest.raises(SettingsError, match="captions is 'long', it must be one of: short, full"):
        bench.check_bench(dataclasses.replace(TINY, captions="long"))


def test_shards_are_the_whole_and_keep_a_clip_together() -> None:
    settings = BenchSettings(motions=("bounce", "swing", "eight"), references=2, seeds=3)
    parts = [units(settings, (number, 2)) for number in (1, 2)]
    assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, units(settings)))
    assert not {unit.clip_name for unit in parts[0]} & {unit.clip_name for unit in parts[1]}
    assert len(cells(settings)) == 3 * 2 * 3 * len(VARIANTS)


def test_marks() -> None:
    assert marks_of(300, (0.25, 0.5)) == (75, 150, 300)
    assert marks_of(1, (0.25,)) == (1,)


# Running --------------------------------------------------------------------------------------------------------------


def test_cells_hold_what_was_measured(whole) -> None:
    folder, found, _ = whole
    assert len(found) == len(cells(TINY)) == 4
    for cell in found:
        assert set(MEASURES) <= set(cell) and len(cell["videos"]) == 2
        assert 0 <= cell["free_leakage"] <= 1 and -1 <= cell["own_fidelity"] <= 1
        assert 0 <= cell["alignment"] <= 1 and 0 <= cell["leakage"] <= 1 and -1 <= cell["fidelity"] <= 1
        assert json.loads((folder / "cells" / f"{cell['variant']}.diagonal-0.{cell['seed']}.json").read_text()) == cell
    by_name = {(cell["variant"], cell["seed"]): cell for cell in found}
    temporal = by_name["temporal", 0]
    assert [point["step"] for point in temporal["curve"]] == [2, 4]
    assert temporal["curve"][-1]["fidelity"] == temporal["fidelity"]
    assert by_name["temporal-unphased", 0]["curve"] == [] and by_name["base", 0]["steps"] == 0
    assert by_name["spatial-absorber", 0]["absorber_seconds"] > 0 == by_name["temporal", 0]["absorber_seconds"]


def test_what_can_be_shared_is_trained_once(whole, pipeline) -> None:
    """Phased sampling trains nothing of its own; one absorber of a clip serves all seeds and, in part, a dual one."""
    folder, _, begun = whole
    # A training that stops at its mark goes on there, so step 1 is reported once.
    assert sorted(begun) == ["absorber", "spatial-absorber", "temporal"]
    heard: list[str] = []
    workshop = Workshop(pipeline, folder / "work", lambda what, step, total: heard.append(what))
    clip = bench.settings.reference_clip(pipeline, reference_scene(Unit("diagonal", 0, 0), (LOOK,)), TINY.captions)
    other = VARIANTS["spatial-absorber"].train_settings(pipeline, {**TINY.training, "seed": 9, "steps": 77})
    absorber, seconds = workshop.absorber(clip, other)
    assert absorber is not None and absorber.spatial is not None and seconds > 0 and not heard


def test_a_killed_run_goes_on_to_the_same_cells(whole, pipeline, tmp_path: Path) -> None:
    """Killed in a training, then in an absorber, then left alone."""
    for moment, done in ((("temporal", 3), 1), (("absorber", 2), 2)):

        def tell(what: str, step: int, total: int, moment: tuple[str, int] = moment) -> None:
            if (what, step) == moment:
                raise KilledError

        with pytest.raises(KilledError):
            run_cells(pipeline, tmp_path, TINY, tell=tell)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
        assert len(before) == done
    found = run_cells(pipeline, tmp_path, TINY)
    assert without_times(found) == without_times(whole[1])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished cells are not done again"
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("checkpoint.json"))


def test_a_kill_between_checkpoint_and_mark_starts_that_training_over(whole, pipeline, tmp_path: Path) -> None:
    workshop = Workshop(pipeline, tmp_path, lambda *step: None)
    variant = VARIANTS["temporal"]
    clip = bench.settings.reference_clip(pipeline, reference_scene(Unit("diagonal", 0, 0), (LOOK,)), TINY.captions)
    settings = variant.train_settings(pipeline, {**TINY.training, "steps": 4})

    def killer(what: str, step: int, total: int) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        Workshop(pipeline, tmp_path, killer).train(clip, settings, (2, 4), "temporal")
    (mark,) = tmp_path.rglob("step-000002.safetensors")
    wanted = mark.read_bytes()
    mark.unlink()
    trained = workshop.train(clip, settings, (2, 4), "temporal")
    assert trained.loras[2].read_bytes() == wanted and trained.loras[4].is_file()


def test_other_settings_make_a_cell_stale(whole, pipeline) -> None:
    folder, found, _ = whole
    from motion_lora.apps.bench.run import _Bench

    other = dataclasses.replace(TINY, guidance_scale=3.0)
    assert len(_Bench(pipeline, folder, TINY, lambda *s: None).all_finished()) == len(found)
    assert _Bench(pipeline, folder, other, lambda *s: None).all_finished() == []


def test_seconds_give_each_variant_its_own_steps(pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workshop, "_timing", lambda self, clip, settings, absorber: (0.0, 0.5))
    workshop = Workshop(pipeline, tmp_path, lambda *step: None)
    clip = bench.settings.reference_clip(pipeline, reference_scene(Unit("diagonal", 0, 0), (LOOK,)), TINY.captions)
    plain = VARIANTS["temporal"].train_settings(pipeline, TINY.training)
    assert workshop.steps_that_fit(clip, plain, 10.0, "temporal") == 20
    held = VARIANTS["spatial-absorber"].train_settings(pipeline, TINY.training)
    _, seconds = workshop.absorber(clip, held)
    assert workshop.steps_that_fit(clip, held, 10.0, "spatial-absorber") == int((10 - seconds) / 0.5) < 20
    with pytest.raises(SettingsError, match=r"seconds is 0\.1, and temporal needs"):
        workshop.steps_that_fit(clip, plain, 0.1, "temporal")
    monkeypatch.setattr(Workshop, "_timing", lambda self, clip, settings, absorber: (0.0, 5.0))
    assert workshop.steps_that_fit(clip, plain, 10.0, "temporal") == 20, "timed once: a rerun has the same plan"


def test_shards_that_time_at_once_go_by_one_plan(pipeline, tmp_path: Path) -> None:
    slow, quick = (Workshop(pipeline, tmp_path, lambda *step: None) for _ in range(2))
    clip = bench.settings.reference_clip(pipeline, reference_scene(Unit("diagonal", 0, 0), (LOOK,)), TINY.captions)
    settings = VARIANTS["temporal"].train_settings(pipeline, TINY.training)

    def overtaken(*what: object) -> tuple[float, float]:
        assert quick.steps_that_fit(clip, settings, 10.0, "temporal") == 20
        return 0.0, 1.0

    quick._timing = lambda *what: (0.0, 0.5)
    slow._timing = overtaken
    assert slow.steps_that_fit(clip, settings, 10.0, "temporal") == 20


# Scores ---------------------------------------------------------------------------------------------------------------


def test_scores_of_known_videos() -> None:
    reference = reference_scene(Unit("orbit", 0, 0), REFERENCES)
    reading = read_clip(world.render(reference))
    ask = Ask(tuple(other_looks(reference, 2)), 2, 0, 1, 1.0)
    placed = [dataclasses.replace(scene, scale=0.2, centre=(x, 0.5)) for scene in ask.scenes for x in (0.42, 0.52)]
    perfect = score_videos([world.render(scene) for scene in placed], ask, reading)
    assert perfect["fidelity"] > 0.95 and perfect["leakage"] == 0 and perfect["alignment"] == 1
    assert perfect["performs"] == 1 and perfect["found"] == 1
    assert perfect["diversity"] == pytest.approx(0.05, abs=0.01)
    assert perfect["size_diversity"] < 0.02 and perfect["speed_diversity"] < 0.02
    sized = [dataclasses.replace(s, radius=0.16, scale=0.24, centre=(0.5, 0.5)) for s in ask.scenes for _ in (0, 1)]
    sized[1::2] = [dataclasses.replace(scene, radius=0.2, scale=0.12) for scene in sized[1::2]]
    grown = score_videos([world.render(scene) for scene in sized], ask, reading)
    assert grown["diversity"] < 0.01
    assert grown["size_diversity"] == pytest.approx(math.log(0.2 / 0.16) / 2, rel=0.1)
    assert grown["speed_diversity"] == pytest.approx(math.log(0.24 / 0.12) / 2, rel=0.1)
    copied = score_videos([world.render(reference)] * 4, ask, reading)
    assert copied["leakage"] == 1 and copied["fidelity"] == pytest.approx(1) and copied["diversity"] < 1e-6
    assert len(copied["videos"]) == 4 and set(copied["videos"][0]["right"]) == set(ATTRIBUTES)
    empty = score_videos([world.background("snow").expand(8, -1, -1, -1)] * 4, ask, reading)
    assert all(empty[name] is None for name in ("diversity", "size_diversity", "speed_diversity"))
    assert empty["fidelity"] == 0 and empty["trajectory_error"] == 1


def test_what_a_prompt_leaves_unnamed_leaks_where_it_is_the_references() -> None:
    reference = reference_scene(Unit("orbit", 0, 0), REFERENCES)
    reading = read_clip(world.render(reference))
    other = other_looks(reference, 1)[0]
    ask = Ask((other,), 2, 0, 1, 1.0, unnamed=("colour", "background"))
    assert [one.prompt for one in ask.requests()] == [f"a {other.shape} circling around"] * 2
    half = dataclasses.replace(other, background=reference.background)
    full = dataclasses.replace(half, colour=reference.colour)
    shares = {scene: free_leakage([world.render(scene)] * 2, ask, reading) for scene in (other, half, full)}
    assert shares == {other: 0, half: 0.5, full: 1}
    assert free_leakage([world.render(other), world.render(full)], ask, reading) == 0.5


@pytest.mark.parametrize("motion", world.HELD_OUT_MOTIONS)
def test_the_ceiling_is_the_asked_motion_whatever_its_delay_place_and_size(motion: str) -> None:
    reference = reference_scene(Unit(motion, 0, 0), REFERENCES)
    reading = read_clip(world.render(reference))
    ask = Ask(tuple(other_looks(reference, 2)), 3, 0, 1, 1.0)
    scenes = ask.drawn()
    assert len({scene.centre for scene in scenes}) == 6 and len({scene.scale for scene in scenes}) == 6
    seen = score_videos([world.render(scene) for scene in scenes], ask, reading)
    assert seen["fidelity"] > 0.9 and seen["performs"] == 1 and seen["leakage"] == 0 and seen["alignment"] == 1
    free = Ask((reference,), 20, 0, 1, 1.0, unnamed=("colour", "background")).drawn()
    assert len({scene.colour for scene in free}) > 3 and {scene.shape for scene in free} == {reference.shape}


def test_a_ceiling_cell_needs_no_training_and_no_sampling(pipeline, tmp_path: Path, monkeypatch) -> None:
    def no_sampling(*unused: object, **named: object) -> None:
        raise AssertionError

    settings = dataclasses.replace(TINY, variants=(CEILING,))
    run_cells(pipeline, tmp_path, dataclasses.replace(settings, variants=("base",)))
    monkeypatch.setattr("motion_lora.apps.bench.measure.sample", no_sampling)
    base, ceiling = run_cells(pipeline, tmp_path, settings)
    assert (ceiling["variant"], ceiling["steps"], ceiling["curve"]) == (CEILING, 0, [])
    assert set(base) == set(ceiling) and base["fingerprint"] != ceiling["fingerprint"]


def test_start_noise_is_the_same_for_every_variant() -> None:
    scenes = tuple(other_looks(reference_scene(Unit("orbit", 0, 0), REFERENCES), 2))
    seeds = [one.seed for one in Ask(scenes, 3, 0, 1, 1.0).requests()]
    assert len(set(seeds)) == 6 and seeds == [one.seed for one in Ask(scenes, 3, 0, 9, 2.0).requests()]
    assert not set(seeds) & {one.seed for one in Ask(scenes, 3, 1, 1, 1.0).requests()}
    # What the curve looks at is a part of what the cell looks at.
    assert {one.seed for one in Ask(scenes, 1, 0, 1, 1.0).requests()} <= set(seeds)


# The table ------------------------------------------------------------------------------------------------------------


def cell(variant: str, fidelity: float, leakage: float, motion: str = "bounce", seed: int = 0, **more) -> dict:
    values = dict.fromkeys(MEASURES, 0.5) | {"performs": 0.0, "fidelity": fidelity}
    values |= {"leakage": leakage, "free_leakage": leakage}
    about = {"variant": variant, "motion": motion, "reference": "a red circle", "seed": seed, "steps": 10}
    times = {"train_seconds": 3.0, "absorber_seconds": 1.0, "parameters": 100}
    return {**about, **times, "curve": [], **values, **more}


KNOWN = [
    cell("base", 0.2, 0.05, seed=0),
    cell("base", 0.3, 0.05, seed=1),
    cell("base", 0.5, 0.00, "swing", seed=0),
    cell("base", 0.4, 0.02, "swing", seed=1),
    cell("temporal", 0.7, 0.10, seed=0, curve=[{"step": 5, "fidelity": 0.4}, {"step": 10, "fidelity": 0.7}]),
    cell("temporal", 0.8, 0.12, seed=1, curve=[{"step": 5, "fidelity": 0.6}, {"step": 10, "fidelity": 0.8}]),
    cell("temporal", 0.9, 0.05, "swing", seed=0),
    cell("temporal", 1.0, 0.07, "swing", seed=1),
    *(cell("spatial-lora", 0.3, 0.6 + 0.1 * seed, motion, seed) for motion in ("bounce", "swing") for seed in (0, 1)),
    *(cell("spatial-temporal-lora", 0.5, 0.05, motion, seed) for motion in ("bounce", "swing") for seed in (0, 1)),
]


def test_rows_are_means_with_students_interval_and_paired_differences() -> None:
    rows = {row.variant: row for row in rows_of(KNOWN)}
    assert list(rows) == ["base", "temporal", "spatial-lora", "spatial-temporal-lora"]
    temporal = rows["temporal"]
    assert temporal.cells == 4 and temporal.seconds == 4 and temporal.steps == 10 and temporal.parameters == 100
    # By hand: mean 0.85, s = 0.1291, t(3) = 3.1824; no fidelity is above 1.
    assert temporal.measures["fidelity"].low == pytest.approx(0.85 - 3.1824 * 0.12910 / 2, abs=1e-4)
    assert (temporal.measures["fidelity"].estimate, temporal.measures["fidelity"].high) == (pytest.approx(0.85), 1)
    difference = temporal.to_base["fidelity"]
    expected = mean_interval([0.5, 0.5, 0.4, 0.6])
    assert (difference.estimate, difference.low) == (pytest.approx(0.5), pytest.approx(expected.low))
    assert temporal.to_temporal == {} and rows["base"].to_base == {}
    assert rows["spatial-lora"].to_temporal["leakage"].estimate == pytest.approx(0.65 - 0.085)


def test_noise_floor_is_the_spread_between_seeds_alone() -> None:
    floor = noise_floor([c for c in KNOWN if c["variant"] in ("base", "temporal")], "fidelity")
    # Every pair of seeds differs by 0.1: s = 0.1 / sqrt(2), whatever the motions do.
    assert floor is not None and floor.cell == pytest.approx(0.1 / math.sqrt(2))
    # t of 4 degrees of freedom; two rows of 4 cells, and their range is that of two (Tukey's 3.927 at 4).
    assert floor.mean == pytest.approx(2.77645 * floor.cell * math.sqrt(2 / 4), rel=1e-4)
    assert floor.spread == pytest.approx(3.927 * floor.cell / math.sqrt(4), rel=0.02)
    assert noise_floor([KNOWN[0], KNOWN[2]], "fidelity") is None


def test_calibration_says_what_held() -> None:
    checks = {check.name: check.status for check in calibration(KNOWN)}
    assert checks["the base does not move like the reference"] == HELD
    assert checks["S-LoRA (ablation) leaks clearly"] == HELD
    assert checks["ST-LoRA (ablation) leaks clearly"] == NOT_HELD
    assert checks["the temporal LoRA learns the motion of its clip"] == NOT_HELD, "own captions are alike"
    assert checks["rows differ beyond chance in motion fidelity"] == HELD
    assert checks["rows differ beyond chance in fidelity, own caption"] == NOT_HELD
    ceiling = [cell(CEILING, 0.99, 0.0, performs=1.0), *KNOWN]
    assert {c.name: c.status for c in calibration(ceiling)}["a perfect transfer is seen as one"] == HELD
    ceiling = [cell(CEILING, 0.99, 0.0, performs=0.8), *KNOWN]
    assert {c.name: c.status for c in calibration(ceiling)}["a perfect transfer is seen as one"] == NOT_HELD
    learned = [{**c, "own_fidelity": 0.9 + 0.01 * c["seed"]} if c["variant"] == "temporal" else c for c in KNOWN]
    assert {c.name: c.status for c in calibration(learned)}["the temporal LoRA learns the motion of its clip"] == HELD
    moving = [cell("base", 0.9, 0.0, performs=0.5), cell("spatial-lora", 0.9, 0.4)]
    checks = {check.name: check.status for check in calibration(moving)}
    assert checks["the base does not move like the reference"] == NOT_HELD
    assert checks["S-LoRA (ablation) leaks clearly"] == TOO_FEW
    assert checks["rows differ beyond chance in leakage"] == TOO_FEW


def test_a_look_that_the_base_shows_by_itself_cannot_leak() -> None:
    """On the swing the base shows it in half of the frames; a control's further frames there say nothing."""
    known = [{**c, "free_leakage": 0.5} if c["motion"] == "swing" and c["variant"] == "base" else c for c in KNOWN]
    assert {clip[0]: share for clip, share in crowded(known).items()} == {"swing": 0.5} and not crowded(KNOWN)
    rows = {row.variant: row for row in rows_of(known)}
    assert rows["spatial-lora"].measures["free_leakage"].count == 2
    assert rows["spatial-lora"].to_base["free_leakage"].estimate == pytest.approx(0.65 - 0.05)
    assert rows["spatial-lora"].measures["leakage"].count == 4, "where looks are named all clips count"
    status = {check.name: (check.status, check.text) for check in calibration(known)}
    assert status["leakage has room"][0] == NOT_HELD and "(0.50)" in status["leakage has room"][1]
    assert {c.name: c.status for c in calibration(KNOWN)}["leakage has room"] == HELD
    full = [{**c, "free_leakage": 0.5} for c in KNOWN]
    assert "free_leakage" not in rows_of(full)[1].to_base
    assert {c.name: c.status for c in calibration(full)}["S-LoRA (ablation) leaks clearly"] == TOO_FEW


def test_noise_alone_is_not_taken_for_differences() -> None:
    """Twenty rows of one truth: their range is far more than two rows differ by, and no finding."""
    draw = random.Random(0)
    held = 0
    for _ in range(40):
        rows = [
            cell(name, draw.gauss(0.5, 0.1), 0.0, motion, seed)
            for name in VARIANTS
            if name != CEILING
            for motion in ("bounce", "swing")
            for seed in (0, 1)
        ]
        checks = {check.name: check.status for check in calibration(rows)}
        held += checks["rows differ beyond chance in motion fidelity"] == HELD
    assert held <= 6, "about one in twenty"


def test_intervals_over_clips_do_not_count_seeds_as_clips() -> None:
    values = {"bounce": (0.1, 0.2), "swing": (0.5, 0.6), "spiral": (0.8, 0.9)}
    cells = [cell("base", v, 0.0, motion, seed) for motion, pair in values.items() for seed, v in enumerate(pair)]
    (row,) = rows_of(cells)
    wanted = within(mean_interval([0.15, 0.55, 0.85]), -1, 1)
    assert (row.measures["fidelity"].count, row.measures["fidelity"].low) == (3, pytest.approx(wanted.low))
    (row,) = rows_of([c for c in cells if c["motion"] != "spiral"])
    assert row.measures["fidelity"].count == 4, "two clips say nothing of a third"


def test_shares_have_intervals_that_can_be() -> None:
    videos = [{"leakage": {"shape": 0.5, "colour": 0.0}}] * 6
    cells = [cell("base", 0.99, 0.01, motion, videos=videos) for motion in ("bounce", "swing", "spiral", "eight")]
    (row,) = rows_of(cells)
    assert (row.measures["performs"].low, round(row.measures["performs"].high, 3)) == (0, 0.138)
    assert row.leaks == {"shape": 0.5, "colour": 0.0}
    spread = [cell("base", f, 0.0, motion) for f, motion in ((0.9, "bounce"), (0.99, "swing"), (0.4, "spiral"))]
    assert rows_of(spread)[0].measures["fidelity"].high == 1


def test_curves_are_means_over_cells() -> None:
    (name,) = found = curves(KNOWN, "fidelity")
    later = [{**c, "curve": [{**p, "step": p["step"] + c["seed"]} for p in c["curve"]]} for c in KNOWN]
    assert [step for step, _ in curves(later, "fidelity")[name]] == [6, 10], "cells of other lengths are one curve"
    assert name == "temporal" and [step for step, _ in found[name]] == [5, 10]
    assert found[name][0][1].estimate == pytest.approx(0.5)


def test_report_files(pipeline, tmp_path: Path) -> None:
    known = [{**c, "curve": [{**point, "leakage": 0.1, "alignment": 0.5} for point in c["curve"]]} for c in KNOWN]
    for one in known[4:8]:
        del one["size_diversity"]
    report = write_report(tmp_path, pipeline, BenchSettings(), known, "motion-lora bench quality --x", 99)
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "motion-lora bench quality --x" in text and "16 of 99 cells" in text
    assert "0.850 [0.645, 1.000]" in text, "a mean with its interval"
    assert "| temporal LoRA, no absorber | 0.500 | - | 0.500 |" in text, "a measure that older cells lack"
    assert "held" in text and "orbit, zigzag" in text and "torch 2" in text and "32.632" in text
    assert {path.name for path in tmp_path.iterdir()} == {Path(name).name for name in report["files"]}
    plots = {"fidelity_leakage.png", "fidelity_free_leakage.png", "curve_fidelity.png"}
    assert plots | {"results.csv"} <= {p.name for p in tmp_path.iterdir()}
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0].startswith("variant,title,cells") and len(lines) == 5
    assert json.loads(json.dumps(report, allow_nan=False))["calibration"]


# Command line ---------------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motion_lora.apps.bench.settings.REFERENCES", (LOOK,))
    base, output = write_base(tmp_path), tmp_path / "out"
    few = ("--steps", "1", "--num-inference-steps", "1", "--prompts", "1", "--noises", "1", "--seeds", "1")
    words = ("bench", "quality", "--quick", "--base", base, "--output", output, "--threads", torch.get_num_threads())
    succeeds(*words, *few, "--variants", "temporal", "--motions", "diagonal", "--json")
    out, err = capsys.readouterr()
    assert [row["variant"] for row in json.loads(out)["rows"]] == ["base", "temporal"]
    assert "2 of 2: temporal.diagonal-0.0" in err
    succeeds(*words, *few, "--variants", "temporal", "--motions", "diagonal")
    assert "motion fidelity" in capsys.readouterr().out
    assert "magic" in fails(capsys, *words, "--variants", "magic")
    assert "dance" in fails(capsys, *words, "--motions", "dance")
    assert "shard is '3/2'" in fails(capsys, *words, "--shard", "3/2")
    assert "seeds is 0" in fails(capsys, *words, "--seeds", "0")
    assert "threads is 0" in fails(capsys, *words, "--threads", "0")


# The choice of a checkpoint -------------------------------------------------------------------------------------------


def points(*rows: tuple[float, float]) -> list[dict]:
    """The base, then checkpoints every 10 steps, as (fidelity, leakage)."""
    return [
        {"step": 10 * n, "scores": {MOTION: fidelity, LEAKAGE: leakage, ALIGNMENT: 0.9}}
        for n, (fidelity, leakage) in enumerate(rows)
    ]


def test_picks_are_judged_by_what_the_choice_never_saw() -> None:
    validation = points((0.2, 0), (0.5, 0), (0.9, 0), (0.7, 0), (0.7, 0), (0.95, 0))
    truth = points((0.2, 0), (0.5, 0), (0.7, 0.05), (0.8, 0.05), (0.6, 0.05), (0.9, 0.5))
    picks = picks_of(validation, truth, Limits(patience=2))
    assert {name: (pick["step"], pick[MOTION]) for name, pick in picks.items()} == {
        "chosen": (50, 0.9),
        "best possible": (30, 0.8),
        "last": (50, 0.9),
        "early stop": (20, 0.7),
    }
    assert picks["early stop"]["trained"] == 40
    # Within the tie the choice takes the latest, and the best possible is the best.
    assert (
        picks_of(points((0.2, 0), (0.8, 0), (0.77, 0)), points((0.2, 0), (0.8, 0), (0.7, 0)), Limits())["chosen"][
            "step"
        ]
        == 20
    )
    lost = regrets([{"picks": picks}, {"picks": picks}])
    assert lost["early stop"].estimate == pytest.approx(0.1) and lost["chosen"].estimate == pytest.approx(-0.1)


def test_choice_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, output = write_base(tmp_path), tmp_path / "out"
    few = ("--steps", "2", "--num-inference-steps", "1", "--prompts", "1", "--noises", "1", "--truth-noises", "1")
    words = ("bench", "choice", "--quick", "--base", base, "--output", output, *few, "--motions", "diagonal")
    words = (*words, "--references", "1")
    succeeds(*words, "--every", "1", "--train-variant", "temporal", "--json")
    report = json.loads(capsys.readouterr().out)
    (one,) = report["references"]
    assert [point["step"] for point in one["truth"]] == [0, 1, 2] and set(one["picks"]) == set(PICKS)
    assert {"CHOICE.md", "choices.json", "choice_diagonal-0.png"} <= {path.name for path in output.iterdir()}
    trained, train = [], Workshop.train

    def noted(self, clip, *rest):
        trained.append(clip.caption)
        return train(self, clip, *rest)

    monkeypatch.setattr(Workshop, "train", noted)
    succeeds(*words, "--every", "1", "--train-variant", "temporal")
    said = capsys.readouterr().out
    assert "| best possible |" in said and "name no colour and no background" in said
    assert not trained, "what is done is not done again"
    (path,) = (output / "choices").iterdir()
    assert "picks" not in json.loads(path.read_text()), "another rule picks of the same figures"
    succeeds(*words, "--every", "1", "--train-variant", "temporal", "--captions", "full")
    assert trained == ["a striped red circle moving diagonally over brick"], "another caption is another training"
    assert "name no colour" not in capsys.readouterr().out
    assert "every is 3" in fails(capsys, *words, "--every", "3")
    assert "variant is 'base'" in fails(capsys, *words, "--train-variant", "base")
