"""One judge for any video: whichever of the metrics are available, under the same names everywhere.

    motion_fidelity      to the reference clip; higher is better
    appearance_leakage   of the reference's look beyond what the prompt explains; lower is better
    text_alignment       how well the prompt is shown; higher is better
    consistency          of neighbouring frames; its `Form` says by what, and which way is better

On the playground the probe reads all of them exactly. On other bases motion fidelity is that of tracked points and
leakage that of colours and texture, both proxies; text alignment needs a CLIP model and consistency a CLIP model or
LPIPS weights from the user's disk. What cannot be had is left out, and `Judge.gaps` says why.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from .errors import ClipError, SettingsError
from .metrics import (
    ClipScorer,
    MetricModels,
    Perceptual,
    appearance_leakage,
    clip_temporal_consistency,
    lpips_temporal_consistency,
    text_alignment,
    track_fidelity,
)
from .metrics.perceptual import SMALLEST_SIDE
from .pipeline import VideoPipeline
from .playground import PLAYGROUND_NAME, world
from .playground.probe import ATTRIBUTES, Reading, read_clip
from .playground.prompts import asked_scene
from .playground.scores import reading_fault, score_reading

MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY = "motion_fidelity", "appearance_leakage", "text_alignment", "consistency"
SCORES = (MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY)
Scores = Mapping[str, float]
Shape = tuple[int, int, int]
"""Frames, height and width of a video."""

_NO_REFERENCE = "there is no reference clip; give one (reference)"
_EXACT = "exact, read by the playground's probe"


@dataclass(frozen=True)
class Form:
    """What a score is: by what it is measured, which way is better, and its short name in pictures."""

    how: str
    short: str
    higher_is_better: bool = True

    @property
    def better(self) -> str:
        """Which way is better, as a word."""
        return "higher" if self.higher_is_better else "lower"


class Judge(Protocol):
    """Scores a video. `forms` say what each score is that it can give, `notes` the same in sentences.

    `identity` is the same for judges whose figures can be compared: the same metrics, models and reference.
    """

    @property
    def forms(self) -> Mapping[str, Form]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str: ...

    def gaps(self, prompt: str, shape: Shape, *, neutral: bool) -> dict[str, str]:
        """Which scores a video cannot have, and why; asked before it is made. `neutral`: whether there will be one."""
        ...

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """Frames (f, h, w, 3) sampled for `prompt`; `neutral` is the base model's own video of it."""
        ...


