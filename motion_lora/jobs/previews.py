"""Previews: small videos that show what a LoRA does while it trains."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.clip import Clip
from ..core.stack import AdapterStack
from ..media.write import write_video
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings
from .job import PreviewPlan

_LEAST_SIDE = 256


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


def enlarged(frames: Tensor) -> Tensor:
    """Small frames (f, h, w, 3) by a whole factor, without smoothing: players would blur them."""
    factor = max(1, _LEAST_SIDE // max(frames.shape[1:3]))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
