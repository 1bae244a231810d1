"""Exact scores on the playground, read by the probe: what was asked, what leaked, how it moved, how seeds differ.

Definitions. A clip is asked for with a scene; a reference is the clip whose motion was learned.

    right         per attribute, whether the probe reads what was asked
    leakage       per attribute in which the reference differs from what was asked, the share of frames that show the
                  reference's value instead; attributes that were asked for as the reference has them cannot leak
    motion        `core.trajectories`, against the reference's path
    consistency   the share of neighbouring frames that show the same value, mean over the attributes; 1 is best
    size jitter   standard deviation over time of the logarithm of the object's size; 0 is best
    diversity     over seeds of one prompt: root mean square distance of the mean positions from their mean, in canvas
                  sides; standard deviation of the logarithms of mean size and of mean speed
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import SettingsError
from ..core.trajectories import STILL, MotionMatch, path_speed
from . import world
from .motions import compare_motion
from .probe import ATTRIBUTES, MIN_FOUND, Reading, path_of, read_clip

# Median share of what is foreign to the background that the object explains: see `reading_fault`.
WORLD_EXPLAINED = 0.7


@dataclass(frozen=True)
class ClipScore:
    """One clip; see the module. `motion` is None where no object was found, or the reference has another length."""

    right: Mapping[str, bool]
    leakage: Mapping[str, float]
    motion: MotionMatch | None
    consistency: float
    size_jitter: float
    found: float

    @property
    def alignment(self) -> float:
        """Share of the attributes that are as asked."""
        return statistics.fmean(self.right.values())

    @property
    def mean_leakage(self) -> float:
        """Mean leakage over the attributes that could leak; 0 where none could."""
        return statistics.fmean(self.leakage.values()) if self.leakage else 0.0

    @property
    def fidelity(self) -> float:
        """Motion fidelity in [-1, 1]; 0 where no object was found."""
        return self.motion.fidelity if self.motion else 0.0


@dataclass(frozen=True)
class Diversity:
    """How clips of one prompt and several seeds differ; see the module."""

    position: float
    size: float
    speed: float


def score_clip(frames: Tensor, asked: world.Scene, reference: Reading) -> ClipScore:
    """Frames (f, h, w, 3) that were asked for with `asked`, against the reference clip's reading."""
    return score_reading(read_clip(frames), asked, reference)


def score_reading(reading: Reading, asked: world.Scene, reference: Reading) -> ClipScore:
    """`score_clip` of a clip that has been read."""
    return ClipScore(
        right={name: getattr(reading, name) == getattr(asked, name) for name in ATTRIBUTES},
        leakage=leakage(reading, asked, reference),
        motion=compare_motion(reference, reading) if len(reference.found) == len(reading.found) >= 3 else None,
        consistency=statistics.fmean(_steadiness(reading, name) for name in ATTRIBUTES),
        size_jitter=size_jitter(reading),
        found=float(reading.found.float().mean()),
    )


def leakage(reading: Reading, asked: world.Scene, reference: Reading) -> dict[str, float]:
    """Share of frames with the reference's value, for each attribute in which the reference is not as asked."""
    shares = {}
    for name in ATTRIBUTES:
        theirs = getattr(reference, name)
        if theirs and theirs != getattr(asked, name):
            shares[name] = shown_share(reading, name, theirs)
    return shares


def shown_share(reading: Reading, name: str, value: str) -> float:
    """Share of the frames that show this value of an attribute, of those where it can be seen; 0 where none can."""
    shown = _shown(reading, name)
    return sum(one == value for one in shown) / max(len(shown), 1)


def size_jitter(reading: Reading) -> float:
    """Standard deviation of the logarithm of the object's size over the frames where it was found."""
    sizes = reading.sizes[reading.found]
    return float(sizes.log().std(correction=0)) if len(sizes) else 0.0


def diversity(readings: Sequence[Reading]) -> Diversity:
    """Of clips of one prompt; those without an object do not count. Raises SettingsError if fewer than 2 have one."""
    paths = [(path, reading) for reading in readings if (path := path_of(reading)) is not None]
    if len(paths) < 2:
        raise SettingsError(f"Diversity needs two clips with an object or more, and {len(paths)} have one.")
    middles = torch.stack([path.mean(dim=0) for path, _ in paths])
    sizes = torch.stack([reading.sizes[reading.found].mean() for _, reading in paths])
    speeds = torch.tensor([max(path_speed(path), STILL) for path, _ in paths])
    return Diversity(
        position=float((middles - middles.mean(dim=0)).square().sum(dim=1).mean().sqrt()),
        size=float(sizes.log().std(correction=0)),
        speed=float(speeds.log().std(correction=0)),
    )


def reading_fault(reading: Reading) -> str:
    """Why a clip's reading is not to be trusted: it shows no object of the world; "" where it does.

    A clip that the world drew, blurred, noisy or compressed, is explained by the probe's templates to 0.8 and more in
    the median of its frames, a real video to less than two thirds.
    """
    if path_of(reading) is None:
        share = float(reading.found.float().mean())
        return f"an object of the playground is found in {share:.0%} of its frames, and {MIN_FOUND:.0%} are needed"
    explained = float(reading.explained.median())
    if explained < WORLD_EXPLAINED:
        return (
            f"an object of the playground explains {explained:.0%} of what its frames show before a background, and of "
            f"the playground's own clips {WORLD_EXPLAINED:.0%} or more"
        )
    return ""


def _shown(reading: Reading, name: str) -> list[str]:
    """What each frame shows; without an object only the background is seen."""
    seen = torch.ones_like(reading.found) if name == "background" else reading.found
    return [value for value, there in zip(reading.frame_values[name], seen.tolist(), strict=True) if there]


def _steadiness(reading: Reading, name: str) -> float:
    shown = _shown(reading, name)
    pairs = list(itertools.pairwise(shown))
    return sum(before == after for before, after in pairs) / len(pairs) if pairs else 0.0
