"""Metrics with known answers: the motion of one object, whose path is known exactly, and intervals.

Metrics of natural video are in test_metrics_video.py, those by networks, CLIP and LPIPS, in test_metrics_networks.py,
clips of real video in test_real_clips.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motion_lora.core.errors import ClipError, SettingsError
from motion_lora.core.trajectories import STILL, match_motion, motion_fidelity, path_speed
from motion_lora.evaluate.metrics.optional import require
from motion_lora.evaluate.statistics import Interval, bootstrap_interval
from motion_lora.playground import world

# Motion of one object -----------------------------------------------------------------------------------------------


def paths(motion: str, count: int, seed: int = 0) -> list[Tensor]:
    """Paths of a motion in random phases, places and sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [world.trajectory(world.sample_scene(generator, (motion,))) for _ in range(count)]


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_an_identical_motion_scores_one(motion: str) -> None:
    path = paths(motion, 1)[0]
    match = match_motion(path, path)
    assert match.fidelity == pytest.approx(1) and match.rotation_free_fidelity == pytest.approx(1)
    assert match.trajectory_error == pytest.approx(0, abs=1e-5) and match.speed_ratio == pytest.approx(1)


@pytest.mark.parametrize("motion", [name for name in world.MOTIONS if name != "spiral"])
def test_phase_place_and_size_do_not_count(motion: str) -> None:
    references, others = paths(motion, 6, seed=0), paths(motion, 6, seed=1)
    assert min(motion_fidelity(a, b) for a in references for b in others) >= 0.9


def test_the_phase_of_a_spiral_turns_it() -> None:
    references, others = paths("spiral", 6, seed=0), paths("spiral", 6, seed=1)
    matches = [match_motion(a, b) for a in references for b in others]
    assert min(match.rotation_free_fidelity for match in matches) >= 0.99
    assert min(match.fidelity for match in matches) < 0.8


def test_other_motions_score_clearly_lower() -> None:
    drawn = {motion: paths(motion, 3) for motion in world.MOTIONS}
    highest = {
        (a, b): max(motion_fidelity(p, q) for p in drawn[a] for q in drawn[b]) for a in drawn for b in drawn if a != b
    }
    assert max(highest.values()) < 0.88
    close = {frozenset(pair) for pair, score in highest.items() if score > 0.8}
    assert close <= {frozenset({"orbit", "spiral"})}, "one and a quarter turns, growing: alike in truth"


@pytest.mark.parametrize("delay", [0.5, 1, 2.25, 3])
def test_a_delay_is_found(delay: float) -> None:
    t = torch.arange(8) / 7
    turn = lambda phase: torch.stack([torch.cos(phase), torch.sin(phase)], dim=-1) * 0.2  # noqa: E731
    match = match_motion(turn(2 * math.pi * t), turn(2 * math.pi * (t - delay / 7)))
    assert match.fidelity == pytest.approx(1, abs=1e-3) and match.shift == pytest.approx(delay, abs=0.07)


def test_reversed_mirrored_static_and_opposite() -> None:
    orbit, right, spiral = (paths(name, 1)[0] for name in ("orbit", "right", "spiral"))
    mirror = torch.tensor([-1.0, 1.0])
    assert motion_fidelity(orbit, orbit.flip(0)) < 0.3
    assert motion_fidelity(orbit, orbit * mirror) < 0.3
    assert match_motion(orbit, orbit * mirror).rotation_free_fidelity < 0.3
    assert motion_fidelity(spiral, spiral * mirror) < 0.5
    assert motion_fidelity(right, right.flip(0)) == pytest.approx(-1)
    assert motion_fidelity(right, right[:1].expand(8, 2)) == 0
    assert motion_fidelity(right[:1].expand(8, 2), right) == 0
    assert motion_fidelity(right[:1].expand(8, 2), orbit[:1].expand(8, 2)) == 1


def test_a_turned_motion_is_the_same_only_for_the_rotation_free_form() -> None:
    bounce = paths("bounce", 1)[0]
    turned = bounce.flip(1)
    assert match_motion(bounce, turned).rotation_free_fidelity > 0.98
    assert motion_fidelity(bounce, turned) < 0.2


def test_trembling_is_not_motion() -> None:
    orbit = paths("orbit", 1)[0]
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(8, 2, generator=generator) for _ in range(50)]
    trembling = [motion_fidelity(orbit, 0.1 * STILL * points) for points in noise]
    assert max(trembling) < 0.15
    wandering = [motion_fidelity(orbit, 10 * STILL * points.cumsum(0)) for points in noise]
    assert 0.2 < sum(wandering) / 50 < 0.5, "chance is not 0: the maximum over shifts makes it positive"


