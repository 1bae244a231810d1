"""Previews: small videos that show what a LoRA does while it trains."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.clip import Clip
from ..core.stack import AdapterStack
from ..media.read import read_frames
from ..media.sheets import contact_sheet
from ..media.write import write_png, write_video
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings
from .job import PreviewPlan

SHEET, BASE = "sheet.png", "base"
_LEAST_SIDE = 256
_ROWS = 6
_WIDEST = 800


def draw_preview(path: Path, pipeline: VideoPipeline, stack: AdapterStack, plan: PreviewPlan, clip: Clip) -> Path:
    """Sample the plan's prompt with the stack, in the clip's size and length, into an mp4. Raises MotionLoRAError.

    The file that it became: where no encoder is to be had, one of another ending.
    """
    settings = SampleSettings(
        plan.prompt,
        num_frames=clip.num_frames,
        height=clip.height,
        width=clip.width,
        num_inference_steps=plan.num_inference_steps,
        guidance_scale=plan.guidance_scale,
        seed=plan.seed,
    )
    video = sample(pipeline, settings, stack=stack)[0]
    return write_video(path, enlarged(video.frames), clip.fps)


def draw_sheet(folder: Path, pipeline: VideoPipeline, plan: PreviewPlan, clip: Clip) -> None:
    """The training at a glance, in the folder of its previews: frames of the clip, of the base alone, of each preview.

    The base is sampled once, in the previews' words and noise. Of many previews the first and the last are shown.
    Raises MotionLoRAError, OSError.
    """
    base = next(folder.glob(f"{BASE}.*"), None)
    base = base or draw_preview(folder / f"{BASE}.mp4", pipeline, AdapterStack(), plan, clip)
    drawn = sorted(folder.glob("[0-9]*.*"))
    shown = [*drawn[:1], *drawn[1:][-(_ROWS - 1) :]]
    rows = [("reference", clip.frames), ("base", read_frames(base)[0])]
    rows += [(f"step {int(path.stem)}", read_frames(path)[0]) for path in shown]
    sheet = contact_sheet(rows, columns=6, tile_side=72)
    sheet.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
    write_png(folder / SHEET, sheet)


def enlarged(frames: Tensor) -> Tensor:
    """Small frames (f, h, w, 3) by a whole factor, without smoothing: players would blur them."""
    factor = max(1, _LEAST_SIDE // max(frames.shape[1:3]))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
