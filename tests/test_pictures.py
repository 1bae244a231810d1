"""Videos, GIFs, PNGs, sheets and plots: what is written can be read back, whole, at the right rate, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from motion_lora.core.errors import ClipError, OutputError
from motion_lora.media import fonts, write
from motion_lora.media.ffmpeg import run_ffmpeg
from motion_lora.media.plots import (
    PALETTE,
    Line,
    Point,
    moving_average,
    name_boxes,
    plot_lines,
    plot_losses,
    plot_points,
    stacked,
)
from motion_lora.media.read import read_frames
from motion_lora.media.sheets import contact_sheet, grid_frames
from motion_lora.media.write import write_gif, write_png, write_video
from motion_lora.playground import world

SCENE = world.Scene("circle", "red", "sand", "orbit")


def decode(path: Path) -> tuple[np.ndarray, dict]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]), meta


def has_colour(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) < 12).any())


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_video_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    frames = world.render(SCENE, 8)
    decoded, meta = decode(write_video(tmp_path / f"clip{suffix}", frames, 8))
    assert decoded.shape == (8, 64, 64, 3)
    assert meta["fps"] == pytest.approx(8)
    error = np.abs(decoded / 255 - frames.numpy())
    assert error.mean() < 0.02
    # A wrong YUV matrix or range shifts whole areas; compression does not.
    assert np.abs(decoded.mean(axis=(0, 1, 2)) / 255 - frames.mean(dim=(0, 1, 2)).numpy()).max() < 0.01


def test_video_is_yuv420p_h264(tmp_path: Path) -> None:
    _, meta = decode(write_video(tmp_path / "clip.mp4", world.render(SCENE, 4), 8))
    assert meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]


@pytest.mark.parametrize("fps", [7.5, 12.5, 24000 / 1001, 30])
def test_frame_rate_is_kept(tmp_path: Path, fps: float) -> None:
    decoded, meta = decode(write_video(tmp_path / "clip.mp4", world.render(SCENE, 30), fps))
    assert len(decoded) == 30
    assert meta["fps"] == pytest.approx(fps, abs=0.006)
    assert meta["duration"] == pytest.approx(30 / fps, abs=0.02)


def test_odd_sizes_are_padded_not_resized(tmp_path: Path) -> None:
    frames = world.render(SCENE, 3)[:, :63, :61]
    decoded, _ = decode(write_video(tmp_path / "clip.mp4", frames, 8))
    assert decoded.shape[1:3] == (64, 62)
    assert np.abs(decoded[:, :63, :61] / 255 - frames.numpy()).mean() < 0.02


def test_upscaling_repeats_pixels(tmp_path: Path) -> None:
    frames = world.render(SCENE, 2)
    decoded, _ = decode(write_video(tmp_path / "clip.mp4", frames, 8, upscale=4))
    assert decoded.shape[1:3] == (256, 256)
    assert np.abs(decoded[:, 1::4, 1::4] / 255 - frames.numpy()).mean() < 0.01


def test_same_frames_give_the_same_file(tmp_path: Path) -> None:
    frames = world.render(SCENE, 4)
    assert (
        write_video(tmp_path / "a.mp4", frames, 8).read_bytes()
        == write_video(tmp_path / "b.mp4", frames, 8).read_bytes()
    )


def test_names_that_look_like_options_and_other_scripts(tmp_path: Path) -> None:
    for name in ("-y.mp4", "a b%d.mp4", "\u00fcber\u4e2d.mp4"):
        assert write_video(tmp_path / name, world.render(SCENE, 2), 8).stat().st_size > 0


def test_gif_loses_no_time(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "clip.gif", world.render(SCENE, 8), 8)
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert len(durations) == 8 and sum(durations) == 1000


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: write_video(p / "x.avi", torch.zeros(2, 8, 8, 3), 8), "x.avi should end in .mp4"),
        (lambda p: write_video(p / "x.mp4", torch.zeros(2, 8, 8, 4), 8), "shape (2, 8, 8, 4)"),
        (lambda p: write_video(p / "x.mp4", torch.zeros(0, 8, 8, 3), 8), "at least one frame"),
        (lambda p: write_video(p / "x.mp4", torch.zeros(2, 8, 8, 3), 0), "fps is 0"),
        (lambda p: write_video(p / "x.mp4", torch.zeros(2, 8, 8, 3), math.nan), "fps is nan"),
        (lambda p: write_video(p / "x.mp4", torch.zeros(2, 8, 8, 3), 8, upscale=0), "upscale is 0"),
        (lambda p: write_gif(p / "x.gif", torch.zeros(2, 8, 8, 3), 60), "write an .mp4"),
    ],
)
def test_faults_are_named_and_leave_nothing(tmp_path: Path, write: object, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        write(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_refused_folder_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(OutputError, match=r"x\.mp4"):
        write_video(tmp_path / "file" / "x.mp4", world.render(SCENE, 2), 8)
    path = write_video(tmp_path / "x.mp4", world.render(SCENE, 2), 8)
    before = path.read_bytes()
    with pytest.raises(OutputError):
        write_video(path, torch.zeros(2, 8, 8, 1), 8)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.mp4"]


def test_png_round_trip(tmp_path: Path) -> None:
    frame = world.render(SCENE, 1)[0]
    with Image.open(write_png(tmp_path / "frame.png", frame)) as image:
        assert np.abs(np.asarray(image) / 255 - frame.numpy()).max() <= 0.5 / 255 + 1e-6


def test_contact_sheet_shows_every_frame_enlarged_to_the_tile() -> None:
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    frames = colours[:, None, None].expand(-1, 16, 16, -1)
    sheet = np.asarray(contact_sheet([("a label that is long enough to be wrapped", frames)], title="t", tile_side=40))
    for colour in colours:
        assert (sheet == (colour * 255).byte().numpy()).all(axis=-1).sum() == 40 * 40


def test_contact_sheet_draws_the_path_and_where_each_frame_is_on_it() -> None:
    frames, path = torch.full((3, 64, 64, 3), 0.5), torch.tensor([[0.25, 0.25], [0.5, 0.75], [0.75, 0.25]])
    plain = np.asarray(contact_sheet([("", frames)], tile_side=128)).astype(int)
    drawn = np.asarray(contact_sheet([("", frames)], tile_side=128, paths=[path])).astype(int)
    ys, xs = np.nonzero((plain == 127).all(axis=-1) | (plain == 128).all(axis=-1))
    left, top = xs.min(), ys.min()
    for tile, (x, y) in enumerate(path.tolist()):
        at = drawn[top + round(128 * y), left + tile * (xs.max() - left + 1 - 128) // 2 + round(128 * x)]
        assert (at > 240).all()
    assert (drawn != plain).any(axis=-1).mean() < 0.2
    with pytest.raises(OutputError, match=r"'a'.*\(2, 2\).*3 frames"):
        contact_sheet([("a", frames)], paths=[path[:2]])
    with pytest.raises(OutputError, match="1 rows was given 2 paths"):
        contact_sheet([("a", frames)], paths=[path, path])


def test_contact_sheet_spreads_long_clips_and_takes_any_label() -> None:
    frames = torch.linspace(0, 1, 50)[:, None, None, None].expand(-1, 200, 300, 3)
    sheet = contact_sheet([("\u4e2d\u6587", frames), ("", frames)], columns=3)
    assert has_colour(sheet, (0, 0, 0)) and sheet.width < 800
    with pytest.raises(OutputError, match="at least one row"):
        contact_sheet([])


def test_grid_plays_all_clips_and_holds_the_last_frame() -> None:
    black, white = (
        torch.zeros(2, 32, 32, 3),
        torch.ones(4, 32, 32, 3) * torch.linspace(0.2, 0.8, 4)[:, None, None, None],
    )
    grid = grid_frames([("row", [black, white])], ["left", "right"], title="t", tile_side=64)
    assert grid.shape[0] == 4 and grid.shape[-1] == 3
    assert float((grid[3] - grid[2]).abs().max()) > 0.1
    with pytest.raises(OutputError, match="equal length"):
        grid_frames([("a", [black]), ("b", [black, white])])


def test_plots_draw_every_series_and_survive_odd_values() -> None:
    lines = [
        Line("a", [0, 1, 2], [1.0, math.nan, 3.0], [0.5, math.nan, 2.5], [1.5, math.nan, 3.5]),
        Line("b", [1], [2.0]),
    ]
    picture = plot_lines(lines, title="t", x_label="x", y_label="y")
    assert all(has_colour(picture, colour) for colour in PALETTE[:2])
    points = plot_points([Point("p", 0, 1, (-0.1, 0.1), (math.nan, 1.5)), Point("q", 2, 3)], y_label="y")
    assert all(has_colour(points, colour) for colour in PALETTE[:2])
    for nothing in (lambda: plot_lines([Line("a", [0], [math.inf])]), lambda: plot_points([])):
        with pytest.raises(OutputError, match="nothing to plot"):
            nothing()


def test_error_bars_end_where_the_interval_does() -> None:
    """The first point's bar goes to the left alone: nothing is drawn to the right of its dot."""
    drawn = [
        np.asarray(plot_points([Point("", 1, 0, ends), Point("", 0, 1), Point("", 2, -1)])) for ends in (None, (0.5, 1))
    ]
    added = (drawn[0] != drawn[1]).any(axis=-1)
    columns = np.flatnonzero(added.any(axis=0))
    middle = (92 + drawn[0].shape[1] - 24) / 2
    assert columns.max() < middle and columns.min() > 92 and columns.max() - columns.min() > 100


