"""Captions of the clips in a folder, from text files beside them or from one table.

    clips/skate.mp4  clips/skate.txt     line 1: full caption; line 2, optional: appearance caption;
                                         line 3, optional: words to absorb, separated by commas
    clips/captions.csv                   columns file, caption and, optional, appearance_caption, absorb_words, start;
                                         separated by commas, semicolons or tabs (captions.tsv)
    clips/captions.jsonl                 the same as one JSON object a line; file_name, video_path and text are known

A folder of images counts as a clip like a video does (clips/turn/ with clips/turn.txt); where there are neither, every
image is one of its own (photos/dog.png with photos/dog.txt), for methods that learn from images. With a table every
clip must be in it, so that none is left out by a typing error. What else lies in the folder is named in the log.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.decoding import decode_text, lines_of, one_line
from ..core.errors import ClipError
from .kinds import VIDEO_SUFFIXES, is_clip_file, is_image_file, is_image_folder, is_junk

logger = logging.getLogger(__name__)

CAPTION_TABLE = "captions.csv"
_TABLES = (CAPTION_TABLE, "captions.tsv", "captions.jsonl", "metadata.jsonl")
_COLUMNS = ("file", "caption", "appearance_caption", "absorb_words", "start")
# What other trainers call the first two.
_ALSO = {"file_name": "file", "video_path": "file", "image_path": "file", "text": "caption"}
_SEPARATORS = ",;\t"
# How Excel is told which separator a file has.
_SEPARATOR_LINE = re.compile(r"\A\s*\"?sep=.\"?\s*\n", re.IGNORECASE)
_Row = tuple[int, Mapping[str, str]]


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
    there = sorted(path for path in folder.iterdir() if not is_junk(path))
    # Beside videos an image is a thumbnail.
    clips = [p for p in there if is_clip_file(p) or is_image_folder(p)] or [p for p in there if is_image_file(p)]
    if not clips:
        known = ", ".join(VIDEO_SUFFIXES[:7])
        raise ClipError(f"{folder} holds no clips ({known} and others, folders of images, or images).")
    tables = [folder / name for name in _TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ClipError(f"{folder.name} has {' and '.join(table.name for table in tables)}: keep one of them.")
    texts = [] if tables else [_text_of(clip) for clip in clips]
    _name_left_out(folder, there, [*clips, *tables, *texts])
    if tables:
        return _from_table(tables[0], clips)
    return tuple(_from_text(clip, text) for clip, text in zip(clips, texts, strict=True))


def check_captions(name: str, caption: str, appearance_caption: str, absorb_words: str) -> None:
    """Raise ClipError for a missing caption, or words to absorb that a caption does not hold as whole words."""
    if not caption.strip():
        raise ClipError(f"{name} has no caption: say in a few words what is seen and what moves.")
    for phrase in filter(None, (" ".join(part.split()) for part in absorb_words.split(","))):
        pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
        for kind, text in (("caption", caption), ("appearance caption", appearance_caption)):
            if text and not pattern.search(" ".join(text.split())):
                raise ClipError(f"{name}: {phrase!r}, to be absorbed, is not in the {kind} {text!r}; use words of it.")


def _name_left_out(folder: Path, there: Sequence[Path], used: Iterable[Path]) -> None:
    others = [path.name for path in there if path not in set(used)]
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        logger.warning("%s: left out, as they are no clips and no captions: %s%s", folder, ", ".join(others[:10]), more)


def _text_of(clip: Path) -> Path:
    stem = clip.name if clip.is_dir() else clip.stem
    names = (f"{stem}.txt", f"{clip.name}.txt", f"{stem}.caption")
    return next((clip.with_name(name) for name in names if clip.with_name(name).is_file()), clip.with_name(names[0]))


def _from_text(clip: Path, path: Path) -> CaptionedFile:
    if not path.is_file():
        raise ClipError(f"{clip.name} has no caption: write it into {path.name} beside it, or use {CAPTION_TABLE}.")
    lines = lines_of(_read(path))
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
    rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    known = {_key(clip.name): clip for clip in clips}
    listed: list[CaptionedFile] = []
    for number, row in rows:
        entry = _from_row(path, number, row, known)
        # Two parts of one file have two starts.
        if any((entry.path, entry.start) == (other.path, other.start) for other in listed):
            raise ClipError(f"{path.name}, line {number}: {entry.path.name} is listed twice; give each part its start.")
        listed.append(entry)
    missing = [clip.name for clip in clips if clip not in {entry.path for entry in listed}]
    if missing:
        raise ClipError(f"{path.name} does not list {', '.join(missing)}: add a line for it, or move it elsewhere.")
    return tuple(listed)


def _csv_rows(path: Path) -> list[_Row]:
    text = _SEPARATOR_LINE.sub("", _read(path), count=1)
    separator = max(_SEPARATORS, key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        cells = [(reader.line_num, [one_line(cell) for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as error:
        raise ClipError(f"{path.name}, line {reader.line_num}: it is no table ({error}).") from error
    names = [_column(name) for name in cells[0][1]] if cells else []
    _check_columns(path, names, ", ".join(cells[0][1]) if cells else "none")
    rows: list[_Row] = []
    for number, row in cells[1:]:
        if len(row) > len(names):
            raise ClipError(
                f"{path.name}, line {number}: {len(row)} columns and {len(names)} names; put a caption that holds "
                f"{separator!r} into double quotes."
            )
        rows.append((number, dict(zip(names, row, strict=False))))
    return rows


def _json_rows(path: Path) -> list[_Row]:
    rows: list[_Row] = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ClipError(f"{path.name}, line {number}: it is no JSON object ({str(error)[:80]}).") from error
        if not isinstance(content, dict):
            raise ClipError(f"{path.name}, line {number}: it is no JSON object.")
        _check_columns(path, [_column(key) for key in content], ", ".join(content))
        where = f"{path.name}, line {number}"
        rows.append((number, {_column(key): _cell(where, key, value) for key, value in content.items()}))
    return rows


def _column(name: str) -> str:
    """A column's name, whatever it is called and however it is capitalised."""
    plain = one_line(name).lower()
    return _ALSO.get(plain, plain)


