"""The nodes against the double of ComfyUI: what they declare, and what each gives on a tiny real base.

`test_nodes_training.py` has the nodes that train; `test_host.py` runs all of this in a real ComfyUI.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_double import (
    PACK,
    ExecutionBlocker,
    Host,
    InterruptProcessingException,
    VideoComponents,
    VideoFromComponents,
    VideoFromFile,
    hosted,
)
from make_texts import ROOT, snapshot, texts
from tiny import write_tiny_folder
from torch.overrides import TorchFunctionMode

from motion_lora.adapters.targets import TARGETS
from motion_lora.base.placement import DTYPES
from motion_lora.base.schedulers import SCHEDULERS
from motion_lora.core.highway import HIGHWAY_PRESETS, MAX_SCALE
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.media.write import write_video
from motion_lora.training import RANGES

TINY = {"num_frames": 3, "width": 32, "height": 32, "num_inference_steps": 2, "prompt": "a red circle"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny")
        yield host


@pytest.fixture(scope="module")
def base(host: Host):
    return host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]


@pytest.fixture
def lora(base) -> LoRA:
    """A change of one temporal layer, strong enough to be seen."""
    name = "down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_q"
    weight = base.unet.get_submodule(name).weight
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(2, weight.shape[1], generator=generator)
    return LoRA({name: LoRALayer(down, torch.randn(weight.shape[0], 2, generator=generator))}, {"modelspec.title": "x"})


def inputs_of(info: dict) -> dict[str, list]:
    return {**info["input"]["required"], **info["input"].get("optional", {})}


# What is declared -----------------------------------------------------------------------------------------------------


def test_ids_orders_and_types_are_as_they_were(host: Host) -> None:
    """Saved workflows hold widget values by position: append, never reorder. `make_texts.py` writes the snapshot."""
    assert snapshot(host.nodes) == json.loads((ROOT / "tests" / "object_info.json").read_text(encoding="utf-8"))


MOST = 10


def test_a_node_shows_ten_inputs_at_most(host: Host) -> None:
    """The rest are folded; sockets cannot be."""
    shown = {
        node_id: [name for name, (_, options) in inputs_of(node.info()).items() if not options.get("advanced")]
        for node_id, node in host.nodes.items()
    }
    assert {node_id: names for node_id, names in shown.items() if len(names) > MOST} == {}


def test_a_number_that_stands_for_the_default_says_so(host: Host) -> None:
    """In its label; a tooltip with "0: the ..." alone is not seen."""
    for node_id, node in host.nodes.items():
        for name, (kind, options) in inputs_of(node.info()).items():
            if kind in ("INT", "FLOAT") and re.search(r"\b(0|-1): the (method|base|default)", options["tooltip"]):
                assert "auto" in options.get("display_name", ""), f"{node_id}.{name}"


def test_help_pages_and_english_texts_are_up_to_date(host: Host) -> None:
    stale = [path for path, text in texts(host.nodes).items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python tools/make_texts.py"


def test_every_node_explains_itself(host: Host) -> None:
    for node_id, node in host.nodes.items():
        info = node.info()
        assert node_id.startswith("MotionLoRA_") and info["category"].startswith("MotionLoRA/"), node_id
        assert info["description"] and info["display_name"] and info["search_aliases"], node_id
        assert all(info["output_tooltips"]), node_id
        for name, (kind, options) in inputs_of(info).items():
            assert options["tooltip"], f"{node_id}.{name}"
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{node_id}.{name}"
            if kind == "COMBO":
                assert options["options"], f"{node_id}.{name}"


def test_choices_are_those_of_the_library(host: Host) -> None:
    choices = host.module("widgets.enums")
    temporal = [name for name, preset in TARGETS.items() if preset.layer == "temporal"]
    assert choices.DTYPES == DTYPES
    assert tuple(SCHEDULERS) == choices.SCHEDULERS
    assert tuple(HIGHWAY_PRESETS) == choices.HIGHWAY_PRESETS
    assert choices.MAX_HIGHWAY_SCALE == MAX_SCALE
    assert tuple(temporal) == choices.TEMPORAL_TARGETS
    assert {name: RANGES[name][1] for name in choices.COUNTS} == choices.COUNTS
    assert {name: RANGES[name][1] for name in choices.AMOUNTS} == choices.AMOUNTS


def test_loading_the_pack_imports_nothing_heavy() -> None:
    code = (
        "import sys, tempfile; from pathlib import Path; from comfy_double import hosted\n"
        "with hosted(Path(tempfile.mkdtemp())) as host:\n"
        "    [node.info() for node in host.nodes.values()]\n"
        "assert not {'diffusers', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_newer_hosts_call_on_load_first(host: Host) -> None:
    routes = dict(host.server.routes.handlers)
    asyncio.run(host.extension.on_load())
    assert host.server.routes.handlers == routes


def test_a_fault_while_loading_is_logged_in_full(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    nodes = sys.modules.pop(f"{PACK}.nodes")
    sys.modules[f"{PACK}.nodes"] = None
    try:
        with pytest.raises(ImportError):
            asyncio.run(host.pack.comfy_entrypoint())
    finally:
        sys.modules[f"{PACK}.nodes"] = nodes
    assert "Traceback" in caplog.text


# Base models ----------------------------------------------------------------------------------------------------------


def test_bases_are_found_by_what_they_are(host: Host) -> None:
    image_model = host.folder / "models/diffusers/image/unet"
    image_model.mkdir(parents=True, exist_ok=True)
    (image_model / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    names = host.module("comfy.models").names()
    assert names[:2] == ["playground (built-in)", "tiny"]
    assert "image" not in names and {"text-to-video-ms-1.7b", "zeroscope_v2_576w"} <= set(names)


def test_a_base_is_loaded_once_and_can_be_trained_around(host: Host, base) -> None:
    again = host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]
    assert again is base
    assert not any(parameter.is_inference() for parameter in base.unet.parameters())
    assert host.module("comfy.models").load_again(host.module("comfy.models").recipe_of(base)) is base


@pytest.mark.parametrize(
    ("name", "way_out"), [("text-to-video-ms-1.7b", "switch `download` on"), ("gone", "put its diffusers folder into")]
)
def test_a_missing_base_says_how_to_get_it(host: Host, name: str, way_out: str) -> None:
    with pytest.raises(host.library("core.errors").ModelError, match=way_out):
        host.run("MotionLoRA_LoadT2VModel", model=name)


def test_a_download_takes_the_smallest_safe_weights(host: Host) -> None:
    listed = [
        "model_index.json",
        "README.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ]
    wanted = host.module("comfy.models")._wanted_files(listed)
    assert set(listed) - set(wanted) == {listed[1], listed[3], listed[5]}


# Clips ----------------------------------------------------------------------------------------------------------------


def test_a_playground_clip_brings_its_captions(host: Host) -> None:
    made = host.run("MotionLoRA_PlaygroundClip", motion="orbit", shape="ring", colour="blue", seed=3)
    (clip,), frames, caption, appearance = made.args
    assert caption == clip.caption == "a blue ring circling around over sand"
    assert appearance == clip.appearance_caption == "a blue ring over sand" and clip.absorb_words == "blue ring"
    assert frames.shape == (8, 64, 64, 3) and not clip.frames.is_inference()
    assert made.ui["images"]


def test_a_reference_clip_of_images(host: Host) -> None:
    with torch.inference_mode():
        images = torch.linspace(0, 1, 24)[:, None, None, None].expand(24, 48, 80, 3)
    words = {"caption": "a red circle", "appearance_caption": "a red circle", "absorb_words": "red"}
    cut = {"num_frames": 4, "fps": 8.0, "images_fps": 24.0, "width": 32, "height": 32}
    (clip,), frames, *_ = host.run("MotionLoRA_ReferenceClip", images=images, **words, **cut).args
    assert (clip.num_frames, clip.height, clip.width, clip.fps) == (4, 32, 32, 8.0)
    assert torch.allclose(frames[:, 0, 0, 0], torch.linspace(0, 1, 24)[::3][:4]), "every third frame"
    assert not clip.frames.is_inference()


def test_a_reference_clip_of_a_video_file(host: Host, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", torch.rand(16, 64, 64, 3), 16)
    video, cut = VideoFromFile(str(tmp_path / "clip.mp4")), {"num_frames": 4, "fps": 8.0, "width": 32, "height": 32}
    (clip,), *_ = host.run("MotionLoRA_ReferenceClip", video=video, caption="a red circle", **cut).args
    assert clip.num_frames == 4 and clip.source == "clip.mp4"


def test_a_prompt_that_is_read_otherwise_is_said_in_the_node(host: Host, base) -> None:
    host.server.sent.clear()
    host.run("MotionLoRA_SampleVideo", base_model=base, **{**TINY, "prompt": "a (red:1.3) circle"}, decode=False)
    ((_, (node, text)),) = [sent for sent in host.server.sent if sent[0] == "text"]
    assert node == "1" and "(red:1.3) in the prompt is read as plain text" in text


def test_a_video_in_memory_is_read_like_a_file(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would decode all of it, in 4K to gigabytes; one made of frames must not be encoded to be read."""
    written = write_video(tmp_path / "clip.mp4", torch.rand(16, 64, 64, 3), 16)
    video = VideoFromFile(io.BytesIO(written.read_bytes()))
    cut = {"caption": "a red circle", "num_frames": 4, "fps": 8.0, "width": 32, "height": 32}
    (clip,), *_ = host.run("MotionLoRA_ReferenceClip", video=video, **cut).args
    (from_disk,), *_ = host.run("MotionLoRA_ReferenceClip", video=VideoFromFile(str(written)), **cut).args
    assert torch.equal(clip.frames, from_disk.frames)
    frames = VideoFromComponents(VideoComponents(torch.rand(16, 64, 64, 3), Fraction(16)))
    monkeypatch.setattr(VideoFromComponents, "get_stream_source", lambda self: pytest.fail("it is encoded"))
    (clip,), *_ = host.run("MotionLoRA_ReferenceClip", video=frames, **cut).args
    assert clip.num_frames == 4


