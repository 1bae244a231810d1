"""Checkpoints: everything that a training run needs to go on as if it had never stopped.

A checkpoint is two files in a folder. `state-<stage>-<step>.safetensors` holds parameters and optimiser moments,
`checkpoint.json` the position, the reports so far and the name of the former. The JSON is replaced last and at once,
so there is always one whole checkpoint, whenever the power goes. Both have a digest, for disks that lose what they
have taken: of the checkpoint before, `former.json` and its state stay, and a damaged one is passed over for it. Random
numbers need no state: every step draws from generators seeded by the run's seed and the step. `kept-*.safetensors`
hold what was costly to make before the first step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.disk import check_target, remove_files, remove_if_empty, retried, write_atomically
from ..core.errors import LoRAFileError, SettingsError, TrainingError
from ..files.container import read_header, read_tensors, serialize
from .reports import StepReport

INDEX, FORMER = "checkpoint.json", "former.json"
KEPT = "kept-"
# The step has seven digits; a user's own files in the folder must not look like it.
_STATES = "state-*-" + "[0-9]" * 7 + ".safetensors"
# A name as long as any file here has.
_LONGEST = f"state-{'x' * 32}-0000000.safetensors"
FORMAT = 1
_log = logging.getLogger(__name__)

Values = Mapping[str, Tensor]


@dataclass
class OptimiserState:
    """The parameters that train, by name, their optimiser and the scaler of fp16 losses: what a step changes."""

    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments under one flat set of names; those that never had a gradient have no moments."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"parameter|{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                found[f"{key}|{name}"] = torch.as_tensor(value)
        return found

    @torch.no_grad()
    def load(self, tensors: Values, scaler: Mapping[str, Any]) -> None:
        """The reverse of `tensors`; raises TrainingError when a parameter is missing."""
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            moments.setdefault(name, {})[kind] = value
        if set(moments) != set(self.parameters):
            raise TrainingError("The checkpoint holds other parameters than this run trains; delete it to start over.")
        # All are looked at before the first is taken over.
        for name, parameter in self.parameters.items():
            if not _belongs(moments[name], parameter):
                raise TrainingError(f"The checkpoint holds no usable numbers for {name}; delete it to start over.")
        for name, parameter in self.parameters.items():
            stored = moments[name]
            parameter.copy_(stored.pop("parameter"))
            if stored:
                # The step count stays on the CPU, where AdamW keeps it unless it is one kernel.
                here = () if self.optimiser.defaults.get("fused") else ("step",)
                self.optimiser.state[parameter] = {
                    key: value if key in here else value.to(parameter.device) for key, value in stored.items()
                }
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(scaler))

    def is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters.values())


@dataclass
class Progress:
    """How far a run is: results of the finished stages, reports of all steps, and the stage and step it is at."""

    results: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    reports: list[StepReport] = field(default_factory=list)
    stage: str = ""
    step: int = 0


class Keeper:
    """Writes and reads the checkpoint folder of one run; without a folder it does neither."""

    def __init__(
        self,
        folder: Path | None,
        fingerprint: str,
        settings: Mapping[str, Any],
        stages: Sequence[str],
        dtype: torch.dtype,
        *,
        writes: bool = True,
    ) -> None:
        """`fingerprint`, `stages` and `dtype` have to be the same for a run to go on; `settings` say what is not.

        One that does not write, of a training in several processes, reads the same folder and leaves it as it is.
        """
        self.folder, self._writes = folder, writes
        self._run = {**settings, "stages": "+".join(stages), "dtype": str(dtype).removeprefix("torch.")}
        self._identity: dict[str, Any] = {"format": FORMAT, "fingerprint": fingerprint, "settings": self._run}
        self._unread: tuple[dict[str, Tensor], Mapping[str, Any]] | None = None
        # The index that was read or written last: sound, whatever lies on the disk.
        self._last: dict[str, Any] | None = None
        # The file of tensors that the former index speaks of.
        self._former = ""
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint to go back to."""
        self.close()
        return self.folder is not None and has_checkpoint(self.folder)

    def open(self) -> Progress:
        """The progress in the folder, or none yet. Where the last checkpoint is damaged, that of the one before it.

        Raises SettingsError, saying which settings differ, when the checkpoint belongs to another run, TrainingError
        when all are damaged, OutputError when the folder cannot be written: before work starts, not at its first save.
        """
        if self.folder is None:
            return Progress()
        check_target(self.folder / _LONGEST)
        if not self.exists:
            return Progress()
        has_former = (self.folder / FORMER).exists()
        try:
            progress = self._read(self.folder / INDEX)
            self._former = _tensors_of(self.folder / FORMER) if has_former else ""
            return progress
        except TrainingError as damage:
            # What may not be read is not damaged: the right to it can be given back.
            if not has_former or isinstance(_first_cause(damage), PermissionError):
                raise
            progress = self._read(self.folder / FORMER)
            _log.warning("%s The one before it is whole: going on from step %d.", damage, progress.step)
            return progress

    def _read(self, file: Path) -> Progress:
        """The progress that an index speaks of; its tensors wait for `restore`. Raises SettingsError, TrainingError."""
        try:
            index = _whole(json.loads(retried(lambda: file.read_text(encoding="utf-8"))))
            self._require_same_run(index)
            tensors = read_tensors(_sound(file.parent / index["tensors"], index.get("sha256")), own=True)
            progress, scaler = _progress_from(index, tensors), dict(index["scaler"])
        except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            if isinstance(error, SettingsError):
                raise
            message = f"The checkpoint in {self.folder} is damaged ({error}); delete it to start over."
            raise TrainingError(message) from error
        current = {name: tensor for name, tensor in tensors.items() if not name.startswith("result|")}
        self._unread = (current, scaler) if current else None
        self._last = index
        return progress

    def restore(self, state: OptimiserState) -> None:
        """Put what `open` read into the run's parameters and optimiser, once."""
        if self._unread is not None:
            state.load(*self._unread)
            self._unread = None

    def save(self, progress: Progress, state: OptimiserState | None, *, wait: bool = True) -> None:
        """Add a checkpoint and drop the one before the last. Raises OutputError; the others are then still there.

        `state` is None between two stages. Not to `wait`, the numbers are taken now and written beside the steps that
        follow, which the disk does not hold up; the next save waits, and raises what went wrong with this one.
        """
        if self.folder is None or not self._writes:
            return
        self._settle()
        results = {
            f"result|{stage}|{name}": tensor
            for stage, values in progress.results.items()
            for name, tensor in values.items()
        }
        name = f"state-{progress.stage}-{progress.step:07d}.safetensors"
        data = serialize(results | (state.tensors() if state else {}), {})
        index = {
            **self._identity,
            "stage": progress.stage,
            "step": progress.step,
            "tensors": name,
            "scaler": state.scaler.state_dict() if state else {},
            "reports": [dataclasses.astuple(report) for report in progress.reports],
        }
        if not wait:
            try:
                self._writing = self._writer().submit(self._write, name, data, index)
                return
            except RuntimeError as ending:
                # Python takes no more work for threads once it is on its way out, while a run still is at its steps.
                _log.debug("%s is written at once: %s", name, ending)
        self._write(name, data, index)

    def _write(self, name: str, data: bytes, index: dict[str, Any]) -> None:
        assert self.folder is not None
        write_atomically(self.folder / name, data)
        index["sha256"] = hashlib.sha256(data).hexdigest()
        # A pause may come right after a checkpoint of the same step.
        if self._last is not None and self._last["tensors"] != name:
            write_atomically(self.folder / FORMER, _signed(self._last))
            self._former = self._last["tensors"]
        write_atomically(self.folder / INDEX, _signed(index))
        self._last = index
        self._drop(other_than=(name, self._former))

    def _writer(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="motion-lora-checkpoint")
        return self._thread

    def _settle(self) -> None:
        """Wait for what is being written. Raises OutputError where it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it, and end its thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def remember(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, kept beside the checkpoint, so that a run that goes on need not make it again.

        Kept to the bit, on the CPU when it comes from the file. A file of another run, or a damaged one, is made anew.
        Raises OutputError.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{KEPT}{name}.safetensors"
        mark = {"fingerprint": self._identity["fingerprint"], "dtype": self._run["dtype"]}
        if path.exists():
            try:
                header = read_header(path)
                kept = dict(header.metadata)
                digest = kept.pop("sha256", None)
                if kept == mark:
                    tensor = read_tensors(path, header, own=True)[name]
                    if digest in (None, _digest(tensor)):
                        return tensor
                    _log.warning("%s is made again: its numbers are not those that were written", path.name)
            except (LoRAFileError, KeyError) as error:
                _log.warning("%s is made again: %s", path.name, error)
        made = make()
        if not self._writes:
            return made
        write_atomically(path, serialize({name: made}, {**mark, "sha256": _digest(made)}))
        return made

    def delete(self) -> None:
        """Remove the checkpoint, and its folder when nothing else is in it."""
        self.close()
        if self.folder is not None and self._writes:
            delete_checkpoint(self.folder)

    def _drop(self, other_than: Container[str]) -> None:
        assert self.folder is not None
        remove_files(path for path in self.folder.glob(_STATES) if path.name not in other_than)

    def _require_same_run(self, index: Mapping[str, Any]) -> None:
        before, now = index.get("settings", {}), self._run
        # The fingerprint stands for the settings, whose names may have changed since.
        alike = all(index[key] == self._identity[key] for key in ("format", "fingerprint"))
        if alike and all(before.get(key) == now[key] for key in ("stages", "dtype")):
            return
        differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        what = ", ".join(f"{name} {before.get(name)!r} there and {now.get(name)!r} here" for name in differing)
        raise SettingsError(
            f"The checkpoint in {self.folder} belongs to another run ({what or 'other clips, base or absorber'}); "
            "choose another folder, or delete it to start over."
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return (folder / INDEX).exists() or (folder / FORMER).exists()


def delete_checkpoint(folder: Path) -> None:
    """Remove a run's checkpoint and what it kept beside it; the folder too, when nothing else is in it."""
    remove_files([folder / INDEX, folder / FORMER, *folder.glob(_STATES), *folder.glob(f"{KEPT}*.safetensors")])
    remove_if_empty(folder)


