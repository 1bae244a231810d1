"""Comparing: the judge of each base, candidates from equal noise, grid and tables, the command and the node."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cli_helpers import fails, succeeds, write_base, write_clip
from comfy_double import Host, hosted
from lora_samples import motion_sample
from metric_models import flat_lpips, write_clip_model
from PIL import Image
from tiny import tiny_frames, tiny_pipeline, write_tiny_folder

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import SettingsError
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.evaluate.compare import (
    Candidate,
    _row_label,
    compare,
    csv_of,
    grid_of,
    markdown_of,
    plain_of,
    prompts_of,
    write_comparison,
)
from motion_lora.evaluate.judge import make_judge, motion_fault, notes_for
from motion_lora.evaluate.playground_judge import PlaygroundJudge, playground_judge
from motion_lora.evaluate.scores import ALIGNMENT, CONSISTENCY, LEAKAGE, MOTION, SCORES, mean_scores
from motion_lora.evaluate.video_judge import VideoJudge, video_judge
from motion_lora.files.own import save_lora
from motion_lora.playground import world
from motion_lora.playground.model import playground_hash
from motion_lora.playground.prompts import asked_scene
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings

PROMPTS = ("a red circle moving left over sand", "a blue square over snow")
SETTINGS = SampleSettings("", num_inference_steps=1, guidance_scale=1.0, seed=3)


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stacks(pipeline: VideoPipeline) -> list[AdapterStack]:
    lora = motion_sample(pipeline.unet)
    return [AdapterStack((StackEntry(lora, strength),)) for strength in (0.0, 1.0)]


# The judge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", [*world.MOTIONS, None])
@pytest.mark.parametrize("fill", world.FILLS)
def test_prompts_are_read_back(motion: str | None, fill: str) -> None:
    scene = world.Scene("ring", "cyan", "meadow", motion or "still", fill=fill)
    text = world.caption(scene) if motion else world.appearance_caption(scene)
    assert asked_scene(text) == scene
    assert asked_scene(f" {text.upper()}. ") == scene
    assert asked_scene(f"{text} at noon") is None


def test_the_playgrounds_judge_is_exact() -> None:
    look = {"shape": "circle", "colour": "red", "background": "brick", "fill": "striped"}
    reference = world.render(world.Scene(motion="orbit", **look))
    prompt = "a blue square circling around over snow"
    base = replace(tiny_pipeline(), identity=replace(tiny_pipeline().identity, weights_hash=playground_hash()))
    judge = make_judge(base, reference)
    assert isinstance(judge, PlaygroundJudge)
    right = judge.score(prompt, world.render(world.Scene("square", "blue", "snow", "orbit")))
    assert right[MOTION] > 0.95 and (right[LEAKAGE], right[ALIGNMENT]) == (0, 1) and right[CONSISTENCY] == 1
    leaked = judge.score(prompt, reference)
    assert (leaked[LEAKAGE], leaked[ALIGNMENT]) == (1, 0) and leaked[MOTION] == pytest.approx(1)
    assert set(judge.score("something else", reference)) == {MOTION, CONSISTENCY}
    assert set(make_judge(base).score(prompt, reference)) == {ALIGNMENT, CONSISTENCY}


def test_other_bases_get_what_can_be_had(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tiny_frames(size=64, num_frames=6)
    neutral = torch.zeros_like(reference)
    judge = make_judge(pipeline, reference)
    assert judge.score("x", reference, neutral)[LEAKAGE] == pytest.approx(1, abs=1e-3)
    assert judge.score("x", neutral, neutral)[LEAKAGE] == 0
    assert LEAKAGE not in judge.score("x", reference) and ALIGNMENT not in judge.score("x", reference)
    assert make_judge(pipeline).score("x", reference, neutral) == {}
    still = make_judge(pipeline, torch.zeros_like(reference))
    assert MOTION not in still.score("x", reference, neutral)
    said = notes_for(still, ["x"], (6, 64, 64))
    assert any(note.startswith("no motion fidelity: No point of the reference") for note in said)
    assert any(note.startswith("no text alignment: ") and "clip_model" in note for note in said)


def test_what_a_video_cannot_have_is_known_before_it_is_made() -> None:
    scene = world.Scene("circle", "red", "brick", "orbit")
    judge, prompt = playground_judge(world.render(scene)), "a blue square circling around over snow"
    assert judge.gaps(prompt, (8, 64, 64), neutral=False) == {}
    wide = judge.gaps(prompt, (8, 64, 96), neutral=True)
    assert set(wide) == set(SCORES) and "96 x 64" in wide[MOTION]
    assert judge.score(prompt, torch.zeros(8, 64, 96, 3)) == {}
    assert set(judge.score(prompt, world.render(scene, 6))) == {LEAKAGE, ALIGNMENT, CONSISTENCY}
    two, one = (playground_judge(world.render(scene, count)) for count in (2, 1))
    assert set(two.score(prompt, world.render(scene, 2))) == {LEAKAGE, ALIGNMENT, CONSISTENCY}
    assert "3 frames or more" in two.gaps(prompt, (2, 64, 64), neutral=True)[MOTION]
    assert CONSISTENCY not in one.score(prompt, world.render(scene, 1))
    own = judge.gaps(world.caption(scene), (8, 64, 64), neutral=True)
    assert set(own) == {LEAKAGE} and "own look" in own[LEAKAGE]


def test_of_one_frame_clip_and_lpips_say_nothing_of_consistency() -> None:
    frames = tiny_frames(num_frames=1, size=64)
    judge = VideoJudge(perceptual=flat_lpips())
    assert judge.score("x", frames) == {} and "one frame" in judge.gaps("x", (1, 64, 64), neutral=False)[CONSISTENCY]
    assert "32 pixels" in judge.gaps("x", (4, 16, 64), neutral=False)[CONSISTENCY]
    assert set(judge.score("x", tiny_frames(num_frames=3, size=64))) == {CONSISTENCY}


def test_a_score_says_by_what_it_is_measured_and_which_way_is_better() -> None:
    lpips = video_judge(tiny_frames(size=64, num_frames=6), perceptual=flat_lpips())
    assert lpips.forms[CONSISTENCY].better == "lower" and "LPIPS" in lpips.forms[CONSISTENCY].short
    assert any("LPIPS (alex)" in note and "lower is better" in note for note in lpips.notes)
    named = playground_judge(unused_models=True)
    assert any("not used" in note for note in named.notes) and named.forms[CONSISTENCY].better == "higher"
    marks = {judge.identity for judge in (lpips, named, video_judge(), playground_judge(), playground_judge(ORBIT))}
    assert len(marks) == 4, "models that are not used change no figure"


ORBIT = world.render(world.Scene("circle", "red", "sand", "orbit"))


def test_a_reference_that_is_no_clip_of_the_world_is_not_measured_against() -> None:
    drawn = [
        world.render(world.Scene(shape, colour, background, motion, fill=fill))
        for shape, colour, background, motion, fill in zip(
            world.SHAPES * 3,
            [*world.COLOURS, *world.COLOURS],
            (*world.BACKGROUNDS[2:], *world.BACKGROUNDS * 2),
            world.MOTIONS,
            world.FILLS * 7,
            strict=False,
        )
    ]
    assert len(drawn) == len(world.MOTIONS) and not any(playground_judge(clip).reference_fault for clip in drawn)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 64, 64, 3, generator=generator)
    coarse = F.interpolate(torch.rand(8, 3, 5, 5, generator=generator), size=64, mode="bicubic").clamp(0, 1)
    for other in (noise, coarse.movedim(1, -1), torch.zeros(8, 64, 64, 3)):
        judge = playground_judge(other)
        assert "no clip of the playground" in judge.reference_fault
        assert set(judge.score("a blue square over snow", ORBIT)) == {ALIGNMENT, CONSISTENCY}
        assert not {MOTION, LEAKAGE} & set(judge.forms)
        base = replace(tiny_pipeline(), identity=replace(tiny_pipeline().identity, weights_hash=playground_hash()))
        assert "no clip of the playground" in motion_fault(base, other)


def test_means_leave_out_what_is_missing() -> None:
    assert mean_scores([{MOTION: 1.0, LEAKAGE: 0.5}, {MOTION: 0.0}]) == {MOTION: 0.5, LEAKAGE: 0.5}
    assert mean_scores([]) == {}


# Comparing ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(pipeline: VideoPipeline, stacks: list[AdapterStack]):
    heard: list[tuple[int, int]] = []
    reference = tiny_frames(num_frames=pipeline.default_num_frames)
    candidates = [Candidate("off", stacks[0]), Candidate("on", stacks[1])]
    judge = make_judge(pipeline, reference)
    found = compare(
        pipeline, candidates, PROMPTS, SETTINGS, judge, reference=reference, callback=lambda *s: heard.append(s)
    )
    return found, heard


def test_candidates_differ_by_their_stack_alone(compared, pipeline: VideoPipeline, stacks) -> None:
    found, heard = compared
    base, off, on = found.videos
    assert found.labels == ("base", "off", "on")
    assert all(torch.equal(a, b) for a, b in zip(base, off, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(base, on, strict=True))
    alone = sample(pipeline, replace(SETTINGS, prompt=PROMPTS[1], seed=4), stack=stacks[1])[0]
    assert torch.allclose(alone.frames, on[1], atol=1e-5), "prompt n has seed + n"
    assert heard == sorted(heard) and heard[-1][0] == heard[-1][1]
    means = found.means()
    assert means[0][LEAKAGE] == means[1][LEAKAGE] == 0


def test_grid_and_tables_hold_every_candidate(compared, tmp_path: Path) -> None:
    found, _ = compared
    grid = grid_of(found)
    assert len(grid) == 4 and grid.shape[1] > 4 * 160 and grid.shape[2] > 2 * 160
    assert not torch.equal(grid[0], grid[3])
    text = markdown_of(found)
    assert (
        text.splitlines()[0].startswith("| candidate | ")
        and "| off | " in text
        and "a proxy, by tracked points" in text
    )
    assert "no text alignment: there is no CLIP model" in text
    rows = list(csv.DictReader(io.StringIO(csv_of(found))))
    assert [(row["candidate"], row["prompt"]) for row in rows] == [
        (label, prompt) for label in found.labels for prompt in PROMPTS
    ]
    assert float(rows[-1][LEAKAGE]) == pytest.approx(found.scores[2][1][LEAKAGE])
    assert json.loads(json.dumps(plain_of(found)))["candidates"][2]["label"] == "on"
    paths = write_comparison(tmp_path, found)
    assert [path.name for path in paths] == ["grid.mp4", "sheet.png", "table.md", "table.csv"]
    assert Image.open(paths[1]).height > 6 * 100


def test_what_cannot_be_compared_is_refused(pipeline: VideoPipeline, stacks: list[AdapterStack]) -> None:
    judge, one = make_judge(pipeline), Candidate("one", stacks[1])
    for candidates, prompts, what in (
        ([], PROMPTS, "nothing to compare"),
        ([one], (), "no prompt"),
        ([one, one], PROMPTS, "'one'"),
        ([Candidate("base", stacks[1])], PROMPTS, "'base'"),
        ([Candidate(" ", stacks[1])], PROMPTS, "no label"),
        ([one], ("x",) * 33, "66 videos"),
    ):
        with pytest.raises(SettingsError, match=what):
            compare(pipeline, candidates, prompts, SETTINGS, judge)


@pytest.mark.parametrize("shape", [(4, 32, 48), (2, 32, 32), (1, 32, 32)], ids=["wide", "two frames", "one frame"])
def test_what_the_probe_cannot_read_is_compared_without_its_scores(
    pipeline: VideoPipeline, stacks: list[AdapterStack], shape: tuple[int, int, int]
) -> None:
    base = replace(pipeline, identity=replace(pipeline.identity, weights_hash=playground_hash()))
    frames, height, width = shape
    settings = replace(SETTINGS, num_frames=frames, height=height, width=width)
    judge = playground_judge(world.render(world.Scene("circle", "red", "brick", "orbit"), frames), unused_models=True)
    found = compare(base, [Candidate("on", stacks[1])], ["a blue square over snow"], settings, judge)
    assert MOTION not in found.measured and any("no motion fidelity" in note for note in found.notes)
    assert any("clip_model and lpips_weights are not used" in note for note in found.notes)
    assert len(grid_of(found)) == frames and "| on |" in markdown_of(found)


def test_the_grid_names_lpips_where_lower_is_better(pipeline: VideoPipeline, stacks: list[AdapterStack]) -> None:
    judge = make_judge(pipeline, perceptual=flat_lpips())
    found = compare(pipeline, [Candidate("on", stacks[1])], ["a red circle"], SETTINGS, judge)
    label = _row_label(found, 1)
    assert "flicker(LPIPS)=" in label and "steady" not in label
    assert plain_of(found)["forms"][CONSISTENCY]["better"] == "lower"


def test_prompts_are_lines() -> None:
    assert prompts_of("\n a red circle \n\na blue square\n") == ("a red circle", "a blue square")
    with pytest.raises(SettingsError, match="no prompt"):
        prompts_of(" \n ")


# Command line ---------------------------------------------------------------------------------------------------------


def test_command_line(pipeline: VideoPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, clip = write_base(tmp_path), write_clip(tmp_path)
    lora = save_lora(tmp_path / "spin.safetensors", motion_sample(pipeline.unet))
    (tmp_path / "prompts.txt").write_text("a blue square\n", encoding="utf-8")
    words = ("compare", "--base", base, "--output", tmp_path / "out", "--num-inference-steps", 1)
    loras = ("--lora", lora, "--lora", lora, "0.5")
    prompts = ("--prompt", "a red circle", "--prompts-file", tmp_path / "prompts.txt")
    succeeds(*words, *loras, *prompts, "--reference", clip, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in facts["candidates"]] == ["base", "spin", "spin x0.5"]
    assert facts["prompts"] == ["a red circle", "a blue square"]
    assert all(Path(path).stat().st_size for path in facts["files"])
    assert "no --lora" in fails(capsys, *words, *prompts)
    assert "no --prompt" in fails(capsys, *words, *loras)
    assert "--label is given 1 times and --lora 2" in fails(capsys, *words, *loras, *prompts, "--label", "a")
    assert "no --output" in fails(capsys, "compare", *loras, *prompts)


# The node -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny")
        yield host


def test_the_node_compares_stacks(host: Host, pipeline: VideoPipeline) -> None:
    base = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    lora = motion_sample(base.unet)
    stacks = [
        host.run("MotionLoRA_MotionLoRAStack", motion_lora=lora, strength=strength).args[0] for strength in (0.5, 1.0)
    ]
    images = torch.rand(4, 32, 32, 3)
    cut = {"num_frames": 4, "fps": 8.0, "images_fps": 8.0, "width": 32, "height": 32}
    reference, *_ = host.run("MotionLoRA_ReferenceClip", images=images, caption="a red circle", **cut).args
    made = host.run(
        "MotionLoRA_CompareLoRAs",
        base_model=base,
        prompts="a red circle\na blue square",
        num_inference_steps=1,
        stack_1=stacks[0],
        label_1="half",
        stack_3=stacks[1],
        reference=reference,
    )
    grid, video, table = made.args
    assert grid.shape[0] == 4 and grid.shape[1] % 2 == grid.shape[2] % 2 == 0
    assert video.get_components().frame_rate == 8 and made.ui["images"]
    assert "| base |" in table and "| half |" in table and "| LoRA 3 |" in table and "LoRA 2" not in table
    with pytest.raises(host.library("core.errors").SettingsError, match="stack_1"):
        host.run("MotionLoRA_CompareLoRAs", base_model=base, prompts="a red circle")
    with pytest.raises(host.library("core.errors").SettingsError, match="no prompt"):
        host.run("MotionLoRA_CompareLoRAs", base_model=base, prompts=" ", stack_1=stacks[0])


def test_the_node_takes_a_clip_model(host: Host, pipeline: VideoPipeline) -> None:
    write_clip_model(host.folder / "models/motion_lora_metrics/tiny-clip")
    base = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    stack = host.run("MotionLoRA_MotionLoRAStack", motion_lora=motion_sample(base.unet)).args[0]
    words = {"base_model": base, "prompts": "a red circle", "num_inference_steps": 1, "stack_1": stack}
    table = host.run("MotionLoRA_CompareLoRAs", **words, clip_model="tiny-clip").args[2]
    assert "| candidate | text alignment | consistency |" in table and "CLIPScore of tiny-clip" in table
    with pytest.raises(host.library("core.errors").ModelError, match="there is no CLIP model 'gone'"):
        host.run("MotionLoRA_CompareLoRAs", **words, clip_model="gone")