def _cell(where: str, key: str, value: object) -> str:
    """A value of a JSON object as the text that a table would hold. Raises ClipError for what is none."""
    if isinstance(value, list) and _column(key) == "absorb_words" and all(isinstance(one, str) for one in value):
        return one_line(", ".join(value))
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ClipError(f"{where}: {key} is {str(value)[:60]!r}, not a text: give one caption a line.")
    return one_line(str(value))


def _check_columns(path: Path, names: Sequence[str], said: str) -> None:
    if not {"file", "caption"} <= set(names) or not set(names) <= set(_COLUMNS) or len(set(names)) < len(names):
        raise ClipError(f"{path.name} has the columns {said[:120]}; it may have {', '.join(_COLUMNS)}.")


def _from_row(path: Path, number: int, row: Mapping[str, str], known: Mapping[str, Path]) -> CaptionedFile:
    name = row["file"]
    # Other tools write a path; the file must lie beside the table all the same.
    clip = known.get(_key(re.split(r"[/\\]", name)[-1])) if name else None
    if clip is None:
        raise ClipError(f"{path.name}, line {number}: {name!r} is no clip in {path.parent.name}.")
    if not row.get("caption"):
        raise ClipError(f"{path.name}, line {number}: {name} has no caption.")
    try:
        start = float((row.get("start") or "0").replace(",", "."))
    except ValueError as error:
        raise ClipError(f"{path.name}, line {number}: start is {row['start']!r}, not a number of seconds.") from error
    return CaptionedFile(clip, row["caption"], row.get("appearance_caption", ""), row.get("absorb_words", ""), start)


def _key(name: str) -> str:
    """macOS writes accents apart from their letters."""
    return unicodedata.normalize("NFC", name)


def _read(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ClipError(f"{path.name} is not UTF-8 text: save it as UTF-8.") from error
