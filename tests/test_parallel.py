"""Two processes with Accelerate train what one does, to rounding; one writes, and the other's absence is no matter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import CAPTIONS, succeeds, write_base, write_clip
from paused_training import run

from motion_lora.core.errors import SettingsError
from motion_lora.core.lora import LoRA
from motion_lora.files.own import load_lora
from motion_lora.training import parallel
from motion_lora.training.parallel import Processes

TRAIN = ("--method", "temporal-only", "--steps", "3", "--rank", "2", "--learning-rate", "1e-2",
         "--gradient-accumulation", "2", "--num-frames", "3", "--height", "16", "--width", "16")  # fmt: skip


def launch(count: int, *words: object) -> str:
    """Run a script or `-m module` in `count` processes of one thread, by Accelerate's launcher; what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # No card: its name for several processes on one machine is --multi_gpu all the same.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", count,
               "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no",
               "--main_process_port", port, *words]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    launcher = subprocess.Popen(
        [str(word) for word in command], env=environment, text=True, start_new_session=True, **pipes
    )
    try:
        said, errors = launcher.communicate(timeout=900)
    finally:
        # With the processes that it started, which outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, errors[-2000:]
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_base(tmp_path)
    write_clip(tmp_path)
    return tmp_path


def assert_alike(one: LoRA, two: LoRA) -> None:
    for module, layer in one.layers.items():
        assert bool(layer.up.any())
        assert torch.allclose(two.layers[module].up, layer.up, rtol=1e-3, atol=1e-5), module
        assert torch.allclose(two.layers[module].down, layer.down, rtol=1e-3, atol=1e-5), module


def test_two_launched_processes_learn_what_one_does(folder: Path) -> None:
    words = ("train", "--base", folder / "tiny", "--device", "cpu", "--clip", folder / "clip.mp4", *CAPTIONS, *TRAIN)
    said = launch(2, "-m", "motion_lora.apps.cli", *words, "--output", folder / "together.safetensors")
    assert said.count("together.safetensors") == 1, "the first process alone reports"
    succeeds(*words, "--output", folder / "alone.safetensors")
    assert_alike(*(load_lora(folder / f"{name}.safetensors") for name in ("alone", "together")))


def test_a_checkpoint_goes_on_with_another_number_of_processes(folder: Path) -> None:
    launch(2, Path(__file__).with_name("paused_training.py"), folder, 3)
    index = json.loads((folder / "checkpoint" / "checkpoint.json").read_text())
    assert index["step"] == 3
    resumed = run(folder)
    assert [report.step for report in resumed.losses] == [1, 2, 3, 4, 5, 6]
    assert_alike(run(folder, checkpoint="anew").lora, resumed.lora)


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
