"""Every mistake that a user meets: one clear line on stderr, exit status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_helpers import CAPTION, CAPTIONS, FEW_STEPS, fails, succeeds, write_base, write_clip
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import write_tiny_folder

from motion_lora.apps.cli import USER_ERROR, main
from motion_lora.core import disk
from motion_lora.core.absorber import Absorber
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.files import own
from motion_lora.files.absorber_file import save_absorber
from motion_lora.files.own import save_lora

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An output folder that has to be empty when the test is over."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert left == [], "something was left behind"


@pytest.fixture
def refused(base: Path, clip: Path, place: Path, capsys: pytest.CaptureFixture[str]):
    """Train with good settings but for what is given; returns the line."""

    def attempt(*words: object, base: Path = base, clip: Path = clip, captions: tuple[str, ...] = CAPTIONS) -> str:
        start = ("train", "--base", base, "--clip", clip, *captions, *FEW_STEPS)
        return fails(capsys, *start, "--output", place / "lora.safetensors", *words)

    return attempt


# Clips --------------------------------------------------------------------------------------------------------------


def test_not_a_video(refused, tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("this is no video\n" * 50, encoding="utf-8")
    assert "notes.mp4" in refused(clip=path)


def test_empty_video(refused, tmp_path: Path) -> None:
    path = tmp_path / "nothing.mp4"
    path.touch()
    assert "empty" in refused(clip=path)


def test_truncated_video(refused, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[:-1200])
    assert "cut.mp4" in refused(clip=path)


def test_missing_video(refused, tmp_path: Path) -> None:
    assert "nowhere.mp4" in refused(clip=tmp_path / "nowhere.mp4")


def test_clip_is_shorter_than_asked(refused) -> None:
    line = refused("--num-frames", "40")
    assert "clip.mp4" in line and "40 frames" in line and "at most 4" in line


def test_too_few_frames(refused) -> None:
    assert "one frame" in refused("--num-frames", "1")
    assert "num_frames is 0" in refused("--num-frames", "0")


def test_start_beyond_the_end(refused) -> None:
    assert "start" in refused("--start", "100")


def test_size_is_no_multiple(refused) -> None:
    line = refused("--height", "40", "--width", "32")
    assert "40 x 32" in line and "multiples of 16" in line and "nearest" in line


def test_missing_caption(refused) -> None:
    assert "no caption" in refused(captions=())
    assert "no caption" in refused(captions=("--caption", "  "))


def test_missing_appearance_caption(refused) -> None:
    assert "appearance caption" in refused(captions=("--caption", CAPTION))


def test_words_to_absorb_are_not_in_the_caption(refused) -> None:
    captions = ("--caption", CAPTION, "--appearance-caption", "a red square", "--absorb-words", "green horse")
    line = refused(captions=captions)
    assert "green horse" in line and CAPTION in line


def test_clips_and_captions_in_different_numbers(refused, clip: Path) -> None:
    assert "--caption is given 1 times and --clip 2 times" in refused("--clip", clip)


def test_folder_of_clips_without_captions(base: Path, place: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    words = ("train", "--base", base, "--folder", folder, "--output", place / "x.safetensors")
    assert "no clips" in fails(capsys, *words)
    write_clip(folder)
    assert "clip.txt" in fails(capsys, *words)
    assert "not both" in fails(capsys, *words, "--clip", folder / "clip.mp4")


# Base models --------------------------------------------------------------------------------------------------------


def test_folder_is_no_model(refused, tmp_path: Path) -> None:
    assert "no diffusers model" in refused(base=tmp_path)
    assert "There is no folder" in refused(base=tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
def test_folder_lacks_a_part(part: str, refused, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    shutil.rmtree(copy / part)
    assert part in refused(base=copy)


def test_weights_are_missing_or_cut_off(refused, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "unet" in refused(base=copy)
    weights.unlink()
    assert "has no weights" in refused(base=copy)


def with_config(base: Path, copy: Path, part: str, **entries: object) -> Path:
    shutil.copytree(base, copy)
    path = copy / part / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **entries}), encoding="utf-8")
    return copy


def test_image_model_instead_of_a_video_model(refused, base: Path, tmp_path: Path) -> None:
    copy = with_config(base, tmp_path / "sd", "unet", _class_name="UNet2DConditionModel")
    assert "image network" in refused(base=copy)


def test_text_encoder_of_stable_diffusion_1(refused, base: Path, tmp_path: Path) -> None:
    copy = with_config(base, tmp_path / "sd15", "text_encoder", hidden_size=768)
    assert "768 is Stable Diffusion 1.5" in refused(base=copy)


def test_device_and_dtype_that_are_not_there(refused) -> None:
    assert "device" in refused("--device", "abacus")
    assert "dtype" in refused("--dtype", "fp12")


# LoRA files ---------------------------------------------------------------------------------------------------------


def sampled(capsys, base: Path, place: Path, lora: Path) -> str:
    words = ("--prompt", "a red circle", "--num-inference-steps", "2", "--output", place / "x.mp4")
    return fails(capsys, "sample", "--base", base, *words, "--lora", lora)


def lora_of_width(width: int) -> LoRA:
    return LoRA({MODULE: LoRALayer(torch.ones(2, width), torch.ones(32, 2))})


def test_lora_of_another_base(base: Path, place: Path, tmp_path: Path, capsys) -> None:
    other = save_lora(tmp_path / "other.safetensors", lora_of_width(1024))
    line = sampled(capsys, base, place, other)
    assert "other" in line and "1024" in line


def test_lora_of_stable_diffusion_1(base: Path, place: Path, tmp_path: Path, capsys) -> None:
    other = save_lora(tmp_path / "sd15.safetensors", lora_of_width(768))
    line = sampled(capsys, base, place, other)
    assert "768" in line


def test_lora_file_is_damaged(base: Path, place: Path, tmp_path: Path, capsys) -> None:
    path = save_lora(tmp_path / "good.safetensors", lora_of_width(32))
    path.write_bytes(path.read_bytes()[:-8])
    assert "cut off" in sampled(capsys, base, place, path)
    path.write_text("<!doctype html><p>log in</p>", encoding="utf-8")
    assert "web page" in sampled(capsys, base, place, path)


def test_absorber_of_another_base(refused, base: Path, tmp_path: Path) -> None:
    path = save_absorber(tmp_path / "a.safetensors", Absorber(spatial=lora_of_width(1024)))
    assert "1024" in refused("--load-absorber", path)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rank", "0"), "rank is 0"),
        (("--rank", "5000"), "rank is 5000"),
        (("--rank", "40"), "rank is 40"),
        (("--alpha", "0"), "alpha is 0"),
        (("--alpha", "nan"), "alpha is nan"),
        (("--learning-rate", "-1"), "learning_rate is -1"),
        (("--steps", "0"), "steps is 0"),
        (("--method", "magic"), "method is 'magic'"),
        (("--absorber", "sponge"), "absorber is 'sponge'"),
        (("--targets", "everything"), "targets is 'everything'"),
        (("--num-tokens", "9"), "num_tokens is 9"),
        (("--timestep-low", "0.9", "--timestep-high", "0.1"), "timestep_low"),
    ],
)
def test_settings_out_of_range(words: tuple[str, ...], said: str, refused) -> None:
    assert said in refused(*words)


def test_all_faults_are_named_at_once(refused) -> None:
    line = refused("--rank", "0", "--alpha", "0", "--steps", "0")
    assert all(said in line for said in ("rank is 0", "alpha is 0", "steps is 0"))


def test_settings_file_with_an_unknown_key(refused, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("learning_rat = 1e-3\n", encoding="utf-8")
    line = refused("--config", config)
    assert "learning_rat" in line and "learning_rate" in line


# Outputs ------------------------------------------------------------------------------------------------------------


def test_no_output_or_a_wrong_one(base: Path, clip: Path, place: Path, capsys) -> None:
    start = ("train", "--base", base, "--clip", clip, *CAPTIONS)
    assert "--output" in fails(capsys, *start)
    assert ".safetensors" in fails(capsys, *start, "--output", place / "lora.pt")


def test_output_exists(base: Path, clip: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "lora.safetensors"
    output.write_bytes(b"precious")
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, "--output", output)
    assert "exists already" in fails(capsys, *words)
    assert output.read_bytes() == b"precious"


def test_output_is_inside_a_file(refused, clip: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    assert "cannot be written" in refused("--output", blocker / "lora.safetensors")


@pytest.mark.parametrize("command", ["train", "sample", "render"])
def test_no_permission(
    command: str, base: Path, clip: Path, place: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by the system, or where the tests run as root by the call that would be refused."""
    locked = place.parent / "locked"
    locked.mkdir(mode=0o500)
    if sys.platform == "win32" or os.access(locked, os.W_OK):

        def deny(*unused: object, **keywords: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(locked))

        monkeypatch.setattr("tempfile.mkstemp", deny)
    words = {
        "train": ("train", "--base", base, "--clip", clip, *CAPTIONS, "--output", locked / "lora.safetensors"),
        "sample": ("sample", "--base", base, "--prompt", "a", "--output", locked / "x.mp4"),
        "render": ("playground", "render", "--motion", "orbit", "--output", locked / "x.mp4"),
    }
    line = fails(capsys, *words[command])
    assert "locked" in line and os.strerror(errno.EACCES) in line
    monkeypatch.undo()
    assert not list(locked.iterdir())


