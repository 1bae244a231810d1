"""Scores of videos that exist already: no base model, only a judge, and a sheet that says what each figure is.

    motion fidelity, appearance leakage, text alignment, consistency    of each video, as `scores` defines them
    diversity                                                           of several videos of one prompt

Diversity is LPIPS of frames at the same time (`metrics.perceptual`); on the playground it is read by the probe, of
place, size and speed (`playground.scores`). A score that cannot be had stands in the sheet with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.disk import write_atomically
from ..core.errors import SettingsError
from ..media.tables import Table
from .judge import Judge
from .scores import DIVERSITIES, SCORES, Form, Scores, mean_scores, plain_name

SHEET_ENDINGS = (".csv", ".md")


@dataclass(frozen=True, eq=False)
class Video:
    """A video to be scored: frames (f, h, w, 3) in [0, 1], the prompt it was asked for with, "" where none is known.

    `neutral` is the base model's own video of the prompt; leakage on natural video is measured beside it.
    """

    label: str
    frames: Tensor
    prompt: str = ""
    neutral: Tensor | None = None


@dataclass(frozen=True)
class Line:
    """The scores of one video, or of several videos of a prompt, and why others are missing."""

    label: str
    prompt: str
    scores: Mapping[str, float]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """Lines of videos, lines of groups of one prompt, and what each score is; `remarks` are the judge's."""

    videos: tuple[Line, ...]
    groups: tuple[Line, ...] = ()
    forms: Mapping[str, Form] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def means(self) -> dict[str, float]:
        """The mean of each score over the videos that have it."""
        return mean_scores([line.scores for line in self.videos])


def score_videos(judge: Judge, videos: Sequence[Video]) -> Sheet:
    """Score every video, and the diversity of those that share a prompt. Raises SettingsError for no or equal labels.

    Videos without a prompt are taken to be of one and the same.
    """
    _check(videos)
    lines = tuple(_line(judge, video) for video in videos)
    together = [[video for video in videos if video.prompt == prompt] for prompt in dict.fromkeys(_prompts(videos))]
    groups = tuple(_group(judge, group) for group in together if len(group) > 1)
    forms = {**judge.forms, **(judge.diversity_forms if groups else {})}
    given = any(video.neutral is not None for video in videos)
    remarks = judge.doubts({video.label: video.frames for video in videos}, neutral=given)
    return Sheet(lines, groups, forms, remarks)


def _prompts(videos: Sequence[Video]) -> list[str]:
    return [video.prompt for video in videos]


def _line(judge: Judge, video: Video) -> Line:
    frames, height, width, _ = video.frames.shape
    gaps = judge.gaps(video.prompt, (frames, height, width), neutral=video.neutral is not None)
    return Line(video.label, video.prompt, judge.score(video.prompt, video.frames, video.neutral), gaps)


def _group(judge: Judge, videos: Sequence[Video]) -> Line:
    return Line(f"{len(videos)} videos", videos[0].prompt, *judge.diversity([video.frames for video in videos]))


# Sheets ---------------------------------------------------------------------------------------------------------------


def markdown_of(sheet: Sheet) -> str:
    """The scores as a markdown table, their mean where there are several; below it what each is, and why not."""
    rows = [(line.label, line.prompt, line.scores) for line in sheet.videos]
    if len(rows) > 1:
        rows.append(("mean", "", sheet.means()))
    tables = [_table(sheet, "video", SCORES, rows).markdown()]
    if any(line.scores for line in sheet.groups):
        several = [(line.label, line.prompt, line.scores) for line in sheet.groups]
        tables.append(_table(sheet, "of one prompt", DIVERSITIES, several).markdown())
    return "\n\n".join(tables) + "\n\n" + "".join(f"- {note}\n" for note in notes_of(sheet))


def notes_of(sheet: Sheet) -> list[str]:
    """What each score is and which way is better; each missing one with its reason, and whose it is if not all's."""
    measured = [line.scores for line in (*sheet.videos, *sheet.groups)]
    said = [
        f"{plain_name(name)}: {form.how}; {form.better} is better"
        for name, form in sheet.forms.items()
        if any(name in scores for scores in measured)
    ]
    for lines in (sheet.videos, sheet.groups):
        reasons: dict[str, dict[str, list[str]]] = {}
        for line in lines:
            for name, why in line.missing.items():
                reasons.setdefault(name, {}).setdefault(why, []).append(line.label)
        for name, found in reasons.items():
            for why, labels in found.items():
                of = "" if len(labels) == len(lines) else f" of {', '.join(labels)}"
                said.append(f"no {plain_name(name)}{of}: {why}")
    return [*said, *sheet.remarks]


def csv_of(sheet: Sheet) -> str:
    """One line per video and per group of videos of a prompt: what it is, its prompt, its scores."""
    lines = (*sheet.videos, *sheet.groups)
    names = [name for name in (*SCORES, *DIVERSITIES) if any(name in one.scores for one in lines)]
    rows = [(line.label, line.prompt, *(line.scores.get(name) for name in names)) for line in lines]
    return Table(("video", "prompt", *names), rows).csv()


def plain_of(sheet: Sheet) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "videos": [_plain(line) for line in sheet.videos],
        "mean": sheet.means(),
        "diversity": [_plain(line) for line in sheet.groups],
        "forms": {name: {"how": form.how, "better": form.better} for name, form in sheet.forms.items()},
        "notes": notes_of(sheet),
    }


def write_sheet(path: Path, sheet: Sheet) -> Path:
    """Write the sheet as .csv or .md, by the ending; raises SettingsError for another, OutputError."""
    check_sheet_name(path)
    text = csv_of(sheet) if path.suffix.lower() == ".csv" else markdown_of(sheet)
    return write_atomically(path, text.encode())


def check_sheet_name(path: Path) -> None:
    """Raise SettingsError for a file that `write_sheet` cannot write."""
    if path.suffix.lower() not in SHEET_ENDINGS:
        raise SettingsError(f"{path} should end in one of {', '.join(SHEET_ENDINGS)}.")


# Parts ----------------------------------------------------------------------------------------------------------------


def _check(videos: Sequence[Video]) -> None:
    if not videos:
        raise SettingsError("There is no video to score; give one or more.")
    labels = [video.label for video in videos]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            raise SettingsError(f"Two videos have the label {label!r}; name them apart.")


def _plain(line: Line) -> dict[str, Any]:
    return {
        "video": line.label,
        "prompt": line.prompt,
        "scores": dict(line.scores),
        "missing": dict(line.missing),
    }


def _heading(sheet: Sheet, name: str) -> str:
    return f"{plain_name(name)} ({sheet.forms[name].better} is better)"


def _table(sheet: Sheet, what: str, order: Sequence[str], rows: Sequence[tuple[str, str, Scores]]) -> Table:
    names = [name for name in order if any(name in scores for _, _, scores in rows)]
    head = (what, "prompt", *(_heading(sheet, name) for name in names))
    return Table(head, [(label, prompt, *(scores.get(name) for name in names)) for label, prompt, scores in rows])
