"""The published figures of bench/published.md: whole tables, their words, what the papers conclude."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

PUBLISHED = (Path(__file__).resolve().parents[1] / "bench" / "published.md").read_text(encoding="utf-8")

# First column -> the rest, per table, in the order of printing.
Table = dict[str, list[float | None]]


def blocks() -> list[tuple[str, list[list[str]]]]:
    """The tables, each with the paragraph before it: (text, lines of cells)."""
    paragraphs = PUBLISHED.strip().split("\n\n")
    return [
        (before, [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()])
        for before, table in itertools.pairwise(paragraphs)
        if table.startswith("|")
    ]


def table(number: int) -> Table:
    _, (_, _, *rows) = blocks()[number]
    return {row[0]: [None if cell == "-" else float(cell) for cell in row[1:]] for row in rows}


def column(number: int, place: int) -> dict[str, float]:
    return {name: value for name, values in table(number).items() if (value := values[place]) is not None}


def test_tables_are_whole() -> None:
    found = blocks()
    assert len(found) == 6
    for text, (head, rule, *rows) in found:
        assert not text.startswith("|") and set(rule) == {"---"} and rows
        assert {len(line) for line in (head, rule, *rows)} == {len(head)}
        assert len({row[0] for row in rows}) == len(rows)
        # Every column is explained or its scale is, and whether more of it is better.
        assert "better" in text and all("|" not in line for line in text.splitlines())


def test_every_table_says_whence_it_comes() -> None:
    for text, _ in blocks():
        assert ("second-hand" in text) != ("read from the paper" in text)
        assert ("read from the paper" in text) == text.startswith("Customize-A-Video")


@pytest.mark.parametrize(
    ("number", "place", "low", "high"),
    [
        (0, 0, 30, 33),
        (0, 1, 0.1, 0.3),
        (0, 2, 0.3, 0.7),
        (1, 0, 1, 5),
        (1, 1, 1, 5),
        (2, 1, 90, 95),
        (3, 0, 50, 100),
        (3, 1, 50, 100),
        (4, 0, 60, 70),
        (5, 0, 27, 29),
        (5, 1, 25, 27),
        (5, 2, 90, 95),
    ],
)
def test_no_figure_stands_in_another_column(number: int, place: int, low: float, high: float) -> None:
    values = column(number, place).values()
    assert values and low <= min(values) and max(values) <= high


def test_the_tables_say_what_the_papers_conclude() -> None:
    text, temporal, diversity = (column(0, place) for place in range(3))
    assert max(text, key=text.__getitem__) == min(temporal, key=temporal.__getitem__) == "textual-inversion absorber"
    ranked = sorted(diversity, key=diversity.__getitem__, reverse=True)
    assert ranked[:2] == ["ModelScope (base)", "dual absorber"], "no method is as diverse as the base"
    assert {name for name in text if "Tune" in name or "P2P" in name} - set(diversity) == {"Tune-A-Video", "Video-P2P"}
    for place in (0, 1):
        stars = column(1, place)
        assert max(stars, key=stars.__getitem__) == "dual absorber"
        assert min(stars, key=stars.__getitem__) == ("ModelScope (base)", "Video-P2P, without DDIM inversion")[place]
    key, everything = table(4)["key"], table(4)["all linear layers (MotionDirector)"]
    assert key[1] > everything[1] and key[2] < everything[2], "the key alone leaks less"
    steps = list(column(5, 0).values())
    assert steps == sorted(steps), "each part adds text alignment"
