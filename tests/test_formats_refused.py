"""Files that must not be applied: of other networks, damaged, lying, dangerous. One line each, and nothing touched."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import zipfile

import pytest
import torch
from foreign_files import ANIMATEDIFF, FOREIGN, SD15, RunsCode, diffusers_processors, kohya, list_file, peft
from lora_samples import (
    ATTENTION,
    appearance_sample,
    full_size_unet,
    modules_like,
    motion_sample,
    random_lora,
    run,
    state_bytes,
)
from safetensors.torch import save_file
from tiny import tiny_unet

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.core.errors import LoRAFileError
from motion_lora.core.lora import LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.inspection import inspect, report_text, verify
from motion_lora.files.own import save_lora
from motion_lora.files.reader import load_any


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(0)


@pytest.fixture(scope="module")
def full():
    return full_size_unet()


@pytest.fixture(autouse=True)
def base_stays_the_same(unet):
    """Bit-identical after every refusal, and without hooks."""
    before = state_bytes(unet)
    yield
    assert state_bytes(unet) == before
    assert not any(module._forward_hooks for module in unet.modules())


def refused(path, unet=None, match: str | None = None) -> str:
    with pytest.raises(LoRAFileError, match=match) as caught:
        load_any(path, unet)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


# Other networks


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loras_of_other_networks_are_named_and_refused(tmp_path, full, what, suffix):
    tensors, metadata, named = FOREIGN[what]
    path = tmp_path / f"innocent{suffix}"
    if suffix == ".pt":
        if metadata:
            pytest.skip("torch files carry no metadata")
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata)
    refused(path, full, named)
    if named == "Wan":  # read where no network says otherwise
        assert load_any(path).lora.backbone == "wan"
        return
    refused(path, None, named)
    with pytest.raises(LoRAFileError, match=named):
        inspect(path)


def test_sd21_at_full_size_is_not_refused(tmp_path, full):
    modules = modules_like(full, "attn2.to_k", "attn1.to_q", path="spatial")
    metadata = {"ss_base_model_version": "sd_v2.1_768_v", "modelspec.architecture": "stable-diffusion-v2-768-v/lora"}
    report = load_any(kohya(tmp_path / "x.safetensors", random_lora(full, modules, 1), metadata=metadata), full)
    assert report.matched == 32


@pytest.mark.parametrize("what", SD15)
def test_loras_of_stable_diffusion_1_are_refused_on_this_base_and_read_without_one(tmp_path, full, what):
    path = tmp_path / "innocent.safetensors"
    save_file(SD15[what][0], path, SD15[what][1])
    refused(path, full, "Stable Diffusion 1.5")
    assert load_any(path).lora.backbone == "animatediff"
    assert "animatediff" in report_text(inspect(path))


@pytest.mark.parametrize("what", ANIMATEDIFF)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_of_animatediff_are_refused_on_this_base_and_read_without_one(tmp_path, full, what, suffix):
    path = tmp_path / f"innocent{suffix}"
    if suffix == ".pt":
        torch.save(ANIMATEDIFF[what], path)
    else:
        save_file(ANIMATEDIFF[what], path)
    refused(path, full, "AnimateDiff")
    with pytest.raises(LoRAFileError, match="AnimateDiff"):
        inspect(path, full)
    report = load_any(path)
    assert (report.lora.backbone, inspect(path)["layers"]) == ("animatediff", 1)
    assert list(report.lora) == ["down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"]


def test_animatediff_is_refused_although_its_shapes_fit(tmp_path, full):
    """Names of its own on layers whose sizes occur here too: a check of shapes alone would pass them."""
    lora = random_lora(full, modules_like(full, *ATTENTION, path="temporal")[8:16], 1)
    renamed = LoRA({n.replace("temp_attentions", "motion_modules"): layer for n, layer in lora.layers.items()})
    save_file(diffusers_processors(renamed, ""), tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", full, "AnimateDiff")


# Parts that do not match: nothing is applied by halves


def test_zero_matches_are_an_error(tmp_path, unet):
    lora = appearance_sample(unet)
    elsewhere = LoRA(
        {n.replace("down_blocks.", "down_blocks.9"): layer for n, layer in lora.layers.items() if "down" in n}
    )
    refused(peft(tmp_path / "x.safetensors", elsewhere), unet, r"matches 0 of \d+ layers.*down_blocks\.9\d")


def test_one_layer_too_many_is_an_error(tmp_path, unet):
    lora = appearance_sample(unet)
    layer = random_lora(unet, ["conv_in"]).layers["conv_in"]
    more = LoRA({**lora.layers, "down_blocks.7.resnets.0.conv1": layer})
    refused(peft(tmp_path / "x.safetensors", more), unet, rf"{len(lora)} of {len(lora) + 1} layers.*down_blocks\.7")


def test_one_wrong_shape_is_an_error(tmp_path, unet):
    lora = appearance_sample(unet)
    names = [n for n in modules_like(unet, "attn1.to_q", path="spatial") if n in lora.layers]
    small = next(n for n in names if lora.layers[n].up.shape[0] == 32)
    large = next(n for n in names if lora.layers[n].up.shape[0] == 64)
    mixed = LoRA({**lora.layers, small: appearance_sample(unet, seed=1).layers[large]})
    refused(kohya(tmp_path / "x.safetensors", mixed), unet, rf"1 of {len(lora)} layers.*{re.escape(small)}")


def test_a_key_that_is_not_understood_is_an_error(tmp_path, unet):
    lora = appearance_sample(unet)
    extra = {"lora_unet_surprise.lora_down.weight": torch.ones(2, 2), "mystery": torch.ones(1)}
    refused(kohya(tmp_path / "x.safetensors", lora, **extra), unet, "surprise.*mystery")


@pytest.mark.parametrize("gone", ["lora_up.weight", "lora_down.weight"])
def test_half_a_layer_is_an_error(tmp_path, unet, gone):
    lora = random_lora(unet, ["conv_in"])
    layer = lora.layers["conv_in"]
    tensors = {"lora_unet_conv_in.lora_down.weight": layer.down, "lora_unet_conv_in.lora_up.weight": layer.up}
    tensors["lora_unet_conv_in.alpha"] = torch.tensor(1.0)
    del tensors[f"lora_unet_conv_in.{gone}"]
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", unet, "conv_in has no")


def test_two_adapters_in_one_file_are_an_error(tmp_path, unet):
    layer = random_lora(unet, ["conv_in"]).layers["conv_in"]
    tensors = {}
    for adapter in ("a", "b"):
        tensors[f"unet.conv_in.lora_A.{adapter}.weight"] = layer.down.clone()
        tensors[f"unet.conv_in.lora_B.{adapter}.weight"] = layer.up.clone()
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", unet, "two tensors for one place")


def test_a_text_encoder_alone_is_an_error(tmp_path, unet):
    tensors = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 32),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(128, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", unet, "only a text encoder")


@pytest.mark.parametrize("alpha", [0.0, math.nan, math.inf])
def test_alphas_that_are_no_strength_are_an_error(tmp_path, unet, alpha):
    refused(kohya(tmp_path / "x.safetensors", random_lora(unet, ["conv_in"]), alpha=alpha), unet, "alpha of conv_in")


def test_numbers_that_are_not_finite_are_an_error(tmp_path, unet):
    lora = random_lora(unet, ["conv_in", "conv_out"])
    lora.layers["conv_out"].down[0, 0, 0, 0] = math.nan
    refused(kohya(tmp_path / "x.safetensors", lora), unet, "conv_out.*finite")


# Bugs of other tools (peers.md 3.B), turned round: what they get wrong is right here


def delta_in_network(unet, lora, strength: float = 1.0, **blocks: float) -> dict[str, torch.Tensor]:
    before = {module: unet.get_submodule(module).weight.clone() for module in lora}
    names = {name.replace("__", "."): value for name, value in blocks.items()}
    with applied(unet, AdapterStack((StackEntry(lora, strength, block_strengths=names),)), 2):
        return {module: unet.get_submodule(module).weight - before[module] for module in lora}


@pytest.mark.parametrize("alpha", [None, 32.0, 1.0])
def test_a_slider_at_a_half_is_a_half_whatever_the_alpha(tmp_path, unet, alpha):
    """3.B 1, 2, 3: strength squared or cubed; alpha overwritten by the ratio; a missing alpha taken for 1 / rank."""
    lora = random_lora(unet, modules_like(unet, "attn1.to_q", path="spatial"), rank=32)
    report = load_any(kohya(tmp_path / "x.safetensors", lora, alpha=alpha), unet)
    scale = 1.0 if alpha is None else alpha / 32
    half = delta_in_network(unet, report.lora, down_blocks__0=0.5)
    whole = delta_in_network(unet, report.lora, down_blocks__0=1.0)
    for module in lora:
        expected = scale * lora.layers[module].delta()
        factor = 0.5 if module.startswith("down_blocks.0") else 1.0
        assert torch.allclose(whole[module], expected, atol=1e-5 * float(expected.abs().max())), module
        assert torch.allclose(half[module], factor * expected, atol=1e-5 * float(expected.abs().max())), module


def test_alpha_of_a_motion_lora_is_not_ignored(tmp_path, unet):
    """3.B 4: a loader of motion LoRAs multiplies up and down and forgets alpha, and takes no negative strength."""
    lora = motion_sample(unet, rank=4)
    report = load_any(kohya(tmp_path / "x.safetensors", lora, alpha=1.0), unet)
    found = delta_in_network(unet, report.lora, -2.0)
    for module, layer in lora.layers.items():
        assert torch.allclose(found[module], -0.5 * layer.delta(), atol=1e-6), module


def test_convolutions_are_saved_too(tmp_path, unet):
    """3.B 5: a trainer saves its attention layers and drops its convolutions."""
    lora = random_lora(unet, modules_like(unet, "conv1.2", "conv1", "conv_shortcut", "time_emb_proj"))
    report = load_any(save_lora(tmp_path / "x.safetensors", lora), unet)
    assert set(report.lora.layers) == set(lora.layers)
    assert any(layer.down.ndim == 5 for layer in report.lora.layers.values())


@pytest.mark.parametrize("name", ["final.safetensors", "v2 best (1).safetensors", "x-000500.safetensors"])
def test_a_name_means_nothing(tmp_path, unet, name):
    """3.B 6: a trainer reads its step count from the file name and fails on any other."""
    lora = motion_sample(unet)
    assert load_any(save_lora(tmp_path / name, lora), unet).matched == len(lora)


def test_norms_and_biases_are_never_part_of_a_lora(unet):
    """3.B 7: a trainer adapts every norm and bias, and appearance leaks through them."""
    for preset in ("temporal-all", "temporal-attention", "tap-k-out", "tap-k"):
        assert all(unet.get_submodule(module).weight.ndim == 2 for module in target_modules(unet, preset))


def test_strength_has_no_jump_at_one(unet):
    """3.B 8: a loader multiplies by a tenth below strength 1 and by one at it."""
    lora = random_lora(unet, modules_like(unet, "conv1.2", path="temporal")[:1])
    (module,) = lora.layers
    below, at, above = (delta_in_network(unet, lora, s)[module] for s in (0.999, 1.0, 1.001))
    assert torch.allclose(at - below, above - at, atol=1e-6)
    assert (at - below).norm() < 0.002 * at.norm()


def test_transformer_in_is_adapted_on_purpose_and_said(tmp_path, unet):
    """3.B 10: a file holds the input's temporal transformer, and nothing says so."""
    lora = random_lora(unet, list(target_modules(unet, "temporal-attention")))
    found = inspect(save_lora(tmp_path / "x.safetensors", lora))
    assert "transformer_in" in [row["block"] for row in found["blocks"]]