def test_one_exploding_step_does_not_flatten_the_losses() -> None:
    losses = [0.5 - 0.001 * i for i in range(400)]
    calm = np.asarray(plot_losses({"motion": losses}))
    losses[100] = 1e6
    wild = np.asarray(plot_losses({"motion": losses}))
    assert (calm != wild).any(axis=-1).mean() < 0.05
    for odd in ([1.0], [1.0] * 5, [0.0, 1.0, math.nan]):
        plot_losses({"a": odd}, log_y=True)


def test_moving_average_is_centred_and_skips_nan() -> None:
    assert moving_average([1.0, 2.0, 3.0], 1) == [1.0, 2.0, 3.0]
    assert moving_average([0.0, 3.0, math.nan, 9.0, 0.0], 3) == pytest.approx([1.5, 1.5, 6.0, 4.5, 4.5])


def test_more_lines_than_colours_are_named_beyond_their_ends() -> None:
    lines = [Line(f"line {i}", [0, 1], [2 * i, 2 * i + 1]) for i in range(len(PALETTE) + 1)]
    # The plotting area is 784 pixels wide, the lines 1 of its 1.3 lengths: a legend would hide some of their ends.
    end = 92 + 784 * 10 // 13
    ends = plot_lines(lines).crop((end - 60, 0, end, 560))
    assert all(has_colour(ends, colour) for colour in PALETTE)


