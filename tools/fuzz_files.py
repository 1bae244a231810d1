"""Broken files by the thousand: LoRAs, absorbers, checkpoints, jobs, captions and settings, mutated by hypothesis.

    python tools/fuzz_files.py 10000        so many mutated files over all kinds; prints a row for docs/RELIABILITY.md

A reader may take a file or refuse it in one line with one of the library's own errors. It may not raise anything else,
apply a file in part, or change a bit of the base.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, seed, settings
from reliability import report
from safetensors.torch import save_file
from torch import nn

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.apps.cli.options import read_toml
from motion_lora.apps.cli.settings import TRAIN_OPTIONS
from motion_lora.core.absorber import Absorber, PlaceholderTokens
from motion_lora.core.errors import MotionLoRAError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.absorber_file import load_absorber, save_absorber
from motion_lora.files.own import save_lora
from motion_lora.files.reader import load_any
from motion_lora.jobs.job import JobSpec, JobStatus
from motion_lora.jobs.registry import Board
from motion_lora.jobs.store import JobStore
from motion_lora.media.captions import read_captions
from motion_lora.playground.model import load_playground
from motion_lora.training.checkpoint import INDEX, Keeper, OptimiserState, Progress
from motion_lora.training.reports import StepReport
from motion_lora.training.settings import TrainSettings

_PLACES = st.floats(0, 1, allow_nan=False)
_WORDS = ("0", "-1", "1e999", "null", "[]", "{}", '""', "F64", "I8", "9" * 20, "lora_A", "alpha", "\\u0000")


@functools.lru_cache(maxsize=1)
def _network() -> nn.Module:
    """The built-in model's network."""
    network: nn.Module = load_playground(dtype="fp32").unet
    return network


def _modules() -> tuple[str, ...]:
    """Three of its layers."""
    return target_modules(_network(), "temporal-attention")[:3]


@dataclass(frozen=True)
class Kind:
    """One kind of file: sound ones to start from, and a reader that returns a word for what it did."""

    name: str
    sound: tuple[bytes, ...]
    read: Callable[[bytes, Path], str]


def mutations() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """A few changes of a file each."""
    change = st.one_of(
        st.tuples(st.just("flip"), _PLACES, st.integers(1, 255)),
        st.tuples(st.just("cut"), _PLACES),
        st.tuples(st.just("drop"), _PLACES, st.integers(1, 64)),
        st.tuples(st.just("insert"), _PLACES, st.binary(min_size=1, max_size=24)),
        st.tuples(st.just("copy"), _PLACES, _PLACES, st.integers(1, 200)),
        st.tuples(st.just("token"), _PLACES, st.sampled_from(_WORDS)),
        st.tuples(st.just("length"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("splice"), _PLACES, st.integers(0, 7)),
    )
    return st.lists(change, min_size=1, max_size=4)


def mutated(data: bytes, changes: list[tuple[Any, ...]], others: tuple[bytes, ...]) -> bytes:
    """The bytes after all changes."""
    for name, *values in changes:
        at = int(values[0] * len(data)) if isinstance(values[0], float) else 0
        if name == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ values[1]]) + data[at + 1 :]
        elif name == "cut":
            data = data[:at]
        elif name == "drop":
            data = data[:at] + data[at + values[1] :]
        elif name == "insert":
            data = data[:at] + values[1] + data[at:]
        elif name == "copy":
            start = int(values[1] * len(data))
            data = data[:at] + data[start : start + values[2]] + data[at:]
        elif name == "token":
            data = _with_token(data, values[0], values[1].encode())
        elif name == "length":
            data = values[0].to_bytes(8, "little") + data[8:]
        elif name == "splice":
            data = data[:at] + others[values[1] % len(others)][at:]
    return data


def _with_token(data: bytes, place: float, word: bytes) -> bytes:
    """One number or word of the readable part replaced; a safetensors header keeps its right length."""
    length = int.from_bytes(data[:8], "little")
    is_container = 8 + length <= len(data) and data[8:9] == b"{"
    begin, end = (8, 8 + length) if is_container else (0, len(data))
    tokens = list(re.finditer(rb"[\w.\-]+", data[begin:end]))
    if not tokens:
        return data
    token = tokens[min(int(place * len(tokens)), len(tokens) - 1)]
    text = data[begin : begin + token.start()] + word + data[begin + token.end() : end]
    return (len(text).to_bytes(8, "little") if is_container else b"") + text + data[end:]