# Files that would run code, or lie about themselves


@pytest.mark.parametrize("kind", ["pickle", "torch zip", "torch legacy", "in a list", "in a dict"])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path, unet, kind):
    path, trap = tmp_path / "x.pt", RunsCode(tmp_path / "owned")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        content = {"in a list": [torch.ones(2), trap], "in a dict": {"a": torch.ones(2), "b": trap}}.get(kind, trap)
        torch.save(content, path, _use_new_zipfile_serialization=kind != "torch legacy")
    refused(path, unet, "run code|damaged")
    with pytest.raises(LoRAFileError):
        inspect(path)
    assert not (tmp_path / "owned").exists()


def test_the_trap_works_where_nobody_is_careful(tmp_path):
    """Otherwise the test above proves nothing."""
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        [],
        [1, 2],
        [torch.ones(2, 2), "x"],
        torch.ones(2),
        "text",
        {},
        {1: torch.ones(2)},
        {"lora_unet_conv_in.alpha": 1.0},
        {"state_dict": {}},
        {"optimizer": {"a": 1}, "step": 3},
        {"pixel_values": torch.ones(2), "latents": torch.ones(2)},
        [torch.ones(1, 1).expand(10**6, 10**6)] * 2,
        {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 1).expand(10**6, 10**6)},
        {"lora_unet_conv_in.alpha": torch.ones(1).expand(10**10)},
        [torch.ones(2, 2).to_sparse()] * 2,
        [torch.ones(2, 2, device="meta")] * 2,
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_torch_files_with_anything_else_in_them_are_refused(tmp_path, unet, content):
    torch.save(content, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", unet)


def test_truncated_and_fuzzed_torch_files_never_crash(tmp_path, unet):
    lora = random_lora(unet, list(target_modules(unet, "tap-k")), 1)
    whole, chance = list_file(tmp_path / "x.pt", lora).read_bytes(), random.Random(0)
    for length in range(0, len(whole), max(1, len(whole) // 30)):
        (tmp_path / "x.pt").write_bytes(whole[:length])
        refused(tmp_path / "x.pt", unet)
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        (tmp_path / "x.pt").write_bytes(raw)
        try:
            load_any(tmp_path / "x.pt", unet)
        except LoRAFileError as error:
            assert "\n" not in str(error)


def test_fuzzed_legacy_torch_files_never_crash(tmp_path, unet):
    tensors = diffusers_processors(random_lora(unet, modules_like(unet, "attn1.to_q", path="spatial")[:1]))
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    whole, chance = (tmp_path / "x.bin").read_bytes(), random.Random(1)
    for _ in range(200):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(min(len(raw), 900))] = chance.randrange(256)
        (tmp_path / "x.bin").write_bytes(raw)
        try:
            load_any(tmp_path / "x.bin", unet)
        except LoRAFileError as error:
            assert "\n" not in str(error)


def test_fuzzed_keys_are_read_or_refused_but_never_crash(tmp_path, unet):
    lora = motion_sample(unet, rank=1)
    path, chance = kohya(tmp_path / "x.safetensors", lora, alpha=1.0), random.Random(2)
    whole = path.read_bytes()
    start = int.from_bytes(whole[:8], "little")
    for _ in range(150):
        raw = bytearray(whole)
        raw[8 + chance.randrange(start)] = chance.choice(b'abz019._"{}[]:,- \x00\xff')
        path.write_bytes(raw)
        try:
            report = load_any(path, unet)
        except LoRAFileError as error:
            assert "\n" not in str(error)
        else:
            assert report.matched == report.total == len(lora)


@pytest.mark.parametrize("key", ["unet.conv_in.lora_A.weight", "lora_unet_conv_in.lora_down.weight"])
def test_a_sparse_file_of_two_gigabytes_takes_no_memory(tmp_path, unet, key):
    """A header may truthfully name a factor of 2 GiB: no layer has one, so it is not read."""
    header = {key: {"dtype": "F32", "shape": [2**29, 1], "data_offsets": [0, 2**31]}}
    if key.startswith("unet"):
        header["__metadata__"] = {"motion_lora.format_version": "1", "motion_lora.kind": "lora"}
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 2**31)
    refused(path, unet, "which no LoRA factor has")


def test_a_zip_that_is_no_torch_file(tmp_path, unet):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    refused(tmp_path / "x.pt", unet)


def test_folders_and_absent_files(tmp_path, unet):
    refused(tmp_path, unet, "holds no LoRA")
    refused(tmp_path / "absent.safetensors", unet, "absent")


# Inspect and verify


def test_inspect_says_what_a_file_is(tmp_path, unet):
    lora = motion_sample(unet, rank=2, scale=0.5)
    said = {"motion_lora.captions": '["a cat circling"]', "motion_lora.method": "customize-a-video"}
    path = save_lora(tmp_path / "walk.safetensors", lora.with_metadata(**said))
    found = json.loads(json.dumps(inspect(path, unet)))
    assert (found["file"], found["format"], found["kind"]) == ("walk.safetensors", "motion-lora", "lora")
    assert (found["layers"], found["temporal"], found["spatial"], found["ranks"]) == (len(lora), len(lora), 0, [2])
    assert found["fits"] == {"matched": len(lora), "total": len(lora)}
    assert found["parameters"] == lora.num_parameters
    assert found["metadata"]["captions"] == ["a cat circling"]
    assert found["metadata"]["method"] == "customize-a-video"
    assert found["blocks"][0]["block"] == "transformer_in"
    assert sum(row["layers"] for row in found["blocks"]) == len(lora)
    expected = math.sqrt(sum(float(layer.delta().double().square().sum()) for layer in lora.layers.values()))
    assert found["norm"] == pytest.approx(expected, rel=1e-5)
    assert found["size"] == path.stat().st_size


def test_inspect_reads_what_other_tools_say(tmp_path, unet):
    tags = {"10_cat": {"cat": 10, "sitting": 3}, "5_dog": {"dog": 5, "cat": 1}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "ss_sd_model_name": "v2-1.ckpt", "modelspec.title": "pets"}
    found = inspect(kohya(tmp_path / "x.safetensors", appearance_sample(unet), metadata=metadata))["metadata"]
    assert found["trigger_words"] == ["cat", "dog", "sitting"]
    assert (found["title"], found["base_name"]) == ("pets", "v2-1.ckpt")


@pytest.mark.parametrize("tags", ["[]", "{", '{"a": 3}', '{"a": {"b": "c"}}', '{"a": {"b": null}}', "[" * 100_000])
def test_damaged_tags_of_other_tools_do_no_harm(tmp_path, unet, tags):
    path = kohya(tmp_path / "x.safetensors", appearance_sample(unet), metadata={"ss_tag_frequency": tags})
    assert "trigger_words" not in inspect(path)["metadata"]


def test_verify_checks_what_the_file_says_of_itself(tmp_path, unet):
    path = save_lora(tmp_path / "x.safetensors", motion_sample(unet))
    found = verify(path, unet)
    assert len(found["checks"]) == 4
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(LoRAFileError, match="changed after it was written"):
        verify(path)
    path = kohya(tmp_path / "k.safetensors", motion_sample(unet), metadata={"sshs_model_hash": "0" * 64})
    with pytest.raises(LoRAFileError, match="another hash"):
        verify(path)


def test_a_refusal_leaves_the_output_as_it_was(tmp_path, unet):
    before = run(unet)
    lora = appearance_sample(unet)
    layer = next(iter(lora.layers.values()))
    half = LoRA({**lora.layers, "down_blocks.5.resnets.0.conv1": layer})
    with pytest.raises(LoRAFileError), applied(unet, AdapterStack((StackEntry(half),)), 2):
        pytest.fail("entered")
    assert torch.equal(run(unet), before)
