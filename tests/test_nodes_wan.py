"""Wan in the nodes: from ComfyUI's files with the texts of its CLIP; jobs, previews, a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from comfy_double import Host, hosted
from tiny import TEXT_WIDTH
from wan_samples import write_files

TRAIN = "MotionLoRA_TrainMotionLoRA"
CAPTION, APPEARANCE, OTHER = "a red circle circling over sand", "a red circle over sand", "a blue square moving left"
SLOW = {"method": "auto", "steps": 500, "absorber_steps": 1, "rank": 2}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        for name in ("wan2.1_t2v_tiny", "wan2.2_t2v_high_noise_tiny", "wan2.2_t2v_low_noise_tiny"):
            write_files(host.folder / "models", name)
        yield host


@pytest.fixture(scope="module")
def clips(host: Host) -> tuple:
    images = host.run("MotionLoRA_PlaygroundClip", num_frames=5).args[1]
    words = {"caption": CAPTION, "appearance_caption": APPEARANCE}
    cut = {"num_frames": 5, "width": 16, "height": 16, "absorb_words": "red circle"}
    return host.run("MotionLoRA_ReferenceClip", images=images, **words, **cut).args[0]


def said(seed: int, tokens: int = 6) -> list:
    """A CONDITIONING, as CLIP Text Encode gives it."""
    return [[torch.randn(1, tokens, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]


def load(host: Host, clips: tuple, **changes: object):
    files = {"network": "wan2.1_t2v_tiny.safetensors", "vae": "wan_2.1_vae.safetensors"}
    texts = {"caption": said(1), "appearance_caption": said(2), "empty_prompt": said(3, 1)}
    more = {"dtype": "fp32", "flow_shift": 5.0, "preview_prompt": OTHER, "preview": said(4)}
    return host.run("MotionLoRA_LoadWanModel", clips=clips, **{**files, **texts, **more, **changes}).args[0]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def newest(host: Host):
    return host.module("comfy.jobs").runner().jobs()[0]


def test_a_base_is_made_of_comfyuis_files_and_texts(host: Host, clips: tuple) -> None:
    made = load(host, clips)
    assert (made.backbone.name, made.identity.name) == ("wan", "wan2.1_t2v_tiny")
    assert made.noise_schedule().shift == 5.0 and made.text_encoder is None
    text = made.read_prompts([CAPTION, ""]).tensors["encoder_hidden_states"]
    assert torch.equal(text[0], said(1)[0][0][0]) and torch.equal(text[1, 0], said(3, 1)[0][0][0, 0])
    again = load(host, clips, caption=said(9))
    assert again.unet is made.unet, "another text does not read the files again"
    with pytest.raises(host.library("core.errors").SettingsError, match="preview_prompt has no embedding"):
        load(host, clips, preview=None)


def test_other_words_or_another_shift_are_another_training(host: Host, clips: tuple) -> None:
    """Else the finished file of the one would be loaded for the other."""
    training = host.library("training")
    bases = load(host, clips), load(host, clips, caption=said(9)), load(host, clips, flow_shift=3.0), load(host, clips)
    marks = [training.run_fingerprint(b, clips, training.TrainSettings.for_base(b)) for b in bases]
    assert len(set(marks)) == 3 and marks[0] == marks[3]


def test_two_experts_are_one_base(host: Host, clips: tuple) -> None:
    high, low = (f"wan2.2_t2v_{noise}_noise_tiny.safetensors" for noise in ("high", "low"))
    made = load(host, clips, network=high, other_expert=low)
    assert made.expert == "high" and made.partner is not None
    again = host.module("comfy.models").load_again(host.module("comfy.models").recipe_of(made))
    assert again.partner is made.partner


def test_a_preview_of_unknown_words_is_refused_before_work(host: Host, clips: tuple) -> None:
    count = len(host.module("comfy.jobs").runner().jobs())
    with pytest.raises(host.library("core.errors").ClipError, match="no embedding of 'a horse'"):
        host.run(TRAIN, base_model=load(host, clips), clips=clips, **SLOW, preview_prompt="a horse", seed=1)
    assert len(host.module("comfy.jobs").runner().jobs()) == count


def test_a_job_survives_its_server(host: Host, clips: tuple) -> None:
    """Killed in the background and taken up by the next server, with its previews."""
    background = host.module("comfy.jobs")
    base = load(host, clips)
    shown = {"preview_prompt": OTHER, "preview_every": 2}
    host.run(TRAIN, base_model=base, clips=clips, **SLOW, **shown, seed=7, run="background")
    job = newest(host)
    until(lambda: background.runner().get(job.id).status.done_steps >= 4)
    assert list((job.folder / "previews").glob("*.mp4"))
    background.runner().close()
    background._runner = None
    host.module("comfy.models")._loaded.clear()
    background.runner().resume(job.id)
    until(lambda: background.runner().get(job.id).status.resumed_at >= 2)
    background.runner().stop(job.id)
    stopped = background.runner().wait(job.id, timeout=30)
    assert stopped.state == "stopped" and not stopped.status.message.startswith("no preview")
    lora = host.library("files.own").load_lora(job.folder / "result.safetensors")
    assert lora.backbone == "wan" and len(lora) == 4
