"""What a job is, as values: what was asked (`JobSpec`), where it stands (`JobStatus`), and the two together (`Job`).

Both halves are JSON on disk, so a job that a server left behind can be read, shown and resumed by the next one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

QUEUED = "queued"
RUNNING = "running"
YIELDING = "yielding"
PAUSED = "paused"
INTERRUPTED = "interrupted"
STOPPED = "stopped"
DONE = "done"
CANCELLED = "cancelled"
FAILED = "failed"

ACTIVE = frozenset({QUEUED, RUNNING, YIELDING})
RESUMABLE = frozenset({PAUSED, INTERRUPTED, STOPPED, FAILED})
WITH_RESULT = frozenset({DONE, STOPPED})
STATES = ACTIVE | RESUMABLE | {DONE, CANCELLED}

MOTION_LORA = "motion-lora"
APPEARANCE_ABSORBER = "appearance-absorber"

BEST, LAST = "best", "last"
# What of a validation's metrics lies on the user's disk: keys of `JobSpec.measured_by`.
CLIP_MODEL, LPIPS_WEIGHTS = "clip_model", "lpips_weights"


@dataclass(frozen=True)
class PreviewPlan:
    """A small video that is drawn every `every` steps with `prompt`; no prompt or `every` 0 draws none.

    A `guidance_scale` of None is the base's own.
    """

    prompt: str = ""
    every: int = 0
    num_inference_steps: int = 12
    guidance_scale: float | None = None
    seed: int = 0

    @property
    def wanted(self) -> bool:
        return bool(self.prompt.strip()) and self.every > 0


@dataclass(frozen=True)
class JobSpec:
    """What was asked. `fingerprint` names everything that determines the result; the rest is how it is made and shown.

    `device` is the queue that the job waits in, `base` the recipe by which the base model is found again after a
    restart, `plan` the steps of each stage in order, `settings` the training settings as JSON. `validation` is the
    `ValidationPlan` as JSON, empty for none, and `keep` the checkpoint that becomes the result: LAST or BEST.
    `measured_by` are the host's names of a CLIP model and of LPIPS weights for its scores, where there are any.
    """

    kind: str
    name: str
    fingerprint: str
    device: str = "cpu"
    base: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, int] = field(default_factory=dict)
    preview: PreviewPlan = PreviewPlan()
    validation: Mapping[str, Any] = field(default_factory=dict)
    keep: str = LAST
    measured_by: Mapping[str, str] = field(default_factory=dict)
    yields: bool = False
    checkpoint_every: int = 50

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """Raises ValueError for a value of another kind than is ever written."""
        known = _known(cls, data)
        known["preview"] = PreviewPlan(**_known(PreviewPlan, known.get("preview") or {}))
        return cls(**known)


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands. Times are seconds since 1970, `seconds` the time spent at work, `rate` seconds per step.

    `done_steps` of `all_steps` counts over all stages, `step` of `total` within the stage. `resumed_at` is the step
    over all stages at which the last run took up a checkpoint. `validation` is what the panel draws of it: the base's
    scores, those of each checkpoint, and the best so far.
    """

    state: str = QUEUED
    stage: str = ""
    step: int = 0
    total: int = 0
    done_steps: int = 0
    all_steps: int = 0
    loss: float | None = None
    rate: float | None = None
    message: str = ""
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0
    resumed_at: int = 0
    previews: tuple[str, ...] = ()
    validation: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    background: bool = False

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def eta(self) -> float | None:
        """Seconds that the remaining steps will take at the present rate."""
        if self.rate is None or self.state not in ACTIVE:
            return None
        return self.rate * max(0, self.all_steps - self.done_steps)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobStatus:
        """Raises ValueError for a value of another kind than is ever written."""
        known = _known(cls, data)
        known["previews"] = tuple(known.get("previews") or ())
        if known.get("state", QUEUED) not in STATES:
            raise ValueError(f"the state {known['state']!r} is none")
        return cls(**known)


@dataclass(frozen=True)
class Job:
    """One job as it was when it was asked for; `folder` holds everything it has on disk."""

    id: str
    folder: Path
    spec: JobSpec
    status: JobStatus
    command: str = ""

    @property
    def state(self) -> str:
        return self.status.state

    def to_json(self) -> dict[str, Any]:
        """What a panel shows: no paths, plain JSON."""
        spec, status = self.spec, self.status
        return {
            "id": self.id,
            "kind": spec.kind,
            "name": spec.name,
            "fingerprint": spec.fingerprint,
            "device": spec.device,
            "base": spec.base.get("name", ""),
            "settings": dict(spec.settings),
            "preview_prompt": spec.preview.prompt,
            "yields": spec.yields,
            "command": self.command,
            "eta": status.eta,
            **status.to_json(),
        }


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that this version knows, so that a folder written by another version still opens.

    Raises ValueError for one that is not of its field's type: a number in place of a text would be met much later, by
    everything that lists jobs.
    """
    hints = _hints(kind)
    known = {key: value for key, value in data.items() if key in hints}
    for key, value in known.items():
        if not _is_of(value, dict[str, Any] if hints[key] is PreviewPlan else hints[key]):
            raise ValueError(f"{key} is {str(value)[:60]!r}")
    return known


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value from JSON is of a type: numbers are finite, and true is none."""
    inner = get_args(hint)
    if hint is Any:
        return True
    if hint is NoneType:
        return value is None
    if hint in (int, float):
        wanted = int if hint is int else (int, float)
        return isinstance(value, wanted) and not isinstance(value, bool) and _is_number(value)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_is_of(one, inner[0]) for one in value)
    if get_origin(hint) in (Mapping, dict):
        return isinstance(value, dict) and all(_is_of(one, inner[1]) for one in value.values())
    return any(_is_of(value, one) for one in inner) if inner else isinstance(value, hint)


def _is_number(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
