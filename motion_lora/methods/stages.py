"""What a method is made of: parts that learn, passes of a step, stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """Something that learns: an adapter on the modules of a target preset, or the rows of placeholder tokens.

    Without a target preset it is tokens. Rank, alpha, learning rate and targets are the settings whose names begin
    with `prefix`, by default the part's name and an underscore ("spatial_rank"); where there is no such setting, or it
    is None, those without a prefix hold, and the part's own `targets`.
    """

    name: str
    targets: str = ""
    per_clip: bool = False
    prefix: str | None = None

    @property
    def is_tokens(self) -> bool:
        return not self.targets

    def setting(self, name: str) -> str:
        """The name of this part's own setting of that kind, such as "rank"; there need not be one."""
        return f"{self.name}_{name}" if self.prefix is None else f"{self.prefix}{name}"


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    `trains` learn, `holds` are active and frozen; an absorber, where there is one, is active in every pass.
    `frames` is "all" of the drawn batch or "one" at random; `bypass` turns the temporal layers off. `loss` is
    an entry of `losses.LOSSES`. An `optional` pass is left out in 1 - spatial_path_probability of the steps, and what
    it trains is then off in the whole step.
    """

    trains: tuple[str, ...]
    holds: tuple[str, ...] = ()
    frames: str = "all"
    bypass: bool = False
    caption: str = "full"
    loss: str = "denoising"
    optional: bool = False

    @property
    def sees_motion(self) -> bool:
        """Whether it looks at frames in their order with the temporal layers at work."""
        return self.frames == "all" and not self.bypass


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

    @property
    def learns_motion(self) -> bool:
        """Whether it sees whole clips with the temporal layers at work."""
        return self.batch == "clip" and any(not a_pass.bypass for a_pass in self.passes)


@dataclass(frozen=True)
class AbsorberKind:
    """A row of the absorbers: the stages that train it, each by itself on the bare network, and what to call it.

    What its parts with targets learn becomes the absorber's spatial LoRA, what a part of tokens learns its tokens.
    """

    title: str
    stages: tuple[Stage, ...] = ()


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
