"""The README's picture of `make demo`, from what it wrote: python tools/draw_demo.py [out/demo].

Writes docs/images/demo.gif (reference, base and customised side by side, a row per prompt) and docs/images/demo.png.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from motion_lora.media.read import read_frames
from motion_lora.media.sheets import draw_path, grid_frames
from motion_lora.media.write import write_gif
from motion_lora.playground import world
from motion_lora.playground.probe import path_of, read_clip

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
TILE, FPS = 128, 8


def main(demo: Path) -> None:
    """Raises what `read_frames` raises where the folder holds no finished demo."""
    prompts = json.loads((demo / "report.json").read_text(encoding="utf-8"))["prompts"]
    rows = []
    for number, prompt in enumerate(prompts, start=1):
        clips = [demo / "reference.mp4", *sorted(demo.glob(f"{number}-*-base.mp4"))]
        clips += sorted(demo.glob(f"{number}-*-customised.mp4"))
        rows.append((" ".join(prompt.split()[:3]), [_with_path(read_frames(path)[0]) for path in clips]))
    grid = grid_frames(rows, ("reference", "base model", "with motion LoRA"), tile_side=TILE)
    write_gif(IMAGES / "demo.gif", grid, FPS)
    shutil.copyfile(demo / "contact_sheet.png", IMAGES / "demo.png")


def _with_path(frames: Tensor) -> Tensor:
    """The object's path over the video; the probe reads the world's own 64 x 64 pixels, the file holds more."""
    small = F.interpolate(frames.movedim(-1, 1), size=(world.CANVAS, world.CANVAS), mode="area").movedim(1, -1)
    return draw_path(frames, path_of(read_clip(small)), side=TILE)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo"))
