"""One judge for any video: whichever of the metrics are available, under the same names everywhere (scores.py).

On the playground the probe reads all of them exactly. On other bases motion fidelity is that of tracked points and
leakage that of colours and texture, both proxies; text alignment needs a CLIP model and consistency a CLIP model or
LPIPS weights from the user's disk. What cannot be had is left out, and `Judge.gaps` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..base.pipeline import VideoPipeline
from ..playground.model import is_playground
from .metrics import ClipScorer, MetricModels, Perceptual
from .playground_judge import playground_judge
from .scores import MOTION, Form, Shape, plain_name, shape_of
from .video_judge import video_judge


class Judge(Protocol):
    """Scores a video. `forms` say what each score is that it can give, `notes` the same in sentences.

    `identity` is the same for judges whose figures can be compared: the same metrics, models and reference.
    `diversity_forms` are those of several videos of one prompt.
    """

    @property
    def forms(self) -> Mapping[str, Form]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str: ...

    @property
    def diversity_forms(self) -> Mapping[str, Form]: ...

    def gaps(self, prompt: str, shape: Shape, *, neutral: bool) -> dict[str, str]:
        """Which scores a video cannot have, and why; asked before it is made. `neutral`: whether there will be one."""
        ...

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """Frames (f, h, w, 3) sampled for `prompt`; `neutral` is the base model's own video of it."""
        ...

    def diversity(self, videos: Sequence[Tensor]) -> tuple[dict[str, float], dict[str, str]]:
        """How videos (f, h, w, 3) of one prompt differ: the scores, and the reason for each that cannot be had."""
        ...

    def doubts(self, videos: Mapping[str, Tensor], *, neutral: bool) -> tuple[str, ...]:
        """What is to be known of scores of these videos, by label. `neutral`: whether videos of the base were given."""
        ...


# Making one -----------------------------------------------------------------------------------------------------------
def make_judge(
    pipeline: VideoPipeline,
    reference: Tensor | None = None,
    *,
    clip_scorer: ClipScorer | None = None,
    perceptual: Perceptual | None = None,
) -> Judge:
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
) -> Judge:
    """`make_judge` with a CLIP folder and LPIPS weights from disk, loaded where they are used: not on the playground.

    Raises ModelError or SettingsError where one cannot be loaded.
    """
    if is_playground(pipeline):
        return playground_judge(reference, unused_models=clip_model is not None or lpips_weights is not None)
    models = MetricModels.load(clip_model, lpips_weights, device=str(pipeline.device))
    return video_judge(reference, clip_scorer=models.clip_scorer, perceptual=models.perceptual)


def motion_fault(pipeline: VideoPipeline, reference: Tensor) -> str:
    """Why there is no motion fidelity to this reference (f, h, w, 3) on this base; "" where there is."""
    judge = make_judge(pipeline, reference)
    # Any of the scores would do for the prompt: motion fidelity does not depend on it.
    return judge.gaps("", shape_of(reference), neutral=True).get(MOTION, "")


# What is said of them -------------------------------------------------------------------------------------------------
def notes_for(judge: Judge, prompts: Sequence[str], shape: Shape, *, neutral: bool = True) -> tuple[str, ...]:
    """The judge's notes, and one for every score that videos of these prompts will lack."""
    gaps = [judge.gaps(prompt, shape, neutral=neutral) for prompt in prompts]
    return (*judge.notes, *_missing(prompts, gaps))


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
