"""Samples the prompts of a cell with a stack and scores every video by the probe."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...base.pipeline import VideoPipeline
from ...core.errors import SettingsError
from ...core.stack import AdapterStack
from ...core.trajectories import MotionMatch
from ...playground import world
from ...playground.motions import PHASE_IS_SHAPE, follows
from ...playground.probe import Reading, read_clip
from ...playground.scores import diversity, score_reading, shown_share
from ...sampling.loop import sample
from ...sampling.settings import SampleSettings
from ...training.batches import derived_seed

# What a measurement means; a change makes finished cells stale.
MEASURES_VERSION = 2

# Name -> (heading, what it is, whether higher is better; None where neither is).
MEASURES: Mapping[str, tuple[str, str, bool | None]] = {
    "fidelity": ("motion fidelity", "with the reference, up to phase, place and size, in [-1, 1]", True),
    "leakage": ("leakage", "share of frames with the reference's look where another was asked for", False),
    "free_leakage": (
        "leakage where unnamed",
        "share of frames with the reference's colour or background where the prompt names neither; chance alone gives "
        "1/8 and 1/5, so only what lies above the base's is leakage",
        False,
    ),
    "own_fidelity": (
        "fidelity, own caption",
        "motion fidelity under the reference's own caption: whether the motion was learned at all",
        True,
    ),
    "alignment": ("text alignment", "share of background, colour, shape and fill that are as asked", True),
    "performs": ("performs it", "share of videos that follow the motion and no other of the world more", True),
    "turned_fidelity": ("fidelity in any direction", "rotation-free motion fidelity, in [0, 1]", True),
    "trajectory_error": ("trajectory error", "distance from the reference's path in units of its spread", False),
    "consistency": ("consistency", "share of neighbouring frames that show the same attributes", True),
    "size_jitter": ("size jitter", "standard deviation over time of log size", False),
    "diversity": ("diversity of place", "spread of mean positions over start noises, in canvas sides", True),
    "size_diversity": ("diversity of size", "standard deviation of log mean size over start noises", True),
    "speed_diversity": ("diversity of speed", "standard deviation of log mean speed over start noises", True),
    "found": ("object found", "share of frames in which the probe finds an object", True),
}

# What a measure can be; "performs" is a share of videos.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(MEASURES, (0.0, 1.0)),
    **dict.fromkeys(("fidelity", "own_fidelity"), (-1.0, 1.0)),
    **dict.fromkeys(
        ("trajectory_error", "size_jitter", "diversity", "size_diversity", "speed_diversity"), (0.0, math.inf)
    ),
}


@dataclass(frozen=True)
class Ask:
    """What is sampled: scenes to ask for, several start noises each; `seed` is the unit's.

    What the prompts leave `unnamed`, of "colour" and "background", the model is free to choose.
    """

    scenes: tuple[world.Scene, ...]
    noises: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    unnamed: tuple[str, ...] = ()

    def requests(self) -> list[SampleSettings]:
        """One per video, scene by scene; the start noise depends on seed, scene and number alone."""
        return [
            SampleSettings(
                prompt=world.caption(scene, self.unnamed),
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                seed=derived_seed(self.seed, "bench", number, noise),
            )
            for number, scene in enumerate(self.scenes)
            for noise in range(self.noises)
        ]

    def drawn(self) -> list[world.Scene]:
        """A scene per video, as the requests ask for it; what they leave open is random, by the request's seed."""
        found = []
        for scene, request in zip((s for s in self.scenes for _ in range(self.noises)), self.requests(), strict=True):
            named = {name: getattr(scene, name) for name in ("shape", "colour", "background", "motion", "fill")}
            fixed: dict[str, Any] = {name: value for name, value in named.items() if name not in self.unnamed}
            if scene.motion in PHASE_IS_SHAPE:
                fixed["phase"] = scene.phase
            found.append(world.sample_scene(torch.Generator().manual_seed(request.seed), **fixed))
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values, for fingerprints."""
        return asdict(self)


def measure(
    pipeline: VideoPipeline,
    stack: AdapterStack,
    ask: Ask,
    reference: Reading,
    *,
    own: Ask | None = None,
    free: Ask | None = None,
) -> dict[str, Any]:
    """Sample, read and score: the mean of every measure of `MEASURES`, None for one that cannot be said.

    `own` asks for the reference itself, `free` for a scene whose looks the prompt leaves unnamed.
    """
    asks = [one for one in (ask, own, free) if one is not None]
    requests = [request for one in asks for request in one.requests()]
    videos = iter(sample(pipeline, requests, stack=stack, batch_size=8))
    return _scored({one: [next(videos).frames for _ in one.requests()] for one in asks}, ask, reference, own, free)


def measure_rendered(
    pipeline: VideoPipeline, ask: Ask, reference: Reading, *, own: Ask | None = None, free: Ask | None = None
) -> dict[str, Any]:
    """As `measure`, of videos that the world draws as they are asked for, through the base's autoencoder.

    Delay, place and size are drawn at random, and so is what the prompt leaves unnamed.
    """
    frames = {one: [_rendered(pipeline, scene) for scene in one.drawn()] for one in (ask, own, free) if one is not None}
    return _scored(frames, ask, reference, own, free)


def _rendered(pipeline: VideoPipeline, scene: world.Scene) -> Tensor:
    return pipeline.decode_latents(pipeline.encode_frames(world.render(scene)))[0]


def _scored(
    frames: Mapping[Ask, Sequence[Tensor]], ask: Ask, reference: Reading, own: Ask | None, free: Ask | None
) -> dict[str, Any]:
    measured = score_videos(frames[ask], ask, reference)
    measured["own_fidelity"] = score_videos(frames[own], own, reference)["fidelity"] if own else None
    measured["free_leakage"] = free_leakage(frames[free], free, reference) if free else None
    return measured


def free_leakage(videos: Sequence[Tensor], ask: Ask, reference: Reading) -> float:
    """Mean share of frames that show the reference's value of what the prompts leave unnamed, chance included."""
    shares = [
        shown_share(read_clip(frames), name, getattr(reference, name)) for frames in videos for name in ask.unnamed
    ]
    return statistics.fmean(shares)


