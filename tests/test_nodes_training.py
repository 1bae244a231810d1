"""The training nodes against the double of ComfyUI: waiting, background, Cancel, attaching, resuming, absorbers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from comfy_double import ExecutionBlocker, Host, InterruptProcessingException, hosted
from metric_models import write_clip_model
from tiny import write_tiny_folder

TRAIN, ABSORB = "MotionLoRA_TrainMotionLoRA", "MotionLoRA_TrainAppearanceAbsorber"
# The playground's clip is 64 x 64; on the tiny base its captions are mostly unknown words, which is no matter here.
QUICK = {"method": "temporal-only", "steps": 3}
SLOW = {"method": "temporal-only", "steps": 500}
ABSORBER = {"absorber_steps": 2, "token_steps": 2, "num_tokens": 2, "patch_crop": "off"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny", levels=2)
        yield host


@pytest.fixture(scope="module")
def material(host: Host) -> dict:
    base = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    images = host.run("MotionLoRA_PlaygroundClip", num_frames=3).args[1]
    words = {"caption": "a red circle circling over sand", "appearance_caption": "a red circle over sand"}
    cut = {"num_frames": 3, "width": 32, "height": 32, "absorb_words": "red circle"}
    clips = host.run("MotionLoRA_ReferenceClip", images=images, **words, **cut).args[0]
    return {"base_model": base, "clips": clips}


@pytest.fixture(autouse=True)
def ordinary_mode() -> Iterator[None]:
    """No test may leave its thread in inference mode."""
    yield
    assert not torch.is_inference_mode_enabled()


@pytest.fixture
def seed() -> Iterator[int]:
    """A seed of its own for every test, so that none finds the job of another."""
    yield next(_SEEDS)


_SEEDS = iter(range(1000))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def jobs(host: Host) -> list:
    return host.module("comfy.jobs").runner().jobs()


def newest(host: Host):
    return jobs(host)[0]


def train_in_thread(host: Host, outcome: dict, **inputs: object) -> threading.Thread:
    def run() -> None:
        try:
            outcome["made"] = host.run(TRAIN, **inputs)
        except InterruptProcessingException:
            outcome["interrupted"] = True

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_waiting_gives_the_lora_its_name_and_its_curve(host: Host, material: dict, seed: int) -> None:
    made = host.run(TRAIN, **material, **QUICK, seed=seed, name="my orbit")
    lora, name, losses, plot = made.args
    assert len(lora) > 0 and name == "motion/my orbit.safetensors" and len(losses["loss"]) == 3
    assert plot.shape[0] == 1 and plot.shape[-1] == 3
    assert name in host.module("comfy.folders").lora_names()
    assert host.progress and host.progress[-1] == (3, 3)
    assert (host.folder / "output/loras/motion/my orbit.preview.png").is_file()
    loaded, caption = host.run("MotionLoRA_LoadMotionLoRA", lora_name=name).args
    assert loaded.fingerprint() == lora.fingerprint() and caption == "a red circle circling over sand"


def test_the_same_training_is_loaded_not_repeated(host: Host, material: dict, seed: int) -> None:
    first = host.run(TRAIN, **material, **QUICK, seed=seed)
    count, began = len(jobs(host)), newest(host).status.started
    again = host.run(TRAIN, **material, **QUICK, seed=seed, unique_id="77")
    assert len(jobs(host)) == count and newest(host).status.started == began
    assert again.args[0].fingerprint() == first.args[0].fingerprint() and again.args[1] == first.args[1]
    host.run(TRAIN, **material, **QUICK, seed=seed, retrain=True)
    assert len(jobs(host)) == count + 1


def test_zero_means_the_default_of_method_and_base(host: Host, material: dict) -> None:
    widgets = {
        **dict.fromkeys(("steps", "rank", "alpha", "learning_rate", "absorber_steps", "token_steps"), 0),
        **dict.fromkeys(("absorber", "targets"), "default"),
        "method": "motiondirector",
        "seed": 5,
        "gradient_checkpointing": True,
    }
    settings = host.module("train").settings_from(material["base_model"], widgets)
    default = host.library("training").TrainSettings.for_base(material["base_model"], "motiondirector")
    assert (settings.steps, settings.rank, settings.seed) == (default.steps, default.rank, 5)
    assert settings.gradient_checkpointing and settings.absorber is None and settings.targets is None
    settings = host.module("train").settings_from(
        material["base_model"], {**widgets, "rank": 2, "absorber": "none", "targets": "tap-k"}
    )
    assert (settings.rank, settings.absorber, settings.targets) == (2, "none", "tap-k")


def test_background_ends_at_once_and_runs_through_later(host: Host, material: dict, seed: int) -> None:
    node = host.nodes[TRAIN]
    node.hidden = type("Hidden", (), {"unique_id": "5"})
    before = node.fingerprint_inputs()
    prompt = {
        "5": {"class_type": TRAIN, "inputs": {"seed": seed, "retrain": True}, "is_changed": ["0"]},
        "6": {"class_type": "SaveVideo", "inputs": {"video": ["5", 0]}, "_meta": {"title": "save"}},
    }
    made = host.run(TRAIN, **material, **QUICK, seed=seed, run="background", unique_id="5", prompt=prompt)
    assert all(isinstance(value, ExecutionBlocker) and value.message is None for value in made.args)
    assert node.fingerprint_inputs() != before, "else ComfyUI would give the blocked outputs from its cache for ever"
    job = host.module("comfy.jobs").runner().wait(newest(host).id, timeout=60)
    assert job.state == "done" and job.status.background
    shown = next(one for one in host.module("comfy.jobs").snapshot()["jobs"] if one["id"] == job.id)
    assert shown["continues"] == "browser-1" and shown["nodes"] == [{"id": "5", "workflow": ""}]
    taken = host.module("comfy.jobs").take_continuation(job.id)
    assert taken["prompt"]["5"]["inputs"] == {"seed": seed, "retrain": False}, "going on must not train again"
    assert "is_changed" not in taken["prompt"]["5"] and taken["prompt"]["6"]["_meta"] == {"title": "save"}
    assert host.module("comfy.jobs").take_continuation(job.id) is None
    marked = node.fingerprint_inputs()
    again = host.run(TRAIN, **material, **QUICK, seed=seed, run="background", unique_id="5")
    assert len(again.args[0]) > 0 and node.fingerprint_inputs() == marked


def test_the_continuation_can_be_declined(host: Host, material: dict, seed: int) -> None:
    host.run(TRAIN, **material, **QUICK, seed=seed, run="background", continue_when_done=False)
    assert host.module("comfy.jobs").take_continuation(newest(host).id) is None
    host.module("comfy.jobs").runner().wait(newest(host).id, timeout=60)
    host.run(TRAIN, **material, **{**QUICK, "steps": 4}, seed=seed, run="background")
    job = host.module("comfy.jobs").runner().wait(newest(host).id, timeout=60)
    assert host.module("comfy.jobs").take_continuation(job.id, wanted=False) is None
    assert host.module("comfy.jobs").take_continuation(job.id) is None


def test_cancel_interrupts_and_the_next_run_goes_on(host: Host, material: dict, seed: int) -> None:
    outcome: dict = {}
    inputs = {**material, **SLOW, "seed": seed}
    thread = train_in_thread(host, outcome, **inputs)
    until(
        lambda: bool(jobs(host)) and newest(host).spec.settings["seed"] == seed and newest(host).status.done_steps >= 2
    )
    job = newest(host)
    pressed = time.monotonic()
    host.interrupted.set()
    thread.join(10)
    assert outcome == {"interrupted": True} and time.monotonic() - pressed < 5
    host.interrupted.clear()
    runner = host.module("comfy.jobs").runner()
    interrupted = runner.wait(job.id, timeout=30)
    assert interrupted.state == "interrupted" and (job.folder / "checkpoint").is_dir()
    thread = train_in_thread(host, {}, **inputs)
    until(lambda: runner.get(job.id).status.resumed_at >= 2)
    assert runner.get(job.id).status.message.startswith("resumed at step")
    runner.stop(job.id)
    thread.join(30)
    assert runner.get(job.id).state == "stopped"


def test_cancel_leaves_a_background_job_alone(host: Host, material: dict, seed: int) -> None:
    inputs = {**material, **SLOW, "seed": seed}
    host.run(TRAIN, **inputs, run="background")
    job, outcome = newest(host), {}
    thread = train_in_thread(host, outcome, **inputs)
    until(lambda: job.id in host.module("comfy.jobs")._watchers)
    host.interrupted.set()
    thread.join(10)
    host.interrupted.clear()
    runner = host.module("comfy.jobs").runner()
    assert outcome == {"interrupted": True} and runner.get(job.id).status.active
    runner.cancel(job.id)
    runner.wait(job.id, timeout=30)


def test_a_failing_neighbour_stops_the_wait(host: Host, material: dict, seed: int) -> None:
    async def prompt() -> None:
        train = asyncio.create_task(host.run_async(TRAIN, **material, **SLOW, seed=seed))
        while not (jobs(host) and newest(host).spec.settings["seed"] == seed and newest(host).status.done_steps >= 1):
            await asyncio.sleep(0.02)
        train.cancel()
        with pytest.raises(asyncio.CancelledError):
            await train

    began = time.monotonic()
    host.run_prompt(prompt())
    assert time.monotonic() - began < 60
    runner = host.module("comfy.jobs").runner()
    assert runner.wait(newest(host).id, timeout=30).state == "interrupted"
    assert not host.module("comfy.jobs")._watchers


def test_two_train_nodes_in_one_prompt_queue_up(host: Host, material: dict, seed: int) -> None:
    async def prompt() -> list:
        both = [host.run_async(TRAIN, **material, **QUICK, seed=seed + n * 5000, unique_id=str(n)) for n in (1, 2)]
        return await asyncio.gather(*both)

    count = len(jobs(host))
    first, second = host.run_prompt(prompt())
    assert len(jobs(host)) == count + 2 and first.args[0].fingerprint() != second.args[0].fingerprint()


def test_the_same_node_twice_in_one_prompt_is_one_job(host: Host, material: dict, seed: int) -> None:
    async def prompt() -> list:
        both = [host.run_async(TRAIN, **material, **QUICK, seed=seed, unique_id=str(n)) for n in (1, 2)]
        return await asyncio.gather(*both)

    count = len(jobs(host))
    first, second = host.run_prompt(prompt())
    assert len(jobs(host)) == count + 1 and first.args[0].fingerprint() == second.args[0].fingerprint()
    assert {node["id"] for node in host.module("comfy.jobs").describe(newest(host).id)["nodes"]} == {"1", "2"}


def test_cancelling_from_the_panel_ends_the_prompt_quietly(host: Host, material: dict, seed: int) -> None:
    outcome: dict = {}
    thread = train_in_thread(host, outcome, **material, **SLOW, seed=seed)
    until(
        lambda: bool(jobs(host)) and newest(host).spec.settings["seed"] == seed and newest(host).status.done_steps >= 1
    )
    host.module("comfy.jobs").runner().cancel(newest(host).id)
    thread.join(30)
    assert outcome == {"interrupted": True}


def test_a_failed_training_says_why(host: Host, material: dict, seed: int) -> None:
    (clip,) = material["clips"]
    broken = dataclasses.replace(clip, frames=torch.full_like(clip.frames, float("nan")))
    with pytest.raises(host.library("core.errors").TrainingError, match="not finite"):
        host.run(TRAIN, **{**material, "clips": (broken,)}, **QUICK, seed=seed)


def test_a_paused_job_keeps_its_node_waiting(host: Host, material: dict, seed: int) -> None:
    outcome: dict = {}
    thread = train_in_thread(host, outcome, **material, **SLOW, seed=seed)
    until(
        lambda: bool(jobs(host)) and newest(host).spec.settings["seed"] == seed and newest(host).status.done_steps >= 1
    )
    runner, job = host.module("comfy.jobs").runner(), newest(host)
    runner.pause(job.id)
    runner.wait(job.id, timeout=30)
    time.sleep(0.6)
    assert thread.is_alive() and not outcome
    runner.stop(job.id)
    thread.join(30)
    assert len(outcome["made"].args[0]) > 0


def test_an_absorber_is_trained_kept_loaded_and_used(host: Host, material: dict, seed: int) -> None:
    absorber, name, losses, _ = host.run(ABSORB, **material, **ABSORBER, seed=seed, name="look").args
    assert absorber.spatial is not None and absorber.tokens is not None and name == "look.safetensors"
    assert len(losses["loss"]) == 2
    (loaded,) = host.run("MotionLoRA_LoadAbsorber", absorber_name=name).args
    assert loaded.fingerprint() == absorber.fingerprint()
    (saved,) = host.run("MotionLoRA_SaveAbsorber", appearance_absorber=absorber, filename="again/look").args
    assert saved == "again/look.safetensors"
    images = host.run(
        "MotionLoRA_PreviewAbsorber",
        base_model=material["base_model"],
        appearance_absorber=absorber,
        num_images=2,
        num_inference_steps=2,
    )
    assert images.args[0].shape == (2, 32, 32, 3)
    made = host.run(TRAIN, **material, appearance_absorber=loaded, method="customize-a-video", steps=2, seed=seed)
    assert newest(host).spec.plan == {"motion": 2} and len(made.args[0]) > 0


def test_checkpoints_are_validated_and_one_is_kept(host: Host, material: dict, seed: int) -> None:
    validate = {"validate_every": 2, "validate_prompts": "a blue square\n\n a red square over snow ", "keep": "last"}
    made = host.run(TRAIN, **material, **{**QUICK, "steps": 4}, **validate, seed=seed)
    job = newest(host)
    assert job.spec.validation["prompts"] == ("a blue square", "a red square over snow") and job.spec.keep == "last"
    shown = next(one for one in host.module("comfy.jobs").snapshot()["jobs"] if one["id"] == job.id)
    assert [point["step"] for point in shown["validation"]["points"]] == [2, 4]
    assert all("appearance_leakage" in point["scores"] for point in shown["validation"]["points"])
    names = {path.name for path in job.folder.iterdir()}
    assert {"best.safetensors", "last.safetensors", "validation.csv", "validation.png"} <= names
    last = host.library("files.own").load_lora(job.folder / "last.safetensors")
    assert made.args[0].fingerprint() == last.fingerprint()
    count = len(jobs(host))
    host.run(TRAIN, **material, **{**QUICK, "steps": 4}, seed=seed)
    assert len(jobs(host)) == count, "what is only looked at changes nothing"


def test_a_clip_model_is_named_and_found(host: Host, material: dict, seed: int) -> None:
    write_clip_model(host.folder / "models/motion_lora_metrics/tiny-clip")
    validate = {"validate_every": 2, "validate_prompts": "a blue square", "keep": "last", "clip_model": "tiny-clip"}
    host.run(TRAIN, **material, **{**QUICK, "steps": 2}, **validate, seed=seed)
    job = newest(host)
    assert job.spec.measured_by == {"clip_model": "tiny-clip"}, "a name, no path"
    assert "text_alignment" in job.status.validation["points"][0]["scores"]


def test_validation_on_the_playground_needs_no_prompt(host: Host, seed: int) -> None:
    base = host.run("MotionLoRA_LoadT2VModel", model="playground (built-in)").args[0]
    clips = host.run("MotionLoRA_PlaygroundClip", num_frames=4, motion="orbit").args[0]
    plan = host.module("train")._plan(base, clips[0], {"validate_every": 50})
    assert plan.prompts == tuple(dict.fromkeys(plan.prompts)) and len(plan.prompts) == 3
    assert all("circling around" in prompt and "red" not in prompt for prompt in plan.prompts)
    assert host.module("train")._plan(base, clips[0], {"validate_every": 0}) is None


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        pytest.param({}, "no prompt to validate with.*validate_prompts", id="no prompt"),
        pytest.param({"method": "motiondirector-image"}, "learns a look", id="a look"),
        pytest.param({"validate_prompts": "x", "keep": "best"}, "cannot be told.*keep to last", id="no fidelity"),
        pytest.param(
            {"validate_prompts": "x", "keep": "last", "early_stop": True}, "switch early_stop off", id="no stop"
        ),
        pytest.param(
            {"validate_prompts": "x", "keep": "last", "clip_model": "gone"}, "no CLIP model 'gone'", id="CLIP"
        ),
    ],
)
def test_validations_that_cannot_be_are_refused_at_once(
    host: Host, material: dict, seed: int, widgets: dict, message: str
) -> None:
    (clip,) = material["clips"]
    still = dataclasses.replace(clip, frames=torch.zeros_like(clip.frames))
    count = len(jobs(host))
    with pytest.raises(host.library("core.errors").MotionLoRAError, match=message):
        host.run(TRAIN, **{**material, "clips": (still,), **QUICK, **widgets}, validate_every=2, seed=seed)
    assert len(jobs(host)) == count, "no failed job is left behind"


def test_messages_reach_the_browser_without_paths(host: Host, material: dict, seed: int) -> None:
    host.server.sent.clear()
    host.run(TRAIN, **material, **QUICK, seed=seed)
    until(lambda: any(job["state"] == "done" for _, data in host.server.sent for job in data["jobs"]))
    assert {event for event, _ in host.server.sent} == {"motion_lora.jobs"}
    text = json.dumps(host.server.sent)
    assert str(host.folder) not in text and str(Path.home()) not in text


def test_jobs_of_a_dead_server_are_found_and_resumed(host: Host, material: dict, seed: int, tmp_path: Path) -> None:
    background = host.module("comfy.jobs")
    host.run(TRAIN, **material, **SLOW, seed=seed, run="background")
    job = newest(host)
    until(lambda: background.runner().get(job.id).status.done_steps >= 2)
    background.runner().close()
    background._runner = None
    background._continuing.clear()
    found = next(one for one in background.snapshot()["jobs"] if one["id"] == job.id)
    assert found["state"] == "interrupted" and found["continues"] == ""
    background.runner().resume(job.id)
    until(lambda: background.runner().get(job.id).status.resumed_at >= 2)
    background.runner().cancel(job.id)
    assert background.runner().wait(job.id, timeout=30).state == "cancelled"
