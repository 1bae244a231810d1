"""Decoding a video: its frames at the wanted times, by ffmpeg in two passes.

The first pass only asks when each frame that can be decoded is shown and how its colours are meant, so that variable
frame rates, cut-off files and odd containers are all met by what is really there; the second returns the chosen frames,
each brought to its size as soon as it is decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ClipError
from . import colour, probe
from .ffmpeg import read_pictures, run_ffmpeg
from .kinds import VIDEO_SUFFIXES
from .probe import Facts
from .timing import Request, Timeline, pick

logger = logging.getLogger(__name__)

Fit = Callable[[np.ndarray], Tensor]

_MARGIN = 1.0  # seconds decoded beyond what is asked for, so that the last frame has neighbours
_FALLBACK_FPS = 25.0
_MOST_RANGES = 100
_SHAPE_TOLERANCE = 0.02
# The first stream of moving pictures: not a cover, not a thumbnail.
_STREAM = ("-map", "0:V:0")


def read_video(path: Path, request: Request, fit: Fit) -> tuple[Tensor, float]:
    """Frames (f, h, w, 3) in [0, 1] of a video and their rate. Raises ClipError, also for anything but a video.

    `fit` brings a decoded picture, uint8 (h, w, 3), to its size as a frame.
    """
    request.check(path.name)
    _check_file(path)
    source = _source(path, request)
    status, _, log = run_ffmpeg([*source, *_STREAM, "-vf", "showinfo", "-an", "-f", "null", "-"])
    facts = probe.facts_of(log)
    if not facts.times:
        raise ClipError(_nothing_decoded(path, request, status, log))
    if facts.pictures > 1:
        logger.warning("%s holds %d streams of pictures; the first is read.", path.name, facts.pictures)
    _require_one_shape(path, facts)
    timeline = Timeline.of(facts.times, probe.rate(log, _FALLBACK_FPS))
    indices, fps = pick(timeline, request, path.name, beyond=_cut_off(timeline, request, log))
    chosen = sorted(set(indices))
    frames = dict(zip(chosen, _decode(path, source, facts, chosen, fit), strict=True))
    return torch.stack([frames[i] for i in indices]), fps


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


def _decode(path: Path, source: Sequence[str], facts: Facts, indices: Sequence[int], fit: Fit) -> list[Tensor]:
    """The decoded frames of the given numbers, ascending."""
    decoder = colour.alpha_decoder(facts)
    if decoder:
        facts = replace(facts, formats=("yuva420p",))
    selection = _selection(indices) if facts.steady else []
    steps = [*colour.deinterlacer(facts), *selection, *colour.filters(facts, path.name)]
    read = [*decoder, *source, *_STREAM, "-vf", ",".join(steps), "-an"]
    places = range(len(indices)) if selection else indices
    write = ["-frames:v", str(places[-1] + 1), "-c:v", "pam", "-f", "image2pipe", "-"]

    def keep(picture: np.ndarray) -> Tensor:
        return fit(colour.on_white(picture))

    # Left alone, ffmpeg drops and doubles frames to keep the source's rate; versions before 5.1 name the option so.
    for as_they_are in (("-fps_mode", "passthrough"), ("-vsync", "0")):
        frames, status, log = read_pictures([*read, *as_they_are, *write], places, keep)
        if "Unrecognized option" not in log:
            break
    if len(frames) != len(indices):
        raise ClipError(_not_decoded(path, facts, len(frames), len(indices), log, status))
    return frames


def _selection(indices: Sequence[int]) -> list[str]:
    """A filter that lets only these frames pass, in ranges; none where there are too many for a command line."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return [f"select='{_any_of(ranges)}'"] if len(ranges) <= _MOST_RANGES else []


def _any_of(ranges: Sequence[Sequence[int]]) -> str:
    """ffmpeg's expression for "frame n is in one of these", as a balanced tree: its parser goes only so deep."""
    if len(ranges) == 1:
        return f"between(n,{ranges[0][0]},{ranges[0][1]})"
    middle = len(ranges) // 2
    return f"({_any_of(ranges[:middle])}+{_any_of(ranges[middle:])})"


def _require_one_shape(path: Path, facts: Facts) -> None:
    """ffmpeg brings all frames to the size of the first, which is right only where the shape stays."""
    width, height = facts.size
    for other_width, other_height in facts.sizes:
        if abs(other_width * height / (other_height * width) - 1) > _SHAPE_TOLERANCE:
            raise ClipError(
                f"{path.name} changes its size from {width} x {height} to {other_width} x {other_height} on the way: "
                "cut it into parts of one size."
            )


def _not_decoded(path: Path, facts: Facts, got: int, wanted: int, log: str, status: int) -> str:
    if "No such filter: 'zscale'" in log:
        return (
            f"{path.name} has colours ({', '.join(word for word in facts.colour if word)}) that this ffmpeg cannot "
            "bring to SDR, it lacks zscale: use the ffmpeg of imageio-ffmpeg, or convert the video to SDR."
        )
    if "Unknown decoder" in log:
        return f"{path.name} is transparent in parts, which this ffmpeg cannot read: convert it to ProRes 4444 or PNG."
    return (
        f"{path.name}: {got} of {wanted} frames could be decoded ({probe.reason(log, status)}); "
        "convert it to mp4 and try again."
    )


def _cut_off(timeline: Timeline, request: Request, log: str) -> str:
    promised = probe.promised(log)
    if promised is None or request.start + timeline.seconds > promised - max(0.5, 0.05 * promised):
        return ""
    return f" The file promises {promised:.2f} s in all: it is cut off or damaged."


def _nothing_decoded(path: Path, request: Request, status: int, log: str) -> str:
    if "moov atom not found" in log and _is_mp4(path):
        return f"{path.name} is cut off: the index at its end is missing; fetch or record it again."
    if "matches no streams" in log or "does not contain any stream" in log:
        cover = " and a cover picture" if "attached pic" in log else ""
        return f"{path.name} holds no picture, only sound or text{cover}; name a video."
    promised = probe.promised(log)
    if promised is not None and status == 0 and request.start > 0:
        return f"{path.name} is {promised:.2f} s long and has no frame after {request.start:g} s: start earlier."
    if promised is not None:
        why = probe.reason(log, status)
        return f"{path.name}: no frame could be decoded, it is empty, cut off or damaged ({why})."
    legal = ", ".join(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES[:7])
    return f"{path.name} is not a video that can be read ({probe.reason(log, status)}); use for example: {legal}."


def _is_mp4(path: Path) -> bool:
    """Whether a file begins as an mp4 or mov does; by its name alone ffmpeg takes any file for one."""
    with path.open("rb") as file:
        return file.read(12)[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