def score_videos(videos: Sequence[Tensor], ask: Ask, reference: Reading) -> dict[str, Any]:
    """Videos (f, h, w, 3) in the order of `ask.requests()` -> the mean of every measure that needs no other `Ask`."""
    asked = [scene for scene in ask.scenes for _ in range(ask.noises)]
    readings = [read_clip(frames) for frames in videos]
    scores = [score_reading(reading, scene, reference) for reading, scene in zip(readings, asked, strict=True)]
    motions = [score.motion for score in scores]
    performed = [follows(reading, scene.motion) for reading, scene in zip(readings, asked, strict=True)]
    return {
        "fidelity": statistics.fmean(score.fidelity for score in scores),
        "leakage": statistics.fmean(score.mean_leakage for score in scores),
        "alignment": statistics.fmean(score.alignment for score in scores),
        "performs": statistics.fmean(map(float, performed)),
        "turned_fidelity": statistics.fmean(motion.rotation_free_fidelity if motion else 0.0 for motion in motions),
        "trajectory_error": statistics.fmean(motion.trajectory_error if motion else 1.0 for motion in motions),
        "consistency": statistics.fmean(score.consistency for score in scores),
        "size_jitter": statistics.fmean(score.size_jitter for score in scores),
        **_diversities(readings, ask.noises),
        "found": statistics.fmean(score.found for score in scores),
        "videos": [_one(score.fidelity, score.leakage, score.right, score.motion) for score in scores],
    }


def _one(
    fidelity: float, leaked: Mapping[str, float], right: Mapping[str, bool], motion: MotionMatch | None
) -> dict[str, Any]:
    """One video in a cell's file: enough to look into a figure that surprises."""
    return {
        "fidelity": round(fidelity, 4),
        "leakage": dict(leaked),
        "right": dict(right),
        "speed_ratio": round(motion.speed_ratio, 3) if motion else None,
    }


def _diversities(readings: Sequence[Reading], noises: int) -> dict[str, float | None]:
    """Means over the prompts of which two videos or more show an object; None where there is no such prompt."""
    found = []
    for first in range(0, len(readings), noises):
        try:
            found.append(diversity(readings[first : first + noises]))
        except SettingsError:
            continue
    return {
        name: statistics.fmean(getattr(one, part) for one in found) if found else None
        for name, part in (("diversity", "position"), ("size_diversity", "size"), ("speed_diversity", "speed"))
    }