def kinds(folder: Path) -> list[Kind]:
    """All kinds, with their sound files made in `folder`."""
    network, lora = _network(), _lora()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    return [
        Kind("LoRA", _lora_files(folder, lora), lambda data, path: _read_lora(data, path, network, before)),
        Kind("absorber", _absorber_files(folder, lora), _read_absorber),
        Kind("checkpoint", _checkpoint_files(folder), _read_checkpoint),
        Kind("job", _job_files(folder), _read_job),
        Kind("captions", _CAPTIONS, _read_captions),
        Kind("settings", (b'method = "motiondirector"\nsteps = 20\nrank = 4\nlearning_rate = 1e-4\n',), _read_settings),
    ]


def _lora(scale: float = 0.5) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name in _modules():
        rows, columns = _network().get_submodule(name).weight.shape  # type: ignore[union-attr, misc]
        down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        layers[name] = LoRALayer(down, up, scale)
    return LoRA(layers)


def _lora_files(folder: Path, lora: LoRA) -> tuple[bytes, ...]:
    own = save_lora(folder / "own.safetensors", lora).read_bytes()
    spellings = {
        "peft": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
        "era": ("{}.lora_A", "{}.lora_B"),
        "dotted": ("{}.lora_down.weight", "{}.lora_up.weight"),
    }
    made = [own]
    for name, (down, up) in spellings.items():
        tensors = {down.format(module): layer.down for module, layer in lora.layers.items()}
        tensors |= {up.format(module): layer.up for module, layer in lora.layers.items()}
        save_file(tensors, folder / f"{name}.safetensors", {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 4}'})
        torch.save(tensors, folder / f"{name}.pt")
        made += [(folder / f"{name}.safetensors").read_bytes(), (folder / f"{name}.pt").read_bytes()]
    return tuple(made)


def _read_lora(data: bytes, path: Path, network: nn.Module, before: dict[str, torch.Tensor]) -> str:
    file = path / "mutated.safetensors"
    file.write_bytes(data)
    try:
        report = load_any(file, network)
        if set(report.lora.layers) - set(_modules()) or report.matched != report.total:
            raise AssertionError(f"a file was applied in part: {report.text}")
        with applied(network, AdapterStack((StackEntry(report.lora),)), num_frames=1):
            pass
        return "read"
    finally:
        after = network.state_dict()
        if any(not torch.equal(after[name], weight) for name, weight in before.items()):
            raise AssertionError("the base has changed")


def _absorber_files(folder: Path, lora: LoRA) -> tuple[bytes, ...]:
    tokens = PlaceholderTokens(("<look-1>", "<look-2>"), torch.ones(2, 6), ("red", "red"))
    both = save_absorber(folder / "both.safetensors", Absorber(LoRA(lora.layers), tokens))
    words = save_absorber(folder / "words.safetensors", Absorber(None, tokens))
    return both.read_bytes(), words.read_bytes()


def _read_absorber(data: bytes, path: Path) -> str:
    file = path / "mutated.safetensors"
    file.write_bytes(data)
    absorber = load_absorber(file)
    if absorber.tokens is not None and len(absorber.tokens.names) != len(absorber.tokens.rows):
        raise AssertionError("tokens without rows")
    return "read"


def _keeper(folder: Path) -> Keeper:
    return Keeper(folder, "mark", {"rank": 2}, ["motion"], torch.float32)


def _state() -> OptimiserState:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimiser = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2, 3)
    optimiser.step()
    return OptimiserState({"motion.down": parameter}, optimiser, torch.amp.GradScaler("cpu", enabled=False))


def _checkpoint_files(folder: Path) -> tuple[bytes, ...]:
    """The index and the tensors in one piece; the reader takes them apart."""
    kept = folder / "checkpoint"
    reports = [StepReport("motion", 1, 4, 0.5, 1e-3, 0.1)]
    _keeper(kept).save(Progress({"look": {"a": torch.ones(2)}}, reports, "motion", 1), _state())
    tensors = next(kept.glob("state-*"))
    return ((kept / INDEX).read_bytes() + _SEAM + tensors.name.encode() + _SEAM + tensors.read_bytes(),)


_SEAM = b"\n--seam--\n"


def _read_checkpoint(data: bytes, path: Path) -> str:
    index, name, tensors = [*data.split(_SEAM, 2), b"", b""][:3]
    for old in path.glob("*"):
        if old.is_file():
            old.unlink()
    (path / INDEX).write_bytes(index)
    if re.fullmatch(rb"[\w.-]{1,80}", name):
        (path / name.decode("ascii", "replace")).write_bytes(tensors)
    keeper, state = _keeper(path), _state()
    before = state.parameters["motion.down"].detach().clone()
    try:
        keeper.open()
        keeper.restore(state)
    except MotionLoRAError:
        if not torch.equal(state.parameters["motion.down"], before):
            raise AssertionError("a checkpoint was applied in part") from None
        raise
    return "read"


