"""A training that pauses: `paused_training.py FOLDER STEP`, for a launcher of several processes (test_parallel.py)."""

from __future__ import annotations

import sys
from pathlib import Path

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.media.read import read_clip
from motion_lora.training import StepReport, TrainSettings, train

CAPTION = "a red square moving right over sand"


def settings() -> TrainSettings:
    """Six steps of two micro-batches."""
    return TrainSettings(method="temporal-only", steps=6, rank=2, learning_rate=1e-2, gradient_accumulation=2)


def run(folder: Path, pause_at: int = 0, checkpoint: str = "checkpoint"):
    """Train on the base and the clip of `folder`, on from its checkpoint, until that step or to the end."""
    base = VideoPipeline.load(folder / "tiny", device="cpu")
    clip = read_clip(folder / "clip.mp4", num_frames=3, height=16, width=16, caption=CAPTION)

    def heard(report: StepReport) -> str:
        return "pause" if report.step == pause_at else "continue"

    return train(base, [clip], settings(), callback=heard, checkpoint=folder / checkpoint)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
