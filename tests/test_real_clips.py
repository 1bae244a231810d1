"""The metrics of natural video on real clips: copies of known faults have to come out in the right order.

Skipped unless MOTION_LORA_TEST_CLIPS names a folder of .mp4 files of two seconds or more. No clip is in the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motion_lora.clips import read_frames
from motion_lora.judging import playground_judge
from motion_lora.metrics import appearance_leakage, appearance_similarity, track_fidelity

CLIPS = os.environ.get("MOTION_LORA_TEST_CLIPS", "")
REAL = sorted(Path(CLIPS).glob("*.mp4")) if CLIPS else []
NUM_FRAMES, FPS, SIDE = 16, 8, 192

pytestmark = pytest.mark.skipif(not REAL, reason="MOTION_LORA_TEST_CLIPS names no folder with clips of real video")


def blurred(frames: Tensor, width: int) -> Tensor:
    images = F.avg_pool2d(frames.movedim(-1, 1), width, stride=1, padding=width // 2, count_include_pad=False)
    return images.movedim(1, -1)


def copies_of(path: Path) -> dict[str, Tensor]:
    size = {"num_frames": NUM_FRAMES, "height": SIDE, "width": SIDE}
    frames, _ = read_frames(path, fps=FPS, **size)
    slowed, _ = read_frames(path, fps=2 * FPS, **size)
    order = torch.randperm(NUM_FRAMES, generator=torch.Generator().manual_seed(1))
    return {
        "same": frames,
        "blurred": blurred(frames, 5),
        "blurred more": blurred(frames, 9),
        "recoloured": frames[..., [2, 0, 1]],
        "slowed": slowed,
        "shuffled": frames[order],
        "reversed": frames.flip(0),
        "static": frames[:1].expand_as(frames),
    }


@pytest.fixture(scope="module", params=REAL, ids=lambda path: path.stem)
def copies(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return copies_of(request.param)


def test_motion_fidelity_orders_the_copies(copies: dict[str, Tensor]) -> None:
    motion = {name: track_fidelity(copies["same"], copy) for name, copy in copies.items()}
    assert motion["same"] == pytest.approx(1) and motion["static"] == 0
    assert min(motion["blurred"], motion["blurred more"], motion["recoloured"]) > 0.85, "looks do not count"
    assert max(motion["shuffled"], motion["reversed"]) < 0.5, motion
    assert max(motion["shuffled"], motion["reversed"], motion["static"]) < motion["slowed"] < motion["blurred more"]
    # A file without frames in between is slowed by holding each: it moves in half of the steps at most.
    if not bool((copies["slowed"].diff(dim=0).abs().amax(dim=(1, 2, 3)) == 0).any()):
        assert motion["slowed"] > 0.6


def test_similarity_of_looks_orders_the_copies(copies: dict[str, Tensor]) -> None:
    look = {name: appearance_similarity(copy, copies["same"]) for name, copy in copies.items()}
    assert min(look[name] for name in ("same", "reversed", "shuffled")) == pytest.approx(1, abs=1e-4), "time is no look"
    assert look["same"] > look["blurred"] > look["blurred more"]
    assert look["recoloured"] < min(look["blurred more"], look["slowed"], look["static"])


def test_leakage_is_what_exceeds_the_neutral_video(copies: dict[str, Tensor]) -> None:
    reference, neutral = copies["same"], copies["recoloured"]
    leaked = {name: appearance_leakage(copies[name], reference, neutral) for name in copies}
    assert leaked["recoloured"] == 0 and leaked["reversed"] == pytest.approx(1, abs=1e-3)
    assert 0 < leaked["blurred more"] < leaked["blurred"] < 1
    mixed = [appearance_leakage(torch.lerp(neutral, reference, share), reference, neutral) for share in (0.5, 0.75, 1)]
    assert mixed == sorted(mixed)


def test_the_playgrounds_probe_knows_that_it_is_no_clip_of_its_world() -> None:
    for path in REAL:
        for fps in (4, 8, 12):
            for side in (64, 128):
                frames, _ = read_frames(path, num_frames=8, fps=fps, height=side, width=side)
                assert "no clip of the playground" in playground_judge(frames).reference_fault, f"{path.stem} at {fps}"
