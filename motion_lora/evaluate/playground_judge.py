"""The judge of the playground's videos: its probe reads every score exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..core.errors import ClipError
from ..playground import world
from ..playground.probe import ATTRIBUTES, Reading, path_of, read_clip
from ..playground.prompts import asked_scene
from ..playground.scores import diversity, reading_fault, score_reading
from .scores import (
    ALIGNMENT,
    CONSISTENCY,
    LEAKAGE,
    MOTION,
    NO_REFERENCE,
    ONE_FRAME,
    PLACE,
    SCORES,
    SIZE,
    SPEED,
    Form,
    Shape,
    described,
    digest_of,
    other_length,
    shape_of,
)

_EXACT = "exact, read by the playground's probe"


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
        return (*described(self.forms), *self.remarks)

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
            found[MOTION] = other_length(len(self.reference.found), frames)
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
            found[CONSISTENCY] = ONE_FRAME
        return {name: found[name] for name in SCORES if found.get(name)}

    def score(self, prompt: str, frames: Tensor, neutral: Tensor | None = None) -> dict[str, float]:
        """See `Judge`; `neutral` is not looked at: what the prompt asked for is known."""
        gaps = self.gaps(prompt, shape_of(frames), neutral=True)
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
    def diversity_forms(self) -> Mapping[str, Form]:
        """See `Judge`."""
        return {
            PLACE: Form("exact, spread of the mean places in canvas sides, read by the playground's probe", "place"),
            SIZE: Form("exact, spread of the logarithms of the mean sizes, read by the playground's probe", "size"),
            SPEED: Form("exact, spread of the logarithms of the mean speeds, read by the playground's probe", "speed"),
        }

    def diversity(self, videos: Sequence[Tensor]) -> tuple[dict[str, float], dict[str, str]]:
        """See `Judge`."""
        readings = [read_clip(frames) for frames in videos if frames.shape[1] == frames.shape[2]]
        seen = [reading for reading in readings if path_of(reading) is not None]
        if len(seen) < 2:
            why = (
                f"the playground's probe finds an object in {len(seen)} of the {len(videos)} videos, and two are needed"
            )
            return {}, dict.fromkeys(self.diversity_forms, why)
        found = diversity(seen)
        return {PLACE: found.position, SIZE: found.size, SPEED: found.speed}, {}

    def doubts(self, videos: Mapping[str, Tensor], *, neutral: bool) -> tuple[str, ...]:
        """See `Judge`: which videos the probe may have misread."""
        square = {label: frames for label, frames in videos.items() if frames.shape[1] == frames.shape[2]}
        faults = {label: reading_fault(read_clip(frames)) for label, frames in square.items()}
        misread = tuple(f"{label} may be misread: {fault}" for label, fault in faults.items() if fault)
        unused = ("neutral is not used: the probe knows what the prompt asked for",) if neutral else ()
        return (*self.remarks, *unused, *misread)

    @property
    def _against(self) -> str:
        """Why nothing can be measured against the reference."""
        return self.reference_fault or (NO_REFERENCE if self.reference is None else "")


def playground_judge(reference: Tensor | None = None, *, unused_models: bool = False) -> PlaygroundJudge:
    """The judge of the playground's videos; `unused_models` notes that CLIP and LPIPS were named for nothing."""
    remarks = ("clip_model and lpips_weights are not used: the probe reads without them",) if unused_models else ()
    if reference is None:
        return PlaygroundJudge(remarks=remarks)
    fault = _unreadable(reference)
    reading = None if fault else read_clip(reference)
    return PlaygroundJudge(reading, fault, remarks, digest_of(reference))


def _can_leak(reference: Reading, asked: world.Scene) -> bool:
    return any(getattr(reference, name) not in ("", getattr(asked, name)) for name in ATTRIBUTES)


def _unreadable(reference: Tensor) -> str:
    try:
        fault = reading_fault(read_clip(reference))
    except ClipError as error:
        return f"the reference cannot be read: {error}"
    return f"the reference is no clip of the playground: {fault}" if fault else ""
