"""What lies beside a finished LoRA: a picture and a video of what it does, named as model browsers look for them.

`<name>.preview.png` is what ComfyUI's model browser and ComfyUI-Lora-Manager show, `<name>.mp4` plays (or what else a
video could be written as). The picture
holds the workflow that trained the LoRA, so that dragging it into ComfyUI brings that back.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.clip import Clip
from ..core.disk import write_atomically
from ..core.errors import MotionLoRAError
from ..core.lora import LoRA
from ..core.stack import AdapterStack, StackEntry
from ..media.read import read_frames
from ..media.write import to_bytes
from .job import PreviewPlan
from .previews import draw_preview
from .store import NOTES, PREVIEWS

PICTURE, VIDEO = ".preview.png", ".mp4"
# What a video becomes for want of an encoder comes after it.
VIDEOS = (VIDEO, ".gif", ".png")
WORKFLOW_NOTE = "workflow"
_LOG = logging.getLogger(__name__)
_COVER = "cover.mp4"
_SIDE = 2
_LARGEST = 512


def cover(frames: Tensor) -> Image.Image:
    """Four frames (f, h, w, 3), evenly spread over time, two by two, read like a page; at most 512 pixels."""
    count = _SIDE * _SIDE
    chosen = [round(i * (len(frames) - 1) / (count - 1)) for i in range(count)]
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (_SIDE * width, _SIDE * height))
    for place, picture in enumerate(to_bytes(frames[chosen])):
        sheet.paste(Image.fromarray(picture), (place % _SIDE * width, place // _SIDE * height))
    sheet.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return sheet


def put_beside(lora: Path, video: Path, workflow: Mapping[str, Any] | None = None) -> None:
    """Write the picture and the video of a LoRA from a video file. Raises OutputError, ClipError.

    `workflow` is ComfyUI's {"prompt": ..., "workflow": ...}; both go into the picture as ComfyUI writes them.
    """
    frames, _ = read_frames(video)
    entries, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in (workflow or {}).items():
        if value:
            entries.add_text(key, json.dumps(value))
    cover(frames).save(stream, "PNG", pnginfo=entries, optimize=True)
    write_atomically(beside(lora, PICTURE), stream.getvalue())
    write_atomically(beside(lora, video.suffix), video.read_bytes())


def beside(lora: Path, suffix: str) -> Path:
    """The file of that ending which belongs to a LoRA."""
    return lora.with_name(f"{lora.stem}{suffix}")


# For jobs -----------------------------------------------------------------------------------------------------------


def draw_cover(folder: Path, pipeline: VideoPipeline, lora: LoRA, plan: PreviewPlan, clip: Clip) -> None:
    """Sample what is shown of a finished job's LoRA, unless its last preview does; a fault is only logged.

    The prompt is that of the previews, or the clip's caption.
    """
    prompt = plan.prompt.strip() or clip.caption.strip()
    if not prompt or _last_preview(folder) is not None:
        return
    try:
        stack = AdapterStack().add(StackEntry(lora))
        draw_preview(folder / _COVER, pipeline, stack, replace(plan, prompt=prompt), clip)
    except (MotionLoRAError, OSError) as error:
        _LOG.warning("Motion LoRA: no picture of the finished LoRA: %s", error)


def publish_pictures(folder: Path, lora: Path) -> None:
    """Put what a job has drawn beside its published LoRA; the LoRA is there already, so a fault is only logged."""
    video = _drawn(folder, _COVER) or _last_preview(folder)
    if video is None:
        return
    try:
        put_beside(lora, video, _workflow(folder))
    except (MotionLoRAError, OSError) as error:
        _LOG.warning("Motion LoRA: no picture beside %s: %s", lora.name, error)


def _last_preview(folder: Path) -> Path | None:
    return _drawn(folder / PREVIEWS, f"[0-9]*{VIDEO}")


def _drawn(folder: Path, pattern: str) -> Path | None:
    """The last file of that name, of any ending that a video can have."""
    found = [path for suffix in VIDEOS for path in folder.glob(Path(pattern).with_suffix(suffix).name)]
    return max(found, default=None)


def _workflow(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / NOTES / f"{WORKFLOW_NOTE}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
