"""Frames and pictures to files: whole or not at all, and with the frame rate that was asked for."""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.disk import write_atomically
from ..core.errors import ClipError, OutputError
from .ffmpeg import run_ffmpeg

_log = logging.getLogger(__name__)

# The first that this ffmpeg has is taken; not every build may bring x264. Of the others browsers play only openh264.
_MP4: tuple[tuple[str, ...], ...] = (
    ("-c:v", "libx264", "-preset", "medium", "-crf", "{crf}"),
    ("-c:v", "libopenh264", "-b:v", "8M"),
    ("-c:v", "mpeg4", "-q:v", "2"),
    ("-c:v", "mjpeg", "-q:v", "2", "-strict", "unofficial"),
)
_PLAYED = ("libx264", "libopenh264", "libvpx-vp9", "libvpx")
_WAY_OUT = "reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that has it"
_WEBM: tuple[tuple[str, ...], ...] = (
    ("-c:v", "libvpx-vp9", "-b:v", "0", "-row-mt", "0", "-crf", "{crf}"),
    ("-c:v", "libvpx", "-b:v", "8M", "-crf", "{crf}"),
)
_CODECS: Mapping[str, tuple[tuple[str, ...], ...]] = {".mp4": _MP4, ".mov": _MP4, ".mkv": _MP4, ".webm": _WEBM}
VIDEO_SUFFIXES = tuple(_CODECS)

# Rec. 709 is written into the file, or each player would guess another matrix and shift the colours.
_COLOUR = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
_TO_YUV = "scale=in_range=full:out_range=tv:out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int"
# Without dates and encoder versions inside, the same frames give the same file.
_REPRODUCIBLE = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1")
# GIF counts hundredths of a second; viewers slow everything below two of them down to ten.
_GIF_TICKS = 100
GIF_FASTEST = 50


def encoder_fault(suffix: str = ".mp4") -> str:
    """Why a video of that ending cannot be written as it should be, and what is written instead; "" where it can.

    To be asked before the work whose result is to be such a video.
    """
    return _encoder_fault(suffix, os.environ.get("IMAGEIO_FFMPEG_EXE", ""))


@functools.lru_cache
def _encoder_fault(suffix: str, executable: str) -> str:
    faults: list[str] = []
    picture = np.zeros((1, 16, 16, 3), np.uint8)
    for codec in _CODECS[suffix]:
        if _encoded(suffix, picture, 8.0, [part.format(crf=12) for part in codec], faults) is not None:
            instead = f"videos are written by {codec[1]}, which browsers may not play"
            return "" if codec[1] in _PLAYED else f"{faults[0]}: {instead}; {_WAY_OUT}"
    return f"{faults[0]}: videos are written as GIF or animated PNG; {_WAY_OUT}"


def write_video(path: str | Path, frames: Tensor, fps: float, *, crf: int = 12, upscale: int = 1) -> Path:
    """Write frames (f, h, w, 3) in [0, 1] as H.264 (.mp4, .mov, .mkv) or VP9 (.webm), yuv420p, and return the path.

    Odd sides get one more row or column, a copy of the last, because yuv420p has only even sizes; nothing is resized.
    `crf` is the encoder's quality, 0 best; `upscale` repeats pixels, so that small clips can be seen.
    Where ffmpeg lacks the encoder the next best is taken, and without any a GIF or an animated PNG is written beside
    the name, with a warning: what was computed is never lost for want of an encoder. The path returned is the file's.
    Raises OutputError for another ending, frames of another shape, fps that is not above 0, or a disk that refuses.
    """
    path = Path(path)
    codecs = _CODECS.get(path.suffix.lower())
    if codecs is None:
        raise OutputError(f"{path.name} should end in {', '.join(VIDEO_SUFFIXES)} to be written as a video.")
    check_fps(fps)
    pictures = _even(_repeat(to_bytes(frames), upscale))
    faults: list[str] = []
    for codec in codecs:
        made = _encoded(path.suffix.lower(), pictures, fps, [part.format(crf=crf) for part in codec], faults)
        if made is not None:
            if faults:
                _log.warning("%s is written by %s, as %s", path.name, codec[1], faults[0])
            return write_atomically(path, made)
    return _without_ffmpeg(path, frames, fps, upscale, faults[0])


