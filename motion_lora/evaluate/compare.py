"""Several LoRAs, strengths or checkpoints side by side: one prompt list, a labelled grid, a table of scores.

Every candidate gets the same start noise for a prompt, so what differs in the grid is the candidate. The base without
a LoRA is always the first: leakage and every other figure mean something only beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..core.disk import write_atomically
from ..core.errors import SettingsError
from ..core.stack import AdapterStack
from ..media.sheets import contact_sheet, grid_frames
from ..media.tables import Table
from ..media.write import write_png, write_video
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings, resolve
from .judge import Judge, notes_for
from .scores import SCORES, Form, mean_scores, plain_name

BASE_LABEL = "base"
MOST_TILES = 64
# A whole factor of the playground's 64 pixels; larger videos are reduced to it.
_TILE = 192


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is compared: a stack under the label that the grid shows."""

    label: str
    stack: AdapterStack


@dataclass(frozen=True, eq=False)
class Comparison:
    """Videos and scores by candidate, then by prompt, the base first.

    `notes` say what the scores are and why others are missing, `forms` what each is by its name.
    """

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    videos: tuple[tuple[Tensor, ...], ...]
    scores: tuple[tuple[dict[str, float], ...], ...]
    notes: tuple[str, ...]
    fps: float
    reference: Tensor | None = None
    forms: Mapping[str, Form] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[str, ...]:
        """The scores that at least one video has."""
        return tuple(name for name in SCORES if any(name in one for row in self.scores for one in row))

    def means(self) -> list[dict[str, float]]:
        """The mean scores of each candidate over the prompts."""
        return [mean_scores(row) for row in self.scores]


def prompts_of(text: str) -> tuple[str, ...]:
    """One prompt per line, empty lines left out; raises SettingsError where there is none."""
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise SettingsError("There is no prompt; write one per line.")
    return prompts


def compare(
    pipeline: VideoPipeline,
    candidates: Sequence[Candidate],
    prompts: Sequence[str],
    settings: SampleSettings,
    judge: Judge,
    *,
    reference: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Sample every prompt with the base and with every candidate, and score the videos.

    `settings` hold all but the prompt; the seed of prompt n is `settings.seed` + n. `callback(step, total)` hears of
    all sampling steps. Raises SettingsError for no or equal labels, no prompts, or too many videos for one picture.
    """
    rows = [Candidate(BASE_LABEL, AdapterStack()), *candidates]
    _check(rows, prompts)
    wanted = [replace(settings, prompt=prompt, seed=settings.seed + n) for n, prompt in enumerate(prompts)]
    resolved = resolve(pipeline, wanted[0])
    fps = float(resolved.fps or pipeline.default_fps)
    shape = (resolved.num_frames or 0, resolved.height or 0, resolved.width or 0)
    notes = notes_for(judge, prompts, shape)
    videos: list[tuple[Tensor, ...]] = []
    for number, row in enumerate(rows):
        heard = _part(callback, number, len(rows))
        videos.append(tuple(one.frames for one in sample(pipeline, wanted, stack=row.stack, callback=heard)))
    scores = tuple(
        tuple(judge.score(prompt, made, base) for prompt, made, base in zip(prompts, row, videos[0], strict=True))
        for row in videos
    )
    labels = tuple(row.label for row in rows)
    return Comparison(labels, tuple(prompts), tuple(videos), scores, notes, fps, reference, judge.forms)


# Pictures -------------------------------------------------------------------------------------------------------------


def grid_of(comparison: Comparison) -> Tensor:
    """Frames (f, H, W, 3) of the labelled grid: a row per candidate, a column per prompt, the reference on top."""
    rows = [(_row_label(comparison, i), list(videos)) for i, videos in enumerate(comparison.videos)]
    if comparison.reference is not None:
        rows.insert(0, ("reference", [comparison.reference] * len(comparison.prompts)))
    return grid_frames(rows, comparison.prompts, tile_side=_TILE)


def sheet_of(comparison: Comparison) -> Image.Image:
    """Every video as a row of frames, prompt by prompt."""
    rows = [] if comparison.reference is None else [("reference", comparison.reference)]
    for place, prompt in enumerate(comparison.prompts):
        rows += [
            (f"{label}: {prompt}", videos[place])
            for label, videos in zip(comparison.labels, comparison.videos, strict=True)
        ]
    return contact_sheet(rows)


def _row_label(comparison: Comparison, place: int) -> str:
    """The label with the mean scores below it, so that the posted picture says them."""
    means = comparison.means()[place]
    shorts = {name: comparison.forms[name].short if name in comparison.forms else name for name in means}
    return " ".join([comparison.labels[place], *(f"{shorts[name]}={means[name]:.2f}" for name in means)])


# Tables ---------------------------------------------------------------------------------------------------------------


def markdown_of(comparison: Comparison) -> str:
    """The mean scores by candidate as a markdown table, the notes below it."""
    names = comparison.measured
    rows = [
        (label, *(means.get(name) for name in names))
        for label, means in zip(comparison.labels, comparison.means(), strict=True)
    ]
    table = Table(("candidate", *map(plain_name, names)), rows)
    return table.markdown() + "\n" + "".join(f"\n- {note}" for note in comparison.notes) + "\n"


def csv_of(comparison: Comparison) -> str:
    """One line per video: candidate, prompt, scores."""
    rows = [
        (label, prompt, *(scores.get(name) for name in comparison.measured))
        for label, row in zip(comparison.labels, comparison.scores, strict=True)
        for prompt, scores in zip(comparison.prompts, row, strict=True)
    ]
    return Table(("candidate", "prompt", *comparison.measured), rows).csv()


def plain_of(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON."""
    rows = zip(comparison.labels, comparison.means(), comparison.scores, strict=True)
    return {
        "prompts": list(comparison.prompts),
        "notes": list(comparison.notes),
        "forms": {name: {"how": form.how, "better": form.better} for name, form in comparison.forms.items()},
        "candidates": [{"label": label, "mean": mean, "by_prompt": list(each)} for label, mean, each in rows],
    }


def write_comparison(folder: Path, comparison: Comparison) -> list[Path]:
    """Write grid.mp4, sheet.png, table.md and table.csv; returns their paths."""
    return [
        write_video(folder / "grid.mp4", grid_of(comparison), comparison.fps),
        write_png(folder / "sheet.png", sheet_of(comparison)),
        write_atomically(folder / "table.md", markdown_of(comparison).encode()),
        write_atomically(folder / "table.csv", csv_of(comparison).encode()),
    ]


# Parts ----------------------------------------------------------------------------------------------------------------


def _check(rows: Sequence[Candidate], prompts: Sequence[str]) -> None:
    if len(rows) < 2:
        raise SettingsError("There is nothing to compare; give one LoRA or more.")
    if not prompts:
        raise SettingsError("There is no prompt; give one or more.")
    labels = [row.label.strip() for row in rows]
    for place, label in enumerate(labels):
        if not label:
            raise SettingsError(f"Candidate {place} has no label; name every one of them.")
        if label in labels[:place]:
            raise SettingsError(f"Two candidates have the label {label!r}; name them apart.")
    if len(rows) * len(prompts) > MOST_TILES:
        raise SettingsError(
            f"{len(rows)} candidates (the base among them) with {len(prompts)} prompts are "
            f"{len(rows) * len(prompts)} videos; up to {MOST_TILES} go into one picture."
        )


def _part(callback: Callable[[int, int], None] | None, number: int, count: int) -> Callable[[int, int], None] | None:
    if callback is None:
        return None
    return lambda step, total: callback(number * total + step, count * total)
