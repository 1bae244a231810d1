"""AnimateDiff as a job and in the tools beside it: kept and found again by its two files, validated, compared."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, run, succeeds
from comfy_double import Host, hosted
from sd15_files import write_checkpoint, write_module
from tiny import tiny_frames

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.files.own import load_lora
from motion_lora.media.read import read_frames
from motion_lora.media.write import write_video

TRAIN = "MotionLoRA_TrainMotionLoRA"
BASE = {"checkpoint": "photon.safetensors", "motion_module": "v2.safetensors"}
LONG = 600.0  # seconds; it takes ten
CAPTION, LOOK = "a red circle moving left over sand", "a red circle over sand"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        modules = host.folder / "models/animatediff_models"
        modules.mkdir(parents=True)
        words = write_checkpoint(host.folder / "models/checkpoints/photon.safetensors").parent / "tokenizer"
        write_module(modules / "v2.safetensors")
        host.module("comfy.folders").clip_words = lambda: words
        yield host


# Jobs


def test_a_job_is_previewed_validated_paused_and_found_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart the base is put together from its two files, and the LoRA is that of a run that never stopped."""
    for place, name in (
        (host.module("train"), "PreviewPlan"),
        (host.library("evaluate.validation"), "validation_plan"),
    ):
        monkeypatch.setattr(place, name, partial(getattr(place, name), num_inference_steps=1))
    background = host.module("comfy.jobs")
    base = host.run("MotionLoRA_LoadT2VModel", model=host.module("comfy.models").COMPOSED, **BASE).args[0]
    words = {"caption": CAPTION, "appearance_caption": LOOK}
    cut = {"images": tiny_frames(num_frames=2, size=64), "num_frames": 2, "width": 64, "height": 64}
    clips = host.run("MotionLoRA_ReferenceClip", **words, **cut).args[0]
    given = {"base_model": base, "clips": clips, "method": "temporal-only", "steps": 3, "rank": 2, "seed": 1}
    whole = host.run(TRAIN, **given).args[0]
    watched = {"preview_prompt": "a blue circle", "preview_every": 3}
    watched |= {"validate_every": 3, "validate_prompts": "a blue square", "keep": "last"}
    runner = background.runner()
    obeyed = runner._step

    def at_step(entry: object, report: object) -> str:
        if report.step == 2:
            runner.pause(entry.id)
        return obeyed(entry, report)

    runner._step = at_step
    host.run(TRAIN, **given, **watched, retrain=True, run="background", continue_when_done=False)
    job = runner.wait(runner.jobs()[0].id, timeout=LONG)
    assert job.state == "paused" and job.status.done_steps == 2
    runner.close()
    background._runner, base, given = None, None, None
    gc.collect()
    background.runner().resume(job.id)
    job = background.runner().wait(job.id, timeout=LONG)
    assert job.state == "done" and job.status.resumed_at == 2
    assert [point["step"] for point in job.status.validation["points"]] == [3]
    assert ".mp4" in {path.suffix for path in (job.folder / "previews").iterdir()}
    last = host.library("files.own").load_lora(job.folder / "last.safetensors")
    assert last.backbone == "animatediff" and last.fingerprint() == whole.fingerprint()


LONG_VIDEO = {"num_frames": 12, "height": 64, "width": 64, "guidance_scale": 1.0, "context_frames": 8, "loop": True}


def test_long_videos_in_windows(host: Host, base: tuple[object, ...], tmp_path: Path, capsys) -> None:
    """Twelve frames of a module that has positions for eight, from the node and from the command line."""
    loaded = host.run("MotionLoRA_LoadT2VModel", model=host.module("comfy.models").COMPOSED, **BASE).args[0]
    node = {"base_model": loaded, "prompt": "a blue square", "num_inference_steps": 1, "decode": False}
    made = host.run("MotionLoRA_SampleVideo", **node, **LONG_VIDEO)
    assert made.args[2]["samples"].shape[2] == 12
    named = "context_frames: the motion module has positions for 8 frames, not for 9"
    with pytest.raises(host.library("core.errors").SettingsError, match=named):
        host.run("MotionLoRA_SampleVideo", **node, **{**LONG_VIDEO, "context_frames": 9})
    words = ("sample", *base, "--prompt", "a blue square", "--num-inference-steps", 1, "--output", tmp_path / "x.mp4")
    flags = [word for name, value in LONG_VIDEO.items() if name != "loop" for word in (f"--{name}", value)]
    flags = [str(word).replace("_", "-") for word in flags]
    succeeds(*words, *flags, "--loop")
    assert read_frames(tmp_path / "x.mp4")[0].shape[0] == 12
    assert named in fails(capsys, *words, *flags, "--context-frames", 9)


