"""One judge for any video: whichever of the metrics are available, under the same names everywhere.

    motion_fidelity      to the reference clip; higher is better
    appearance_leakage   of the reference's look beyond what the prompt explains; lower is better
    text_alignment       how well the prompt is shown; higher is better
    consistency          of neighbouring frames; see `Judge.notes` for its form

On the playground the probe reads all of them exactly. On other bases motion fidelity is that of tracked points and
leakage that of colours and texture, both proxies; text alignment needs a CLIP model and consistency a CLIP model or
LPIPS weights from the user's disk. What is not available is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from .errors import ClipError, SettingsError
from .metrics import (
    ClipScorer,
    Perceptual,
    appearance_leakage,
    clip_temporal_consistency,
    lpips_temporal_consistency,
    text_alignment,
    track_fidelity,
)
from .pipeline import VideoPipeline
from .playground import PLAYGROUND_NAME
from .playground.probe import Reading, read_clip
from .playground.prompts import asked_scene
from .playground.scores import score_reading

MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY = "motion_fidelity", "appearance_leakage", "text_alignment", "consistency"
SCORES = (MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY)
Scores = Mapping[str, float]


class Judge(Protocol):
    """Scores a video; `notes` say what each score is on this base, and why one is missing."""

    @property
    def notes(self) -> tuple[str, ...]: ...

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """Frames (f, h, w, 3) sampled for `prompt`; `neutral` is the base model's own video of it."""
        ...


@dataclass(frozen=True, eq=False)
class PlaygroundJudge:
    """The exact scores of `playground.scores`, by the probe."""

    reference: Reading | None = None
    notes: tuple[str, ...] = ("exact, read by the playground's probe",)

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`. A prompt in other words than the world's gets no text alignment and no leakage."""
        reading, asked = read_clip(frames), asked_scene(prompt)
        scene = asked or asked_scene("a red circle over sand")
        assert scene is not None
        found = score_reading(reading, scene, self.reference or reading)
        scores = {CONSISTENCY: found.consistency}
        if asked is not None:
            scores[ALIGNMENT] = found.alignment
        if self.reference is not None:
            scores[MOTION] = found.fidelity
            if asked is not None:
                scores[LEAKAGE] = found.mean_leakage
        return scores


@dataclass(frozen=True, eq=False)
class VideoJudge:
    """The metrics of natural video that can be had: see the module."""

    reference: Tensor | None = None
    clip_scorer: ClipScorer | None = None
    perceptual: Perceptual | None = None
    notes: tuple[str, ...] = field(default=())

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`. Leakage needs the `neutral` video."""
        scores: dict[str, float] = {}
        if self.reference is not None and self._tracks:
            scores[MOTION] = track_fidelity(self.reference, frames)
        if self.reference is not None and neutral is not None:
            scores[LEAKAGE] = appearance_leakage(frames, self.reference, neutral)
        if self.clip_scorer is not None:
            scores[ALIGNMENT] = text_alignment(frames, prompt, self.clip_scorer)
        if self.perceptual is not None:
            scores[CONSISTENCY] = lpips_temporal_consistency(frames, self.perceptual)
        elif self.clip_scorer is not None:
            scores[CONSISTENCY] = clip_temporal_consistency(frames, self.clip_scorer)
        return scores

    @property
    def _tracks(self) -> bool:
        return not any(note.startswith(_NO_TRACKS) for note in self.notes)


_NO_TRACKS = "no motion fidelity"


def make_judge(
    pipeline: VideoPipeline,
    reference: Tensor | None = None,
    *,
    clip_scorer: ClipScorer | None = None,
    perceptual: Perceptual | None = None,
) -> Judge:
    """The judge for this base: the probe on the playground, else whatever metrics of natural video there are.

    `reference` is the clip (f, h, w, 3) whose motion was learned. A reference whose points cannot be tracked, or a
    missing package, costs only the score that needs it; the notes say so.
    """
    if pipeline.identity.name.startswith(PLAYGROUND_NAME):
        return PlaygroundJudge(None if reference is None else read_clip(reference))
    notes = (
        ["motion fidelity by tracked points, leakage by colours and texture: proxies"] if reference is not None else []
    )
    if reference is not None and (fault := motion_fault(pipeline, reference)):
        notes.append(f"{_NO_TRACKS}: {fault}")
    if clip_scorer is not None:
        notes.append(f"text alignment: CLIPScore of {clip_scorer.name}")
    if perceptual is not None:
        notes.append(f"consistency: LPIPS ({perceptual.backbone}) of neighbouring frames, lower is better")
    elif clip_scorer is not None:
        notes.append("consistency: CLIP cosine of neighbouring frames, higher is better")
    return VideoJudge(reference, clip_scorer, perceptual, tuple(notes))


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of each score over those videos that have it, in the order of `SCORES`."""
    found = {name: [one[name] for one in scores if name in one] for name in SCORES}
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def motion_fault(pipeline: VideoPipeline, reference: Tensor) -> str:
    """Why there is no motion fidelity to this reference (f, h, w, 3) on this base; "" where there is."""
    if pipeline.identity.name.startswith(PLAYGROUND_NAME):
        return ""
    try:
        track_fidelity(reference, reference)
    except (ClipError, SettingsError) as error:
        return str(error)
    return ""
