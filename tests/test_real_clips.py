"""The metrics of natural video on real clips: copies of known faults have to come out in the right order.

`real_copies` says where clips are looked for; where there are none these tests are skipped. CLIP and LPIPS are doubles,
so of these two the pipeline around the network is what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from real_copies import VARIABLE, clips_folder, copies_of, doubles_for, scores_of
from tiny import tiny_pipeline
from torch import Tensor

from motion_lora.evaluate.judge import make_judge
from motion_lora.evaluate.metrics import appearance_leakage
from motion_lora.evaluate.playground_judge import playground_judge
from motion_lora.evaluate.scores import ALIGNMENT, CONSISTENCY, LEAKAGE, MOTION, SCORES
from motion_lora.evaluate.video_judge import VideoJudge
from motion_lora.media.read import read_frames

REAL = sorted(clips_folder().glob("*.mp4"))
NONE = pytest.param(
    None,
    marks=pytest.mark.skip(reason=f"{clips_folder()} holds no .mp4 of real video; {VARIABLE} names another folder"),
)


@dataclass(frozen=True)
class Scored:
    """Copies of a clip, and their scores by column."""

    copies: dict[str, Tensor]
    rows: dict[str, dict[str, float]]

    def column(self, name: str) -> dict[str, float]:
        return {copy: row[name] for copy, row in self.rows.items()}


@pytest.fixture(scope="module", params=REAL or [NONE], ids=lambda path: path.stem if path else "none")
def scored(request: pytest.FixtureRequest) -> Scored:
    copies = copies_of(request.param)
    return Scored(copies, scores_of(copies))


def test_the_folder_of_clips_is_the_named_one_or_beside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "elsewhere")
    assert clips_folder() == Path("elsewhere")
    monkeypatch.setenv(VARIABLE, "")
    assert clips_folder() == Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "clips"


def test_motion_fidelity_orders_the_copies(scored: Scored) -> None:
    motion = scored.column("motion")
    assert motion["same"] == pytest.approx(1) and motion["static"] == 0
    assert min(motion["blurred"], motion["blurred more"], motion["recoloured"]) > 0.85, "looks do not count"
    other = max(motion[name] for name in ("shuffled", "reversed", "mirrored", "static"))
    assert other < 0.5, motion
    assert other < motion["slowed start"] < motion["blurred more"]
    # The start also shows what the two seconds of the reference lose on the way; the end shows what they keep.
    assert motion["slowed end"] > 0.7
    assert other < motion["held"] < 0.5, "it stands still in every other step"


def test_similarity_of_looks_orders_the_copies(scored: Scored) -> None:
    look = scored.column("look")
    assert min(look[name] for name in ("same", "reversed", "shuffled")) == pytest.approx(1, abs=1e-4), "time is no look"
    assert 0.999 > look["mirrored"] > look["blurred"] > look["blurred more"], "texture has a direction"
    others = ("blurred more", "slowed start", "slowed end", "held", "static")
    assert look["recoloured"] < min(look[name] for name in others)


def test_leakage_is_what_exceeds_the_neutral_video(scored: Scored) -> None:
    leaked, copies = scored.column("leakage"), scored.copies
    assert leaked["recoloured"] == 0 and leaked["same"] == pytest.approx(1, abs=1e-3)
    assert 0 < leaked["blurred more"] < leaked["blurred"] < 1
    reference, neutral = copies["same"], copies["recoloured"]
    mixed = [appearance_leakage(torch.lerp(neutral, reference, share), reference, neutral) for share in (0.5, 0.75)]
    assert 0 <= mixed[0] < mixed[1] < 1


def test_text_alignment_orders_the_copies(scored: Scored) -> None:
    alignment = scored.column("alignment")
    for name in ("shuffled", "reversed"):
        assert alignment[name] == pytest.approx(alignment["same"], abs=1e-3), "each frame counts for itself"
    assert alignment["same"] > alignment["blurred"] > alignment["blurred more"] > alignment["recoloured"] > 0
    assert alignment["mirrored"] < alignment["same"]


@pytest.mark.parametrize("name", ["CLIP", "LPIPS"])
def test_temporal_consistency_orders_the_copies(scored: Scored, name: str) -> None:
    column = scored.column(name)
    # Unsteadiness, which both forms have to order alike: the CLIP form falls with it, the LPIPS form rises.
    unsteady = {copy: 100 - score if name == "CLIP" else score for copy, score in column.items()}
    assert unsteady["static"] == pytest.approx(0, abs=1e-3)
    for copy in ("reversed", "mirrored", "recoloured"):
        assert unsteady[copy] == pytest.approx(unsteady["same"], abs=1e-3), copy
    assert 0 < max(unsteady[copy] for copy in ("slowed start", "slowed end", "held")) < unsteady["same"]
    assert unsteady["shuffled"] > 1.5 * unsteady["same"]
    if name == "LPIPS":
        assert unsteady["blurred more"] < unsteady["blurred"] < unsteady["same"]


def test_diversity_orders_the_copies(scored: Scored) -> None:
    diversity = scored.column("diversity")
    assert diversity["same"] == 0 < diversity["blurred"] < diversity["blurred more"]
    assert diversity["blurred more"] < min(diversity[name] for name in ("shuffled", "reversed", "static")), (
        "frames are compared at the same time"
    )


def test_the_judge_of_natural_video_gives_every_score(scored: Scored) -> None:
    copies, rows = scored.copies, scored.rows
    scorer, perceptual = doubles_for(copies["same"])
    judge = make_judge(tiny_pipeline(), copies["same"], clip_scorer=scorer, perceptual=perceptual)
    assert isinstance(judge, VideoJudge)
    assert tuple(judge.forms) == SCORES and len(judge.notes) == len(SCORES)
    assert not judge.gaps("what is there", copies["same"].shape[:3], neutral=True)
    for name in ("reversed", "blurred"):
        found = judge.score("what is there", copies[name], copies["recoloured"])
        wanted = {MOTION: "motion", LEAKAGE: "leakage", ALIGNMENT: "alignment", CONSISTENCY: "LPIPS"}
        assert found == pytest.approx({score: rows[name][column] for score, column in wanted.items()}, abs=1e-5)
        assert tuple(found) == SCORES
    by_clip = make_judge(tiny_pipeline(), clip_scorer=scorer).score("what is there", copies["reversed"])
    assert by_clip == pytest.approx({ALIGNMENT: rows["same"]["alignment"], CONSISTENCY: rows["same"]["CLIP"]}, abs=1e-3)


@pytest.mark.parametrize("path", REAL or [NONE], ids=lambda path: path.stem if path else "none")
def test_the_playgrounds_probe_knows_that_it_is_no_clip_of_its_world(path: Path) -> None:
    for fps in (4, 8, 12):
        for side in (64, 128):
            frames, _ = read_frames(path, num_frames=8, fps=fps, height=side, width=side)
            assert "no clip of the playground" in playground_judge(frames).reference_fault, f"{path.stem} at {fps}"
