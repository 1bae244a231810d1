"""What a node will do, told before Run: the route of the web extension, and trainings that are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_double import Host, hosted
from tiny import write_tiny_folder

TRAIN = "MotionLoRA_TrainMotionLoRA"
TRAINING = {"kind": "training", "model": "tiny", "dtype": "auto", "clips": [[3, 32, 32]]}
METHOD = {"method": "customize-a-video", "steps": 7, "rank": 0, "absorber_steps": 2, "token_steps": 3, "num_tokens": 2}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny", levels=2)
        yield host


@pytest.fixture(scope="module")
def base(host: Host) -> Any:
    return host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]


def asked(host: Host, body: dict[str, Any]) -> dict[str, Any]:
    """What the route answers to a body that it takes."""
    plans = host.module("comfy.plans")
    plans._answers.clear()
    assert plans.is_plan(json.loads(json.dumps(body)))
    return plans.plan(body)


def test_a_training_is_told_by_its_widgets(host: Host, base: Any) -> None:
    told = asked(host, {**TRAINING, "widgets": METHOD})
    assert told["advice"] == ""
    assert told["sentence"] == "customize-a-video on tiny: dual absorber 2 + 3 steps, 7 steps, rank 4"
    assert "parameters, a file of" in told["details"]
    given = asked(host, {**TRAINING, "widgets": METHOD, "given": True, "options": {"spatial_rank": 0}})
    assert given["sentence"] == "customize-a-video on tiny: 7 steps, rank 4"
    absorber = asked(host, {**TRAINING, "kind": "absorber", "widgets": {"absorber": "spatial", "absorber_steps": 5}})
    assert absorber["sentence"] == "spatial absorber on tiny: 5 steps"


def test_a_faulty_setting_is_told_before_run(host: Host, base: Any) -> None:
    assert "rank is 900" in asked(host, {**TRAINING, "widgets": {**METHOD, "rank": 900}})["advice"]


def test_a_base_that_is_not_loaded_is_left_alone(host: Host) -> None:
    told = asked(host, {**TRAINING, "model": "zeroscope_v2_576w", "widgets": METHOD})
    assert told["details"].endswith("once the base is loaded")


def test_what_zeros_of_sampling_stand_for(host: Host, base: Any) -> None:
    sampling = {"kind": "sampling", "model": "tiny", "widgets": {"num_frames": 0, "width": 48, "guidance_scale": 0}}
    told = asked(host, sampling)
    assert told["sentence"].endswith("frames of 48 x 32 at 8 fps, guidance 9")


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"kind": "training"},
        {"kind": "else", "widgets": {}},
        {"kind": "training", "widgets": {"steps": [1]}},
        {"kind": "training", "widgets": {}, "path": "/etc"},
        {"kind": "training", "widgets": {}, "clips": [[8, 64]]},
        {"kind": "training", "widgets": {}, "clips": [[8, 10**6, 10**6]]},
        {"kind": "training", "widgets": {}, "clips": [[8, -64, 64]]},
        {"kind": "training", "widgets": {}, "given": "yes"},
    ],
    ids=json.dumps,
)
def test_what_is_no_plan_is_refused(host: Host, body: object) -> None:
    assert not host.module("comfy.plans").is_plan(body)


def test_a_training_without_room_is_refused_and_leaves_no_job(
    host: Host, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = host.run("MotionLoRA_PlaygroundClip", num_frames=3).args[1]
    cut = {"num_frames": 3, "width": 32, "height": 32, "caption": "a red circle circling"}
    clips = host.run("MotionLoRA_ReferenceClip", images=images, **cut).args[0]
    monkeypatch.setattr(host.library("training.preflight"), "memory_available", lambda device: 1000)
    with pytest.raises(host.library("core.errors").TrainingError, match="to give: switch gradient_checkpointing on"):
        host.run(TRAIN, base_model=base, clips=clips, method="temporal-only", steps=3)
    assert host.module("comfy.jobs").runner().jobs() == []


def test_how_long_steps_took_is_kept_for_the_next_estimate(host: Host, base: Any) -> None:
    images = host.run("MotionLoRA_PlaygroundClip", num_frames=3).args[1]
    cut = {"num_frames": 3, "width": 32, "height": 32, "caption": "a red circle circling"}
    clips = host.run("MotionLoRA_ReferenceClip", images=images, **cut).args[0]
    host.run(TRAIN, base_model=base, clips=clips, method="temporal-only", steps=20)
    told = asked(host, {**TRAINING, "widgets": {"method": "temporal-only", "steps": 20}})
    assert told["sentence"].startswith("temporal-only on tiny: 20 steps, rank 4, about ")


def test_previews_make_a_sheet_that_grows(host: Host, base: Any) -> None:
    images = host.run("MotionLoRA_PlaygroundClip", num_frames=3).args[1]
    cut = {"num_frames": 3, "width": 32, "height": 32, "caption": "a red circle circling"}
    clips = host.run("MotionLoRA_ReferenceClip", images=images, **cut).args[0]
    quick = {"method": "temporal-only", "steps": 4, "preview_prompt": "a ring", "preview_every": 2, "seed": 3}
    host.run(TRAIN, base_model=base, clips=clips, **quick)
    job = host.module("comfy.jobs").runner().jobs()[0]
    assert job.status.previews == ("000002.mp4", "000004.mp4")
    from PIL import Image

    folder = job.folder / "previews"
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height > 4 * 72, "reference, base, and two steps"
    assert (folder / "base.mp4").is_file()
    assert (host.folder / "output/loras" / job.status.published).with_suffix(".mp4").read_bytes() == (
        folder / "000004.mp4"
    ).read_bytes()
