"""Scoring videos that exist: what the sheet says of each score, diversity, the command and the node."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, succeeds
from comfy_double import Host, VideoComponents, VideoFromComponents, hosted
from metric_models import flat_lpips, write_clip_model
from tiny import tiny_frames
from torch import Tensor

from motion_lora.apps.cli import score as command
from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.metrics import ClipScorer, MetricModels
from motion_lora.evaluate.playground_judge import playground_judge
from motion_lora.evaluate.scores import (
    ALIGNMENT,
    CONSISTENCY,
    DIVERSITY,
    LEAKAGE,
    MOTION,
    PLACE,
    SCORES,
    SIZE,
    SPEED,
)
from motion_lora.evaluate.sheet import (
    Video,
    csv_of,
    markdown_of,
    notes_of,
    plain_of,
    score_videos,
    write_sheet,
)
from motion_lora.evaluate.video_judge import video_judge
from motion_lora.media.write import write_video
from motion_lora.playground import world

ASKED = "a blue square circling around over snow"


def drawn(**changes: object) -> Tensor:
    values = {"shape": "square", "colour": "blue", "background": "snow", "motion": "orbit"}
    return world.render(world.Scene(**{**values, **changes}))


REFERENCE = drawn(shape="circle", colour="red", background="sand")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    return ClipScorer.load(write_clip_model(tmp_path_factory.mktemp("clip") / "tiny-clip"), device="cpu")


# The library ----------------------------------------------------------------------------------------------------------


def test_the_probe_gives_every_score_exactly() -> None:
    videos = [Video("a.mp4", drawn(), ASKED), Video("b.mp4", drawn(centre=(0.45, 0.55), radius=0.2), ASKED)]
    sheet = score_videos(playground_judge(REFERENCE), videos)
    assert [line.label for line in sheet.videos] == ["a.mp4", "b.mp4"] and not any(x.missing for x in sheet.videos)
    for line in sheet.videos:
        assert line.scores[MOTION] > 0.95 and (line.scores[LEAKAGE], line.scores[ALIGNMENT]) == (0, 1)
    (group,) = sheet.groups
    assert group.prompt == ASKED and group.scores[PLACE] == pytest.approx(0.035, abs=0.01)
    assert group.scores[SIZE] > 0.05 and group.scores[SPEED] == pytest.approx(0, abs=0.02)
    assert all("exact" in form.how for form in sheet.forms.values())
    assert {name: form.better for name, form in sheet.forms.items()}[LEAKAGE] == "lower"
    assert score_videos(playground_judge(REFERENCE), videos[:1]).groups == ()


def test_every_missing_score_has_its_reason_and_what_would_give_it() -> None:
    sheet = score_videos(video_judge(), [Video("a.mp4", tiny_frames(size=64)), Video("b.mp4", tiny_frames(1, size=64))])
    line = sheet.videos[0]
    assert line.scores == {} and set(line.missing) == set(SCORES)
    ways_out = {MOTION: "reference", LEAKAGE: "reference", ALIGNMENT: "clip_model", CONSISTENCY: "lpips_weights"}
    assert all(f"({word}" in line.missing[name] for name, word in ways_out.items())
    assert "(lpips_weights)" in sheet.groups[0].missing[DIVERSITY] and sheet.forms == {}
    text = markdown_of(sheet)
    assert all(f"- no {name.replace('_', ' ')}: " in text for name in (*SCORES, DIVERSITY))
    with_reference = score_videos(video_judge(tiny_frames(size=64)), [Video("a.mp4", tiny_frames(size=64))])
    assert "(neutral)" in with_reference.videos[0].missing[LEAKAGE]


def test_natural_video_by_clip_and_lpips(scorer: ClipScorer) -> None:
    reference, frames, neutral = tiny_frames(num_frames=6, size=64), tiny_frames(1, 6, 64), torch.zeros(6, 64, 64, 3)
    judge = video_judge(reference, clip_scorer=scorer, perceptual=flat_lpips())
    videos = [Video("a.mp4", frames, "a red circle", neutral), Video("b.mp4", frames, "a red circle", neutral)]
    sheet = score_videos(judge, videos)
    assert all(set(line.scores) == set(SCORES) and not line.missing for line in sheet.videos)
    assert sheet.groups[0].scores == {DIVERSITY: pytest.approx(0, abs=1e-6)}
    assert "LPIPS (alex)" in sheet.forms[CONSISTENCY].how and sheet.forms[CONSISTENCY].better == "lower"
    assert "tiny-clip" in sheet.forms[ALIGNMENT].how and "proxy" in sheet.forms[MOTION].how
    without = score_videos(video_judge(clip_scorer=scorer), [Video("a.mp4", frames)])
    assert set(without.videos[0].scores) == {CONSISTENCY} and "(prompt)" in without.videos[0].missing[ALIGNMENT]
    assert without.forms[CONSISTENCY].better == "higher" and "CLIP cosine" in without.forms[CONSISTENCY].how


def test_what_makes_videos_incomparable_is_said() -> None:
    judge = video_judge(tiny_frames(num_frames=6, size=64), perceptual=flat_lpips())
    sheet = score_videos(judge, [Video("a", tiny_frames(num_frames=6, size=64)), Video("b", tiny_frames(size=64))])
    assert MOTION in sheet.videos[0].scores
    assert "6 frames and the video 4" in sheet.videos[1].missing[MOTION]
    assert "(num_frames, fps, height, width)" in sheet.groups[0].missing[DIVERSITY]
    assert any(note.startswith("no motion fidelity of b: ") for note in notes_of(sheet))
    for videos, message in (([], "no video"), ([Video("a", drawn())] * 2, "label 'a'")):
        with pytest.raises(SettingsError, match=message):
            score_videos(judge, videos)


def test_a_video_that_the_probe_may_misread_is_named() -> None:
    coarse = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    judge = playground_judge(REFERENCE, unused_models=True)
    notes = notes_of(score_videos(judge, [Video("a", coarse, ASKED, drawn()), Video("b", drawn(), "something else")]))
    assert any(note.startswith("a may be misread") for note in notes)
    assert not any(note.startswith("b may be misread") for note in notes)
    assert any("neutral is not used" in note for note in notes) and any("clip_model" in note for note in notes)
    assert any("no text alignment of b: " in note and "words" in note for note in notes)


def test_sheets_hold_every_line(tmp_path: Path) -> None:
    sheet = score_videos(playground_judge(REFERENCE), [Video("a|b", drawn(), ASKED), Video("c", drawn(), "x")])
    text = markdown_of(sheet)
    assert text.startswith(
        "| video | prompt | motion fidelity (higher is better) | appearance leakage (lower is better)"
    )
    assert "| a/b |" in text and "| mean |" in text
    rows = list(csv.DictReader(io.StringIO(csv_of(sheet))))
    assert (
        [row["video"] for row in rows] == ["a|b", "c"] and rows[1][ALIGNMENT] == "" and float(rows[0][ALIGNMENT]) == 1
    )
    facts = json.loads(json.dumps(plain_of(sheet)))
    assert facts["videos"][1]["missing"][ALIGNMENT] and facts["forms"][LEAKAGE]["better"] == "lower"
    assert write_sheet(tmp_path / "s.csv", sheet).read_text(encoding="utf-8") == csv_of(sheet)
    assert write_sheet(tmp_path / "s.md", sheet).read_text(encoding="utf-8") == text
    with pytest.raises(SettingsError, match=r"\.csv, \.md"):
        write_sheet(tmp_path / "s.txt", sheet)


# Command line ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    clips = {"reference": REFERENCE, "one": drawn(), "two": drawn(centre=(0.45, 0.55))}
    return {name: write_video(tmp_path / f"{name}.mp4", frames, 8) for name, frames in clips.items()}


def test_command_line_on_the_playground(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("score", files["one"], files["two"], "--playground", "--reference", files["reference"], "--prompt", ASKED)
    succeeds(*words, "--json", "--output", tmp_path / "scores.csv")
    facts = json.loads(capsys.readouterr().out)
    assert [line["video"] for line in facts["videos"]] == ["one.mp4", "two.mp4"]
    assert all(set(line["scores"]) == set(SCORES) for line in facts["videos"])
    assert facts["videos"][0]["scores"][MOTION] > 0.9 and set(facts["diversity"][0]["scores"]) == {PLACE, SIZE, SPEED}
    assert facts["files"] == [str(tmp_path / "scores.csv")] and (tmp_path / "scores.csv").read_text().count("\n") == 4
    succeeds(*words, "--clip-model", tmp_path / "none")
    text = capsys.readouterr().out
    assert "| one.mp4 | " in text and "exact, read by the playground's probe" in text and "not used" in text


def test_command_line_on_natural_video(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_model = write_clip_model(tmp_path / "tiny-clip")
    words = ("score", files["one"], files["two"], "--reference", files["reference"], "--clip-model", clip_model)
    prompts = ("--prompt", "a red circle", "--prompt", "a blue square", "--neutral", files["two"])
    succeeds(*words, *prompts, "--json", "--num-frames", 6)
    facts = json.loads(capsys.readouterr().out)
    assert [line["prompt"] for line in facts["videos"]] == ["a red circle", "a blue square"]
    assert all({LEAKAGE, ALIGNMENT, CONSISTENCY} <= set(line["scores"]) for line in facts["videos"])
    assert facts["videos"][1]["scores"][LEAKAGE] == 0 and facts["diversity"] == []
    # LPIPS needs a package that is not everywhere; that the choice of a backbone arrives is seen without it.
    asked: list[object] = []
    weights = tmp_path / "vgg16-397923af.pth"
    weights.write_bytes(b"x")
    monkeypatch.setattr("motion_lora.evaluate.metrics.models.require", lambda *names: None)
    monkeypatch.setattr(
        "motion_lora.evaluate.metrics.models.Perceptual.load",
        lambda path, backbone, device: asked.append((path, backbone)) or flat_lpips(),
    )
    succeeds(*words[:3], "--lpips-weights", weights, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert asked == [(weights, "vgg")] and facts["diversity"][0]["scores"][DIVERSITY] > 0
    succeeds(*words[:3], "--lpips-weights", weights, "--lpips-backbone", "squeeze", "--json")
    assert asked[1] == (weights, "squeeze")


def test_mistakes_are_refused_before_anything_is_read(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = files["one"], files["two"]
    assert "gone.mp4" in fails(capsys, "score", tmp_path / "gone.mp4")
    monkeypatch.setattr(command, "_read", lambda *anything: pytest.fail("something was read"))
    assert "--prompt is given 3 times and there are 2 videos" in fails(
        capsys, "score", one, two, *("--prompt", "x") * 3
    )
    assert "--neutral is given 2 times and there are 1" in fails(capsys, "score", one, *("--neutral", two) * 2)
    assert "should end in one of .csv, .md" in fails(capsys, "score", one, "--output", tmp_path / "x.txt")
    assert "is not a folder" in fails(capsys, "score", one, "--clip-model", tmp_path / "none")
    assert "is not a file" in fails(capsys, "score", one, "--lpips-weights", tmp_path / "none.pth")
    assert "--lpips-backbone needs --lpips-weights" in fails(capsys, "score", one, "--lpips-backbone", "vgg")


def test_a_video_given_twice_is_refused(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "is given twice" in fails(capsys, "score", files["one"], files["one"])


def test_nothing_named_loads_nothing() -> None:
    models = MetricModels.load(None, None)
    assert models.clip_scorer is None and models.perceptual is None


# The node -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        models = host.folder / "models"
        write_clip_model(models / "motion_lora_metrics" / "tiny-clip")
        write_clip_model(models / "clip_vision" / "other-clip")
        (models / "clip_vision" / "vision_only.safetensors").write_bytes(b"x")
        (models / "motion_lora_metrics" / "alexnet-owt-7be5be79.pth").write_bytes(b"x")
        yield host


NODE = "MotionLoRA_ScoreVideo"


def test_models_are_listed_where_users_put_them(host: Host) -> None:
    inputs = host.nodes[NODE].info()["input"]["optional"]
    assert inputs["clip_model"][1]["options"] == ["none", "other-clip", "tiny-clip"]
    assert inputs["lpips_weights"][1]["options"] == ["none", "alexnet-owt-7be5be79.pth"]
    for node in ("MotionLoRA_CompareLoRAs", "MotionLoRA_TrainMotionLoRA"):
        assert list(host.nodes[node].info()["input"]["optional"])[-2:] == ["clip_model", "lpips_weights"]
    for kind, name in (("clip_model", "../../etc"), ("lpips_weights", "../tiny-clip/model.safetensors")):
        with pytest.raises(host.library("core.errors").MotionLoRAError, match="there is no"):
            host.module("comfy.folders").metric_path(kind, name)


def test_the_node_measures_images_and_videos(host: Host, tmp_path: Path) -> None:
    (reference,) = host.run("MotionLoRA_PlaygroundClip", motion="orbit", shape="circle").args[:1]
    with torch.inference_mode():
        images = drawn().clone()
    made = host.run(NODE, images=images, playground=True, prompt=ASKED, reference=reference)
    table, *scores = made.args
    assert scores[0] > 0.9 and scores[1:] == [0, 1, 1] and "exact, read by the playground's probe" in table
    clips = host.run(
        NODE, images=images, neutral=images, prompt="a red circle", clip_model="tiny-clip", reference=reference
    )
    table, _, leakage, alignment, consistency = clips.args
    assert leakage == 0 and 0 <= alignment <= 100 and consistency > 0 and "CLIPScore of tiny-clip" in table
    components = VideoComponents(images=images, frame_rate=Fraction(8))
    table, *scores = host.run(NODE, video=VideoFromComponents(components)).args
    assert all(math.isnan(score) for score in scores) and table.count("- no ") == 4
    for inputs in ({}, {"images": images, "video": VideoFromComponents(components)}):
        with pytest.raises(host.library("core.errors").ClipError, match="connect one of the two"):
            host.run(NODE, **inputs)
