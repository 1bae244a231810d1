"""What ffmpeg's log says of a file: when its frames are shown, and how their numbers are meant as colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FRAME = re.compile(
    r"\bn:\s*(?P<n>\d+)\s+pts:\s*\S+\s+pts_time:\s*(?P<time>-?\d+(?:\.\d*)?(?:e[-+]?\d+)?)\b.*?\bfmt:(?P<format>\w+)"
    r".*?\bs:(?P<width>\d+)x(?P<height>\d+)(?:.*?\bi:(?P<field>[PTB]))?",
    re.I,
)
_COLOUR = re.compile(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_RATE = re.compile(r"Video:.*?([\d.]+) fps")
_LENGTH = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: Video: (?P<codec>\w+)(?P<rest>.*)$", re.M)
_DOLBY = re.compile(r"DOVI configuration record:.*?profile: (\d+)")
_ALPHA = re.compile(r"yuva|gbrap|rgba|bgra|argb|abgr|ya8|ya16|pal8|ayuv|vuya")
_NOT_SAID = ("unknown", "unspecified", "reserved", "N/A")


@dataclass(frozen=True)
class Facts:
    """Of the frames of one video stream, in the order they are shown; `colour` is range, matrix, primaries, transfer.

    A word of `colour` is "" where the file does not say. `steady` is off where size or format change in the middle,
    after which ffmpeg's filters count anew. `dolby` is the profile of Dolby Vision, or 0.
    """

    times: tuple[float, ...]
    formats: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    colour: tuple[str, str, str, str]
    interlaced: bool
    steady: bool
    codec: str
    has_alpha_beside: bool
    dolby: int
    pictures: int

    @property
    def has_alpha(self) -> bool:
        return any(_ALPHA.match(name) for name in self.formats)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first frame."""
        return self.sizes[0]


def facts_of(log: str) -> Facts:
    """Read ffmpeg's log of a run with showinfo over the first stream of pictures."""
    frames = [match.groupdict() for match in _FRAME.finditer(log)]
    streams = [match for match in _STREAM.finditer(_of_input(log)) if "attached pic" not in match["rest"]]
    colours = _COLOUR.findall(log)
    words = colours[len(colours) // 2] if colours else ("", "", "", "")
    fields = [frame["field"] for frame in frames if frame["field"]]
    dolby = _DOLBY.search(log)
    return Facts(
        times=tuple(float(frame["time"]) for frame in frames),
        formats=tuple(dict.fromkeys(frame["format"] for frame in frames)),
        sizes=tuple(dict.fromkeys((int(frame["width"]), int(frame["height"])) for frame in frames)),
        colour=_said(words),
        interlaced=sum(field in "TB" for field in fields) * 2 > len(fields) > 0,
        steady=[int(frame["n"]) for frame in frames] == list(range(len(frames))) and len(set(colours)) < 2,
        codec=streams[0]["codec"] if streams else "",
        has_alpha_beside=bool(re.search(r"alpha_mode\s*:\s*1", _of_input(log), re.I)),
        dolby=int(dolby[1]) if dolby else 0,
        pictures=len(streams),
    )


def rate(log: str, fallback: float) -> float:
    """Frames per second as the file states them."""
    found = _RATE.search(log)
    return float(found[1]) if found and float(found[1]) > 0 else fallback


def promised(log: str) -> float | None:
    """Seconds that the file's header claims."""
    found = _LENGTH.search(log)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def reason(log: str, status: int) -> str:
    """ffmpeg's own words for what went wrong, without addresses and paths."""
    lines = [line for line in log.splitlines() if re.search(r"error|invalid|not found|unknown|failed", line, re.I)]
    if not lines:
        return f"ffmpeg ended with {status}"
    return re.sub(r"\[[^]]*\]\s*|file:\S+:\s*", "", lines[-1]).strip()[:120] or "unknown"


def _of_input(log: str) -> str:
    return log.split("Stream mapping:", 1)[0]


def _said(words: Sequence[str]) -> tuple[str, str, str, str]:
    first, second, third, fourth = ("" if word in _NOT_SAID else word for word in words)
    return first, second, third, fourth
