"""A base among the models of a host: sent away, called back, asked room for; with the double, and with the real one."""

from __future__ import annotations

import gc
import subprocess
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_double import Host, hosted
from real_host import comfyui_and_python
from tiny import write_tiny_folder

from motion_lora.base.pipeline import VideoPipeline

ROOT = Path(__file__).resolve().parents[1]
THERE = torch.device("meta")


class Moves:
    """Where every network has been put, in order, without moving any."""

    def __init__(self, base: VideoPipeline) -> None:
        self._names = {id(base.unet): "unet", id(base.vae): "vae", id(base.text_encoder): "text"}
        self.places: dict[str, str] = {}

    def __call__(self, module: Any, device: torch.device) -> Any:
        self.places[self._names[id(module)]] = device.type
        return module

    def all_at(self, device: str) -> bool:
        return self.places == dict.fromkeys(("unet", "vae", "text"), device)


@pytest.fixture
def away(tiny_small: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[VideoPipeline, Moves]:
    """A base whose device is another than main memory."""
    base = replace(tiny_small, device=THERE)
    # A base of its own, not a replica of the one that all tests share.
    base = replace(base, _home=type(base._home)(), _place=type(base._place)(), _text_place=type(base._place)())
    moves = Moves(base)
    monkeypatch.setattr("motion_lora.base.pipeline.moved", moves)
    return base, moves


def test_sent_away_and_back_for_whoever_works(away: tuple[VideoPipeline, Moves]) -> None:
    base, moves = away
    base.send_away()
    assert base.is_away and moves.all_at("cpu")
    with base.at_work():
        assert moves.all_at("meta")
    assert moves.all_at("cpu")
    base.call_back()
    assert not base.is_away and moves.all_at("meta")


def test_not_taken_from_who_is_at_work(away: tuple[VideoPipeline, Moves]) -> None:
    """A training in the background while ComfyUI wants the device: the base leaves with its last user."""
    base, moves = away
    with base.at_work():
        with base.at_work():
            base.send_away()
            assert moves.all_at("meta")
        assert moves.all_at("meta")
    assert moves.all_at("cpu")


def test_an_encoder_that_visited_the_device_leaves_it(away: tuple[VideoPipeline, Moves]) -> None:
    base, moves = away
    base.send_away()
    with base._encoder(base.vae):
        assert moves.places["vae"] == "meta"
    assert moves.all_at("cpu")


def test_what_a_host_moves_in_inference_mode_can_be_trained_around() -> None:
    from motion_lora.base.placement import moved

    linear = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        moved(linear, THERE)
    assert not linear.weight.is_inference()


# With the nodes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny")
        yield host


@pytest.fixture
def asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], float]]:
    """What ComfyUI is asked to load, with how much room, were the base on a device that both share."""
    memory, found = host.module("comfy.memory"), []
    monkeypatch.setattr(memory, "shares_device", lambda base: True)
    monkeypatch.setattr(
        memory.mm, "load_models_gpu", lambda models, memory_required=0: found.append((models, memory_required))
    )
    return found


def test_every_node_that_computes_asks_for_room(host: Host, asked: list[tuple[list[Any], float]]) -> None:
    base = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    mine = host.module("comfy.memory").patcher_of(base)
    tiny = {"num_frames": 2, "width": 32, "height": 32, "num_inference_steps": 1, "prompt": "a red circle"}
    latents = host.run("MotionLoRA_SampleVideo", base_model=base, decode=False, **tiny).args[2]
    host.run("MotionLoRA_DecodeVideo", base_model=base, latents=latents)
    clips = host.run("MotionLoRA_PlaygroundClip", num_frames=2).args[0]
    host.run("MotionLoRA_InvertClip", base_model=base, clips=clips, num_inference_steps=1)
    assert [models for models, _ in asked] == [[mine]] * 4
    loading, *working = (room for _, room in asked)
    assert loading == 0 and all(room > 2**20 for room in working)
    more = {**tiny, "num_frames": 4}
    host.run("MotionLoRA_SampleVideo", base_model=base, decode=False, **more)
    assert asked[-1][1] > asked[1][1], "more frames take more room"


