"""The judge of natural video: whichever of the metrics are available."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..core.errors import ClipError, SettingsError
from .metrics import (
    ClipScorer,
    Perceptual,
    appearance_leakage,
    clip_temporal_consistency,
    lpips_diversity,
    lpips_temporal_consistency,
    text_alignment,
    track_fidelity,
)
from .metrics.perceptual import SMALLEST_SIDE
from .scores import (
    ALIGNMENT,
    CONSISTENCY,
    DIVERSITY,
    LEAKAGE,
    MOTION,
    NO_REFERENCE,
    ONE_FRAME,
    SCORES,
    Form,
    Shape,
    described,
    digest_of,
    other_length,
    shape_of,
)


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
        return described(self.forms)

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
            found = dict.fromkeys((MOTION, LEAKAGE), NO_REFERENCE)
        elif self.motion_fault:
            found[MOTION] = self.motion_fault
        elif len(self.reference) != frames:
            found[MOTION] = other_length(len(self.reference), frames)
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
            found[CONSISTENCY] = ONE_FRAME
        elif self.perceptual is not None and min(sides) < SMALLEST_SIDE:
            found[CONSISTENCY] = f"LPIPS needs sides of {SMALLEST_SIDE} pixels or more, and one is {min(sides)}"
        return {name: found[name] for name in SCORES if name in found}

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`. Leakage needs the `neutral` video."""
        gaps, scores = self.gaps(prompt, shape_of(frames), neutral=neutral is not None), {}
        if MOTION not in gaps and self.reference is not None:
            scores[MOTION] = track_fidelity(self.reference, frames)
        if LEAKAGE not in gaps and self.reference is not None and neutral is not None:
            scores[LEAKAGE] = appearance_leakage(frames, self.reference, neutral)
        if ALIGNMENT not in gaps and self.clip_scorer is not None:
            scores[ALIGNMENT] = text_alignment(frames, prompt, self.clip_scorer)
        if CONSISTENCY not in gaps:
            scores[CONSISTENCY] = self._consistency(frames)
        return scores

    @property
    def diversity_forms(self) -> Mapping[str, Form]:
        """See `Judge`."""
        if self.perceptual is None:
            return {}
        how = f"LPIPS ({self.perceptual.backbone}) of frames at the same time, over all pairs of videos of the prompt"
        return {DIVERSITY: Form(how, "diversity")}

    def diversity(self, videos: Sequence[Tensor]) -> tuple[dict[str, float], dict[str, str]]:
        """See `Judge`."""
        if self.perceptual is None:
            return {}, {DIVERSITY: "there are no LPIPS weights; name them (lpips_weights)"}
        if fault := _lpips_fault(videos):
            return {}, {DIVERSITY: fault}
        return {DIVERSITY: lpips_diversity(videos, self.perceptual)}, {}

    def doubts(self, videos: Mapping[str, Tensor], *, neutral: bool) -> tuple[str, ...]:
        """See `Judge`: none, `gaps` says all there is."""
        return ()

    def _consistency(self, frames: Tensor) -> float:
        if self.perceptual is not None:
            return lpips_temporal_consistency(frames, self.perceptual)
        assert self.clip_scorer is not None
        return clip_temporal_consistency(frames, self.clip_scorer)


def video_judge(
    reference: Tensor | None = None, *, clip_scorer: ClipScorer | None = None, perceptual: Perceptual | None = None
) -> VideoJudge:
    """The judge of natural video."""
    if reference is None:
        return VideoJudge(None, clip_scorer, perceptual)
    return VideoJudge(reference, clip_scorer, perceptual, _untracked(reference), digest_of(reference))


def _untracked(reference: Tensor) -> str:
    try:
        track_fidelity(reference, reference)
    except (ClipError, SettingsError) as error:
        return str(error)
    return ""


def _lpips_fault(videos: Sequence[Tensor]) -> str:
    shapes = {tuple(frames.shape) for frames in videos}
    if len(shapes) > 1:
        said = ", ".join(sorted(f"{f} frames of {w} x {h}" for f, h, w, _ in shapes))
        return f"the videos differ ({said}); read them alike (num_frames, fps, height, width)"
    smallest = min(videos[0].shape[1:3])
    return "" if smallest >= SMALLEST_SIDE else f"LPIPS needs sides of {SMALLEST_SIDE} pixels, and one is {smallest}"