def test_frames_of_a_large_source_are_not_all_copied(host: Host) -> None:
    """150 frames of 4K are 15 GB as they come; a second copy of all of them ended the process."""
    images, copied = torch.rand(64, 96, 96, 4), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if (
                isinstance(made, torch.Tensor)
                and made.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()
            ):
                copied.append(made.numel())
            return made

    with Watch():
        host.run("MotionLoRA_ReferenceClip", images=images, caption="x", num_frames=4, width=32, height=32)
    assert max(copied) < images.numel() / 4


def test_a_reference_clip_needs_one_source_and_a_caption(host: Host, tmp_path: Path) -> None:
    error = host.library("core.errors").ClipError
    images = torch.rand(16, 32, 32, 3)
    with pytest.raises(error, match="connect one of the two"):
        host.run("MotionLoRA_ReferenceClip", caption="a red circle")
    with pytest.raises(error, match="connect one of the two"):
        host.run("MotionLoRA_ReferenceClip", caption="x", images=images, video=VideoFromFile("x.mp4"))
    with pytest.raises(error, match="no caption"):
        host.run("MotionLoRA_ReferenceClip", images=images)


def test_clips_are_combined_in_order(host: Host) -> None:
    first, second = (host.run("MotionLoRA_PlaygroundClip", seed=seed).args[0] for seed in (1, 2))
    (both,) = host.run("MotionLoRA_CombineClips", clips_1=first, clips_2=second).args
    assert both == (*first, *second)