def test_training_keeps_its_own_base(host: Host, monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    memory = host.module("comfy.memory")
    base = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    own, other, freed = SimpleNamespace(model=memory.patcher_of(base)), SimpleNamespace(model=object()), []
    monkeypatch.setattr(memory.mm, "current_loaded_models", [own, other])
    monkeypatch.setattr(memory.mm, "free_memory", lambda size, device, keep: freed.append(keep))
    memory.make_room_for_training(base)
    assert freed == [[own]]


def test_the_patcher_lets_a_base_go(host: Host) -> None:
    memory = host.module("comfy.memory")
    base = host.library("playground.model").load_playground(dtype="fp32")
    kept = weakref.ref(memory.patcher_of(base))
    assert kept() is not None
    del base
    gc.collect()
    assert kept() is None


def test_out_of_memory_in_a_job_reaches_the_host(host: Host) -> None:
    """ComfyUI unloads its models for this kind of error alone."""
    failure = host.module("comfy.jobs")._failure
    assert isinstance(failure("cuda:0 ran out of memory; use fewer frames"), torch.cuda.OutOfMemoryError)
    assert not isinstance(failure("the loss of step 3 is not finite"), torch.cuda.OutOfMemoryError)


def test_a_job_waits_until_models_are_unloaded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base was loaded in the very moment in which ComfyUI was only asked for room."""
    server = host.module("comfy.server")
    queue, looks = host.server.prompt_queue, []
    monkeypatch.setattr(server, "device", lambda: torch.device("cuda"))

    def loaded() -> list[str]:
        looks.append(len(looks))
        return ["a model"] if len(looks) < 3 else []

    def flags(reset: bool = True) -> dict[str, bool]:
        return {"unload_models": True} if len(looks) == 0 and looks.append(0) is None else {}

    monkeypatch.setattr(queue, "get_flags", flags)
    monkeypatch.setattr(server.mm, "loaded_models", loaded)
    monkeypatch.setattr(server.time, "sleep", lambda seconds: None)
    server.make_room_between_prompts()
    assert queue.flags == {"unload_models": True} and len(looks) == 3


# With the real model_management --------------------------------------------------------------------------------------

_SCRIPT = """
import importlib.util, sys, types
from contextlib import contextmanager
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management as mm, torch
spec = importlib.util.spec_from_file_location("pack_memory", {memory!r})
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
memory.shares_device = lambda base: True


class Base:
    device, dtype, is_away, said = torch.device("cpu"), torch.float32, False, ()
    def __init__(self):
        self.unet, self.vae, self.text_encoder = (torch.nn.Linear(4, 4) for _ in range(3))
    def send_away(self):
        self.is_away, self.said = True, (*self.said, "away")
    def call_back(self):
        self.is_away, self.said = False, (*self.said, "back")
    @contextmanager
    def at_work(self):
        yield


base = Base()
with memory.at_work(base, 1000):
    pass
assert mm.loaded_models() == [memory.patcher_of(base)], mm.loaded_models()
mm.unload_all_models()
assert base.is_away and not mm.loaded_models(), (base.said, mm.loaded_models())
with memory.at_work(base, 1000):
    assert not base.is_away
memory.make_room_for_training(base)
assert not base.is_away and mm.loaded_models() == [memory.patcher_of(base)]
mm.free_memory(10, torch.device("cpu"))
del base
import gc
gc.collect()
mm.cleanup_models_gc()
mm.cleanup_models()
assert not [model for model in mm.loaded_models() if model is not None], mm.loaded_models()
"""


@pytest.mark.comfy
@pytest.mark.slow
def test_comfyui_itself_unloads_and_loads_a_base() -> None:
    checkout, python = comfyui_and_python()
    script = _SCRIPT.format(comfyui=str(checkout), memory=str(ROOT / "nodes/comfy/memory.py"))
    package = f"import sys, types\nsys.path.insert(0, {str(checkout)!r})\n"
    done = subprocess.run([python, "-c", package + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
