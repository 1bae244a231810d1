"""A report as a picture: facts by name, and a table below them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .fonts import drawable, font
from .sheets import BACKGROUND, FAINT, INK
from .tables import is_number

_MARGIN, _LINE, _GAP = 16, 22, 24
_SIZE = 15
_LONGEST = 60  # characters of one line of a fact
_MOST_LINES = 3
_STRIPE = (243, 246, 250)


def draw_table(
    rows: Sequence[Sequence[object]], header: Sequence[str], *, title: str = "", facts: Mapping[str, str] | None = None
) -> Image.Image:
    """A white picture, RGB, as large as it has to be: the title, `facts` as name and value, then the table.

    A long value is wrapped and cut after a few lines.
    """
    named = [(name, line) for name, value in (facts or {}).items() for name, line in _wrapped(name, value)]
    cells = [[drawable(str(cell)) for cell in row] for row in rows]
    columns = [[drawable(head), *(row[i] for row in cells)] for i, head in enumerate(header)] if cells else []
    face = font(_SIZE)
    name_width = max((_length(name) for name, _ in named), default=0) + _GAP
    widths = [max(_length(cell) for cell in column) + _GAP for column in columns]
    width = max([name_width + _length(line) for _, line in named] + [sum(widths), _length(title) * 5 // 4, 300])
    count = bool(title) + len(named) + (len(rows) + 2 if columns else 0)
    picture = Image.new("RGB", (width + 2 * _MARGIN, count * _LINE + 2 * _MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    y = _MARGIN
    if title:
        draw.text((_MARGIN, y), drawable(title), fill=INK, font=font(_SIZE + 3, title))
        y += _LINE
    for name, line in named:
        draw.text((_MARGIN, y), name, fill=FAINT, font=face)
        draw.text((_MARGIN + name_width, y), line, fill=INK, font=font(_SIZE, line))
        y += _LINE
    if columns:
        _draw_columns(draw, columns, widths, y + _LINE // 2, picture.width)
    return picture


def _draw_columns(
    draw: ImageDraw.ImageDraw, columns: Sequence[Sequence[str]], widths: Sequence[int], top: int, width: int
) -> None:
    for place in range(1, len(columns[0]), 2):
        y = top + place * _LINE
        draw.rectangle([0, y - 3, width, y + _LINE - 4], fill=_STRIPE)
    x = _MARGIN
    for column, column_width in zip(columns, widths, strict=True):
        right = all(is_number(cell) for cell in column[1:])
        for place, cell in enumerate(column):
            colour = INK if place else FAINT
            at = (x + column_width - _GAP, top + place * _LINE) if right else (x, top + place * _LINE)
            draw.text(at, cell, fill=colour, font=font(_SIZE, cell), anchor="ra" if right else "la")
        x += column_width


def _wrapped(name: str, value: str) -> list[tuple[str, str]]:
    """(name, first line), ("", further lines)."""
    lines = textwrap.wrap(drawable(value), _LONGEST, max_lines=_MOST_LINES, placeholder=" ...") or [""]
    return [(drawable(name) if place == 0 else "", line) for place, line in enumerate(lines)]


def _length(text: str) -> int:
    return round(font(_SIZE, text).getlength(drawable(text)))
