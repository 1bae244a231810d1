"""The scores of videos: one vocabulary for every judge, the demo, the benchmark, validations and the web charts.

Of one video:

motion_fidelity      to the reference clip; higher is better
appearance_leakage   of the reference's look beyond what the prompt explains; lower is better
text_alignment       how well the prompt is shown; higher is better
consistency          of neighbouring frames; its `Form` says by what, and which way is better

Of several videos of one prompt: `diversity`, on the playground `diversity_of_place`, `_of_size` and `_of_speed`.
Of a whole method, by the benchmark: `own_motion_fidelity` under the reference's own caption, and `unnamed_leakage`,
how often the reference's look shows where the prompt leaves the look open.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY = "motion_fidelity", "appearance_leakage", "text_alignment", "consistency"
SCORES = (MOTION, LEAKAGE, ALIGNMENT, CONSISTENCY)
PLACE, SIZE, SPEED, DIVERSITY = "diversity_of_place", "diversity_of_size", "diversity_of_speed", "diversity"
DIVERSITIES = (DIVERSITY, PLACE, SIZE, SPEED)
OWN_MOTION, UNNAMED_LEAKAGE = "own_motion_fidelity", "unnamed_leakage"
Scores = Mapping[str, float]
Shape = tuple[int, int, int]
"""Frames, height and width of a video."""
NO_REFERENCE = "there is no reference clip; give one (reference)"


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


ONE_FRAME = "it compares neighbouring frames, and there is one frame"


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of each score over those videos that have it, in the order of `SCORES`."""
    found = {name: [one[name] for one in scores if name in one] for name in SCORES}
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def plain_name(name: str) -> str:
    """A score's name in words."""
    return name.replace("_", " ")


def described(forms: Mapping[str, Form]) -> tuple[str, ...]:
    """One sentence for all scores that are measured alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, form in forms.items():
        alike.setdefault((form.how, form.better), []).append(plain_name(name))
    return tuple(f"{', '.join(names)}: {how}, {better} is better" for (how, better), names in alike.items())


def shape_of(frames: Tensor) -> Shape:
    """The shape of frames (f, h, w, 3)."""
    count, height, width, _ = frames.shape
    return int(count), int(height), int(width)


def other_length(reference: int, frames: int) -> str:
    """Why a reference of another length cannot be compared with."""
    return f"the reference has {reference} frames and the video {frames}; take equally many of both (num_frames, fps)"


def digest_of(reference: Tensor) -> str:
    """A mark of the reference's frames."""
    return hashlib.sha256(reference.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