# Stacks and sampling --------------------------------------------------------------------------------------------------


def test_a_stack_is_built_from_nodes(host: Host, lora: LoRA) -> None:
    (one,) = host.run("MotionLoRA_MotionLoRAStack", motion_lora=lora, strength=0.5).args
    (two,) = host.run("MotionLoRA_MotionLoRAStack", motion_lora=lora, strength=-1.0, stack=one).args
    (high,) = host.run("MotionLoRA_AppearanceHighway", stack=two, preset="all", scale=1.2).args
    assert [entry.strength for entry in high.entries] == [0.5, -1.0] and len(one.entries) == 1
    assert (high.highway.preset, high.highway.scale) == ("all", 1.2)
    (low,) = host.run("MotionLoRA_AppearanceHighway", stack=high, enabled=False).args
    assert low.highway is None


def test_sampling_with_and_without_a_stack(host: Host, base, lora: LoRA) -> None:
    plain = host.run("MotionLoRA_SampleVideo", base_model=base, **TINY)
    images, video, latents = plain.args
    assert images.shape == (3, 32, 32, 3) and latents["samples"].shape == (1, 4, 3, 8, 8)
    assert video.get_components().frame_rate == 8 and plain.ui["animated"] == (True,)
    assert (host.folder / "temp" / plain.ui["images"][0]["filename"]).stat().st_size > 0
    stacks = {s: host.run("MotionLoRA_MotionLoRAStack", motion_lora=lora, strength=s).args[0] for s in (0.0, 1.0)}
    none, full = (
        host.run("MotionLoRA_SampleVideo", base_model=base, stack=stacks[s], **TINY).args[0] for s in (0.0, 1.0)
    )
    assert torch.equal(none, images) and not torch.allclose(full, images)


