"""Decoding: the frames of a video at the wanted times, by ffmpeg in two passes, and those of a folder of images.

The first pass only asks when each frame that can be decoded is shown, so that variable frame rates, cut-off files and
odd containers are all met by what is really there; the second returns the chosen frames and no others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.errors import ClipError
from .ffmpeg import run_ffmpeg
from .timing import Request, Timeline, pick

VIDEO_SUFFIXES = (".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_MARGIN = 1.0  # seconds decoded beyond what is asked for, so that the last frame has neighbours
_FALLBACK_FPS = 25.0
_SHOWN = re.compile(r"\bn:\s*\d+\s+pts:\s*\S+\s+pts_time:\s*(\S+)")
_RATE = re.compile(r"Video:.*?([\d.]+) fps")
_LENGTH = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
_PPM = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


def is_image_folder(path: Path) -> bool:
    """Whether a path is a folder with images in it."""
    return path.is_dir() and any(child.suffix.lower() in IMAGE_SUFFIXES for child in path.iterdir())


def is_image_file(path: Path) -> bool:
    """Whether a path is a single image by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def read_video(path: Path, request: Request) -> tuple[Tensor, float]:
    """Frames (f, h, w, 3) in [0, 1] of a video and their rate. Raises ClipError, also for anything but a video."""
    request.check(path.name)
    _check_file(path)
    source = _source(path, request)
    status, _, log = run_ffmpeg([*source, "-map", "0:v:0", "-vf", "showinfo", "-an", "-f", "null", "-"])
    times = [float(time) for time in _SHOWN.findall(log) if _is_number(time)]
    if not times:
        raise ClipError(_nothing_decoded(path, request, status, log))
    timeline = Timeline.of(times, _rate(log))
    indices, fps = pick(timeline, request, path.name, beyond=_cut_off(timeline, request, log))
    chosen = sorted(set(indices))
    pictures = _decode(path, source, chosen)
    frames = torch.from_numpy(np.stack([pictures[chosen.index(i)] for i in indices]))
    return frames.float() / 255, fps


