"""Preview pictures beside a LoRA file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

PREVIEW_SIDE = 256


def write_preview(path: str | Path, frames: Tensor, fps: float) -> tuple[Path, Path]:
    """Put `<name>.preview.png` (four moments of the clip) and a small `<name>.preview.mp4` beside a LoRA file.

    LoRA managers find them by their names. frames: (f, h, w, 3) in [0, 1]. Raises OutputError.
    """
    from ..media.write import write_png, write_video  # here: reading a LoRA needs no encoder

    path = Path(path)
    small = _shrunk(frames)
    moments = [small[round(place * (len(small) - 1) / 3)] for place in range(4)]
    sheet = torch.cat([torch.cat(moments[:2], dim=1), torch.cat(moments[2:], dim=1)])
    picture = write_png(path.with_name(f"{path.stem}.preview.png"), sheet)
    return picture, write_video(path.with_name(f"{path.stem}.preview.mp4"), small, fps)


def _shrunk(frames: Tensor) -> Tensor:
    factor = PREVIEW_SIDE / max(frames.shape[1:3])
    if factor >= 1.0:
        return frames
    size = [max(2, 2 * round(side * factor / 2)) for side in frames.shape[1:3]]
    small = nn.functional.interpolate(frames.movedim(-1, 1), size, mode="bilinear", antialias=True)
    return small.movedim(1, -1).clamp(0, 1)
