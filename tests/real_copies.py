"""Clips of real video and copies of them with known faults, and what every metric of natural video says of each.

The clips are those of the folder that MOTION_LORA_TEST_CLIPS names, else of shared/data/clips beside the repository.
None is part of the project. CLIP and LPIPS are doubles: their weights are not there either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from metric_doubles import LpipsDouble, clip_double, colours_and_sharpness
from torch import Tensor

from motion_lora.evaluate.metrics import (
    ClipScorer,
    Perceptual,
    appearance_similarity,
    clip_temporal_consistency,
    lpips_diversity,
    lpips_temporal_consistency,
    text_alignment,
    track_fidelity,
)
from motion_lora.evaluate.metrics.appearance import excess
from motion_lora.media.ffmpeg import run_ffmpeg
from motion_lora.media.read import read_frames

VARIABLE = "MOTION_LORA_TEST_CLIPS"
NUM_FRAMES, FPS, SIDE = 16, 8, 128
# What each column of the scores is, in their order.
COLUMNS: Mapping[str, str] = {
    "motion": "motion fidelity by tracked points, to the reference",
    "look": "similarity of looks to the reference",
    "leakage": "appearance leakage, where the recoloured copy is the neutral video",
    "alignment": "CLIP text alignment to a text whose vector is the mean of the reference's frames; double",
    "CLIP": "CLIP temporal consistency, higher is steadier; double",
    "LPIPS": "LPIPS temporal consistency, lower is steadier; double",
    "diversity": "LPIPS diversity of the copy and the reference; double",
}


def clips_folder() -> Path:
    """Where clips of real video are looked for."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"


def copies_of(path: Path) -> dict[str, Tensor]:
    """The first two seconds of a clip, and copies of it: name -> frames (f, h, w, 3)."""
    frames, _ = read_frames(path, fps=FPS, num_frames=NUM_FRAMES, height=SIDE, width=SIDE)
    slow = slowed(frames)
    order = torch.randperm(NUM_FRAMES, generator=torch.Generator().manual_seed(1))
    return {
        "same": frames,
        "blurred": blurred(frames, 3),
        "blurred more": blurred(frames, 7),
        "recoloured": frames[..., [2, 0, 1]],
        "slowed start": slow[:NUM_FRAMES],
        "slowed end": slow[-NUM_FRAMES:],
        "held": frames.repeat_interleave(2, dim=0)[-NUM_FRAMES:],
        "shuffled": frames[order],
        "reversed": frames.flip(0),
        "mirrored": frames.flip(2),
        "static": frames[:1].expand_as(frames),
    }


def blurred(frames: Tensor, width: int) -> Tensor:
    """Frames (f, h, w, 3), each pixel the mean of a square around it."""
    images = F.avg_pool2d(frames.movedim(-1, 1), width, stride=1, padding=width // 2, count_include_pad=False)
    return images.movedim(1, -1)


def slowed(frames: Tensor) -> Tensor:
    """Frames (f, h, w, 3) at half speed, about twice as many: ffmpeg moves what moves into the frames in between.

    Not every file has frames in between; one that repeats them instead (the copy `held`) stands still in every other
    step, and such a motion reaches a half at most.
    """
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    source = [*raw, "-s", f"{width}x{height}", "-r", str(FPS), "-i", "-"]
    doubled = f"minterpolate=fps={2 * FPS}:mi_mode=mci"
    data = (frames * 255).round().to(torch.uint8).numpy().tobytes()
    status, out, log = run_ffmpeg([*source, "-vf", doubled, *raw, "-"], data)
    assert status == 0, log
    return torch.frombuffer(bytearray(out), dtype=torch.uint8).view(-1, height, width, 3).float() / 255


def doubles_for(reference: Tensor) -> tuple[ClipScorer, Perceptual]:
    """CLIP whose every text means the reference (f, h, w, 3), and LPIPS as the mean difference."""
    seen = clip_double(colours_and_sharpness, torch.zeros(1)).embed_frames(reference)
    scorer = clip_double(colours_and_sharpness, seen.mean(dim=0, keepdim=True))
    return scorer, Perceptual(LpipsDouble(pnet_rand=True, verbose=False), "double", torch.device("cpu"))


def scores_of(copies: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Name of the copy -> name of the column -> score, of `copies_of` a clip."""
    reference = copies["same"]
    scorer, perceptual = doubles_for(reference)
    looks = {name: appearance_similarity(frames, reference) for name, frames in copies.items()}
    return {
        name: {
            "motion": track_fidelity(reference, frames),
            "look": looks[name],
            "leakage": excess(looks[name], looks["recoloured"]),
            "alignment": text_alignment(frames, "what is there", scorer),
            "CLIP": clip_temporal_consistency(frames, scorer),
            "LPIPS": lpips_temporal_consistency(frames, perceptual),
            "diversity": lpips_diversity([reference, frames], perceptual),
        }
        for name, frames in copies.items()
    }