def read_images(folder: Path, request: Request, images_fps: float | None) -> tuple[Tensor, float]:
    """Frames (f, h, w, 3) in [0, 1] of one image, or a folder of images in natural order (2 before 10); their rate.

    The images were taken at `images_fps`; without it they are the frames themselves. Raises ClipError.
    """
    request.check(folder.name)
    if images_fps is not None and not (math.isfinite(images_fps) and images_fps > 0):
        raise ClipError(f"{folder.name}: images_fps is {images_fps}; it must be above 0.")
    files = [folder] if folder.is_file() else folder.iterdir()
    paths = sorted((path for path in files if path.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not paths:
        raise ClipError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    rate = images_fps or request.fps or _FALLBACK_FPS
    skipped = round(request.start * rate)
    if skipped >= len(paths):
        raise ClipError(
            f"{folder.name} has {len(paths)} images, {len(paths) / rate:.2f} s; start is {request.start:g} s."
        )
    indices, fps = pick(
        Timeline.regular(len(paths) - skipped, rate), replace(request, fps=request.fps or rate), folder.name
    )
    pictures = {i: _open_image(paths[skipped + i]) for i in sorted(set(indices))}
    first = pictures[indices[0]]
    for i, picture in pictures.items():
        if picture.shape != first.shape:
            raise ClipError(
                f"{folder.name}: {paths[skipped + i].name} is {_size(picture)} and the first image {_size(first)}; "
                "the images of a clip need one size."
            )
    return torch.from_numpy(np.stack([pictures[i] for i in indices])).float() / 255, fps


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.is_dir():
        raise ClipError(f"{path} is a folder without images; name a video, or a folder of images.")
    if size == 0:
        raise ClipError(f"{path.name} is empty (0 bytes): fetch or record it again.")


def _source(path: Path, request: Request) -> list[str]:
    """Arguments that open the part of the file that is needed. No file can make ffmpeg open others, or the network."""
    where = ["-ss", f"{request.start:.6f}"] if request.start else []
    length = [] if request.seconds is None else ["-t", f"{request.seconds + _MARGIN:.6f}"]
    return ["-protocol_whitelist", "file", *where, *length, "-i", f"file:{path.resolve()}"]


def _decode(path: Path, source: Sequence[str], indices: Sequence[int]) -> list[np.ndarray]:
    """The decoded frames of the given numbers, ascending: uint8 (h, w, 3) with square pixels."""
    steps = (
        f"select='{_any_of(indices)}'",
        "scale=w='max(1,round(iw*sar))':h=ih:flags=bicubic+accurate_rnd+full_chroma_int",
        "setsar=1",
        "format=rgb24",
    )
    read = [*source, "-map", "0:v:0", "-vf", ",".join(steps), "-an"]
    write = ["-frames:v", str(len(indices)), "-c:v", "ppm", "-f", "image2pipe", "-"]
    # Left alone, ffmpeg drops and doubles frames to keep the source's rate; versions before 5.1 name the option so.
    for as_they_are in (("-fps_mode", "passthrough"), ("-vsync", "0")):
        status, raw, log = run_ffmpeg([*read, *as_they_are, *write])
        if "Unrecognized option" not in log:
            break
    pictures = _split_ppm(raw)
    if len(pictures) != len(indices):
        raise ClipError(
            f"{path.name}: {len(pictures)} of {len(indices)} frames could be decoded ({_reason(log, status)}); "
            "convert it to mp4 and try again."
        )
    return pictures


def _any_of(indices: Sequence[int]) -> str:
    """ffmpeg's expression for "frame n is one of these", as a balanced tree: its parser goes only a hundred deep."""
    if len(indices) == 1:
        return f"eq(n,{indices[0]})"
    middle = len(indices) // 2
    return f"({_any_of(indices[:middle])}+{_any_of(indices[middle:])})"


def _split_ppm(raw: bytes) -> list[np.ndarray]:
    pictures, position = [], 0
    while header := _PPM.match(raw, position):
        width, height = int(header[1]), int(header[2])
        data = raw[header.end() : header.end() + width * height * 3]
        if len(data) < width * height * 3:
            break
        pictures.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
        position = header.end() + len(data)
    return pictures


def _rate(log: str) -> float:
    found = _RATE.search(log)
    return float(found[1]) if found and float(found[1]) > 0 else _FALLBACK_FPS


def _promised(log: str) -> float | None:
    """Seconds that the file's header claims."""
    found = _LENGTH.search(log)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _cut_off(timeline: Timeline, request: Request, log: str) -> str:
    promised = _promised(log)
    if promised is None or request.start + timeline.seconds > promised - max(0.5, 0.05 * promised):
        return ""
    return f" The file promises {promised:.2f} s in all: it is cut off or damaged."


def _nothing_decoded(path: Path, request: Request, status: int, log: str) -> str:
    if "moov atom not found" in log and _is_mp4(path):
        return f"{path.name} is cut off: the index at its end is missing; fetch or record it again."
    if "matches no streams" in log or "does not contain any stream" in log:
        return f"{path.name} holds no picture, only sound or text; name a video."
    promised = _promised(log)
    if promised is not None and status == 0 and request.start > 0:
        return f"{path.name} is {promised:.2f} s long and has no frame after {request.start:g} s: start earlier."
    if promised is not None:
        return f"{path.name}: no frame could be decoded, it is empty, cut off or damaged ({_reason(log, status)})."
    legal = ", ".join(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
    return f"{path.name} is not a video that can be read ({_reason(log, status)}); use one of: {legal}."


def _is_mp4(path: Path) -> bool:
    """Whether a file begins as an mp4 or mov does; by its name alone ffmpeg takes any file for one."""
    with path.open("rb") as file:
        return file.read(12)[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def _reason(log: str, status: int) -> str:
    """ffmpeg's own words for what went wrong, without addresses and paths."""
    lines = [line for line in log.splitlines() if re.search(r"error|invalid|not found|unknown|failed", line, re.I)]
    if not lines:
        return f"ffmpeg ended with {status}"
    return re.sub(r"\[[^]]*\]\s*|file:\S+:\s*", "", lines[-1]).strip()[:120] or "unknown"


def _open_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ClipError(f"{path.name} in {path.parent.name} is not an image that can be read: {error}") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d*)?(e[-+]?\d+)?", text, re.I))
