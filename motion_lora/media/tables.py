"""Text tables: columns aligned by spaces, for terminals and for nodes that give a report as text."""

from __future__ import annotations

from collections.abc import Sequence


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