# The command line


@pytest.fixture(scope="module")
def base(host: Host) -> tuple[object, ...]:
    models = host.folder / "models"
    checkpoint, module = models / "checkpoints/photon.safetensors", models / "animatediff_models/v2.safetensors"
    return ("--base", checkpoint, "--motion-module", module)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    path = write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", tiny_frames(num_frames=4, size=64), 8.0)
    return ("--clip", path, "--caption", CAPTION, "--appearance-caption", LOOK)


SIZE = ("--num-frames", 2, "--height", 64, "--width", 64)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """What the command line loads; a base is never changed."""
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(partial(VideoPipeline.load))
        patch.setattr(VideoPipeline, "load", lambda folder, **options: load(folder, **options))
        yield


@pytest.fixture(scope="module")
def trained(base: tuple[object, ...], clip: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of one step, validated."""
    path = tmp_path_factory.mktemp("trained") / "a.safetensors"
    validated = ("--validate-every", 1, "--validate-steps", 1, "--validate-prompt", "a blue square", "--no-keep-best")
    quick = ("--method", "temporal-only", "--steps", 1, "--rank", 2)
    succeeds("train", *base, *clip, *SIZE, *quick, *validated, "--output", path)
    return path


def test_checkpoints_are_validated(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = (trained.parent / "a.validation.csv").read_text().splitlines()
    assert curve[0].startswith("step,motion_fidelity,appearance_leakage") and len(curve) == 3
    succeeds("inspect", trained, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["backbone"], facts["temporal"], facts["spatial"]) == ("animatediff", 168, 0)
    assert "name animatediff or animatediff-v2" in fails(capsys, "inspect", trained, "--base", trained)
    assert "has other sizes" in fails(capsys, "inspect", trained, "--base", "animatediff-v2").replace("have", "has")


def test_what_a_training_will_take(base: tuple[object, ...], clip: tuple[object, ...], capsys) -> None:
    succeeds("train", "--dry-run", "--json", *base, *clip, *SIZE, "--method", "temporal-only", "--steps", 3)
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 3 and found["parameters"] > 0


def test_merged_resized_and_written_for_other_tools(trained: Path, tmp_path: Path) -> None:
    both, small, theirs = (tmp_path / f"{name}.safetensors" for name in ("both", "small", "theirs"))
    succeeds("convert", trained, "--format", "animatediff", "--output", theirs)
    succeeds("merge", trained, "--with", theirs, 0.5, "--output", both)
    succeeds("resize", both, "--rank", 1, "--output", small)
    one, sum_of, less = load_lora(trained), load_lora(both), load_lora(small)
    module = next(iter(one))
    torch.testing.assert_close(sum_of.layers[module].delta(), 1.5 * one.layers[module].delta())
    assert (less.backbone, less.ranks) == ("animatediff", (1,))


def test_compared_and_measured(base, clip, trained: Path, tmp_path: Path) -> None:
    quick = (*SIZE, "--prompt", "a blue square", "--num-inference-steps", 1, "--guidance-scale", 1)
    succeeds("compare", *base, "--lora", trained, *quick, "--reference", clip[1], "--output", tmp_path / "compare")
    assert "| a |" in (tmp_path / "compare/table.md").read_text()
    measured = ("--methods", "temporal-only", "--steps", 1, *quick, "--output", tmp_path / "bench")
    assert run("bench", "base", base[1], *base[2:], *clip, *measured) == 0
    assert "temporal-only" in (tmp_path / "bench/table.md").read_text()
