"""Between library values and what a node shows or returns: pictures, videos, captions, marks of files."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import numpy as np
import torch
from PIL import Image

from ...motion_lora.core.curves import Curve
from ...motion_lora.core.errors import MotionLoRAError
from ...motion_lora.jobs.loss_log import LossPoint
from ...motion_lora.media.plots import Line, plot_lines, plot_losses
from ...motion_lora.media.table_picture import draw_table
from ...motion_lora.media.write import write_video
from ..comfy import server
from ..comfy.sockets import InputImpl, Types, io, ui

if TYPE_CHECKING:
    from ...motion_lora.base.pipeline import VideoPipeline

_CURVE_POINTS = 240
_log = logging.getLogger(__name__)


def file_mark(find: Callable[[str], Path], name: str) -> str:
    """Changes when the file does, so that ComfyUI reads it again."""
    try:
        stat = find(name).stat()
    except (MotionLoRAError, OSError):
        return "missing"
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def is_listed(find: Callable[[str], Path], name: str) -> bool | str:
    """For `validate_inputs`: True, or why the name cannot be loaded."""
    try:
        find(name)
    except MotionLoRAError as error:
        return str(error)
    return True


def caption_of(metadata: Mapping[str, str], kind: str = "") -> str:
    """The first caption, or the first "appearance" caption, that a file says it was trained with."""
    key = f"motion_lora.{kind}_captions" if kind else "motion_lora.captions"
    try:
        captions = json.loads(metadata.get(key, "[]"))
    except ValueError:
        return ""
    return str(captions[0]) if isinstance(captions, list) and captions else ""


def picture(image: Image.Image) -> torch.Tensor:
    """A picture as IMAGE (1, h, w, 3)."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]


def in_node(images: torch.Tensor, node: type[io.ComfyNode]) -> Any:
    """The `ui` of a node that shows pictures."""
    return ui.PreviewImage(images, cls=node)


def remark(node: type[io.ComfyNode], base: VideoPipeline, *prompts: str) -> None:
    """Show in the node what of its prompts is read otherwise than their writer may think."""
    if said := base.prompt_remarks([prompt for prompt in prompts if prompt]):
        server.tell_node(node.hidden.unique_id, " ".join(said))


def curve_plot(curve: Curve, along: str) -> torch.Tensor:
    """A strength over a relative position, drawn with the area below it, as IMAGE."""
    places = [place / _CURVE_POINTS for place in range(_CURVE_POINTS + 1)]
    factors = [curve.value(place) for place in places]
    line = Line("", places, factors, low=[0.0] * len(factors), high=factors)
    return picture(plot_lines([line], x_label=along, y_label="times the strength"))


def report_table(facts: Mapping[str, Any]) -> torch.Tensor:
    """The report of `files.inspection.inspect` as IMAGE: its facts, and a table of its blocks."""
    from ...motion_lora.files.inspection import BLOCK_COLUMNS, block_rows, summary

    return picture(draw_table(block_rows(facts), BLOCK_COLUMNS, facts=summary(facts)))


def loss_plot(points: Sequence[LossPoint]) -> torch.Tensor:
    """The loss curves of a job, one per stage, as IMAGE."""
    stages: dict[str, list[float]] = {}
    for point in points:
        stages.setdefault(point.stage, []).append(point.loss)
    return picture(plot_losses(stages)) if stages else torch.zeros(1, 64, 64, 3)


def loss_map(points: Sequence[LossPoint]) -> dict[str, list[float]]:
    """The losses of the last stage in the form of ComfyUI's own trainer."""
    last = points[-1].stage if points else ""
    return {"loss": [point.loss for point in points if point.stage == last]}


def video(frames: torch.Tensor, fps: float) -> Any:
    """Frames (f, h, w, 3) as VIDEO."""
    rate = Fraction(fps).limit_denominator(1000)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=rate))


def playing(frames: torch.Tensor, fps: float) -> Any:
    """The `ui` of a node that plays a video: an mp4 in ComfyUI's temp folder, which ComfyUI empties.

    None, with a line in the log, where it cannot be written: the node's result must not be lost with its preview.
    """
    from ...motion_lora.jobs.previews import enlarged

    name = f"motion_lora_{uuid.uuid4().hex[:12]}.mp4"
    try:
        written = write_video(Path(folder_paths.get_temp_directory()) / name, enlarged(frames), fps)
    except (MotionLoRAError, OSError) as error:
        _log.warning("no preview is shown: %s", error)
        return None
    shown = ui.SavedResult(written.name, "", io.FolderType.temp)
    return ui.PreviewVideo([shown]) if written.suffix == ".mp4" else {"images": [shown], "animated": (True,)}