def test_latents_travel_unscaled_and_decode_later(host: Host, base) -> None:
    whole = host.run("MotionLoRA_SampleVideo", base_model=base, **TINY).args
    images, video, latents = host.run("MotionLoRA_SampleVideo", base_model=base, decode=False, **TINY).args
    assert isinstance(images, ExecutionBlocker) and images.message is None and isinstance(video, ExecutionBlocker)
    scaled = latents["samples"] * base.vae.config["scaling_factor"]
    assert torch.allclose(base.decode_latents(scaled)[0], whole[0], atol=1e-6)
    decoded, _ = host.run("MotionLoRA_DecodeVideo", base_model=base, latents=latents).args
    assert torch.allclose(decoded, whole[0], atol=1e-6)


def test_cancel_stops_sampling(host: Host, base) -> None:
    host.interrupted.set()
    with pytest.raises(InterruptProcessingException):
        host.run("MotionLoRA_SampleVideo", base_model=base, **TINY)
    assert not host.interrupted.is_set()


def test_wrong_sizes_are_refused_with_the_nearest(host: Host, base) -> None:
    with pytest.raises(host.library("core.errors").SettingsError, match="nearest"):
        host.run("MotionLoRA_SampleVideo", base_model=base, **{**TINY, "width": 40})


def test_videos_side_by_side(host: Host) -> None:
    left, right = torch.zeros(4, 32, 32, 3), torch.ones(6, 64, 64, 3)
    made = host.run("MotionLoRA_SideBySide", left=left, right=right, reference=left)
    frames, height, width, _ = made.args[0].shape
    assert frames == 6 and width > height and height % 2 == width % 2 == 0


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_saved_lora_is_listed_and_loads_the_same(host: Host, lora: LoRA) -> None:
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename="motion/spin").args[0]
    second = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename="motion/spin").args[0]
    assert name == "motion/spin.safetensors" and second == "motion/spin-2.safetensors"
    assert {name, second} <= set(host.module("comfy.folders").lora_names())
    loaded, _ = host.run("MotionLoRA_LoadMotionLoRA", lora_name=name).args
    assert loaded.fingerprint() == lora.fingerprint()


def test_a_changed_file_is_read_again(host: Host, lora: LoRA) -> None:
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename="motion/mark").args[0]
    node = host.nodes["MotionLoRA_LoadMotionLoRA"]
    before = node.fingerprint_inputs(lora_name=name)
    path = host.folder / "output/loras" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert node.fingerprint_inputs(lora_name=name) != before


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "C:\\outside"])
def test_no_file_is_written_outside_its_folder(host: Host, lora: LoRA, name: str) -> None:
    with pytest.raises(host.library("core.errors").OutputError, match="leads out"):
        host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename=name)