_JOB_ID = "20261128-120000-deadbeef-0000"
_JOB_FILES = ("job.json", "status.json", "losses.jsonl", "lease.json", "published.json")


def _job_files(folder: Path) -> tuple[bytes, ...]:
    """What a paused job holds beside tensors, in one piece."""
    spec = JobSpec("motion-lora", "orbit", "deadbeef", base={"name": "tiny"}, settings=TrainSettings().to_json())
    status = JobStatus(
        state="paused", stage="motion", step=2, total=4, done_steps=2, all_steps=4, loss=0.5, rate=1.0, created=1.7e9
    )
    made = JobStore(folder / "made").create(replace(spec, plan={"motion": 4}), status)
    (made / "losses.jsonl").write_text('["motion", 1, 0.5, 0.001]\n["motion", 2, 0.4, 0.001]\n', encoding="utf-8")
    (made / "published.json").write_text('{"name": "a", "asked": "a", "sha256": ""}', encoding="utf-8")
    files = _SEAM.join((made / name).read_bytes() for name in _JOB_FILES)
    return (files, files.replace(b'"paused"', b'"running"'), files.replace(b'"paused"', b'"done"'))


def _read_job(data: bytes, path: Path) -> str:
    """What a server that starts makes of the folder; a job that it cannot read stays where it is."""
    folder = path / "jobs" / _JOB_ID
    shutil.rmtree(path / "jobs", ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in zip(_JOB_FILES, [*data.split(_SEAM, len(_JOB_FILES) - 1), *([b""] * 5)], strict=False):
        (folder / name).write_bytes(content)
    board = Board(JobStore(path / "jobs"), None, 1.0)
    for job in board.jobs():
        json.loads(json.dumps(board.describe(job.id, 10), allow_nan=False))
        board.tidy()
        TrainSettings.from_json(job.spec.settings)
    if not (folder / "job.json").is_file():
        raise AssertionError("a job that nobody deleted is gone")
    return "read" if board.entries else "refused"


_CAPTIONS = (
    b'file,caption,absorb_words,start\nclip.mp4,"a red circle, moving",red,0.5\n',
    "file;caption\nclip.mp4;a caf\u00e9\n".encode("utf-16"),
    b'{"file": "clip.mp4", "caption": "a red circle", "start": 1}\n',
    b"a red circle is moving\na red circle\nred\n",
)


def _read_captions(data: bytes, path: Path) -> str:
    (path / "clip.mp4").touch()
    name = {b"{": "captions.jsonl", b"f": "captions.csv", b"\xff": "captions.csv"}.get(data[:1], "clip.txt")
    for other in ("captions.jsonl", "captions.csv", "clip.txt"):
        (path / other).unlink(missing_ok=True)
    (path / name).write_bytes(data)
    (entry,) = read_captions(path)
    if not entry.caption or "\n" in entry.caption:
        raise AssertionError(f"a caption that is none: {entry.caption!r}")
    return "read"


def _read_settings(data: bytes, path: Path) -> str:
    (path / "run.toml").write_bytes(data)
    read_toml(path / "run.toml", TRAIN_OPTIONS)
    return "read"


def fuzz(kind: Kind, examples: int, first: int = 0) -> Counter[str]:
    """Read so many mutated files of a kind; returns how many were read and refused. Raises what a reader must not."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:

        @seed(first)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mutations(), st.integers(0, 63))
        def one(changes: list[tuple[Any, ...]], start: int) -> None:
            data = mutated(kind.sound[start % len(kind.sound)], changes, kind.sound)
            try:
                outcomes[kind.read(data, Path(folder))] += 1
            except MotionLoRAError as error:
                if "\n" in str(error):
                    raise AssertionError(f"more than one line: {error}") from error
                outcomes["refused"] += 1

        one()
    return outcomes


def main(arguments: list[str]) -> int:
    """Fuzz all kinds and print the row."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    total = int(arguments[0]) if arguments else 10_000
    said, files = [], 0
    with tempfile.TemporaryDirectory() as folder:
        all_kinds = kinds(Path(folder))
        for kind in all_kinds:
            found = fuzz(kind, -(-total // len(all_kinds)))
            files += sum(found.values())
            said.append(f"{kind.name} {found['read']} read, {found['refused']} refused")
            sys.stdout.write(f"{said[-1]}\n")
    result = f"{files} mutated files, no crash, none applied in part, base the same to the bit: {'; '.join(said)}"
    return report("Malformed files", result, [])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