def test_legend_hides_no_line_where_any_place_is_free() -> None:
    # They run through all four corners.
    lines = [("low", [0.0, 0.0, 0.0]), ("high", [1.0, 1.0, 1.0]), ("arch", [0.0, 1.0, 0.0])]
    named, nameless = (
        np.asarray(plot_lines([Line(label if with_names else "", [0, 1, 2], y) for label, y in lines])).astype(int)
        for with_names in (True, False)
    )
    coloured = nameless.max(axis=-1) - nameless.min(axis=-1) > 20
    assert coloured.sum() > 2000 and (named != nameless).any()
    assert (named[coloured] == nameless[coloured]).all()


def test_names_hide_neither_each_other_nor_the_dots_and_stay_inside() -> None:
    places = [(390.0, 10.0), (392.0, 12.0), (388.0, 11.0), (5.0, 195.0)]
    boxes = name_boxes(places, [(60.0, 16.0)] * 4, 8.0, (400, 200))
    for i, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= 400 and box[1] >= 0 and box[3] <= 200
        for other in boxes[:i]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in places)


def test_stacked_names_keep_their_order_and_distance() -> None:
    assert stacked([10.0, 50.0, 12.0], 4) == [9.0, 50.0, 13.0]
    assert stacked([5.0, 5.0, 5.0], 2) == [3.0, 5.0, 7.0]
    found = stacked([3.0, 1.0, 2.0, 9.0, 2.5], 2)
    assert np.diff(sorted(found)).min() >= 2 - 1e-9
    assert np.argsort(found).tolist() == np.argsort([3.0, 1.0, 2.0, 9.0, 2.5]).tolist()