@pytest.mark.parametrize("name", ["../../user/secret.safetensors", "/etc/passwd", "motion/missing.safetensors"])
def test_only_listed_files_are_read(host: Host, name: str) -> None:
    node = host.nodes["MotionLoRA_LoadMotionLoRA"]
    assert "there is no file" in str(node.validate_inputs(lora_name=name))
    with pytest.raises(host.library("core.errors").LoRAFileError, match="there is no file"):
        host.run("MotionLoRA_LoadMotionLoRA", lora_name=name)


def test_an_appearance_lora_is_checked_against_the_base(host: Host, base, lora: LoRA) -> None:
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=lora, filename="look").args[0]
    (stack,) = host.run("MotionLoRA_AppearanceLoRA", lora_name=name, base_model=base, strength=0.3).args
    assert stack.entries[0].strength == 0.3
    misfit = LoRA({"nowhere.to_q": next(iter(lora.layers.values()))})
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=misfit, filename="misfit").args[0]
    with pytest.raises(host.library("core.errors").LoRAFileError, match=r"nowhere\.to_q"):
        host.run("MotionLoRA_AppearanceLoRA", lora_name=name, base_model=base)


def test_a_download_that_was_cut_off_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    models, asked = host.module("comfy.models"), []
    unet = host.folder / "models/diffusers/zeroscope_v2_576w/unet"
    unet.mkdir(parents=True)
    (unet / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')

    def fetch(name: str, folder: Path | None = None) -> Path:
        asked.append((name, folder))
        raise host.library("core.errors").ModelError("fetched")

    monkeypatch.setattr(models, "_fetch", fetch)
    try:
        with pytest.raises(host.library("core.errors").ModelError, match="not all of it: switch `download` on"):
            models._load("zeroscope_v2_576w", "auto", False, lambda size: None)
        with pytest.raises(host.library("core.errors").ModelError, match="fetched"):
            models._load("zeroscope_v2_576w", "auto", True, lambda size: None)
    finally:
        shutil.rmtree(unet.parent)
    assert asked == [("zeroscope_v2_576w", unet.parent)]


def test_a_machine_without_a_network_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which HTTP library the hub's client uses, and so what it raises, changes with its version."""
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import HfHubHTTPError

    network = [one for one in HfHubHTTPError.__mro__ if issubclass(one, Exception) and one is not Exception][-1]
    unreachable = type("ConnectError", (network,), {"__init__": lambda self: Exception.__init__(self, "refused")})

    def fail(*unused: object, **more: object) -> None:
        raise unreachable

    monkeypatch.setattr(hub.HfApi, "list_repo_files", fail)
    with pytest.raises(host.library("core.errors").ModelError, match=r"ConnectError: .*check the connection"):
        host.module("comfy.models")._fetch("zeroscope_v2_576w")


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({"diffusion_pytorch_model.safetensors": 8}, False),
        ({"diffusion_pytorch_model.bin": 8}, False),
        ({"diffusion_pytorch_model.safetensors": 0}, True),
        ({"x-00001-of-00002.safetensors": 8, "x-00002-of-00002.safetensors": 8}, False),
        ({"x-00001-of-00002.safetensors": 8}, True),
        ({"x-00001-of-00002.safetensors": 8, "diffusion_pytorch_model.fp16.safetensors": 8}, False),
        ({"diffusion_pytorch_model.safetensors.index.json": 8}, True),
    ],
)
def test_a_download_that_was_cut_off_is_seen(host: Host, tmp_path: Path, files: dict[str, int], lacks: bool) -> None:
    write_tiny_folder(tmp_path / "model")
    for weights in (tmp_path / "model" / "unet").glob("*.safetensors"):
        weights.unlink()
    for name, size in files.items():
        (tmp_path / "model" / "unet" / name).write_bytes(b"x" * size)
    assert host.library("base.loading").lacks_weights(tmp_path / "model") is lacks


