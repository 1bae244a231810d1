"""What a training will be, said before its first step: stages, parameters, file, memory and minutes.

    print(estimate(pipeline, clips, settings).sentence())

Memory is counted over a rehearsed step (`memory.py`, `rehearsal.py`), minutes by a few timed steps, or by what this
machine took for the same step before (`Speeds`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.disk import write_atomically
from ..core.out_of_memory import TrainingMemoryError
from ..methods.stages import Stage
from .checkpoint import results_of
from .checks import check_run
from .ledger import bytes_of
from .legal import check_settings
from .loop import memory_advice
from .memory import PLAIN
from .recipe import Recipe, make_recipe
from .rehearsal import Rehearsal, looks_cost
from .results import Results, absorber_from, kept_lora
from .stage import TOKENS

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline
    from ..core.absorber import Absorber
    from ..core.clip import Clip
    from .reports import StepReport
    from .settings import TrainSettings

# An estimate is within so much of the truth: what is beyond the memory by less is tried all the same.
TOLERANCE = 0.2
# Fewer steps say little of their mean.
_ENOUGH = 20
# A tensor's entry in the header of a file.
_PER_TENSOR = 150


@dataclass(frozen=True)
class StageEstimate:
    """One stage: its steps, how many parameters train in it, and seconds of a step where they are known."""

    name: str
    steps: int
    parameters: int
    seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A training before it starts; sizes in bytes. `seconds` is None where nothing was timed.

    `memory` is what it takes beside the base as it is loaded, `savings` what is done in its heaviest stage to fit.
    """

    method: str
    base: str
    absorber: str
    absorber_steps: tuple[int, ...]
    steps: int
    rank: int
    looks: int
    parameters: int
    file: int
    memory: int
    savings: str
    available: int | None
    device: str
    stages: tuple[StageEstimate, ...]
    seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the memory may be enough, the tolerance of the estimate allowed for."""
        return self.available is None or self.memory <= self.available * (1 + TOLERANCE)

    def sentence(self) -> str:
        """Method, base, stages and minutes in one line.

        As "customize-a-video on playground: dual absorber 100 + 100 steps, 400 steps, rank 32, about 1:20".
        """
        absorbing = " + ".join(map(str, self.absorber_steps))
        minutes = [f"about {_clock(self.seconds)}"] if self.seconds is not None else []
        if not self.steps:
            return f"{self.absorber} absorber on {self.base}: {', '.join([f'{absorbing} steps', *minutes])}"
        parts = [f"{self.absorber} absorber {absorbing} steps"] if absorbing else []
        parts += [f"{self.looks} looks"] if self.looks else []
        parts += [f"{self.steps} steps", f"rank {self.rank}", *minutes]
        return f"{self.method} on {self.base}: {', '.join(parts)}"

    def details(self) -> str:
        """The line below it: what trains, the file, memory needed and available."""
        there = f" of {_size(self.available)} available" if self.available is not None else ""
        saved = f" ({self.savings})" if self.savings else ""
        memory = f"{_size(self.memory)} of memory{there}{saved}"
        return f"{self.parameters:,} parameters, a file of {_size(self.file)}, {memory}"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "fits": self.fits, "sentence": self.sentence(), "details": self.details()}


class Speeds:
    """Seconds of a step that this machine has taken, by what was computed; kept in a small JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, mark: str) -> float | None:
        value = self._read().get(mark)
        return float(value) if isinstance(value, int | float) else None

    def keep(self, found: Mapping[str, float]) -> None:
        """Raises OutputError."""
        write_atomically(self._path, json.dumps({**self._read(), **found}, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def estimate(
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    settings: TrainSettings,
    *,
    absorber: Absorber | None = None,
    absorber_only: bool = False,
    clock: bool = True,
    speeds: Speeds | None = None,
) -> Estimate:
    """What `train` with the same arguments will take; nothing is trained and `pipeline` stays as it is.

    `clock` times a few steps of each stage that `speeds` does not know. Only the sizes of the clips' frames count, not
    what is in them. Raises SettingsError, ClipError or LoRAFileError as `train` does.
    """
    check_settings(settings)
    recipe = make_recipe(clips, settings, absorber, absorber_only=absorber_only)
    with torch.inference_mode(False), torch.enable_grad():
        check_run(pipeline, recipe)
        return _estimate(pipeline, recipe.with_new_tokens(pipeline), clock, speeds)


def require_memory(found: Estimate, pipeline: VideoPipeline, settings: TrainSettings) -> None:
    """Raise TrainingMemoryError, which says what to lower, for a training that cannot fit."""
    if not found.fits and found.available is not None:
        raise TrainingMemoryError(
            f"This training needs about {_size(found.memory)} of memory and {pipeline.device} has "
            f"{_size(found.available)} to give: {memory_advice(pipeline, settings)}."
        )


def memory_available(device: torch.device) -> int | None:
    """Bytes that a training may take on that device; None where the system does not say."""
    if device.type != "cpu":
        backend: Any = getattr(torch, device.type, None)
        if not hasattr(backend, "mem_get_info"):
            return None
        free, _ = backend.mem_get_info(device)
        return int(free + backend.memory_reserved(device) - backend.memory_allocated(device))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def step_mark(pipeline: VideoPipeline, recipe: Recipe, stage: Stage) -> str:
    """Names what a step of a stage computes, on which base and device: the same one takes as long."""
    parts = [
        (part.name, recipe.part(part).rank, recipe.part(part).targets) for part in stage.parts if not part.is_tokens
    ]
    settings, clip = recipe.settings, recipe.clips[0]
    content = [
        *(stage.name, stage.batch, parts, len(recipe.clips), [clip.num_frames, clip.height, clip.width]),
        *(pipeline.identity.weights_hash, str(pipeline.device), str(pipeline.dtype), torch.get_num_threads()),
        *(settings.gradient_checkpointing, settings.memory, settings.compile, pipeline.fast_layers),
        *(settings.gradient_accumulation, settings.patch_crop),
        *(settings.frames_per_step, settings.highway, [p.loss for p in stage.passes], bool(recipe.given)),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def speeds_of(pipeline: VideoPipeline, recipe: Recipe, reports: Sequence[StepReport]) -> dict[str, float]:
    """Mean seconds of a step of each stage of a training that was run, for `Speeds.keep`."""
    found = {}
    for stage in recipe.stages:
        took = [report.seconds for report in reports if report.stage == stage.name]
        if len(took) >= _ENOUGH:
            found[step_mark(pipeline, recipe, stage)] = round(sum(took) / len(took), 6)
    return found


def _estimate(pipeline: VideoPipeline, recipe: Recipe, clock: bool, speeds: Speeds | None) -> Estimate:
    stages, memories = [], [(0, "")]
    loaded = bytes_of(pipeline.unet, pipeline.text_encoder, pipeline.vae)
    made: dict[str, dict[str, torch.Tensor]] = {}
    for stage in recipe.stages:
        held = None if stage in recipe.absorbing else recipe.given or absorber_from(made, pipeline, recipe)
        run = Rehearsal(pipeline, stage, recipe, held)
        known = speeds.find(step_mark(pipeline, recipe, stage)) if speeds is not None else None
        seconds = run.seconds() if known is None and clock else known
        stages.append(StageEstimate(stage.name, run.steps, run.trained, seconds))
        saved = "" if run.savings == PLAIN else str(run.savings)
        memories.append((max(0, run.memory().total - loaded), saved))
        made[stage.name] = results_of(run.parameters)
    extra = 0.0
    if recipe.settings.looks and any(stage.learns_motion for stage in recipe.main):
        held_bytes, extra = looks_cost(pipeline, recipe, clock=clock)
        memories.append((held_bytes, ""))
    return _summary(pipeline, recipe, stages, max(memories), extra, _file_size(pipeline, recipe, made))


def _summary(
    pipeline: VideoPipeline,
    recipe: Recipe,
    stages: Sequence[StageEstimate],
    memory: tuple[int, str],
    extra: float,
    file: int,
) -> Estimate:
    settings, absorbing = recipe.settings, {stage.name for stage in recipe.absorbing}
    times = [stage.seconds for stage in stages]
    known = [seconds * stage.steps for seconds, stage in zip(times, stages, strict=True) if seconds is not None]
    return Estimate(
        method=settings.method,
        base=pipeline.identity.name,
        absorber=settings.absorber_kind if recipe.absorbing else "none",
        absorber_steps=tuple(stage.steps for stage in stages if stage.name in absorbing),
        steps=sum(stage.steps for stage in stages if stage.name not in absorbing),
        rank=settings.rank,
        looks=len(settings.looks) if recipe.main else 0,
        parameters=sum(stage.parameters for stage in stages),
        file=file,
        memory=memory[0],
        savings=memory[1],
        available=memory_available(pipeline.device),
        device=str(pipeline.device),
        stages=tuple(stages),
        seconds=sum(known) + extra if len(known) == len(stages) else None,
    )


def _file_size(pipeline: VideoPipeline, recipe: Recipe, made: Results) -> int:
    """Of what the method keeps, or of the absorber where nothing else is trained: numbers, names and metadata."""
    absorber = None if recipe.main else absorber_from(made, pipeline, recipe)
    lora = kept_lora(made, recipe, pipeline, 0, "") if recipe.main else (absorber.spatial if absorber else None)
    layers = lora.layers.values() if lora is not None else ()
    numbers = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in (layer.down, layer.up))
    words = sum(len(key) + len(value) for key, value in (lora.metadata if lora is not None else {}).items())
    rows = sum(tensor.numel() * tensor.element_size() for tensor in _tokens(made).values()) if absorber else 0
    return numbers + words + rows + _PER_TENSOR * 2 * len(layers)


def _tokens(made: Results) -> dict[str, torch.Tensor]:
    return {name: tensor for values in made.values() for name, tensor in values.items() if name.startswith(TOKENS)}


def _clock(seconds: float) -> str:
    whole = max(1, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _size(count: int) -> str:
    if count < 10**6:
        return f"{max(1, round(count / 1000))} kB"
    return f"{count / 1e6:.0f} MB" if count < 10**9 else f"{count / 1e9:.1f} GB"
