"""The nodes for LoRA files and for strengths that vary, against the double of ComfyUI, on a tiny real base."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import foreign_files
import pytest
import torch
from comfy_double import Host, hosted
from lora_samples import appearance_sample, motion_sample, random_lora
from tiny import write_tiny_folder

from motion_lora.adapters.apply import applied
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.core.curves import CURVES
from motion_lora.core.lora import LoRA
from motion_lora.files.formats import written
from motion_lora.files.reader import load_any

TINY = {"num_frames": 2, "width": 32, "height": 32, "num_inference_steps": 2, "prompt": "a red circle", "decode": False}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with hosted(tmp_path_factory.mktemp("comfyui")) as host:
        write_tiny_folder(host.folder / "models/diffusers/tiny")
        yield host


@pytest.fixture(scope="module")
def base(host: Host):
    return host.run("MotionLoRA_LoadT2VModel", model="tiny").args[0]


@pytest.fixture(scope="module")
def motion(base) -> LoRA:
    return motion_sample(base.unet)


@pytest.fixture(scope="module")
def look(base) -> LoRA:
    return appearance_sample(base.unet, seed=3)


@pytest.fixture
def loras(host: Host) -> Path:
    folder = host.folder / "models/loras"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def deltas(lora: LoRA) -> dict[str, torch.Tensor]:
    return {module: layer.delta() for module, layer in lora.layers.items()}


def same_deltas(a: LoRA, b: LoRA, tolerance: float = 1e-6) -> bool:
    one, other = deltas(a), deltas(b)
    return one.keys() == other.keys() and all(torch.allclose(one[m], other[m], atol=tolerance) for m in one)


def latents(host: Host, base, stack) -> torch.Tensor:
    made = host.run("MotionLoRA_SampleVideo", base_model=base, stack=stack, **{**TINY, "guidance_scale": 1.0})
    return made.args[2]["samples"]


def said(host: Host) -> str:
    """The last line that a node showed."""
    return [data for event, data in host.server.sent if event == "text"][-1][1]


def test_choices_are_those_of_the_library(host: Host) -> None:
    assert host.nodes["MotionLoRA_ConvertLoRA"].info()["input"]["required"]["format"][1]["options"] == list(written())
    offered = host.nodes["MotionLoRA_StrengthSchedule"].info()["input"]["required"]["curve"][1]["options"]
    assert offered == [*CURVES, "points"]


# Loading and inspecting -----------------------------------------------------------------------------------------------


def test_a_friends_file_is_loaded_and_says_so(host: Host, base, motion: LoRA, loras: Path) -> None:
    foreign_files.kohya(loras / "friend.safetensors", motion, alpha=1.0)
    lora, report, caption, text = host.run(
        "MotionLoRA_LoadAnyLoRA", unique_id="7", lora_name="friend.safetensors", base_model=base
    ).args
    assert (
        report.startswith(f"{len(motion)} of {len(motion)} layers matched (kohya)") and caption == "" and text is None
    )
    assert ("text", ("7", report)) in host.server.sent
    expected = {module: delta / 2 for module, delta in deltas(motion).items()}
    assert all(torch.allclose(lora.layers[m].delta(), expected[m]) for m in expected), "alpha 1 at rank 2"


def test_without_a_base_nothing_is_said_to_match(host: Host, motion: LoRA, loras: Path) -> None:
    foreign_files.peft(loras / "alone.safetensors", motion)
    report = host.run("MotionLoRA_LoadAnyLoRA", lora_name="alone.safetensors").args[1]
    assert report.startswith(f"{len(motion)} layers read (peft)") and "matched" not in report
    with pytest.raises(host.library("core.errors").SettingsError, match="connect base_model"):
        host.run("MotionLoRA_LoadAnyLoRA", lora_name="alone.safetensors", text_encoder=True)


def test_what_does_not_fit_is_refused_with_the_reason(host: Host, base, motion: LoRA, loras: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    error = host.library("core.errors").LoRAFileError
    tensors, metadata, reason = foreign_files.FOREIGN["sdxl by cross-attention"]
    foreign_files.save_file(tensors, loras / "sdxl.safetensors", metadata or None)
    with pytest.raises(error, match=reason):
        host.run("MotionLoRA_LoadAnyLoRA", lora_name="sdxl.safetensors", base_model=base)
    misfit = LoRA({f"nowhere.{module}": layer for module, layer in motion.layers.items()})
    foreign_files.peft(loras / "misfit.safetensors", misfit)
    with pytest.raises(error, match=f"0 of {len(motion)}"):
        host.run("MotionLoRA_LoadAnyLoRA", lora_name="misfit.safetensors", base_model=base)
    torch.save(foreign_files.RunsCode(loras / "owned"), loras / "evil.pt")
    with pytest.raises(error, match="run code"):
        host.run("MotionLoRA_LoadAnyLoRA", lora_name="evil.pt")
    assert not (loras / "owned").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


def test_the_text_part_travels_to_the_stack_when_asked_for(host: Host, base, look: LoRA, loras: Path) -> None:
    projections = [name for name, _ in base.text_encoder.named_modules() if name.endswith("self_attn.q_proj")]
    short = {name.split("text_model.")[-1]: name for name in projections}
    words = random_lora(base.text_encoder, projections, seed=5)
    named = LoRA({key: words.layers[name] for key, name in short.items()})
    foreign_files.kohya(loras / "style.safetensors", look, **foreign_files.text_encoder_part(named, 2.0))
    load = {"lora_name": "style.safetensors", "base_model": base}
    without = host.run("MotionLoRA_LoadAnyLoRA", **load).args
    assert without[3] is None and "text-encoder layers were left out" in without[1]
    lora, report, _, text = host.run("MotionLoRA_LoadAnyLoRA", text_encoder=True, **load).args
    assert "text-encoder layers are applied" in report and len(text) == len(projections)
    (stack,) = host.run("MotionLoRA_MotionLoRAStack", motion_lora=lora, text_part=text).args
    (direct,) = host.run("MotionLoRA_AppearanceLoRA", text_encoder=True, **load).args
    assert stack.entries[0].text_encoder.fingerprint() == direct.entries[0].text_encoder.fingerprint()
    (plain,) = host.run("MotionLoRA_AppearanceLoRA", **load).args
    assert plain.entries[0].text_encoder is None and "left out" in said(host)
    assert not torch.equal(latents(host, base, direct), latents(host, base, plain))


def test_a_clip_of_a_spatial_list_is_picked(host: Host, base, loras: Path) -> None:
    names = host.library("adapters.targets").target_modules(base.unet, "spatial-self-ff")
    first, second = (random_lora(base.unet, list(names), seed=seed) for seed in (1, 2))
    foreign_files.list_file(loras / "two_clips.pt", first, second)
    load = {"lora_name": "two_clips.pt", "base_model": base}
    assert same_deltas(host.run("MotionLoRA_LoadAnyLoRA", clip=1, **load).args[0], second)
    assert same_deltas(host.run("MotionLoRA_LoadAnyLoRA", **load).args[0], first)
    with pytest.raises(host.library("core.errors").LoRAFileError, match="there is no clip 2"):
        host.run("MotionLoRA_LoadAnyLoRA", clip=2, **load)


def test_inspecting_shows_a_table(host: Host, base, motion: LoRA, loras: Path) -> None:
    captioned = motion.with_metadata(
        **{"motion_lora.captions": json.dumps(["a red circle circling"]), "motion_lora.base_name": "tiny one"}
    )
    name = host.run("MotionLoRA_SaveMotionLoRA", motion_lora=captioned, filename="motion/look_inside").args[0]
    made = host.run("MotionLoRA_InspectLoRA", lora_name=name, base_model=base)
    report, table = made.args
    for part in ("a red circle circling", "tiny one", "rank", f"{len(motion)} of {len(motion)} layers"):
        assert part in report, part
    assert {UNET3D.block_of(module) for module in motion} <= set(report.split())
    assert made.ui["images"] and made.ui["text"] == (report,)
    assert table.shape[0] == 1 and table.shape[3] == 3 and (table < 0.5).float().mean() > 0.005, "drawn, not blank"
    foreign_files.kohya(loras / "kohya_look.safetensors", motion)
    assert "kohya format" in host.run("MotionLoRA_InspectLoRA", lora_name="kohya_look.safetensors").args[0]


@pytest.mark.parametrize("node_id", ["MotionLoRA_LoadAnyLoRA", "MotionLoRA_InspectLoRA"])
def test_a_changed_file_is_read_again(host: Host, motion: LoRA, loras: Path, node_id: str) -> None:
    path = foreign_files.peft(loras / "mark.safetensors", motion)
    mark = host.nodes[node_id].fingerprint_inputs
    before = mark(lora_name="mark.safetensors", text_encoder=False)
    path.write_bytes(path.read_bytes() + b" ")
    assert mark(lora_name="mark.safetensors", text_encoder=False) != before
    assert "there is no file" in str(host.nodes[node_id].validate_inputs(lora_name="../mark.safetensors"))


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name in written() if name not in ("animatediff", "comfyui", "diffusers")])
def test_a_lora_goes_out_and_comes_back(host: Host, base, motion: LoRA, kind: str) -> None:
    name = host.run("MotionLoRA_ConvertLoRA", motion_lora=motion, format=kind, filename=f"for_friends/{kind}").args[0]
    assert name == f"for_friends/{kind}.safetensors" and name in said(host)
    assert name in host.module("comfy.folders").all_lora_names()
    report = load_any(host.folder / "output/loras" / name, base.unet)
    assert report.format == kind and same_deltas(report.lora, motion, 0.0)
    again = host.run("MotionLoRA_ConvertLoRA", motion_lora=motion, format=kind, filename=f"for_friends/{kind}").args[0]
    assert again == f"for_friends/{kind}-2.safetensors"


def test_converting_stays_in_its_folder_and_can_round(host: Host, motion: LoRA) -> None:
    with pytest.raises(host.library("core.errors").OutputError, match="leads out"):
        host.run("MotionLoRA_ConvertLoRA", motion_lora=motion, filename="../outside")
    name = host.run("MotionLoRA_ConvertLoRA", motion_lora=motion, format="peft", precision="fp16").args[0]
    lora = load_any(host.folder / "output/loras" / name).lora
    assert {layer.down.dtype for layer in lora.layers.values()} == {torch.float16}


# Arithmetic -----------------------------------------------------------------------------------------------------------


def test_merging_is_the_sum_and_chains(host: Host, motion: LoRA, look: LoRA) -> None:
    both, report = host.run("MotionLoRA_MergeLoRAs", lora_1=motion, strength_1=0.5, lora_2=motion, strength_2=-2.0).args
    assert both.ranks == (4,) and report.endswith("exact")
    assert all(torch.allclose(both.layers[m].delta(), -1.5 * d, atol=1e-5) for m, d in deltas(motion).items())
    three, _ = host.run("MotionLoRA_MergeLoRAs", lora_1=both, lora_2=look).args
    assert set(three) == {*motion, *look}
    low, report = host.run("MotionLoRA_MergeLoRAs", lora_1=motion, lora_2=motion, rank=2).args
    assert low.ranks == (2,) and "100.00% of the energy kept" in report
    assert all(torch.allclose(low.layers[m].delta(), 2 * d, atol=1e-5) for m, d in deltas(motion).items())


def test_resizing_reports_what_was_kept(host: Host, motion: LoRA) -> None:
    small, kept, report = host.run("MotionLoRA_ResizeLoRA", motion_lora=motion, rank=1).args
    lost = sum(float((motion.layers[m].delta() - small.layers[m].delta()).square().sum()) for m in motion)
    total = sum(float(delta.square().sum()) for delta in deltas(motion).values())
    assert small.ranks == (1,) and kept == pytest.approx(1 - lost / total, abs=1e-4) and 0.4 < kept < 1
    assert f"rank 2 to 1: {kept:.2%}" in report == said(host)
    same, kept, _ = host.run("MotionLoRA_ResizeLoRA", motion_lora=motion, rank=64).args
    assert same.ranks == (2,) and kept == pytest.approx(1.0) and same_deltas(same, motion, 1e-5)
    by_energy = host.run("MotionLoRA_ResizeLoRA", motion_lora=motion, rank=0, energy=0.3).args[0]
    assert by_energy.ranks == (1,)


# Strengths that vary --------------------------------------------------------------------------------------------------


def test_schedules_are_drawn_and_travel(host: Host, motion: LoRA) -> None:
    made = host.run("MotionLoRA_StrengthSchedule", start=0.0, end=0.5, curve="constant")
    assert made.ui["images"] and [made.args[0].value(x) for x in (0.0, 0.4, 0.5, 1.0)] == [1.0, 1.0, 0.0, 0.0]
    frames = host.run("MotionLoRA_FrameStrength", curve="points", points="0:0, 0.5:2, 1:-1").args[0]
    assert frames.samples(3) == [0.0, 2.0, -1.0]
    (stack,) = host.run(
        "MotionLoRA_MotionLoRAStack", motion_lora=motion, schedule=made.args[0], frame_curve=frames
    ).args
    assert (stack.entries[0].steps, stack.entries[0].frames) == (made.args[0], frames)


def test_the_drawn_curve_is_the_curve(host: Host) -> None:
    """Coloured area in the left half only, where the strength is."""
    curves, shown = host.library("core.curves"), host.module("widgets.previews")
    picture = shown.curve_plot(curves.Schedule(0.0, 0.5), "steps")[0]
    coloured = (picture.amax(-1) - picture.amin(-1)) > 0.1
    width = picture.shape[1]
    left, right = coloured[:, : width // 2].sum(), coloured[:, width * 6 // 10 :].sum()
    assert left > 20 * right, "the band lies under the first half"


def test_a_schedule_changes_the_video_and_a_constant_one_does_not(host: Host, base, motion: LoRA) -> None:
    def video(**inputs) -> torch.Tensor:
        (stack,) = host.run("MotionLoRA_MotionLoRAStack", motion_lora=motion, **inputs).args
        return latents(host, base, stack)

    def schedule(**inputs):
        return host.run("MotionLoRA_StrengthSchedule", **inputs).args[0]

    full, early = video(), video(schedule=schedule(end=0.5))
    assert torch.equal(video(schedule=schedule()), full)
    assert not torch.allclose(early, full)
    fading = video(frame_curve=host.run("MotionLoRA_FrameStrength", curve="linear").args[0])
    assert not torch.allclose(fading, full)


def test_strengths_by_path_and_block_reach_the_weights(host: Host, base, motion: LoRA, look: LoRA) -> None:
    both = LoRA({**motion.layers, **look.layers})
    (stack,) = host.run(
        "MotionLoRA_MotionLoRAStack",
        motion_lora=both,
        strength=2.0,
        temporal_strength=0.5,
        spatial_strength=0.25,
        block_strengths="down_blocks.0=0.5, mid_block = 0",
    ).args
    unet = copy.deepcopy(base.unet)
    before = {module: unet.get_submodule(module).weight.clone() for module in both}
    with applied(unet, stack, 3):
        after = {module: unet.get_submodule(module).weight for module in both}
        for module, layer in both.layers.items():
            path = 0.5 if module in motion.layers else 0.25
            block = {"down_blocks.0": 0.5, "mid_block": 0.0}.get(UNET3D.block_of(module), 1.0)
            expected = before[module] + 2.0 * path * block * layer.delta()
            assert torch.allclose(after[module], expected, atol=1e-5), module


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("downblocks.0=1", "there is no block 'downblocks.0' in this LoRA: it has transformer_in, down_blocks.0"),
        ("mid_block", "write block=number"),
        ("mid_block=x", "must be a finite number"),
        ("mid_block=nan", "must be a finite number"),
        ("mid_block=1, mid_block=2", "two strengths"),
    ],
)
def test_block_strengths_that_mean_nothing_are_refused(host: Host, motion: LoRA, text: str, reason: str) -> None:
    with pytest.raises(host.library("core.errors").SettingsError, match=reason):
        host.run("MotionLoRA_MotionLoRAStack", motion_lora=motion, block_strengths=text)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"curve": "points", "points": "1"}, "unknown curve '1'"),
        ({"curve": "points", "points": ""}, "unknown curve ''"),
        ({"curve": "points", "points": "0:1, 0.5"}, "must be a finite number"),
        ({"curve": "points", "points": "0.5:1, 0.2:0"}, "must ascend"),
        ({"curve": "points", "points": "0:1, 2:0"}, "must ascend within"),
    ],
)
def test_curves_that_mean_nothing_are_refused(host: Host, inputs: dict, reason: str) -> None:
    for node_id in ("MotionLoRA_StrengthSchedule", "MotionLoRA_FrameStrength"):
        with pytest.raises(host.library("core.errors").SettingsError, match=reason):
            host.run(node_id, **inputs)


def test_a_look_has_no_frames_to_vary_over(host: Host, look: LoRA) -> None:
    frames = host.run("MotionLoRA_FrameStrength", curve="linear").args[0]
    with pytest.raises(host.library("core.errors").SettingsError, match="no temporal layers"):
        host.run("MotionLoRA_MotionLoRAStack", motion_lora=look, frame_curve=frames)


def test_a_look_can_come_in_late(host: Host, base, look: LoRA, loras: Path) -> None:
    foreign_files.peft(loras / "late.safetensors", look)
    schedule = host.run("MotionLoRA_StrengthSchedule", start=0.5).args[0]
    (stack,) = host.run(
        "MotionLoRA_AppearanceLoRA",
        lora_name="late.safetensors",
        base_model=base,
        schedule=schedule,
        block_strengths="mid_block=0.5",
    ).args
    assert stack.entries[0].steps == schedule and stack.entries[0].block_strengths == {"mid_block": 0.5}


# Folders and names ----------------------------------------------------------------------------------------------------


def test_every_place_is_listed(host: Host, motion: LoRA, tmp_path: Path) -> None:
    """models/loras/motion, models/motion_lora, output/loras/motion, and what extra_model_paths.yaml adds to either."""
    folder_paths, folders = host.module("comfy.folders").folder_paths, host.module("comfy.folders")
    for category, extra in (("loras", tmp_path / "more"), ("motion_lora", tmp_path / "own")):
        folder_paths.add_model_folder_path(category, str(extra))
    places = {
        "motion/one.safetensors": host.folder / "models/loras/motion/one.safetensors",
        "motion_lora/two.safetensors": host.folder / "models/motion_lora/two.safetensors",
        "motion_lora/deep/er/three.safetensors": host.folder / "models/motion_lora/deep/er/three.safetensors",
        "motion/four.safetensors": host.folder / "output/loras/motion/four.safetensors",
        "motion/five.safetensors": tmp_path / "more/motion/five.safetensors",
        "motion_lora/six.safetensors": tmp_path / "own/six.safetensors",
    }
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        host.library("files.own").save_lora(path, motion)
    assert places.keys() <= set(folders.lora_names()) <= set(folders.all_lora_names())
    for name, path in places.items():
        assert folders.lora_path(name) == path
        assert host.run("MotionLoRA_LoadMotionLoRA", lora_name=name).args[0].fingerprint() == motion.fingerprint()


def test_the_examples_come_after_the_users_own_and_lie_in_the_pack(host: Host, motion: LoRA, loras: Path) -> None:
    folders = host.module("comfy.folders")
    (host.folder / "input").mkdir(exist_ok=True)
    (host.folder / "input/mine.mp4").write_bytes(b"")
    (loras / "motion").mkdir(exist_ok=True)
    host.library("files.own").save_lora(loras / "motion/zebra.safetensors", motion)
    names, example = folders.lora_names(), "examples/motion/orbit.safetensors"
    assert names.index("motion/zebra.safetensors") < names.index(example)
    assert folders.lora_path(example) == folders.EXAMPLES / "motion/orbit.safetensors"
    assert "examples/friends/swing.safetensors" in set(folders.all_lora_names()) - set(names)
    assert folders.video_names() == ["mine.mp4", "examples/clips/orbit.mp4"]
    assert host.run("MotionLoRA_LoadClip", file="examples/clips/orbit.mp4").args[0].get_stream_source()
    for wrong in ("examples/../model.py", "examples/motion/none.safetensors"):
        with pytest.raises(Exception, match="there is no file"):
            folders.lora_path(wrong)


def test_a_file_of_the_user_is_meant_before_an_example(host: Host, motion: LoRA, loras: Path) -> None:
    own = loras / "examples/motion/orbit.safetensors"
    own.parent.mkdir(parents=True)
    host.library("files.own").save_lora(own, motion)
    assert host.module("comfy.folders").lora_path("examples/motion/orbit.safetensors") == own


def test_image_loras_and_pickles_are_offered_only_where_any_format_is_read(
    host: Host, motion: LoRA, loras: Path
) -> None:
    folders = host.module("comfy.folders")
    foreign_files.kohya(loras / "image.safetensors", motion)
    torch.save([], host.folder / "models/loras/list.pt")
    (host.folder / "models/motion_lora").mkdir(parents=True, exist_ok=True)
    torch.save([], host.folder / "models/motion_lora/theirs.pt")
    any_names = {"image.safetensors", "list.pt", "motion_lora/theirs.pt"}
    assert any_names <= set(folders.all_lora_names()) and not any_names & set(folders.lora_names())


def test_a_subfolder_with_the_name_of_our_folder_is_found(host: Host, motion: LoRA, loras: Path) -> None:
    (loras / "motion_lora").mkdir(exist_ok=True)
    path = foreign_files.peft(loras / "motion_lora/shadowed.safetensors", motion)
    assert host.module("comfy.folders").lora_path("motion_lora/shadowed.safetensors") == path
    with pytest.raises(host.library("core.errors").LoRAFileError, match="models/motion_lora"):
        host.module("comfy.folders").lora_path("motion_lora/absent.safetensors")


NAMES = {
    "orbit: the second": "orbit_ the second",
    "\u732b\u306e\u52d5\u304d": "\u732b\u306e\u52d5\u304d",
    "x" * 300: "x" * 120,
    "motion/a..b": "motion/a..b",
    "CON": "_CON",
}


@pytest.mark.parametrize("name", NAMES, ids=["colon", "unicode", "300", "dots", "reserved"])
def test_any_name_is_written_listed_and_read_again(host: Host, motion: LoRA, name: str) -> None:
    listed = host.run("MotionLoRA_ConvertLoRA", motion_lora=motion, filename=name).args[0]
    assert listed == f"{NAMES[name]}.safetensors"
    assert host.nodes["MotionLoRA_LoadAnyLoRA"].validate_inputs(lora_name=listed) is True
    assert same_deltas(host.run("MotionLoRA_LoadAnyLoRA", lora_name=listed).args[0], motion, 0.0)


@pytest.mark.parametrize(
    "name", ["../up.safetensors", "motion_lora/../../up.safetensors", "/up.safetensors", "x" * 300]
)
def test_names_that_are_not_listed_are_never_opened(host: Host, motion: LoRA, name: str) -> None:
    host.library("files.own").save_lora(host.folder / "models/up.safetensors", motion)
    for node_id in ("MotionLoRA_LoadAnyLoRA", "MotionLoRA_InspectLoRA"):
        assert "there is no file" in str(host.nodes[node_id].validate_inputs(lora_name=name))
        with pytest.raises(host.library("core.errors").LoRAFileError, match="there is no file"):
            host.run(node_id, lora_name=name)
