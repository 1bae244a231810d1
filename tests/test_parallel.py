"""Two processes with Accelerate train what one does, to rounding; one writes, and the other's absence is no matter."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import CAPTIONS, succeeds, write_base, write_clip

from motion_lora.core.errors import SettingsError
from motion_lora.files.own import load_lora
from motion_lora.training import parallel
from motion_lora.training.parallel import Processes

TRAIN = ("--method", "temporal-only", "--steps", "3", "--rank", "2", "--learning-rate", "1e-2",
         "--gradient-accumulation", "2", "--num-frames", "3", "--height", "16", "--width", "16")  # fmt: skip


def words_of(folder: Path, output: Path) -> list[str]:
    """The command after `motion-lora`."""
    named = ("--base", folder / "tiny", "--device", "cpu", "--clip", folder / "clip.mp4", "--output", output)
    return ["train", *map(str, named), *CAPTIONS, *TRAIN]


def train(folder: Path, name: str, count: int) -> Path:
    """Run `motion-lora train` in `count` processes of one thread, as `accelerate launch` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = folder / f"{name}.safetensors"
    words = [sys.executable, "-m", "motion_lora.apps.cli", *words_of(folder, output)]
    running = []
    for rank in range(count):
        place = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        several = {key: str(value) for key, value in place.items()}
        environment = {**os.environ, **several, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(words, env=environment, **pipes))
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * count, [text[-300:] for _, text in said]
    assert [bool(text) for text, _ in said] == [True] + [False] * (count - 1), "the first process alone reports"
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_base(tmp_path, levels=2)
    write_clip(tmp_path)
    return tmp_path


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    output = folder / "alone.safetensors"
    succeeds(*words_of(folder, output))
    alone, together = load_lora(output), load_lora(train(folder, "together", 2))
    for module, layer in alone.layers.items():
        assert bool(layer.up.any())
        assert torch.allclose(together.layers[module].up, layer.up, rtol=1e-3, atol=1e-5), module
        assert torch.allclose(together.layers[module].down, layer.down, rtol=1e-3, atol=1e-5), module


def test_micro_batches_are_shared_evenly_or_not_at_all() -> None:
    class Third(Processes):
        rank, count = 1, 3

    assert list(Third().share(6)) == [1, 4]
    assert list(Processes().share(4)) == [0, 1, 2, 3]
    with pytest.raises(SettingsError, match="make it a multiple of 3"):
        list(Third().share(4))


def test_many_processes_without_accelerate_are_told_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SettingsError, match="pip install accelerate"):
        parallel.processes()


def test_a_process_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert type(parallel.processes()) is Processes
    assert json.dumps(parallel.device_name("auto")) == '"auto"'
