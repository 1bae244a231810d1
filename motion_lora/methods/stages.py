"""What a method is made of: parts that learn, passes of a step, stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """Something that learns: an adapter on the modules of a target preset, or the rows of placeholder tokens.

    `name` also says which settings it takes: "temporal" rank, alpha and learning_rate; "spatial" those that begin with
    spatial_; "absorber" those that begin with absorber_; "tokens" num_tokens and token_learning_rate.
    """

    name: str
    targets: str = ""
    per_clip: bool = False


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    `trains` learn, `holds` are active and frozen; an absorber, where there is one, is active in every pass.
    `frames` is "all" of the drawn batch or "one" at random; `bypass` turns the temporal layers off. `debiased` adds
    the appearance-debiased loss. An `optional` pass is left out in 1 - spatial_path_probability of the steps, and what
    it trains is then off in the whole step.
    """

    trains: tuple[str, ...]
    holds: tuple[str, ...] = ()
    frames: str = "all"
    bypass: bool = False
    caption: str = "full"
    debiased: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """Parts that learn together. `batch`: a step draws one whole "clip", or "frames" of one as unordered images.

    `steps` is the field of `TrainSettings` that says how many steps it takes.
    """

    name: str
    parts: tuple[Part, ...]
    passes: tuple[Pass, ...]
    batch: str = "clip"
    steps: str = "steps"
    source: str = ""


@dataclass(frozen=True)
class Method:
    """A row: `stages` in order, the `absorber` it uses unless told otherwise, `keeps` the parts that are its result.

    One that `needs_looks` is nothing without the setting `looks`, which any other may have too.
    """

    name: str
    title: str
    source: str
    stages: tuple[Stage, ...]
    keeps: tuple[str, ...] = ("temporal",)
    absorber: str = "none"
    needs_looks: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
