"""Captions of the clips in a folder, from text files beside them or from one table.

    clips/skate.mp4  clips/skate.txt     line 1: full caption; line 2, optional: appearance caption;
                                         line 3, optional: words to absorb, separated by commas
    clips/captions.csv                   columns file, caption and, optional, appearance_caption, absorb_words, start

A folder of images counts as a clip like a video does (clips/turn/ with clips/turn.txt); where there are neither, every
image is one of its own (photos/dog.png with photos/dog.txt), for methods that learn from images. With a table every
clip must be in it, so that none is left out by a typing error. Files are read as UTF-8.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ClipError
from .kinds import VIDEO_SUFFIXES, is_image_file, is_image_folder

CAPTION_TABLE = "captions.csv"
_COLUMNS = ("file", "caption", "appearance_caption", "absorb_words", "start")


@dataclass(frozen=True)
class CaptionedFile:
    """A video, an image or a folder of images, its captions, and the second at which the clip starts."""

    path: Path
    caption: str
    appearance_caption: str = ""
    absorb_words: str = ""
    start: float = 0.0


def read_captions(folder: str | Path) -> tuple[CaptionedFile, ...]:
    """The clips of a folder with their captions, sorted by name. Raises ClipError for the first that has none."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ClipError(f"{folder} is not a folder; name the folder that holds the clips.")
    clips = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES or is_image_folder(p))
    # Beside videos an image is a thumbnail.
    clips = clips or sorted(p for p in folder.iterdir() if is_image_file(p))
    if not clips:
        raise ClipError(f"{folder} holds no clips ({', '.join(VIDEO_SUFFIXES)}, folders of images, or images).")
    table = folder / CAPTION_TABLE
    return _from_table(table, clips) if table.is_file() else tuple(_from_text(clip) for clip in clips)


def check_captions(name: str, caption: str, appearance_caption: str, absorb_words: str) -> None:
    """Raise ClipError for a missing caption, or words to absorb that a caption does not hold as whole words."""
    if not caption.strip():
        raise ClipError(f"{name} has no caption: say in a few words what is seen and what moves.")
    for phrase in filter(None, (" ".join(part.split()) for part in absorb_words.split(","))):
        pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
        for kind, text in (("caption", caption), ("appearance caption", appearance_caption)):
            if text and not pattern.search(" ".join(text.split())):
                raise ClipError(f"{name}: {phrase!r}, to be absorbed, is not in the {kind} {text!r}; use words of it.")


def _from_text(clip: Path) -> CaptionedFile:
    path = clip.with_name(f"{clip.name if clip.is_dir() else clip.stem}.txt")
    if not path.is_file():
        raise ClipError(f"{clip.name} has no caption: write it into {path.name} beside it, or use {CAPTION_TABLE}.")
    lines = [line.strip() for line in _read(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not lines[0]:
        raise ClipError(f"{path.name} is empty: its first line is the caption of {clip.name}.")
    if len(lines) > 3:
        raise ClipError(
            f"{path.name} has {len(lines)} lines; it may have 3: caption, appearance caption, words to absorb."
        )
    caption, appearance_caption, absorb_words = [*lines, "", ""][:3]
    return CaptionedFile(clip, caption, appearance_caption, absorb_words)


def _from_table(path: Path, clips: list[Path]) -> tuple[CaptionedFile, ...]:
    rows = csv.DictReader(_read(path).splitlines(), skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    if not {"file", "caption"} <= set(names) or not set(names) <= set(_COLUMNS):
        raise ClipError(f"{path.name} has the columns {', '.join(names)}; it may have {', '.join(_COLUMNS)}.")
    known = {clip.name: clip for clip in clips}
    listed = [_from_row(path, number, row, known) for number, row in enumerate(rows, start=2)]
    for number, entry in enumerate(listed, start=2):
        # Two parts of one file have two starts.
        if any((entry.path, entry.start) == (other.path, other.start) for other in listed[: number - 2]):
            raise ClipError(f"{path.name}, line {number}: {entry.path.name} is listed twice; give each part its start.")
    missing = [clip.name for clip in clips if clip not in {entry.path for entry in listed}]
    if missing:
        raise ClipError(f"{path.name} does not list {', '.join(missing)}: add a line for it, or move it elsewhere.")
    return tuple(listed)


def _from_row(path: Path, number: int, row: Mapping[str, str | None], known: Mapping[str, Path]) -> CaptionedFile:
    values = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    name = values["file"]
    if name not in known:
        raise ClipError(f"{path.name}, line {number}: {name!r} is no clip in {path.parent.name}.")
    if not values["caption"]:
        raise ClipError(f"{path.name}, line {number}: {name} has no caption.")
    try:
        start = float(values.get("start") or 0)
    except ValueError as error:
        raise ClipError(
            f"{path.name}, line {number}: start is {values['start']!r}, not a number of seconds."
        ) from error
    return CaptionedFile(
        known[name], values["caption"], values.get("appearance_caption", ""), values.get("absorb_words", ""), start
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ClipError(f"{path.name} is not UTF-8 text: save it as UTF-8.") from error
