"""The probe reads back what the world drew, also through blur, noise and compression, and nothing where nothing is."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motion_lora.core.errors import ClipError
from motion_lora.media.write import write_video
from motion_lora.playground import world
from motion_lora.playground.probe import ATTRIBUTES, Reading, classify_motion, classify_path, path_of, read_clip

COUNT = 120


def scenes(seed: int, count: int, motions: Sequence[str] = tuple(world.MOTIONS)) -> list[world.Scene]:
    generator = torch.Generator().manual_seed(seed)
    return [world.sample_scene(generator, motions) for _ in range(count)]


def blurred(clips: Tensor, sigma: float = 1.0) -> Tensor:
    """Clips (n, f, h, w, 3) through a Gaussian."""
    axis = torch.arange(-4, 5, dtype=torch.float32)
    taps = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    images = clips.flatten(0, 1).movedim(-1, 1).flatten(0, 1)[:, None]
    smooth = F.conv2d(F.pad(images, (4,) * 4, mode="replicate"), kernel)
    return smooth.view(-1, 3, *clips.shape[2:4]).movedim(1, -1).view(clips.shape)


def noisy(clips: Tensor, sigma: float = 0.04) -> Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(9))
    return (clips + sigma * noise).clamp(0, 1)


def compressed(clips: Tensor, folder: Path) -> Tensor:
    """All clips as one strongly compressed H.264 video, and back."""
    path = write_video(folder / "all.mp4", clips.flatten(0, 1), 8, crf=28)
    reader = imageio_ffmpeg.read_frames(str(path))
    next(reader)
    raw = np.stack([np.frombuffer(frame, np.uint8) for frame in reader])
    return torch.from_numpy(raw).view(clips.shape).float() / 255


def right(readings: Sequence[Reading], truth: Sequence[world.Scene]) -> dict[str, float]:
    """Share of clips in which each attribute was read as it was drawn."""
    hits = Counter(
        name
        for reading, scene in zip(readings, truth, strict=True)
        for name in ATTRIBUTES
        if getattr(reading, name) == getattr(scene, name)
    )
    return {name: hits[name] / len(truth) for name in ATTRIBUTES}


def place_error(readings: Sequence[Reading], truth: Sequence[world.Scene]) -> float:
    errors = [(r.centroids - world.trajectory(s)).norm(dim=-1).max() for r, s in zip(readings, truth, strict=True)]
    return float(torch.stack(errors).max())


def test_clean_clips_are_read_right() -> None:
    truth = scenes(0, COUNT)
    readings = [read_clip(world.render(scene)) for scene in truth]
    assert min(right(readings, truth).values()) >= 0.97
    assert all(bool(reading.found.all()) for reading in readings)
    assert place_error(readings, truth) < 0.01
    motions = {s.motion for s in truth}
    assert motions == set(world.MOTIONS)
    assert all(
        classify_motion(r) == (s.motion if s.motion in world.KNOWN_MOTIONS else None)
        for r, s in zip(readings, truth, strict=True)
    )


def test_degraded_clips_are_read_right(tmp_path: Path) -> None:
    truth = scenes(1, COUNT)
    clean = torch.stack([world.render(scene) for scene in truth])
    third = COUNT // 3
    degraded = torch.cat(
        [
            blurred(clean[:third]),
            noisy(blurred(clean[third : 2 * third])),
            compressed(clean[2 * third :], tmp_path),
        ]
    )
    readings = [read_clip(clip) for clip in degraded]
    for part in (slice(0, third), slice(third, 2 * third), slice(2 * third, None)):
        assert min(right(readings[part], truth[part]).values()) >= 0.9
    assert sum(int((~reading.found).sum()) for reading in readings) <= 0.01 * 8 * COUNT
    assert place_error([r for r in readings if bool(r.found.all())], truth_of_found(readings, truth)) < 0.03


def truth_of_found(readings: Sequence[Reading], truth: Sequence[world.Scene]) -> list[world.Scene]:
    return [scene for reading, scene in zip(readings, truth, strict=True) if bool(reading.found.all())]


@pytest.mark.parametrize("size", [32, 96])
def test_other_canvas_sizes(size: int) -> None:
    truth = scenes(2, 12)
    readings = [read_clip(world.render(scene, size=size)) for scene in truth]
    assert min(right(readings, truth).values()) >= 0.9
    assert place_error(readings, truth) < 0.02


def test_sizes_are_area_equivalent_radii() -> None:
    for shape in world.SHAPES:
        scene = world.Scene(shape, "blue", "snow", "still", radius=0.2)
        coverage = world.object_mask(shape, torch.tensor([[0.5, 0.5]]), torch.tensor([0.2]))
        expected = float((coverage.mean() / torch.pi).sqrt())
        assert read_clip(world.render(scene)).sizes.mean() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", world.BACKGROUNDS)
def test_nothing_is_found_on_an_empty_background(name: str) -> None:
    reading = read_clip(noisy(world.background(name).expand(1, 4, -1, -1, -1) * 0.95)[0])
    assert reading.background == name
    assert not bool(reading.found.any())
    assert (reading.colour, reading.shape, reading.fill) == ("", "", "")
    assert bool(reading.centroids.isnan().all()) and path_of(reading) is None and classify_motion(reading) is None
    assert reading.confidence["colour"] == 0.0


def test_nothing_is_found_in_noise() -> None:
    assert not bool(read_clip(torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))).found.any())


def test_confidence_and_frame_values_show_a_change() -> None:
    red = world.Scene("circle", "red", "sand", "still")
    blue = replace(red, colour="blue", shape="square")
    reading = read_clip(torch.cat([world.render(red)[:5], world.render(blue)[:3]]))
    assert reading.frame_values["colour"] == ("red",) * 5 + ("blue",) * 3
    assert reading.frame_values["shape"] == ("circle",) * 5 + ("square",) * 3
    assert reading.colour == "red" and reading.confidence["colour"] == pytest.approx(5 / 8)
    assert reading.confidence["background"] == 1.0


def test_missing_frames_are_filled_in_linearly() -> None:
    scene = world.Scene("circle", "red", "sand", "right")
    frames = world.render(scene)
    frames[3] = world.background("sand")
    reading = read_clip(frames)
    assert reading.found.tolist() == [i != 3 for i in range(8)]
    assert bool(reading.centroids[3].isnan().all())
    path = path_of(reading)
    assert path is not None
    assert float((path - world.trajectory(scene)).abs().max()) < 0.01
    assert classify_motion(reading) == "right"


def test_the_rule_for_known_motions() -> None:
    t = torch.linspace(0, 1, 8)[:, None]
    right_ = torch.tensor([0.3, 0.0])
    assert classify_path(t * right_) == "right"
    assert classify_path(t * -right_) == "left"
    assert classify_path(t * right_.flip(0)) == "down"
    assert classify_path(t * -right_.flip(0)) == "up"
    assert classify_path(t * 0) == "still"
    assert classify_path(t * torch.tensor([0.3, 0.3])) is None
    assert classify_path(t * torch.tensor([0.14, 0.0])) is None
    there_and_back = torch.cat([t[::2], t[::2].flip(0)]) * right_
    assert classify_path(there_and_back) is None


@pytest.mark.parametrize("shape", [(4, 64, 48, 3), (64, 64, 3), (4, 64, 64, 1), (0, 64, 64, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ClipError, match="square clips"):
        read_clip(torch.zeros(shape))


def test_the_frames_are_left_alone_and_the_probe_is_quick() -> None:
    frames = world.render(world.Scene("ring", "pink", "brick", "eight"))
    before = frames.clone()
    seconds = []
    for _ in range(7):
        start = time.process_time()
        read_clip(frames)
        seconds.append(time.process_time() - start)
    assert torch.equal(frames, before)
    assert statistics.median(seconds) < 0.25, "CPU seconds for 8 frames"
