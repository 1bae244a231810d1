"""The command line on a Wan base: everything that is done with a U-Net's is done with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import fails, succeeds, write_clip
from safetensors import safe_open
from tiny import tiny_pipeline
from training_samples import sample_clip
from wan_samples import write_folder

from motion_lora.apps.bench.real_base import DEFAULT_METHODS, BasePlan, default_methods, method_settings
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.files.own import load_lora
from motion_lora.media.read import read_frames
from motion_lora.training import check_run, make_recipe

WORDS = ("--caption", "a red square moving right over sand", "--appearance-caption", "a red square over sand")
FEW = ("--steps", 2, "--absorber-steps", 1, "--rank", 2, "--height", 16, "--width", 16)
OTHER = "a blue circle moving right over snow"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("base") / "tiny-wan")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips"), num_frames=5)


@pytest.fixture(scope="module")
def lora(base: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "orbit.safetensors"
    succeeds("train", "--base", base, "--clip", clip, *WORDS, *FEW, "--output", path, "--memory", 0.001)
    return path


def test_what_was_trained_goes_into_every_format_and_on(base: Path, lora: Path, tmp_path: Path) -> None:
    assert load_lora(lora).metadata["motion_lora.method"] == "joint-customize-a-video"
    for kind in ("comfyui", "kohya", "peft"):
        made = tmp_path / f"{kind}.safetensors"
        succeeds("convert", lora, "--format", kind, "--output", made)
        succeeds("verify", made, "--base", base)
    with safe_open(str(tmp_path / "comfyui.safetensors"), framework="pt") as file:
        assert "diffusion_model.blocks.1.self_attn.k.lora_B.weight" in file.keys()  # noqa: SIM118 - no dict
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    succeeds("merge", lora, 1.0, "--with", tmp_path / "kohya.safetensors", 0.5, "--output", both)
    succeeds("resize", both, "--rank", 1, "--output", small)
    assert (load_lora(both).ranks, load_lora(small).ranks, load_lora(small).backbone) == ((4,), (1,), "wan")


def test_a_video_is_sampled(base: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--num-inference-steps", 2, "--height", 16, "--width", 16, "--prompt", OTHER)
    words = ("sample", "--base", base, "--lora", lora, 1.0, "end=0.5", *quick)
    succeeds(*words, "--num-frames", 9, "--output", tmp_path / "made.mp4")
    assert read_frames(tmp_path / "made.mp4")[0].shape == (9, 16, 16, 3)
    assert "take 5 or 9" in fails(capsys, *words, "--num-frames", 8, "--output", tmp_path / "x.mp4")


def test_a_dry_run_counts_and_names_what_is_wrong(base: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "--dry-run", "--base", base, "--clip", clip, *WORDS)
    succeeds(*words, *FEW, "--json")
    said = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in said["stages"]] == ["absorber-joint", "motion"]
    assert said["parameters"] == sum(stage["parameters"] for stage in said["stages"]) == 4 * 2 * 48 + 8 * 16 * 48
    assert "take 1 or 5" in fails(capsys, *words, *FEW, "--num-frames", 4)
    assert "as method 'joint-customize-a-video' does" in fails(capsys, *words, *FEW, "--method", "motiondirector")


def test_methods_that_are_measured_side_by_side_are_those_of_the_base(tiny_small: VideoPipeline) -> None:
    base = tiny_pipeline(levels=2, backbone="wan")
    joint = default_methods(base)
    assert joint == ("joint-customize-a-video", "joint-motiondirector", "joint-lora")
    assert default_methods(tiny_small) == DEFAULT_METHODS
    for name in joint:
        settings = method_settings(base, name, BasePlan((OTHER,)))
        check_run(base, make_recipe([sample_clip(num_frames=5)], settings, None))