def _signed(index: Mapping[str, Any]) -> bytes:
    return json.dumps({**index, "digest": _text_digest(index)}).encode()


def _whole(index: Any) -> dict[str, Any]:
    """An index as it was written; one of before there were digests is taken as it is. Raises ValueError."""
    if not isinstance(index, dict):
        raise ValueError("it is no JSON object")
    digest = index.pop("digest", None)
    if digest is not None and digest != _text_digest(index):
        raise ValueError("its index is not what was written")
    return index


def _text_digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _tensors_of(index: Path) -> str:
    """The file of tensors that an index speaks of; "" where it cannot be read."""
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["tensors"])
    except (OSError, LookupError, TypeError, ValueError, RecursionError):
        return ""


def _sound(path: Path, digest: str | None) -> Path:
    """The path of a file whose content is what was written. Raises ValueError, OSError."""
    if digest is not None:
        found = hashlib.sha256()
        with retried(lambda: path.open("rb")) as file:
            while block := file.read(2**20):
                found.update(block)
        if found.hexdigest() != digest:
            raise ValueError(f"{path.name} is not what was written")
    return path


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(serialize({"": tensor}, {})).hexdigest()


def _progress_from(index: Mapping[str, Any], tensors: Values) -> Progress:
    results: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("result|"):
            _, stage, name = key.split("|", 2)
            results.setdefault(stage, {})[name] = tensor
    reports = [StepReport(*entry) for entry in index["reports"]]
    step = int(index["step"])
    if step < 0 or not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError("it holds numbers of another kind")
    return Progress(results, reports, str(index["stage"]), step)


def _belongs(stored: Values, parameter: Tensor) -> bool:
    """Whether what is stored for a parameter is one value of its shape, and moments of it or one number each."""
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    return shapes.get("parameter") == tuple(parameter.shape) and all(
        shape in ((), tuple(parameter.shape)) for shape in shapes.values()
    )


def results_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What a stage hands on: fp32 copies of its parameters on the CPU."""
    return {name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in parameters.items()}


def part_of(values: Values, part: str) -> dict[str, Tensor]:
    """The entries "<part>|<rest>" by their rest."""
    prefix = f"{part}|"
    return {name.removeprefix(prefix): tensor for name, tensor in values.items() if name.startswith(prefix)}
