"""Clip, and how one is made and encoded."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.clip import Clip
from ..core.errors import ClipError
from .captions import check_captions, read_captions
from .images import read_images
from .kinds import is_image_file, is_image_folder
from .sizes import check_sizes, fit
from .timing import Request, Timeline, pick
from .video import read_video

logger = logging.getLogger(__name__)

DEFAULT_NUM_FRAMES = 16
DEFAULT_FPS = 8.0
_OVERSHOOT = 0.5


def read_clip(
    path: str | Path,
    *,
    caption: str,
    appearance_caption: str = "",
    absorb_words: str = "",
    num_frames: int | None = DEFAULT_NUM_FRAMES,
    fps: float | None = DEFAULT_FPS,
    start: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 1,
    images_fps: float | None = None,
) -> Clip:
    """A clip from a video, GIF, image or folder of images; see `read_frames` for the numbers. Raises ClipError."""
    path = Path(path).expanduser()
    check_captions(path.name, caption, appearance_caption, absorb_words)
    frames, rate = read_frames(
        path,
        num_frames=num_frames,
        fps=fps,
        start=start,
        height=height,
        width=width,
        multiple=multiple,
        images_fps=images_fps,
    )
    return Clip(frames, rate, caption.strip(), appearance_caption.strip(), absorb_words.strip(), path.name)


def read_frames(
    path: str | Path,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 1,
    images_fps: float | None = None,
) -> tuple[Tensor, float]:
    """Frames (f, h, w, 3) in [0, 1] of a video, a GIF, an image or a folder of images, and their rate.

    `num_frames` frames (None: all there are) at `fps` (None: the source's own) from second `start` on, each the
    source's nearest to its time; resized to cover `height` x `width` with the aspect kept, and cropped around the
    middle (None: the source's size). `multiple` is what the network asks of both sides. `images_fps` is the rate at
    which a folder's images were taken; without it they are the frames, as they are.
    Raises ClipError for what is no video, holds too little, or a size that is no multiple, before it decodes.
    """
    path = Path(path).expanduser()
    check_sizes(path.name, height, width, multiple)
    request = Request(num_frames, fps, start)
    # A host in inference mode would get frames that can never take part in training.
    with torch.inference_mode(False):

        def fit_one(picture: np.ndarray[Any, Any]) -> Tensor:
            # Each at once, so that a large source is never in memory as a whole.
            return fit(torch.from_numpy(picture.copy())[None].float() / 255, height, width, multiple, path.name)[0]

        if is_image_folder(path) or is_image_file(path):
            frames, rate = read_images(path, request, images_fps, fit_one)
        else:
            frames, rate = read_video(path, request, fit_one)
        _warn_repeats(path.name, frames, rate)
        return frames, rate


def clip_from_frames(
    frames: Tensor | np.ndarray[Any, Any],
    source_fps: float,
    *,
    caption: str,
    appearance_caption: str = "",
    absorb_words: str = "",
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 1,
    source: str = "",
) -> Clip:
    """A clip from frames (f, h, w, 3) taken at `source_fps`, a tensor or numpy array; the rest as in `read_clip`.

    Floats are in [0, 1], whole numbers (uint8) from 0 to 255. The result owns its frames, on CPU in float32. Without
    numbers it is all of them as they are. Raises ClipError.
    """
    name = source or "The clip"
    frames = torch.as_tensor(frames)
    check_captions(name, caption, appearance_caption, absorb_words)
    check_sizes(name, height, width, multiple)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ClipError(f"{name}: frames have shape {tuple(frames.shape)}; they must be (f, h, w, 3).")
    request = Request(num_frames, fps, start)
    request.check(name)
    Request(None, source_fps, 0.0).check(name)
    skipped = round(start * source_fps)
    if skipped >= len(frames):
        raise ClipError(f"{name} is {len(frames) / source_fps:.2f} s long and start is {start:g} s.")
    indices, rate = pick(Timeline.regular(len(frames) - skipped, source_fps), request, name)
    # The same goes for frames that a host in inference mode made; a copy made outside of it is an ordinary tensor.
    with torch.inference_mode(False):
        chosen = [frames[index + skipped].detach() for index in indices]
        _check_range(chosen, name)
        # One by one: of a large source there is never more than one copy of a frame.
        taken = torch.stack([fit(_in_unit_range(one)[None], height, width, multiple, name)[0] for one in chosen])
    return Clip(taken, rate, caption.strip(), appearance_caption.strip(), absorb_words.strip(), source)


def _check_range(frames: list[Tensor], name: str) -> None:
    """A little beyond [0, 1] is what resizing and decoding overshoot, more is another scale. Raises ClipError."""
    if frames[0].dtype is torch.uint8:
        return
    low, high = min(float(one.min()) for one in frames), max(float(one.max()) for one in frames)
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise ClipError(
            f"{name}: its frames run from {low:g} to {high:g} ({frames[0].dtype}); floats must be in [0, 1], and uint8 "
            "is read as 0 to 255."
        )


def _in_unit_range(frame: Tensor) -> Tensor:
    """One frame (h, w, 3), fp32 in [0, 1] on the CPU."""
    given = frame.to("cpu", torch.float32)
    return given / 255 if frame.dtype is torch.uint8 else given.clamp(0, 1)


def read_folder(
    folder: str | Path,
    *,
    num_frames: int | None = DEFAULT_NUM_FRAMES,
    fps: float | None = DEFAULT_FPS,
    height: int | None = None,
    width: int | None = None,
    multiple: int = 1,
) -> list[Clip]:
    """All clips of a folder with their captions (`captions.py` says where those stand). Raises ClipError."""
    return [
        read_clip(
            entry.path,
            caption=entry.caption,
            appearance_caption=entry.appearance_caption,
            absorb_words=entry.absorb_words,
            start=entry.start,
            num_frames=num_frames,
            fps=fps,
            height=height,
            width=width,
            multiple=multiple,
        )
        for entry in read_captions(folder)
    ]


def _warn_repeats(name: str, frames: Tensor, fps: float) -> None:
    repeated = sum(torch.equal(before, after) for before, after in itertools.pairwise(frames))
    if repeated > len(frames) // 4:
        logger.warning(
            "%s: %d of %d frames repeat the one before; is %g fps more than it has?", name, repeated, len(frames), fps
        )
