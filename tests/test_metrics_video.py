"""Metrics of natural video with known answers: identical, shifted, mirrored, reversed, recoloured and degraded clips.

CLIP and LPIPS take part as doubles; what is special to them is in test_metrics_networks.py.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from metric_doubles import LpipsDouble, clip_double, colours_and_sharpness
from torch import Tensor

from motion_lora.core.errors import ClipError
from motion_lora.evaluate.metrics import (
    Perceptual,
    appearance_leakage,
    appearance_similarity,
    clip_temporal_consistency,
    lpips_diversity,
    lpips_temporal_consistency,
    text_alignment,
    track_fidelity,
    tracklet_fidelity,
)
from motion_lora.evaluate.metrics.appearance import colour_histogram, excess, texture_histogram
from motion_lora.playground import world

# Appearance ---------------------------------------------------------------------------------------------------------


def clip_of(colour: str, background: str, motion: str = "orbit", shape: str = "circle") -> Tensor:
    return world.render(world.Scene(shape, colour, background, motion, radius=0.2))


def test_histograms_sum_to_one_and_know_their_clip() -> None:
    frames = clip_of("red", "sand")
    for histogram in (colour_histogram(frames), texture_histogram(frames)):
        assert float(histogram.sum()) == pytest.approx(1, abs=1e-5) and float(histogram.min()) >= 0
    assert appearance_similarity(frames, frames) == pytest.approx(1, abs=1e-5)


def test_motion_size_and_order_are_not_appearance() -> None:
    frames = clip_of("red", "sand")
    assert appearance_similarity(frames, frames.flip(0)) == pytest.approx(1, abs=1e-5)
    assert appearance_similarity(frames, clip_of("red", "sand", "zigzag")) > 0.97
    larger = F.interpolate(frames.movedim(-1, 1), scale_factor=2, mode="nearest").movedim(1, -1)
    assert appearance_similarity(frames, larger) > 0.85


def test_leakage_grows_with_what_leaks() -> None:
    """Blue over snow was asked for; more and more of the reference, red over sand, shows instead."""
    reference, neutral = clip_of("red", "sand"), clip_of("blue", "snow")
    mixes = [torch.cat([neutral[n:], reference[:n]]) for n in (0, 2, 4, 6, 8)]
    leaks = [appearance_leakage(mix, reference, neutral) for mix in mixes]
    assert leaks == sorted(leaks) and leaks[0] == 0 and leaks[-1] == pytest.approx(1)
    object_only, all_of_it = clip_of("red", "snow"), clip_of("red", "sand", shape="square")
    assert 0 < appearance_leakage(object_only, reference, neutral) < 0.3
    assert appearance_leakage(all_of_it, reference, neutral) > 0.8


def test_what_the_prompt_explains_is_no_leakage() -> None:
    reference = clip_of("red", "sand")
    assert appearance_leakage(clip_of("blue", "sand", "zigzag"), reference, clip_of("blue", "sand")) < 0.1
    assert excess(0.2, 0.5) == 0 and excess(0.75, 0.5) == pytest.approx(0.5) and excess(1.0, 1.0) == 0


# Tracked points -----------------------------------------------------------------------------------------------------


def straight(direction: tuple[float, float], count: int = 5, frames: int = 9, speed: float = 0.02) -> Tensor:
    """Tracklets (n, f, 2) that all move the same way."""
    start = torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(0))
    return start + speed * torch.arange(frames)[None, :, None] * torch.tensor(direction)


def test_tracklet_scores_of_known_motions() -> None:
    right, left, down, still = (straight(d) for d in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, 0.0)))
    assert tracklet_fidelity(right, right) == pytest.approx(1)
    assert tracklet_fidelity(right, straight((1.0, 0.0), 3, speed=0.05)) == pytest.approx(1), "speed does not count"
    assert tracklet_fidelity(right, left) == pytest.approx(-1)
    assert tracklet_fidelity(right, down) == pytest.approx(0, abs=1e-6)
    assert tracklet_fidelity(right, still) == 0 and tracklet_fidelity(still, still) == 1
    assert tracklet_fidelity(torch.cat([right, still]), right) == pytest.approx(1), "what stands still takes no part"
    # Half of the tracklets find their like: (1 + mean(1, -1)) / 2.
    assert tracklet_fidelity(torch.cat([right, left]), right) == pytest.approx(0.5)
    # Moving half of the time in the right direction.
    pausing = torch.cat([right[:, :5], right[:, 4:5].expand(-1, 4, -1)], dim=1)
    assert tracklet_fidelity(right, pausing) == pytest.approx(0.5)
    assert tracklet_fidelity(right, right[:0]) == 0
    with pytest.raises(ClipError, match="No point of the reference"):
        tracklet_fidelity(right[:0], right)


def turning(frames: int = 9, per_step: float = 15.0, phase: float = 0.0) -> Tensor:
    """Tracklets (n, f, 2) whose direction turns by so many degrees in each step."""
    angles = torch.deg2rad(phase + per_step * torch.arange(frames - 1))
    steps = 0.02 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(1, 2), steps.cumsum(dim=0)])[None].repeat(3, 1, 1)


def pausing(tracks: Tensor) -> Tensor:
    """Tracklets (n, f, 2) that stand still in every other step."""
    steps = tracks.diff(dim=1) * (torch.arange(tracks.shape[1] - 1) % 2)[:, None]
    return torch.cat([tracks[:, :1], tracks[:, :1] + steps.cumsum(dim=1)], dim=1)


@pytest.mark.parametrize(
    ("reference", "tracks", "score"),
    [
        pytest.param(turning(), turning(), 1, id="identical"),
        pytest.param(turning(), turning(phase=30), math.sqrt(3) / 2, id="time-shifted by two steps"),
        pytest.param(turning(), turning(phase=60), 1 / 2, id="time-shifted by four steps"),
        # Step k goes against step 7 - k, whose direction is 15 (7 - 2 k) degrees away.
        pytest.param(
            turning(),
            turning().flip(1),
            -sum(math.cos(math.radians(15 * (7 - 2 * k))) for k in range(8)) / 8,
            id="reversed",
        ),
        # A direction d mirrored left to right is 180 - 2 d degrees away.
        pytest.param(
            turning(),
            turning() * torch.tensor([-1, 1]),
            sum(math.cos(math.radians(180 - 30 * k)) for k in range(8)) / 8,
            id="mirrored",
        ),
        pytest.param(turning(), 0.5 * turning() + 0.3, 1, id="smaller and elsewhere"),
        pytest.param(pausing(turning()), pausing(turning()), 1, id="where neither moves does not count"),
        # Who moves is not seen: two things that pass each other are the same to it mirrored or reversed.
        pytest.param(
            torch.cat([straight((1.0, 0.0)), straight((-1.0, 0.0))]),
            torch.cat([straight((1.0, 0.0)), straight((-1.0, 0.0))]).flip(1),
            1,
            id="reversed, two that pass each other",
        ),
    ],
)
def test_tracklet_scores_of_known_copies(reference: Tensor, tracks: Tensor, score: float) -> None:
    assert tracklet_fidelity(reference, tracks) == pytest.approx(score, abs=1e-4)
    assert tracklet_fidelity(tracks, reference) == pytest.approx(score, abs=1e-4), "either way round"


def test_tracklet_scores_follow_a_growing_fault() -> None:
    right = straight((1.0, 0.0))
    angles = [math.radians(degrees) for degrees in (0, 30, 60, 90, 120, 180)]
    turned = [tracklet_fidelity(right, straight((math.cos(a), math.sin(a)))) for a in angles]
    assert turned == pytest.approx([math.cos(angle) for angle in angles], abs=1e-3)
    # From some step on nothing moves; below the share that counts as moving, nothing is left to compare.
    stopped = [torch.cat([right[:, :n], right[:, n - 1 : n].expand(-1, 9 - n, -1)], dim=1) for n in (9, 7, 5, 3, 2)]
    assert [tracklet_fidelity(right, tracks) for tracks in stopped] == pytest.approx([1, 0.75, 0.5, 0, 0], abs=1e-4)


def test_any_tracker_can_stand_in() -> None:
    tracker = lambda frames: straight((1.0, 0.0)) if float(frames.mean()) > 0.5 else straight((-1.0, 0.0))  # noqa: E731
    bright, dark = torch.ones(9, 8, 8, 3), torch.zeros(9, 8, 8, 3)
    assert track_fidelity(bright, dark, tracker) == pytest.approx(-1)
    with pytest.raises(ClipError, match="9 frames and the video 4"):
        track_fidelity(bright, dark[:4], tracker)


def textured(size: int, grain: int, generator: torch.Generator) -> Tensor:
    noise = torch.rand(1, 3, size // grain, size // grain, generator=generator)
    return F.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)


def moving_patch(motion: str, seed: int, frames: int = 24, size: int = 128) -> Tensor:
    """A textured disc over a textured background, both of their own per seed."""
    generator = torch.Generator().manual_seed(seed)
    back, face = textured(size, 8, generator), textured(size, 4, generator)
    scene = world.Scene("circle", "red", "sand", motion, scale=0.12 if motion != "right" else 0.25)
    pictures = []
    for centre in world.trajectory(scene, frames):
        shift = (2 * (0.5 - centre)).tolist()
        grid = F.affine_grid(
            torch.tensor([[[1, 0, shift[0]], [0, 1, shift[1]]]]), [1, 3, size, size], align_corners=False
        )
        disc = world.object_mask("circle", centre[None], torch.tensor([0.25]), size)[:, None]
        pictures.append(back * (1 - disc) + F.grid_sample(face, grid, align_corners=False) * disc)
    return torch.cat(pictures).movedim(1, -1)


def test_tracked_fidelity_of_rendered_clips() -> None:
    reference = moving_patch("right", 0)
    assert track_fidelity(reference, reference) == pytest.approx(1)
    assert track_fidelity(reference, moving_patch("right", 1)) > 0.8, "another look, the same motion"
    assert track_fidelity(reference, reference[..., [2, 0, 1]]) > 0.8
    assert track_fidelity(reference, moving_patch("left", 1)) < 0.2
    assert track_fidelity(reference, moving_patch("up", 1)) < 0.5
    assert track_fidelity(reference, reference.flip(0)) < 0.2
    assert track_fidelity(reference, reference[:1].expand_as(reference)) == 0
    orbit = moving_patch("orbit", 0)
    assert track_fidelity(orbit, moving_patch("orbit", 1)) > track_fidelity(orbit, moving_patch("right", 1)) + 0.3


# Every metric on copies of one clip ----------------------------------------------------------------------------------

LPIPS = Perceptual(LpipsDouble(pnet_rand=True, verbose=False), "double", torch.device("cpu"))
_CLIP = clip_double(colours_and_sharpness, torch.zeros(1))
_LENGTH = 12


@functools.cache
def long_clip() -> Tensor:
    """A textured disc that goes right, for longer than the reference shows."""
    return moving_patch("right", 0, frames=16)


@functools.cache
def another_look() -> Tensor:
    return moving_patch("right", 1, frames=16)[:_LENGTH]


def reference() -> Tensor:
    return long_clip()[:_LENGTH]


COPIES: Mapping[str, Callable[[], Tensor]] = {
    "identical": reference,
    "time-shifted": lambda: long_clip()[-_LENGTH:],
    "reversed": lambda: reference().flip(0),
    "mirrored": lambda: reference().flip(2),
    "recoloured": lambda: reference()[..., [2, 0, 1]],
    "static": lambda: reference()[:1].expand(_LENGTH, -1, -1, -1),
}


def aligned(frames: Tensor) -> float:
    """Text alignment to a text that means the reference's middle frame, in [0, 1]."""
    meant = _CLIP.embed_frames(reference())[_LENGTH // 2 :][:1]
    return text_alignment(frames, "x", clip_double(colours_and_sharpness, meant)) / 100


METRICS: Mapping[str, Callable[[Tensor], float]] = {
    "track fidelity": lambda frames: track_fidelity(reference(), frames),
    "leakage": lambda frames: appearance_leakage(frames, reference(), another_look()),
    "LPIPS diversity": lambda frames: lpips_diversity([reference(), frames], LPIPS),
    # Of these three the difference to the reference's own is known.
    "text alignment": lambda frames: aligned(frames) - aligned(reference()),
    "CLIP consistency": lambda frames: (
        clip_temporal_consistency(frames, _CLIP) - clip_temporal_consistency(reference(), _CLIP)
    ),
    "LPIPS consistency": lambda frames: (
        lpips_temporal_consistency(frames, LPIPS) - lpips_temporal_consistency(reference(), LPIPS)
    ),
}
Range = tuple[float, float]
ZERO, ONE, MORE, LESS = (-1e-4, 1e-4), (1 - 1e-4, 1 + 1e-4), (0.01, 1.0), (-1.0, -0.01)
# The order of time, the side and the palette are nothing to how alike neighbours are; a static clip is steadiest.
STEADY = {"identical": ZERO, "reversed": ZERO, "mirrored": ZERO, "recoloured": ZERO}
KNOWN: Mapping[str, Mapping[str, Range]] = {
    "track fidelity": {
        "identical": ONE,
        "time-shifted": (0.9, 1),
        "reversed": (-1, 0),
        "mirrored": (-1, 0),
        "recoloured": (0.9, 1),
        "static": ZERO,
    },
    "leakage": {
        "identical": ONE,
        "time-shifted": (0.7, 1),
        "reversed": ONE,
        # Colours are the same, texture has a direction.
        "mirrored": (0.7, 0.99),
        "recoloured": (0, 0.3),
        "static": (0.7, 1),
    },
    "LPIPS diversity": {
        "identical": ZERO,
        "time-shifted": MORE,
        "reversed": MORE,
        "mirrored": MORE,
        "recoloured": MORE,
        "static": MORE,
    },
    "text alignment": {
        "identical": ZERO,
        "time-shifted": (-0.01, 0.01),
        "reversed": ZERO,
        "mirrored": LESS,
        "recoloured": LESS,
        "static": LESS,
    },
    "CLIP consistency": {**STEADY, "time-shifted": (-0.05, 0.05), "static": MORE},
    "LPIPS consistency": {**STEADY, "time-shifted": (-0.001, 0.001), "static": LESS},
}


@pytest.mark.parametrize(
    ("metric", "copy", "low", "high"),
    [(metric, copy, *limits) for metric, copies in KNOWN.items() for copy, limits in copies.items()],
)
def test_every_metric_knows_every_copy(metric: str, copy: str, low: float, high: float) -> None:
    assert low <= METRICS[metric](COPIES[copy]()) <= high + 1e-6


def test_every_metric_is_asked_for_every_copy() -> None:
    assert set(KNOWN) == set(METRICS) and all(set(copies) == set(COPIES) for copies in KNOWN.values())


def noisy(amount: float) -> Tensor:
    noise = torch.randn(reference().shape, generator=torch.Generator().manual_seed(0))
    return (reference() + amount * noise).clamp(0, 1)


def blurred(width: float) -> Tensor:
    side = int(width)
    images = F.avg_pool2d(reference().movedim(-1, 1), side, 1, side // 2, count_include_pad=False)
    return images.movedim(1, -1)


def turning_back(frame: float) -> Tensor:
    """The reference up to a frame, and from there on backwards."""
    places = torch.arange(_LENGTH)
    return reference()[torch.where(places > frame, 2 * int(frame) - places, places)]


def out_of_order(pairs: float) -> Tensor:
    """So many of the first pairs of neighbouring frames change places with the last ones."""
    order = list(range(_LENGTH))
    for i in range(int(pairs)):
        order[2 * i], order[-1 - 2 * i] = order[-1 - 2 * i], order[2 * i]
    return reference()[order]


def partly_another(share: float) -> Tensor:
    return torch.lerp(reference(), another_look(), share)


def another_from_the_start(frames: float) -> Tensor:
    """So many frames in another look, then the reference."""
    return torch.cat([another_look()[: int(frames)], reference()[int(frames) :]])


@pytest.mark.parametrize(
    ("metric", "degrade", "levels", "rising"),
    [
        ("track fidelity", turning_back, (11, 9, 7, 6), False),
        ("track fidelity", blurred, (1, 9, 17, 33), False),
        ("leakage", another_from_the_start, (0, 4, 8, 12), False),
        ("leakage", blurred, (1, 3, 5, 9), False),
        ("LPIPS diversity", noisy, (0, 0.05, 0.1, 0.2), True),
        ("LPIPS diversity", partly_another, (0, 0.2, 0.5, 1), True),
        ("text alignment", partly_another, (0, 0.2, 0.5, 1), False),
        ("text alignment", blurred, (1, 5, 9, 17), False),
        ("CLIP consistency", noisy, (0, 0.05, 0.1, 0.2), False),
        ("CLIP consistency", out_of_order, (0, 1, 2, 3), False),
        ("LPIPS consistency", noisy, (0, 0.05, 0.1, 0.2), True),
        ("LPIPS consistency", out_of_order, (0, 1, 2, 3), True),
    ],
)
def test_every_metric_follows_a_growing_fault(
    metric: str, degrade: Callable[[float], Tensor], levels: tuple[float, ...], rising: bool
) -> None:
    scores = [METRICS[metric](degrade(level)) for level in levels]
    steps = [after - before if rising else before - after for before, after in itertools.pairwise(scores)]
    assert min(steps) > 1e-4, scores