def test_a_result_is_not_lost_with_its_preview(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    previews = host.module("widgets.previews")

    def refuse(*args: object) -> None:
        raise host.library("core.errors").OutputError("no disk space left")

    monkeypatch.setattr(previews, "write_video", refuse)
    assert previews.playing(torch.zeros(2, 8, 8, 3), 8) is None
    monkeypatch.setattr(previews, "write_video", lambda path, frames, fps: path.with_suffix(".gif"))
    assert previews.playing(torch.zeros(2, 8, 8, 3), 8)["images"][0]["filename"].endswith(".gif")


class TrimmedVideo:
    """A host's VIDEO that knows a part of a file, and keeps it in private."""

    def __init__(self, file: str, start_time: float, duration: float) -> None:
        self.__file, self.__start_time, self.__duration = file, start_time, duration

    def get_stream_source(self) -> str:
        return self.__file

    def as_trimmed(self, start: float, duration: float) -> object:
        raise AssertionError("the whole span would be decoded, at one average rate")


def test_a_trimmed_video_is_read_from_its_file(host: Host, tmp_path: Path) -> None:
    """Only the wanted frames, at their own times, and nothing beyond what was trimmed away."""
    frames = torch.linspace(0, 1, 32)[:, None, None, None].expand(32, 64, 64, 3)
    write_video(tmp_path / "clip.mp4", frames, 16)
    cut = {"caption": "a red circle", "num_frames": 4, "fps": 8.0, "width": 32, "height": 32}
    (clip,), *_ = host.run(
        "MotionLoRA_ReferenceClip", video=TrimmedVideo(str(tmp_path / "clip.mp4"), 1.0, 0.5), **cut
    ).args
    assert torch.allclose(clip.frames.mean(dim=(1, 2, 3)), torch.linspace(0, 1, 32)[16:24:2], atol=0.02)
    with pytest.raises(host.library("core.errors").ClipError, match=r"trimmed to 0\.5 s, which holds 4 frames"):
        host.run(
            "MotionLoRA_ReferenceClip",
            video=TrimmedVideo(str(tmp_path / "clip.mp4"), 1.0, 0.5),
            **{**cut, "num_frames": 5},
        )


# AnimateDiff ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_and_a_motion_module_are_a_base(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd15_files import adapter, write_checkpoint, write_module

    checkpoint = write_checkpoint(host.folder / "models/checkpoints/a + b.safetensors")
    module = host.folder / "models/animatediff_models/v3.ckpt"
    module.parent.mkdir(parents=True, exist_ok=True)
    write_module(module, adapter(mid=False))
    adapter().save_pretrained(host.folder / "models/diffusers/adapter")
    inputs = host.nodes["MotionLoRA_LoadT2VModel"].info()["input"]["optional"]
    assert inputs["checkpoint"][1]["options"][:2] == ["none", "a + b.safetensors"]
    assert inputs["motion_module"][1]["options"] == ["none", "v3.ckpt", "adapter"]
    models, error = host.module("comfy.models"), host.library("core.errors").ModelError
    assert models.names()[-1] == models.COMPOSED
    monkeypatch.setattr(host.module("comfy.folders"), "clip_words", lambda: checkpoint.parent / "tokenizer")
    given = {"model": models.COMPOSED, "checkpoint": "a + b.safetensors"}
    made = host.run("MotionLoRA_LoadT2VModel", **given, motion_module="v3.ckpt").args[0]
    assert (made.backbone.name, made.identity.name) == ("animatediff", "a + b + v3")
    assert models.load_again(models.recipe_of(made)) is made
    other = host.run("MotionLoRA_LoadT2VModel", **given, motion_module="adapter").args[0]
    assert other.identity.name == "a + b + adapter"
    with pytest.raises(error, match="`motion_module` is none: choose one; files in models/animatediff_models"):
        host.run("MotionLoRA_LoadT2VModel", **given)
    with pytest.raises(error, match="there is no file 'gone'"):
        host.run("MotionLoRA_LoadT2VModel", **given, motion_module="gone")