# What is computed is not lost for want of an encoder ----------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, *encoders: str) -> None:
    """An ffmpeg that lacks these encoders; "ffmpeg" stands for none at all."""

    def run(arguments: Sequence[str], data: bytes | None = None) -> tuple[int, bytes, str]:
        if "ffmpeg" in encoders:
            raise ClipError("There is no ffmpeg for this machine")
        if missing := set(encoders) & set(arguments):
            return 1, b"", f"Unknown encoder '{missing.pop()}'"
        return run_ffmpeg(arguments, data)

    monkeypatch.setattr(write, "run_ffmpeg", run)


@pytest.mark.parametrize(
    ("missing", "name", "fps", "written", "said"),
    [
        (("libx264",), "a.mp4", 8, "a.mp4", "written by libopenh264"),
        (("libx264", "libopenh264"), "a.mp4", 8, "a.mp4", "written by mpeg4"),
        (("libx264", "libopenh264", "mpeg4"), "a.mkv", 8, "a.mkv", "written by mjpeg"),
        (("libvpx-vp9",), "a.webm", 8, "a.webm", "written by libvpx"),
        (("libvpx-vp9", "libvpx"), "a.webm", 8, "a.gif", "Unknown encoder 'libvpx-vp9'"),
        (("ffmpeg",), "a.mp4", 8, "a.gif", "There is no ffmpeg"),
        (("ffmpeg",), "a.mp4", 60, "a.png", "There is no ffmpeg"),
    ],
)
def test_a_missing_encoder_costs_only_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: tuple[str, ...],
    name: str,
    fps: float,
    written: str,
    said: str,
) -> None:
    frames = torch.linspace(0, 1, 6)[:, None, None, None].expand(-1, 32, 48, 3)
    without(monkeypatch, *missing)
    with caplog.at_level("WARNING"):
        path = write_video(tmp_path / name, frames, fps)
    assert path == tmp_path / written and said in caplog.text
    read, rate = read_frames(path)
    assert float((read - frames).abs().max()) < 0.05 and rate == pytest.approx(fps, rel=0.05)
    assert [child.name for child in tmp_path.iterdir()] == [written]


# Labels in any script -----------------------------------------------------------------------------------------------


def test_labels_are_drawn_in_a_font_that_holds_them_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts._system_fonts.cache_clear()
    assert fonts.drawable("caf\u00e9 \u0416\u03a9") == "caf\u00e9 \u0416\u03a9" or not fonts._system_fonts()
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    assert fonts.drawable("a \u65e5\u672c b\n c") == "a b c" and fonts.drawable("\u65e5\u672c") == ""
    sheet = contact_sheet([("\u65e5\u672c", torch.zeros(1, 8, 8, 3)), ("", torch.zeros(1, 8, 8, 3))])
    blank = contact_sheet([("", torch.zeros(1, 8, 8, 3)), ("", torch.zeros(1, 8, 8, 3))])
    assert sheet.tobytes() == blank.tobytes(), "no box and no question mark stands for what cannot be drawn"


def test_a_system_font_is_taken_where_it_holds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts._system_fonts.cache_clear()
    if not fonts._system_fonts():
        pytest.skip("this machine has no fonts")
    seen = np.asarray(contact_sheet([("\u0416\u03a9", torch.zeros(1, 8, 8, 3))]))
    monkeypatch.setattr(fonts, "drawable", lambda text: "")
    assert fonts.font(15, "\u0416\u03a9").getmask("\u0416").size != fonts.font(15).getmask("\uffff").size
    assert (seen < 100).any()