def test_no_disk_space_is_seen_before_the_work(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert "1 MiB left" in refused()


def test_disk_fills_up_during_the_work(
    base: Path, clip: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result cannot be written; what was trained is in the checkpoint, and the same command finishes the job."""
    output = tmp_path / "lora.safetensors"
    words = ("train", "--base", base, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--output", output)

    def full(path: Path, *rest: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(*arguments: object, **keywords: object) -> object:
        with monkeypatch.context() as patched:
            patched.setattr(disk.os, "fsync", full)
            return disk.write_atomically(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(own, "write_atomically", write)
        capsys.readouterr()
        assert main([str(word) for word in words]) == USER_ERROR
    assert "no disk space left" in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["lora.checkpoint"]
    succeeds(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


# Devices ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*unused: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    monkeypatch.setattr(UNet3DConditionModel, "forward", forward)


def test_out_of_memory_in_training_says_what_to_lower(refused, no_memory: None) -> None:
    line = refused()
    assert all(said in line for said in ("out of memory", "gradient_checkpointing", "frames", "bf16"))


def test_out_of_memory_in_sampling_says_what_to_lower(base: Path, place: Path, capsys, no_memory: None) -> None:
    words = ("--prompt", "a", "--num-inference-steps", "2", "--output", place / "x.mp4")
    line = fails(capsys, "sample", "--base", base, *words)
    assert all(said in line for said in ("memory", "batch_size", "num_frames"))


def test_out_of_memory_while_loading(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*unused: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    monkeypatch.setattr("motion_lora.apps.cli.train.load_base", full)
    assert "out of memory" in refused()


def test_out_of_memory_anywhere_is_one_line(refused, base: Path, place: Path, capsys, monkeypatch) -> None:
    """The allocator of CPUs raises a RuntimeError that only its text tells from others."""
    huge = ("--height", 65536, "--width", 65536, "--num-frames", 1024, "--num-inference-steps", 1)
    line = fails(capsys, "sample", "--base", base, "--prompt", "x", "--output", place / "x.mp4", *huge)
    assert "too little memory for 1 x 1024 frames of 65536 x 65536" in line

    def full(*unused: object, **keywords: object) -> None:
        raise MemoryError

    monkeypatch.setattr("motion_lora.apps.cli.train.load_base", full)
    assert "It ran out of memory; lower the size" in refused()


def test_a_package_that_cannot_be_imported_is_one_line(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*unused: object, **keywords: object) -> None:
        raise ImportError("DLL load failed while importing _C", name="transformers.models.clip")

    monkeypatch.setattr("motion_lora.apps.cli.train.load_base", broken)
    line = refused()
    assert "transformers cannot be imported (DLL load failed" in line and "pip install --force-reinstall" in line


def test_rates_and_devices_that_are_none(refused, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "1.png")
    for rate in ("nan", "0", "-5", "inf"):
        assert "images_fps is" in refused("--images-fps", rate, clip=folder)
    assert "device is 'meta', which is not on this machine" in refused("--device", "meta")


def test_validation_that_cannot_be_sampled_is_refused_before_training(refused) -> None:
    words = ("--validate-every", 1, "--validate-prompt", "x", "--absorber", "none")
    assert "num_inference_steps is 0" in refused(*words, "--validate-steps", 0)


def test_demo_that_cannot_be_sampled_is_refused_before_training(place: Path, capsys) -> None:
    assert "num_inference_steps is 0" in fails(capsys, "demo", "--output", place, "--num-inference-steps", 0)
    assert "guidance_scale is nan" in fails(capsys, "demo", "--output", place, "--guidance-scale", "nan")


def test_loss_that_is_not_finite(base: Path, clip: Path, place: Path, tmp_path: Path, capsys) -> None:
    poisoned = write_tiny_folder(tmp_path / "poisoned")
    path = poisoned / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.full_like(weights["conv_in.weight"], 1e30)
    save_file(weights, path)
    words = ("train", "--base", poisoned, "--clip", clip, *CAPTIONS, *FEW_STEPS, "--output", place / "x.safetensors")
    capsys.readouterr()
    assert main([str(word) for word in words]) == USER_ERROR
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The loss of step 1 in absorber-spatial is not finite; lower absorber_learning_rate (here " in line
