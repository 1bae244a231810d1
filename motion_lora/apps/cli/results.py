"""Writing results: is the place writable before hours of work, and which file a name's ending asks for."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import OutputError, SettingsError

if TYPE_CHECKING:
    from torch import Tensor

VIDEO_ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".gif")
_log = logging.getLogger(__name__)
_ROOM = 64 * 2**20


def check_output(path: Path, *, overwrite: bool = True, room: int = _ROOM) -> None:
    """Raise OutputError unless a file can be written at `path`. Called before any work starts; leaves nothing."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name, or allow it with --overwrite.")
    check_folder(path.parent, room=room)


def check_folder(folder: Path, *, room: int = _ROOM) -> None:
    """Raise OutputError unless files can be written into `folder`, which may not be there yet; leaves nothing."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        handle, name = tempfile.mkstemp(prefix=".motion-lora-", dir=there)
        os.close(handle)
        Path(name).unlink()
        free = shutil.disk_usage(there).free
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{there} cannot be written into: {reason}. Choose another output.") from error
    if free < room:
        raise OutputError(
            f"{there} is on a disk with {free / 2**20:.0f} MiB left, and {room / 2**20:.0f} MiB are needed. "
            "Free some space or choose another output folder."
        )


def check_video_output(path: Path) -> None:
    """check_output for a video, whose ending must be one that can be written."""
    if path.suffix.lower() not in VIDEO_ENDINGS:
        raise SettingsError(f"{path} should end in one of {', '.join(VIDEO_ENDINGS)}.")
    check_output(path)


def check_rate(path: Path, fps: float) -> None:
    """Before there are frames: raise SettingsError for a rate that the file cannot have, warn of a lack of encoder."""
    from ...media.write import GIF_FASTEST, encoder_fault

    if path.suffix.lower() == ".gif":
        if fps > GIF_FASTEST:
            raise SettingsError(f"{path} cannot hold {fps:g} frames per second, a GIF ends at {GIF_FASTEST}: use .mp4.")
    elif fault := encoder_fault(path.suffix.lower()):
        _log.warning("%s", fault)


def write_frames(path: Path, frames: Tensor, fps: float) -> Path:
    """Frames (f, h, w, 3) in [0, 1] as a video or gif, by the ending of the name; returns what was written."""
    from ...media.write import write_gif, write_video

    return write_gif(path, frames, fps) if path.suffix.lower() == ".gif" else write_video(path, frames, fps)