@dataclass(frozen=True, eq=False)
class PlaygroundJudge:
    """The exact scores of `playground.scores`, by the probe; it reads square videos.

    `reference_fault` says why the reference is none of the world's clips: nothing can then be measured against it.
    `remarks` are further notes.
    """

    reference: Reading | None = None
    reference_fault: str = ""
    remarks: tuple[str, ...] = ()
    digest: str = ""

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """See `Judge`."""
        against = {} if self._against else {MOTION: Form(_EXACT, "motion"), LEAKAGE: Form(_EXACT, "leak", False)}
        return {**against, ALIGNMENT: Form(_EXACT, "text"), CONSISTENCY: Form(_EXACT, "steady")}

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Judge`."""
        return (*_described(self.forms), *self.remarks)

    @property
    def identity(self) -> str:
        """See `Judge`."""
        return f"playground's probe, reference {self.digest or 'none'}"

    def gaps(self, prompt: str, shape: Shape, *, neutral: bool) -> dict[str, str]:
        """See `Judge`. A prompt in other words than the world's gets no text alignment and no leakage."""
        frames, height, width = shape
        if height != width:
            return dict.fromkeys(SCORES, f"the playground's probe reads square videos, not {width} x {height}")
        found, asked = dict.fromkeys((MOTION, LEAKAGE), self._against), asked_scene(prompt)
        if self.reference is not None and len(self.reference.found) != frames:
            found[MOTION] = _other_length(len(self.reference.found), frames)
        elif frames < 3:
            found[MOTION] = found[MOTION] or f"a path needs 3 frames or more, and there are {frames}"
        if asked is None:
            what = f"the prompt {prompt.strip()!r} is not" if prompt.strip() else "there is no prompt (prompt)"
            words = f"{what} in the playground's words, such as 'a red circle moving left over sand'"
            found[LEAKAGE] = found[LEAKAGE] or words
            found[ALIGNMENT] = words
        elif self.reference is not None and not _can_leak(self.reference, asked):
            found[LEAKAGE] = found[LEAKAGE] or "the prompt asks for the reference's own look, so nothing could leak"
        if frames < 2:
            found[CONSISTENCY] = _ONE_FRAME
        return {name: found[name] for name in SCORES if found.get(name)}

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`; `neutral` is not looked at: what the prompt asked for is known."""
        gaps = self.gaps(prompt, _shape(frames), neutral=True)
        if set(SCORES) <= set(gaps):
            return {}
        reading = read_clip(frames)
        asked = asked_scene(prompt) or world.Scene("circle", "red", "sand", "still")
        found = score_reading(reading, asked, self.reference or reading)
        all_of_them = {
            MOTION: found.fidelity,
            LEAKAGE: found.mean_leakage,
            ALIGNMENT: found.alignment,
            CONSISTENCY: found.consistency,
        }
        return {name: value for name, value in all_of_them.items() if name not in gaps}

    @property
    def _against(self) -> str:
        """Why nothing can be measured against the reference."""
        return self.reference_fault or (_NO_REFERENCE if self.reference is None else "")


@dataclass(frozen=True, eq=False)
class VideoJudge:
    """The metrics of natural video that can be had: see the module. `motion_fault`: why there is no motion fidelity."""

    reference: Tensor | None = None
    clip_scorer: ClipScorer | None = None
    perceptual: Perceptual | None = None
    motion_fault: str = ""
    digest: str = ""

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """See `Judge`."""
        found: dict[str, Form] = {}
        if self.reference is not None and not self.motion_fault:
            found[MOTION] = Form("a proxy, by tracked points", "motion")
        if self.reference is not None:
            found[LEAKAGE] = Form("a proxy, by colours and texture", "leak", False)
        if self.clip_scorer is not None:
            found[ALIGNMENT] = Form(f"CLIPScore of {self.clip_scorer.name}, 0 to 100", "text")
        if self.perceptual is not None:
            how = f"LPIPS ({self.perceptual.backbone}) of neighbouring frames"
            found[CONSISTENCY] = Form(how, "flicker(LPIPS)", False)
        elif self.clip_scorer is not None:
            how = f"CLIP cosine of neighbouring frames ({self.clip_scorer.name}), to 100"
            found[CONSISTENCY] = Form(how, "steady(CLIP)")
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Judge`."""
        return _described(self.forms)

    @property
    def identity(self) -> str:
        """See `Judge`; a CLIP model is known by the name of its folder."""
        forms = ", ".join(f"{name} {form.how}" for name, form in self.forms.items())
        return f"{forms or 'nothing'}, reference {self.digest or 'none'}"

    def gaps(self, prompt: str, shape: Shape, *, neutral: bool) -> dict[str, str]:
        """See `Judge`. Leakage needs a `neutral` video."""
        frames, *sides = shape
        found: dict[str, str] = {}
        if self.reference is None:
            found = dict.fromkeys((MOTION, LEAKAGE), _NO_REFERENCE)
        elif self.motion_fault:
            found[MOTION] = self.motion_fault
        elif len(self.reference) != frames:
            found[MOTION] = _other_length(len(self.reference), frames)
        if LEAKAGE not in found and not neutral:
            found[LEAKAGE] = "there is no video of the prompt by the base model itself; give one (neutral)"
        if self.clip_scorer is None:
            found[ALIGNMENT] = "there is no CLIP model; name one (clip_model)"
        elif not prompt.strip():
            found[ALIGNMENT] = "there is no prompt; give the one that was asked for (prompt)"
        if self.perceptual is None and self.clip_scorer is None:
            found[CONSISTENCY] = (
                "there are neither LPIPS weights nor a CLIP model; name one (lpips_weights, clip_model)"
            )
        elif frames < 2:
            found[CONSISTENCY] = _ONE_FRAME
        elif self.perceptual is not None and min(sides) < SMALLEST_SIDE:
            found[CONSISTENCY] = f"LPIPS needs sides of {SMALLEST_SIDE} pixels or more, and one is {min(sides)}"
        return {name: found[name] for name in SCORES if name in found}

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`. Leakage needs the `neutral` video."""
        gaps, scores = self.gaps(prompt, _shape(frames), neutral=neutral is not None), {}
        if MOTION not in gaps and self.reference is not None:
            scores[MOTION] = track_fidelity(self.reference, frames)
        if LEAKAGE not in gaps and self.reference is not None and neutral is not None:
            scores[LEAKAGE] = appearance_leakage(frames, self.reference, neutral)
        if ALIGNMENT not in gaps and self.clip_scorer is not None:
            scores[ALIGNMENT] = text_alignment(frames, prompt, self.clip_scorer)
        if CONSISTENCY not in gaps:
            scores[CONSISTENCY] = self._consistency(frames)
        return scores

    def _consistency(self, frames: Tensor) -> float:
        if self.perceptual is not None:
            return lpips_temporal_consistency(frames, self.perceptual)
        assert self.clip_scorer is not None
        return clip_temporal_consistency(frames, self.clip_scorer)


_ONE_FRAME = "it compares neighbouring frames, and there is one frame"


# Making one -----------------------------------------------------------------------------------------------------------


def make_judge(
    pipeline: VideoPipeline,
    reference: Tensor | None = None,
    *,
    clip_scorer: ClipScorer | None = None,
    perceptual: Perceptual | None = None,
) -> PlaygroundJudge | VideoJudge:
    """The judge for this base: the probe on the playground, else whatever metrics of natural video there are.

    `reference` is the clip (f, h, w, 3) whose motion was learned. A reference that cannot be read or whose points
    cannot be tracked, or a missing package, costs only the scores that need it; `gaps` says so.
    """
    if is_playground(pipeline):
        return playground_judge(reference, unused_models=clip_scorer is not None or perceptual is not None)
    return video_judge(reference, clip_scorer=clip_scorer, perceptual=perceptual)


def load_judge(
    pipeline: VideoPipeline,
    reference: Tensor | None = None,
    *,
    clip_model: Path | None = None,
    lpips_weights: Path | None = None,
) -> PlaygroundJudge | VideoJudge:
    """`make_judge` with a CLIP folder and LPIPS weights from disk, loaded where they are used: not on the playground.

    Raises ModelError or SettingsError where one cannot be loaded.
    """
    if is_playground(pipeline):
        return playground_judge(reference, unused_models=clip_model is not None or lpips_weights is not None)
    models = MetricModels.load(clip_model, lpips_weights, device=str(pipeline.device))
    return video_judge(reference, clip_scorer=models.clip_scorer, perceptual=models.perceptual)


def is_playground(pipeline: VideoPipeline) -> bool:
    """Whether a base draws the playground's world, so that the probe can read its videos."""
    return pipeline.identity.name.startswith(PLAYGROUND_NAME)


def playground_judge(reference: Tensor | None = None, *, unused_models: bool = False) -> PlaygroundJudge:
    """The judge of the playground's videos; `unused_models` notes that CLIP and LPIPS were named for nothing."""
    remarks = ("clip_model and lpips_weights are not used: the probe reads without them",) if unused_models else ()
    if reference is None:
        return PlaygroundJudge(remarks=remarks)
    fault = _unreadable(reference)
    reading = None if fault else read_clip(reference)
    return PlaygroundJudge(reading, fault, remarks, _digest(reference))


def video_judge(
    reference: Tensor | None = None, *, clip_scorer: ClipScorer | None = None, perceptual: Perceptual | None = None
) -> VideoJudge:
    """The judge of natural video."""
    if reference is None:
        return VideoJudge(None, clip_scorer, perceptual)
    return VideoJudge(reference, clip_scorer, perceptual, _untracked(reference), _digest(reference))


def motion_fault(pipeline: VideoPipeline, reference: Tensor) -> str:
    """Why there is no motion fidelity to this reference (f, h, w, 3) on this base; "" where there is."""
    judge = make_judge(pipeline, reference)
    # Any of the scores would do for the prompt: motion fidelity does not depend on it.
    return judge.gaps("", _shape(reference), neutral=True).get(MOTION, "")


# What is said of them -------------------------------------------------------------------------------------------------


def notes_for(judge: Judge, prompts: Sequence[str], shape: Shape, *, neutral: bool = True) -> tuple[str, ...]:
    """The judge's notes, and one for every score that videos of these prompts will lack."""
    gaps = [judge.gaps(prompt, shape, neutral=neutral) for prompt in prompts]
    return (*judge.notes, *_missing(prompts, gaps))


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of each score over those videos that have it, in the order of `SCORES`."""
    found = {name: [one[name] for one in scores if name in one] for name in SCORES}
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def plain_name(name: str) -> str:
    """A score's name in words."""
    return name.replace("_", " ")


def _missing(prompts: Sequence[str], gaps: Sequence[Mapping[str, str]]) -> Iterable[str]:
    """Every reason once, with the prompts that it is true of where it is not true of all."""
    concerned: dict[tuple[str, str], list[str]] = {}
    for prompt, found in zip(prompts, gaps, strict=True):
        for name, why in found.items():
            concerned.setdefault((name, why), []).append(prompt)
    names: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, why), some in concerned.items():
        names.setdefault((why, tuple(some)), []).append(plain_name(name))
    for (why, these), without in names.items():
        of = "" if len(these) == len(prompts) else " of " + ", ".join(repr(prompt) for prompt in these)
        yield f"no {' and no '.join(without)}{of}: {why}"


def _described(forms: Mapping[str, Form]) -> tuple[str, ...]:
    """One sentence for all scores that are measured alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, form in forms.items():
        alike.setdefault((form.how, form.better), []).append(plain_name(name))
    return tuple(f"{', '.join(names)}: {how}, {better} is better" for (how, better), names in alike.items())


# Parts ----------------------------------------------------------------------------------------------------------------


def _shape(frames: Tensor) -> Shape:
    count, height, width, _ = frames.shape
    return int(count), int(height), int(width)


def _other_length(reference: int, frames: int) -> str:
    return f"the reference has {reference} frames and the video {frames}; take equally many of both (num_frames, fps)"


def _can_leak(reference: Reading, asked: world.Scene) -> bool:
    return any(getattr(reference, name) not in ("", getattr(asked, name)) for name in ATTRIBUTES)


def _unreadable(reference: Tensor) -> str:
    try:
        fault = reading_fault(read_clip(reference))
    except ClipError as error:
        return f"the reference cannot be read: {error}"
    return f"the reference is no clip of the playground: {fault}" if fault else ""


def _untracked(reference: Tensor) -> str:
    try:
        track_fidelity(reference, reference)
    except (ClipError, SettingsError) as error:
        return str(error)
    return ""


def _digest(reference: Tensor) -> str:
    """A mark of the reference's frames."""
    return hashlib.sha256(reference.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