def _encoded(suffix: str, pictures: np.ndarray, fps: float, codec: Sequence[str], faults: list[str]) -> bytes | None:
    """The bytes of a video, or None with one more sentence in `faults` where this encoder is not to be had."""
    height, width = pictures.shape[1:3]
    rate = str(Fraction(fps).limit_denominator(1_000_000))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", rate, "-i", "-")
    # The muxer seeks in its file, so it writes into a folder of its own; a name like -x.mp4 never reaches ffmpeg.
    try:
        with tempfile.TemporaryDirectory(prefix="motion_lora_") as folder:
            made = Path(folder) / f"video{suffix}"
            arguments = (*raw, "-vf", _TO_YUV, *codec, "-pix_fmt", "yuv420p", *_COLOUR, *_REPRODUCIBLE, str(made))
            status, _, log = run_ffmpeg(arguments, pictures.tobytes())
            if status == 0 and made.is_file():
                return made.read_bytes()
            faults.append(f"{codec[1]} could not encode it ({_last_line(log)})")
    except ClipError as error:
        faults.append(str(error))
    except OSError as error:
        raise OutputError(f"the temporary folder cannot be used: {error.strerror or error}; free some space") from error
    return None


def _without_ffmpeg(path: Path, frames: Tensor, fps: float, upscale: int, fault: str) -> Path:
    """A GIF, or where it cannot be so fast an animated PNG, which Pillow writes by itself."""
    if fps <= GIF_FASTEST:
        written = write_gif(path.with_suffix(".gif"), frames, fps, upscale=upscale)
    else:
        first, *rest = [Image.fromarray(picture) for picture in _repeat(to_bytes(frames), upscale)]
        buffer = io.BytesIO()
        first.save(buffer, "PNG", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        written = write_atomically(path.with_suffix(".png"), buffer.getvalue())
    _log.warning("%s is written instead of %s: %s", written.name, path.name, fault)
    return written


def write_gif(path: str | Path, frames: Tensor, fps: float, *, upscale: int = 1) -> Path:
    """Write frames (f, h, w, 3) in [0, 1] as an endless GIF and return the path.

    GIF has no frame rate but a duration per frame in hundredths of a second; they are spread so that no time is lost
    (8 fps: 12, 13, 12, 13, ...). Raises OutputError, also for more than 50 fps, which no viewer plays.
    """
    if check_fps(fps) > GIF_FASTEST:
        raise OutputError(f"A GIF cannot hold {fps:g} frames per second, viewers stop at 50: write an .mp4.")
    pictures = [Image.fromarray(picture).quantize(256) for picture in _repeat(to_bytes(frames), upscale)]
    ends = [round(_GIF_TICKS * (i + 1) / fps) for i in range(len(pictures))]
    ticks = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[tick * 1000 // _GIF_TICKS for tick in ticks],
        loop=0,
        disposal=1,
    )
    return write_atomically(path, buffer.getvalue())


def write_png(path: str | Path, picture: Tensor | Image.Image) -> Path:
    """Write a PIL image, or a frame (h, w, 3) in [0, 1], as PNG and return the path. Raises OutputError."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(to_bytes(picture[None])[0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())


def to_bytes(frames: Tensor) -> np.ndarray:
    """Frames (f, h, w, 3) in [0, 1] -> uint8 array of that shape, rounded. Raises OutputError for another shape."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise OutputError(
            f"frames have shape {tuple(frames.shape)}; a video needs (f, h, w, 3) with at least one frame."
        )
    values = torch.nan_to_num(frames.detach().to("cpu", torch.float32)).clamp(0, 1)
    return (values * 255).round().to(torch.uint8).numpy()


def check_fps(fps: float) -> float:
    """The frame rate itself, or OutputError if it is none."""
    if not (math.isfinite(fps) and fps > 0):
        raise OutputError(f"fps is {fps}; it must be above 0.")
    return fps


def _repeat(pictures: np.ndarray, factor: int) -> np.ndarray:
    if factor < 1:
        raise OutputError(f"upscale is {factor}; it must be 1 or more.")
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def _even(pictures: np.ndarray) -> np.ndarray:
    height, width = pictures.shape[1:3]
    return np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg says nothing"
