"""Text files as people's editors save them: UTF-8, with or without its mark, or UTF-16 as Windows writes it."""

from __future__ import annotations

import codecs
import re

_LINE_ENDS = re.compile(r"\r\n|\r|\n")


def decode_text(data: bytes) -> str:
    """The text of a file's bytes. Raises UnicodeDecodeError for another encoding: guessing would give other words."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    # Without a mark UTF-16 is known by the zero bytes that every Latin letter brings along.
    if data[:4].count(0) and b"\0" in data[1::2]:
        return data.decode("utf-16-le")
    if data[:4].count(0) and b"\0" in data[::2]:
        return data.decode("utf-16-be")
    return data.decode("utf-8-sig")


def lines_of(text: str) -> list[str]:
    """Its lines, by the ends that editors write; Unicode's other separators are part of a line, as they are on screen.

    Runs of blanks and control characters within a line become one blank.
    """
    return [one_line(line) for line in _LINE_ENDS.split(text)]


def one_line(text: str) -> str:
    """A text without line ends and control characters: words apart by one blank each."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
