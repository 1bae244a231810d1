"""Picture and video beside a finished LoRA, as model browsers look for them; the examples that come with the pack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image

from motion_lora.files.own import load_lora
from motion_lora.files.reader import load_any
from motion_lora.jobs.pictures import cover, publish_pictures, put_beside
from motion_lora.media.read import read_frames
from motion_lora.media.write import encoder_fault, write_gif, write_video
from motion_lora.playground.model import EXAMPLES

GREY = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 32, 48, 3)
WORKFLOW = {"prompt": {"1": {"class_type": "X"}}, "workflow": {"id": "abc", "nodes": []}}


def test_a_cover_shows_the_motion_from_first_to_last_frame() -> None:
    picture = cover(GREY)
    assert picture.size == (96, 64)
    corners = [picture.getpixel(place)[0] for place in ((5, 5), (53, 5), (5, 37), (53, 37))]
    assert corners == sorted(corners) and corners[0] == 0 and corners[-1] == 255


def test_the_picture_holds_the_workflow_as_comfyui_writes_it(tmp_path: Path) -> None:
    lora = tmp_path / "orbit.safetensors"
    put_beside(lora, write_video(tmp_path / "made.mp4", GREY, 8), WORKFLOW)
    with Image.open(tmp_path / "orbit.preview.png") as picture:
        assert {key: json.loads(text) for key, text in picture.text.items()} == WORKFLOW
    assert len(read_frames(tmp_path / "orbit.mp4")[0]) == 8


def test_the_last_preview_is_published(tmp_path: Path) -> None:
    job, published = tmp_path / "job", tmp_path / "loras" / "orbit.safetensors"
    for step, value in (("000010", 0.0), ("000020", 1.0)):
        (job / "previews").mkdir(parents=True, exist_ok=True)
        write_video(job / "previews" / f"{step}.mp4", torch.full((4, 32, 32, 3), value), 8)
    published.parent.mkdir()
    publish_pictures(job, published)
    assert read_frames(published.with_suffix(".mp4"))[0].mean() > 0.9


def test_a_job_without_a_video_or_with_a_broken_one_publishes_none(tmp_path: Path) -> None:
    publish_pictures(tmp_path, tmp_path / "orbit.safetensors")
    (tmp_path / "cover.mp4").write_bytes(b"no video")
    publish_pictures(tmp_path, tmp_path / "orbit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["cover.mp4"]


def without_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """An ffmpeg like that of some distributions: all but these encoders."""
    known = "|".join(missing)
    wrapper = tmp_path / f"ffmpeg-without-{len(missing)}"
    wrapper.write_text(
        f'#!/bin/sh\nfor word in "$@"; do\n'
        f'case "$word" in {known}) echo "Unknown encoder \'$word\'" >&2; exit 8;; esac\n'
        f'done\nexec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(wrapper))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_a_missing_encoder_is_told_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder_fault() == ""
    every = ("libx264", "libopenh264", "mpeg4", "mjpeg")
    without_encoders(tmp_path, monkeypatch, *every[:2])
    assert "Unknown encoder 'libx264'" in encoder_fault() and "browsers may not play" in encoder_fault()
    without_encoders(tmp_path, monkeypatch, *every)
    assert "written as GIF" in encoder_fault() and "reinstall imageio-ffmpeg" in encoder_fault()


def test_a_preview_that_became_a_gif_is_shown_and_published_as_one(tmp_path: Path) -> None:
    job, published = tmp_path / "job", tmp_path / "loras" / "orbit.safetensors"
    write_gif(job / "previews" / "000010.gif", GREY, 8)
    published.parent.mkdir()
    publish_pictures(job, published)
    assert sorted(path.name for path in published.parent.iterdir()) == ["orbit.gif", "orbit.preview.png"]


def test_the_examples_are_whole_and_small() -> None:
    loras = sorted(EXAMPLES.rglob("*.safetensors"))
    assert len(loras) == 4
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 2_000_000
    for path in loras:
        assert load_any(path).lora.metadata["modelspec.title"]
        assert path.with_name(f"{path.stem}.preview.png").is_file() and path.with_suffix(".mp4").is_file()


@pytest.mark.parametrize("path", sorted((EXAMPLES / "motion").glob("*.safetensors")), ids=lambda path: path.stem)
def test_an_example_of_a_motion_opens_in_the_own_format(path: Path) -> None:
    assert load_lora(path).metadata["motion_lora.captions"]


def test_the_friends_example_is_in_a_foreign_format() -> None:
    (path,) = (EXAMPLES / "friends").glob("*.safetensors")
    assert "kohya" in load_any(path).format