def test_fidelity_falls_with_noise() -> None:
    eight = paths("eight", 1)[0]
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    scores = [motion_fidelity(eight, eight + amount * noise) for amount in (0, 0.02, 0.05, 0.1)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.9


def test_speed_and_trajectory_error() -> None:
    path = paths("zigzag", 1)[0]
    half = match_motion(path, path * 0.5)
    assert half.speed_ratio == pytest.approx(0.5) and half.fidelity == pytest.approx(1)
    assert half.trajectory_error == pytest.approx(0, abs=1e-5)
    assert match_motion(path, paths("bounce", 1)[0]).trajectory_error > 0.7
    assert path_speed(torch.tensor([[0.0, 0.0], [0.3, 0.4], [0.3, 0.4]])) == pytest.approx(0.25)


def turned_by(degrees: float, path: Tensor) -> Tensor:
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return path @ turn


LINE = torch.arange(9)[:, None] * torch.tensor([0.05, 0.0])
_PHASE = 2 * math.pi * torch.arange(9) / 8
LOOP = 0.2 * torch.stack([_PHASE.cos(), _PHASE.sin()], dim=-1)
STAIRS = 0.05 * torch.tensor([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [3, 2], [4, 2], [4, 3], [4, 4]])


@pytest.mark.parametrize(
    ("reference", "path", "correlation", "error"),
    [
        pytest.param(LINE, LINE, 1, 0, id="identical line"),
        pytest.param(LOOP, LOOP, 1, 0, id="identical loop"),
        pytest.param(LOOP, LOOP + 0.3, 1, 0, id="elsewhere"),
        pytest.param(LOOP, 0.5 * LOOP, 1, 0, id="half the size"),
        pytest.param(LOOP, turned_by(135, LOOP), 1, 0, id="time-shifted loop"),
        pytest.param(LINE, LINE.flip(0), -1, 1, id="reversed line"),
        pytest.param(LOOP, LOOP.flip(0), 0, None, id="reversed loop"),
        pytest.param(LINE, LINE * torch.tensor([-1, 1]), -1, 1, id="mirrored line"),
        pytest.param(LOOP, LOOP * torch.tensor([-1, 1]), 0, None, id="mirrored loop"),
        pytest.param(LINE, turned_by(30, LINE), math.sqrt(3) / 2, 1 / 2, id="turned by 30"),
        pytest.param(LINE, turned_by(60, LINE), 1 / 2, math.sqrt(3) / 2, id="turned by 60"),
        pytest.param(LINE, turned_by(90, LINE), 0, 1, id="turned by 90"),
        pytest.param(LINE, LINE[:1].expand(9, 2), 0, 1, id="static"),
        pytest.param(LINE, STAIRS, 1 / 2, None, id="half of the steps across"),
    ],
)
def test_velocity_correlation_and_trajectory_error_of_known_paths(
    reference: Tensor, path: Tensor, correlation: float, error: float | None
) -> None:
    match = match_motion(reference, path)
    assert match.velocity_correlation == pytest.approx(correlation, abs=1e-4)
    if error is None:
        assert 0.5 < match.trajectory_error <= 1
    else:
        assert match.trajectory_error == pytest.approx(error, abs=2e-3)


def test_velocity_correlation_and_trajectory_error_follow_a_growing_fault() -> None:
    """A trembling across the line of r times its step: 1 / sqrt(1 + r^2). Positions feel it less than steps."""
    across = (torch.arange(9) % 2)[:, None] * torch.tensor([0.0, 0.05])
    amounts = (0, 0.25, 0.5, 1, 2)
    matches = [match_motion(LINE, LINE + amount * across) for amount in amounts]
    wanted = [1 / math.sqrt(1 + amount**2) for amount in amounts]
    assert [match.velocity_correlation for match in matches] == pytest.approx(wanted, abs=1e-4)
    errors = [match.trajectory_error for match in matches]
    assert errors == sorted(errors) and errors[0] == pytest.approx(0, abs=2e-3)
    assert errors[-1] < math.sqrt(1 - wanted[-1] ** 2)


@pytest.mark.parametrize(
    ("reference", "path", "message"),
    [
        (torch.zeros(8, 2), torch.zeros(7, 2), "8 frames and the path 7"),
        (torch.zeros(8, 3), torch.zeros(8, 2), r"reference has shape \(8, 3\)"),
        (torch.zeros(8, 2), torch.full((8, 2), torch.nan), "path has gaps"),
        (torch.zeros(2, 2), torch.zeros(2, 2), "3 frames or more"),
    ],
)
def test_paths_that_cannot_be_compared(reference: Tensor, path: Tensor, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        match_motion(reference, path)


# Intervals ----------------------------------------------------------------------------------------------------------


def test_bootstrap_interval() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    boot, reach = bootstrap_interval(values.tolist()), 1.96 * float(values.std()) / 200**0.5
    middle = float(values.mean())
    assert boot.estimate == pytest.approx(middle) and boot.count == 200
    assert (boot.low, boot.high) == pytest.approx((middle - reach, middle + reach), abs=0.02)
    assert bootstrap_interval([0.5]) == Interval(0.5, 0.5, 0.5, 1)
    for nothing in ([], [math.nan]):
        with pytest.raises(SettingsError, match="at least one value"):
            bootstrap_interval(nothing)


# Libraries ------------------------------------------------------------------------------------------------------------


def test_a_missing_or_broken_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="Tracking needs some-package, which is not installed"):
        require("no_such_module_here", "some-package", "Tracking")
    (tmp_path / "built_for_another_torch.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"does not load \(operator nms"):
        require("built_for_another_torch", "some-package", "Tracking")
