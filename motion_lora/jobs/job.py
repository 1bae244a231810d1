"""What a job is, as values: what was asked (`JobSpec`), where it stands (`JobStatus`), and the two together (`Job`).

Both halves are JSON on disk, so a job that a server left behind can be read, shown and resumed by the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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
        known = _known(cls, data)
        known["previews"] = tuple(known.get("previews") or ())
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
    """The entries that this version knows, so that a folder written by another version still opens."""
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in data.items() if key in names}
