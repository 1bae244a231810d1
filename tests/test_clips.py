"""Clips: what is decoded is what was there, at the right times; what does not fit is refused in one clear line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from motion_lora.core.clip import Clip
from motion_lora.core.errors import ClipError
from motion_lora.media.captions import read_captions
from motion_lora.media.ffmpeg import run_ffmpeg
from motion_lora.media.read import clip_from_frames, read_clip, read_folder, read_frames
from motion_lora.media.sizes import fit
from motion_lora.media.timing import Timeline
from motion_lora.media.write import write_gif, write_png, write_video
from motion_lora.playground import world

CAPTION = "a red circle circling around over sand"
FIRST, STEP = 20, 3


def counting(count: int, height: int = 32, width: int = 48) -> Tensor:
    """Frames whose brightness says their number."""
    levels = (FIRST + STEP * torch.arange(count)) / 255
    return levels[:, None, None, None].expand(-1, height, width, 3).clone()


def numbers(frames: Tensor) -> list[int]:
    return [round((level - FIRST) / STEP) for level in (frames.mean(dim=(1, 2, 3)) * 255).tolist()]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s at 24 fps, 48 x 32."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", counting(72), 24)


@pytest.fixture
def still(tmp_path: Path) -> Path:
    return write_video(tmp_path / "still.mp4", counting(4), 8)


# Time ---------------------------------------------------------------------------------------------------------------


def test_time_is_never_stretched(film: Path) -> None:
    frames, fps = read_frames(film, num_frames=24, fps=8)
    assert fps == 8 and numbers(frames) == list(range(0, 72, 3))


def test_the_nearest_frame_is_taken(film: Path) -> None:
    frames, _ = read_frames(film, num_frames=6, fps=10)
    assert numbers(frames) == [0, 2, 5, 7, 10, 12]


def test_start_and_whole_clip(film: Path) -> None:
    assert numbers(read_frames(film, num_frames=4, fps=8, start=1.0)[0]) == [24, 27, 30, 33]
    whole, fps = read_frames(film)
    assert numbers(whole) == list(range(72)) and fps == 24


def test_a_higher_rate_repeats_frames_and_says_so(still: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        frames, _ = read_frames(still, num_frames=8, fps=16)
    assert numbers(frames) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "repeat the one before" in caplog.text


def test_variable_frame_rate_keeps_time(tmp_path: Path, film: Path) -> None:
    """Half of the frames of the first second are gone: a counter of frames would run ahead of the clock."""
    path = tmp_path / "vfr.mkv"
    keep = "select='gte(n,24)+not(mod(n,2))'"
    status, _, log = run_ffmpeg(["-i", str(film), "-vf", keep, "-fps_mode", "vfr", "-crf", "5", str(path)])
    assert status == 0, log
    assert numbers(read_frames(path, num_frames=8, fps=4)[0]) == [0, 6, 12, 18, 24, 30, 36, 42]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif", ".avi"])
def test_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    frames = counting(16)
    if suffix == ".gif":
        write_gif(path, frames, 8)
    elif suffix == ".avi":
        mp4 = write_video(tmp_path / "clip.mp4", frames, 8)
        assert run_ffmpeg(["-i", str(mp4), "-c:v", "mjpeg", "-q:v", "2", str(path)])[0] == 0
    else:
        write_video(path, frames, 8)
    read, fps = read_frames(path, num_frames=8, fps=4)
    assert numbers(read) == list(range(0, 16, 2)) and fps == 4
    assert read.shape == (8, 32, 48, 3) and read.dtype == torch.float32


def test_colours_survive_the_way_through_a_file(tmp_path: Path) -> None:
    frames = world.render(world.Scene("circle", "red", "sand", "orbit"))
    read, _ = read_frames(write_video(tmp_path / "clip.mp4", frames, 8))
    assert float((read - frames).abs().mean()) < 0.02


def test_image_folder_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "turn"
    folder.mkdir()
    for i, frame in enumerate(counting(12)):
        write_png(folder / f"frame{i}.png", frame)
    (folder / "notes.txt").write_text("not a frame", encoding="utf-8")
    assert numbers(read_frames(folder, num_frames=12, fps=8)[0]) == list(range(12))
    assert numbers(read_frames(folder, num_frames=4, fps=8, images_fps=24)[0]) == [0, 3, 6, 9]
    assert numbers(read_frames(folder, num_frames=2, fps=8, images_fps=8, start=1.0)[0]) == [8, 9]
    Image.new("RGB", (20, 20)).save(folder / "frame3.png")
    with pytest.raises(ClipError, match=r"frame3\.png is 20 x 20 and the first image 48 x 32"):
        read_frames(folder, num_frames=12, fps=8)


def test_non_square_pixels_and_rotation(tmp_path: Path, film: Path) -> None:
    wide, turned = tmp_path / "wide.mp4", tmp_path / "turned.mp4"
    assert run_ffmpeg(["-i", str(film), "-vf", "setsar=2", str(wide)])[0] == 0
    assert run_ffmpeg(["-display_rotation", "90", "-i", str(film), "-c", "copy", str(turned)])[0] == 0
    assert read_frames(wide, num_frames=2)[0].shape == (2, 32, 96, 3)
    assert read_frames(turned, num_frames=2)[0].shape == (2, 48, 32, 3)


def test_nearest_prefers_the_earlier_of_two() -> None:
    timeline = Timeline.regular(8, 8)
    assert [timeline.nearest(t) for t in (0.0, 0.0625, 0.07, 0.99, 5.0, -1.0)] == [0, 0, 1, 7, 7, 0]


# Size ---------------------------------------------------------------------------------------------------------------


def test_resize_keeps_the_aspect_and_crops_the_middle() -> None:
    frames = torch.zeros(1, 40, 80, 3)
    frames[:, 10:30, 30:50] = 1  # a square in the middle
    small = fit(frames, 20, 20, 1, "clip")
    assert small.shape == (1, 20, 20, 3)
    inside = small[0, :, :, 0] > 0.5
    assert int(inside.any(dim=0).sum()) == int(inside.any(dim=1).sum()) == 10
    assert inside[5:15, 5:15].all()


def test_resize_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2).float()[None, None, :, None].expand(1, 64, -1, 3)
    small = fit(stripes, 16, 16, 1, "clip")
    assert float((small[:, :, 2:-2] - 0.5).abs().max()) < 0.1


def test_frames_that_fit_are_left_alone() -> None:
    frames = torch.rand(3, 64, 64, 3)
    assert torch.equal(fit(frames, 64, 64, 64, "clip"), frames)
    assert torch.equal(clip_from_frames(frames, 8, caption="x").frames, frames)


def test_without_a_size_only_the_excess_is_cropped() -> None:
    assert fit(torch.zeros(1, 70, 130, 3), None, None, 64, "clip").shape == (1, 64, 128, 3)


# Errors -------------------------------------------------------------------------------------------------------------


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(ClipError) as caught:
        read_clip(path, **{"caption": "x", "num_frames": 4, **settings})
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_what_is_no_video(tmp_path: Path, film: Path) -> None:
    text, empty, sound = tmp_path / "notes.mp4", tmp_path / "empty.mp4", tmp_path / "sound.mp4"
    text.write_text("these are words, not a video " * 50, encoding="utf-8")
    empty.write_bytes(b"")
    assert run_ffmpeg(["-f", "lavfi", "-i", "sine=duration=1", str(sound)])[0] == 0
    assert "not a video that can be read" in refusal(text) and "webm" in refusal(text)
    assert "is empty (0 bytes)" in refusal(empty)
    assert "no picture, only sound" in refusal(sound)
    assert "cannot be read" in refusal(tmp_path / "absent.mp4")
    assert "folder without images" in refusal(tmp_path)


def test_cut_off_videos(tmp_path: Path, film: Path) -> None:
    half = tmp_path / "half.mp4"
    half.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    assert "cut off" in refusal(half)
    whole = write_video(tmp_path / "film.mkv", torch.rand(72, 64, 64, 3), 24).read_bytes()
    part = tmp_path / "part.mkv"
    part.write_bytes(whole[: len(whole) // 2])
    message = refusal(part, num_frames=24, fps=8)
    assert "The file promises 3.00 s in all" in message and "ask for at most" in message
    assert read_frames(part, num_frames=4, fps=8)[0].shape[0] == 4, "what is there can be used"


def test_a_short_clip_says_what_would_fit(film: Path, still: Path) -> None:
    message = refusal(film, num_frames=32, fps=8)
    assert "has 3.00 s (72 frames) from 0 s on, and 32 frames at 8 fps need 4.00 s" in message
    assert "ask for at most 24 frames or an fps of 10.7 or more" in message
    for fitting in ({"num_frames": 24, "fps": 8.0}, {"num_frames": 32, "fps": 10.7}):
        assert read_clip(film, caption="x", **fitting).num_frames == fitting["num_frames"]
    assert "earlier start" in refusal(film, num_frames=24, fps=8, start=1.0)
    assert "no frame after 9 s" in refusal(film, start=9.0)
    # More frames than the file holds at any rate: no fps helps.
    assert "fps of" not in refusal(still, num_frames=16, fps=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 250, "width": 256, "multiple": 64}, "multiples of 64 pixels, the nearest size is 256 x 256"),
        ({"height": 10, "width": 100, "multiple": 64}, "the nearest size is 64 x 128"),
        ({"height": 64}, "give both, or neither"),
        ({"multiple": 64}, "is 48 x 32 pixels; the base model needs at least 64 x 64"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"start": -1.0}, "start is -1.0"),
        ({"start": float("nan")}, "start is nan"),
        ({"caption": "  "}, "has no caption"),
        ({"caption": CAPTION, "absorb_words": "blue"}, "'blue', to be absorbed, is not in the caption"),
        ({"caption": CAPTION, "absorb_words": "red circle, san"}, "'san', to be absorbed"),
        (
            {"caption": CAPTION, "appearance_caption": "a circle over sand", "absorb_words": "red"},
            "is not in the appearance caption 'a circle over sand'",
        ),
    ],
)
def test_settings_that_cannot_be_met(film: Path, settings: dict, message: str) -> None:
    assert message in refusal(film, **settings)


def test_absorb_words_in_any_case_and_several_phrases(film: Path) -> None:
    clip = read_clip(
        film, caption=CAPTION, appearance_caption="a Red  circle over sand", absorb_words="red circle, Sand"
    )
    assert clip.absorb_words == "red circle, Sand"


def test_reading_leaves_the_folder_as_it_was(tmp_path: Path, film: Path) -> None:
    path = tmp_path / "-odd name %d.mp4"
    path.write_bytes(film.read_bytes())
    read_clip(path, caption="x", num_frames=4)
    refusal(path, num_frames=999)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == film.read_bytes()


# From frames --------------------------------------------------------------------------------------------------------


def test_clip_from_frames_resamples_and_owns_its_frames() -> None:
    frames = counting(24)
    clip = clip_from_frames(frames, 24, caption=" x ", num_frames=4, fps=8, start=0.5, height=16, width=16, multiple=16)
    assert numbers(clip.frames) == [12, 15, 18, 21]
    assert (clip.fps, clip.num_frames, clip.height, clip.width, clip.caption) == (8, 4, 16, 16, "x")
    whole = clip_from_frames(frames, 24, caption="x")
    frames.zero_()
    assert numbers(whole.frames) == list(range(24)) and whole.fps == 24


def test_clips_made_in_a_hosts_inference_mode_can_be_trained_on(still: Path) -> None:
    with torch.inference_mode():
        clips = [clip_from_frames(torch.rand(2, 8, 8, 3), 8, caption="x"), read_clip(still, caption="x", num_frames=2)]
    assert not any(clip.frames.is_inference() for clip in clips)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_clip_from_frames_of_bytes_and_arrays(kind: Callable[[object], object]) -> None:
    levels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    for frames in (kind(levels.numpy()), kind((levels / 255).numpy())):
        assert torch.equal(clip_from_frames(frames, 8, caption="x").frames, levels / 255)
    # Decoders and resizing overshoot a little; what is on another scale must not be clipped to white.
    assert clip_from_frames(kind((levels / 255 * 1.2 - 0.1).numpy()), 8, caption="x").frames.max() == 1
    with pytest.raises(ClipError, match=r"run from 0 to 255 \(torch.float32\); floats must be in \[0, 1\]"):
        clip_from_frames(kind(torch.tensor([0.0, 255.0]).repeat(192).view(2, 8, 8, 3).numpy()), 8, caption="x")
    with pytest.raises(ClipError, match="run from nan"):
        clip_from_frames(kind(torch.full((1, 8, 8, 3), torch.nan).numpy()), 8, caption="x")


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        (torch.zeros(2, 8, 8, 4), {}, "shape (2, 8, 8, 4)"),
        (torch.zeros(0, 8, 8, 3), {}, "shape (0, 8, 8, 3)"),
        (torch.zeros(8, 8, 8, 3), {"num_frames": 9}, "ask for at most 8 frames"),
        (torch.zeros(8, 8, 8, 3), {"start": 1.0}, "1.00 s long and start is 1 s"),
        (torch.zeros(8, 8, 8, 3), {"caption": ""}, "has no caption"),
    ],
)
def test_clip_from_frames_refuses(frames: Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ClipError) as caught:
        clip_from_frames(frames, 8, **{"caption": "x", **settings})
    assert message in str(caught.value)


def test_clip_checks_itself() -> None:
    for frames in (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, 3)):
        with pytest.raises(ClipError, match="float32"):
            Clip(frames, 8, "x", "")
    with pytest.raises(ClipError, match="fps is 0"):
        Clip(torch.zeros(2, 8, 8, 3), 0, "x", "")


def test_fingerprint_counts_what_training_sees() -> None:
    clip = Clip(torch.rand(3, 8, 8, 3), 8.0, "a b", "c", "d", "source")
    other_pixels = clip.frames.clone()
    other_pixels[1, 2, 3, 0] += 0.01
    changed = [
        replace(clip, frames=other_pixels),
        replace(clip, frames=clip.frames.flip(0)),
        replace(clip, fps=12.0),
        replace(clip, caption="a", appearance_caption="b c"),
        replace(clip, absorb_words=""),
    ]
    prints = {clip.fingerprint(), *(other.fingerprint() for other in changed)}
    assert len(prints) == 1 + len(changed)
    assert replace(clip, source="other", frames=clip.frames.clone(), fps=8).fingerprint() == clip.fingerprint()


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, film: Path) -> Path:
    clips = tmp_path / "clips"
    (clips / "turn").mkdir(parents=True)
    (clips / "film.mp4").write_bytes(film.read_bytes())
    for i, frame in enumerate(counting(16)):
        write_png(clips / "turn" / f"{i}.png", frame)
    return clips


def test_captions_beside_the_clips(folder: Path) -> None:
    (folder / "film.txt").write_text("\ufeffa thing moves\na thing\nthing\n\n", encoding="utf-8")
    (folder / "turn.txt").write_text("a car turns", encoding="utf-8")
    clips = read_folder(folder, num_frames=8, fps=8, height=32, width=32, multiple=16)
    assert [(c.caption, c.appearance_caption, c.absorb_words, c.source) for c in clips] == [
        ("a thing moves", "a thing", "thing", "film.mp4"),
        ("a car turns", "", "", "turn"),
    ]
    assert all(clip.frames.shape == (8, 32, 32, 3) for clip in clips)


def test_captions_in_a_table(folder: Path) -> None:
    table = (
        'file, caption, appearance_caption, start\nturn, "a car, red, turns", a red car,\nfilm.mp4, it moves, it, 1.5\n'
    )
    (folder / "captions.csv").write_text(table, encoding="utf-8")
    turn, film = read_captions(folder)
    assert (turn.caption, turn.appearance_caption, turn.start) == ("a car, red, turns", "a red car", 0.0)
    assert (film.path.name, film.start) == ("film.mp4", 1.5)
    clips = read_folder(folder, num_frames=4, fps=8)
    assert numbers(clips[1].frames) == [36, 39, 42, 45]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "film.mp4 has no caption: write it into film.txt"),
        ({"film.txt": "\n"}, "film.txt is empty"),
        ({"film.txt": "a\nb\nc\nd"}, "film.txt has 4 lines"),
        ({"film.txt": b"\xff\xfe\x00"}, "film.txt is not UTF-8"),
        ({"captions.csv": "file,caption\nfilm.mp4,x\n"}, "does not list turn"),
        ({"captions.csv": "name,text\n"}, "has the columns name, text; it may have file, caption"),
        ({"captions.csv": "file,caption\nother.mp4,x\n"}, "line 2: 'other.mp4' is no clip"),
        ({"captions.csv": "file,caption\nfilm.mp4,\n"}, "line 2: film.mp4 has no caption"),
        ({"captions.csv": "file,caption\nfilm.mp4,x\nturn,y\nfilm.mp4,z\n"}, "line 4: film.mp4 is listed twice"),
        ({"captions.csv": "file,caption,start\nfilm.mp4,x,soon\n"}, "start is 'soon'"),
    ],
)
def test_captions_that_are_missing_or_wrong(folder: Path, files: dict, message: str) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClipError) as caught:
        read_captions(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_is_a_clip_of_its_own_only_where_no_clips_are(folder: Path, tmp_path: Path) -> None:
    write_png(folder / "film.png", counting(1)[0])
    (folder / "film.txt").write_text("a thing", encoding="utf-8")
    (folder / "turn.txt").write_text("a car", encoding="utf-8")
    assert [entry.path.name for entry in read_captions(folder)] == ["film.mp4", "turn"], "beside a clip, a thumbnail"
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, frame in enumerate(counting(2)):
        write_png(photos / f"{i}.png", frame)
        (photos / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    clips = read_folder(photos, num_frames=None)
    assert [(clip.caption, clip.num_frames, numbers(clip.frames)) for clip in clips] == [
        ("picture 0", 1, [0]),
        ("picture 1", 1, [1]),
    ]
    assert numbers(read_clip(photos / "1.png", caption="x", num_frames=1).frames) == [1]
    with pytest.raises(ClipError, match="at most 1 frame"):
        read_clip(photos / "1.png", caption="x", num_frames=2)


def test_folders_without_clips(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="holds no clips"):
        read_captions(tmp_path)
    with pytest.raises(ClipError, match="is not a folder"):
        read_captions(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", 'file;caption;start\r\nturn;"a car; red";\r\nfilm.mp4;it moves;1,5\r\n'),
        ("captions.tsv", "file\tcaption\tstart\nturn\ta car; red\t\nfilm.mp4\tit moves\t1.5\n"),
        ("captions.csv", 'file,caption,start\rturn,"a car;\rred",\rfilm.mp4,it\u2028moves,1.5\r'),
        ("captions.csv", '\nfile,caption,start\nturn,"a car;\n red"\n\nfilm.mp4,"it\n\tmoves",1.5\n,,\n'),
        ("captions.csv", 'sep=;\r\nFile;Caption;Start\r\nturn;"a car; red";\r\nfilm.mp4;it moves;1,5\r\n'),
        (
            "captions.jsonl",
            '{"File": "turn", "caption": "a car; red", "start": null}\n'
            '{"file_name": "film.mp4", "text": "it moves", "start": 1.5}',
        ),
        (
            "captions.jsonl",
            '{"file": "turn", "caption": "a car; red"}\n\n'
            '{"file_name": "./film.mp4", "text": "it\\nmoves", "start": 1.5}',
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_captions_as_other_programs_save_them(folder: Path, name: str, content: str, encoding: str) -> None:
    (folder / name).write_bytes(content.encode(encoding))
    turn, film = read_captions(folder)
    assert (turn.caption, turn.start, film.caption, film.start) == ("a car; red", 0.0, "it moves", 1.5)


def test_words_to_absorb_may_be_a_list(folder: Path) -> None:
    rows = [{"file": "turn", "caption": "a red car", "absorb_words": ["red", "car"]}, {"file": "film.mp4", "text": "b"}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_captions(folder)[0].absorb_words == "red, car"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_only_line_ends_end_a_caption(folder: Path, encoding: str) -> None:
    (folder / "film.txt").write_bytes("a thing\u2028moves\x85 on\x00\r\na thing\r\nthing\r\n".encode(encoding))
    (folder / "turn.caption").write_bytes("a car".encode(encoding))
    film, turn = read_captions(folder)
    assert (film.caption, film.appearance_caption, film.absorb_words) == ("a thing moves on", "a thing", "thing")
    assert turn.caption == "a car"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions.csv": b""}, "has the columns"),
        ({"captions.jsonl": b""}, "does not list"),
        ({"captions.csv": b"file,caption\nturn,a car, red\n"}, "put a caption that holds ',' into double quotes"),
        ({"captions.jsonl": b'{"file": "turn"'}, "line 1: it is no JSON object"),
        ({"captions.jsonl": b'["turn"]'}, "line 1: it is no JSON object"),
        ({"captions.jsonl": b'{"file": "turn", "caption": ["a car", "a red car"]}'}, "caption is \"['a car', 'a red"),
        ({"captions.jsonl": b'{"file": "turn", "caption": null}'}, "turn has no caption"),
        ({"captions.jsonl": b'{"file": "turn", "caption": true}'}, "not a text"),
        ({"captions.csv": b"file,caption", "captions.jsonl": b""}, "keep one of them"),
        ({"captions.csv": "file,caption\nturn,caf\u00e9".encode("latin-1")}, "is not UTF-8 text"),
    ],
)
def test_tables_that_cannot_be_read_right(folder: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ClipError) as caught:
        read_captions(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_with_accents_of_either_spelling(tmp_path: Path, film: Path) -> None:
    (tmp_path / "caf\u00e9.mp4").write_bytes(film.read_bytes())
    (tmp_path / "captions.csv").write_text("file,caption\ncafe\u0301.mp4,a thing", encoding="utf-8")
    assert read_captions(tmp_path)[0].caption == "a thing"


def test_a_folder_names_what_it_leaves_out(folder: Path, film: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("._film.mp4", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"junk")
    for name in ("b.mts", "c.WMV"):
        (folder / name).write_bytes(film.read_bytes())
        (folder / name).with_suffix(".txt").write_text("a thing", encoding="utf-8")
    for name in ("notes.docx", "orphan.txt", "shot.png"):
        (folder / name).write_bytes(b"x")
    (folder / "turn.txt").write_text("a car", encoding="utf-8")
    (folder / "film.txt").write_text("a thing", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        clips = read_captions(folder)
    assert [clip.path.name for clip in clips] == ["b.mts", "c.WMV", "film.mp4", "turn"]
    assert "notes.docx, orphan.txt, shot.png" in caplog.text and "DS_Store" not in caplog.text


def test_an_animated_picture_is_a_clip(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (level, 0, 0)) for level in (0, 120, 240)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    frames[0].save(tmp_path / "still.webp")
    (tmp_path / "moving.txt").write_text("it glows", encoding="utf-8")
    assert [clip.path.name for clip in read_captions(tmp_path)] == ["moving.webp"]
