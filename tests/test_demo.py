"""The demo's job on a tiny base: every file it promises, from a real video file, measured as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, succeeds, write_base
from PIL import Image
from tiny import tiny_pipeline

from motion_lora.apps.demo import (
    NEW_LOOKS,
    REFERENCE_LOOK,
    DemoSettings,
    new_scenes,
    reference_clip,
    reference_scene,
    run_demo,
    sample_videos,
    scores_of,
    summary,
)
from motion_lora.core.errors import SettingsError
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.evaluate.playground_judge import playground_judge
from motion_lora.evaluate.scores import ALIGNMENT, LEAKAGE, MOTION, SCORES
from motion_lora.files.absorber_file import load_absorber
from motion_lora.files.own import load_lora
from motion_lora.media.write import write_video
from motion_lora.playground import world
from motion_lora.training import StepReport

# Words that the tiny tokenizer knows: others take a token per letter, and there is no room for those.
SHORT = {**REFERENCE_LOOK, "background": "sand"}
# An untrained base loses the motion of every look.
TINY = DemoSettings(
    method="customize-a-video",
    steps=2,
    absorber="dual",
    absorber_steps=2,
    token_steps=2,
    num_inference_steps=2,
    seed=5,
    reference_look=SHORT,
    looks=NEW_LOOKS[:2],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """One run: the folder, the report, and what the callbacks heard."""
    folder = tmp_path_factory.mktemp("demo")
    heard: list[tuple[str, int, int]] = []

    def on_step(report: StepReport) -> str:
        heard.append((report.stage, report.step, report.total))
        return "continue"

    def on_progress(stage: str, step: int, total: int) -> None:
        heard.append((stage, step, total))

    report = run_demo(tiny_pipeline(levels=2), folder, TINY, callback=on_step, progress=on_progress)
    return folder, report, heard


def test_every_promised_file_is_there(made) -> None:
    folder, report, _ = made
    assert {path.name for path in folder.iterdir()} == {*report.files.values(), "absorber.safetensors"}
    assert len([name for name in report.files.values() if name.endswith(".mp4")]) == 1 + 2 * len(TINY.looks)
    written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_json()))
    sheet = Image.open(folder / "contact_sheet.png")
    assert sheet.height > 128 * (1 + 2 * len(TINY.looks))


def test_three_stages_and_both_samplings_are_reported(made) -> None:
    _, report, heard = made
    assert list(dict.fromkeys(stage for stage, _, _ in heard)) == [
        "absorber-spatial",
        "absorber-tokens",
        "motion",
        "sampling base",
        "sampling customised",
    ]
    assert all(step <= total == 2 for _, step, total in heard)
    assert list(report.seconds) == ["reference clip", "training", "sampling", "measuring", "writing"]


def test_lora_file_makes_the_videos_and_the_base_does_not(made, tmp_path: Path) -> None:
    """Sampling again from the saved file gives the customised videos, and without it the base's, seed by seed."""
    folder, report, _ = made
    lora = load_lora(folder / report.files["motion LoRA"])
    assert load_absorber(folder / "absorber.safetensors").tokens is not None
    pipeline, scenes = tiny_pipeline(levels=2), new_scenes(TINY)
    again = {
        "base": sample_videos(pipeline, scenes, TINY, AdapterStack(), lambda step, total: None),
        "customised": sample_videos(
            pipeline, scenes, TINY, AdapterStack((StackEntry(lora),)), lambda step, total: None
        ),
    }
    assert not torch.equal(again["base"][0], again["customised"][0])
    for name, videos in again.items():
        for number, video in enumerate(videos):
            file = folder / report.files[f"{name} {number + 1}"]
            assert file.read_bytes() == write_video(tmp_path / "again.mp4", video, 8, upscale=8).read_bytes()


def test_reference_is_read_back_from_a_file(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(levels=2)
    clip = reference_clip(pipeline, tmp_path / "reference.mp4", TINY)
    rendered = world.render(reference_scene(TINY), pipeline.default_num_frames, pipeline.default_height)
    assert clip.frames.shape == rendered.shape
    assert 0 < float((clip.frames - rendered).abs().mean()) < 0.03
    assert clip.absorb_words in clip.caption and clip.absorb_words in clip.appearance_caption


def test_new_looks_share_nothing_with_the_reference() -> None:
    for look in NEW_LOOKS:
        assert not [name for name in look if look[name] == REFERENCE_LOOK[name]]
    assert TINY.motion in world.HELD_OUT_MOTIONS


def test_scores_are_the_judges(made) -> None:
    _, report, _ = made
    for scores in (report.base, report.customised, *report.base_videos, *report.customised_videos):
        assert set(scores) <= set(SCORES) and {MOTION, LEAKAGE, ALIGNMENT} <= set(scores)


@pytest.mark.parametrize("motion", ["orbit", "zigzag"])
def test_scores_of_known_videos(motion: str) -> None:
    reference = world.render(reference_scene(DemoSettings(motion=motion)), 16)
    wanted = world.Scene(motion=motion, radius=0.17, scale=0.2, phase=0.0, **NEW_LOOKS[0])
    videos = [world.render(wanted, 16), reference, world.render(world.Scene(motion="still", **NEW_LOOKS[0]), 16)]
    perfect, copied, still = scores_of(playground_judge(reference), [wanted] * 3, videos)
    assert (perfect[ALIGNMENT], perfect[LEAKAGE]) == (1.0, 0.0) and perfect[MOTION] > 0.95
    assert (copied[ALIGNMENT], copied[LEAKAGE]) == (0.0, 1.0)
    assert still[MOTION] < 0.2 and still[ALIGNMENT] == 1.0


def test_the_panels_chart_knows_the_scores_by_their_names() -> None:
    chart = (Path(__file__).resolve().parents[1] / "web" / "lib" / "chart.js").read_text(encoding="utf-8")
    (table,) = re.findall(r"export const SCORES = \{(.*?)\}", chart, flags=re.DOTALL)
    assert tuple(re.findall(r"(\w+): '", table)) == SCORES


def test_unknown_motion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dance"):
        run_demo(tiny_pipeline(levels=2), tmp_path, DemoSettings(motion="dance"))
    assert not list(tmp_path.iterdir())


def test_summary_names_measures_and_files(made) -> None:
    folder, report, _ = made
    text = "\n".join(summary(report, folder))
    for said in ("motion fidelity", "text alignment", "appearance leakage", str(folder / "contact_sheet.png")):
        assert said in text


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path)
    few = ("--method", "temporal-only", "--steps", "1", "--absorber", "none", "--num-inference-steps", "1")
    succeeds("demo", "--base", base, "--output", tmp_path / "out", *few, "--motion", "zigzag", "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["motion"] == "zigzag"
    assert "loss" in err and "sampling customised" in err
    assert (tmp_path / "out" / "zigzag.safetensors").is_file()
    assert "dance" in fails(capsys, "demo", "--base", base, "--motion", "dance", "--output", tmp_path / "none")
    assert "steps is 0" in fails(capsys, "demo", "--base", base, "--steps", "0", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()
