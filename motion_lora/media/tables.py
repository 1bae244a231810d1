"""Tables as text: one type, written as markdown, as comma-separated values, or aligned for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None
"""None is a value that is missing: a dash in markdown, nothing in csv."""


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """A markdown table without a newline at its end; fractions have three digits, so a column reads at a glance."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(_shown(cell) for cell in line) + " |" for line in lines)

    def csv(self) -> str:
        """Comma-separated lines, the header first; numbers as they are."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return "-" if cell is None else str(cell).replace("|", "/").replace("\n", " ")


def aligned(rows: Sequence[Sequence[object]], header: Sequence[str]) -> list[str]:
    """One line per row, the header first; columns that hold only numbers stand to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [bool(cells) and all(is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        columns = zip(row, widths, numeric, strict=True)
        parts = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns]
        lines.append("  ".join(parts).rstrip())
    return lines


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number, with thousands commas or a sign if need be."""
    return cell.replace(",", "").replace(".", "", 1).lstrip("+-").isdigit()
