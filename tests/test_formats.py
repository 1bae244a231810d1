"""Import: every dialect gives the known change, whole; export: what was written comes back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from foreign_files import (
    diffusers_processors,
    dotted,
    kohya,
    kohya_as_convolutions,
    list_file,
    peft,
    peft_folder,
    text_encoder_part,
    tucker,
)
from lora_samples import (
    ATTENTION,
    appearance_sample,
    everything_sample,
    full_size_unet,
    modules_like,
    motion_sample,
    random_lora,
    replica_of,
    run,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_text_encoder, tiny_unet

from motion_lora.adapters.apply import applied, applied_to_text_encoder
from motion_lora.adapters.targets import target_modules
from motion_lora.core.errors import LoRAFileError, SettingsError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.container import read_header
from motion_lora.files.formats import written
from motion_lora.files.names import dotted as dots
from motion_lora.files.names import parse_key
from motion_lora.files.own import load_lora, save_lora
from motion_lora.files.reader import load_any
from motion_lora.files.writers import convert, export_kohya, export_peft


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(0)


@pytest.fixture(scope="module")
def full():
    return full_size_unet()


def scaled(lora: LoRA, scale: float) -> LoRA:
    return LoRA({name: LoRALayer(layer.down, layer.up, scale) for name, layer in lora.layers.items()})


def attention(unet, rank: int = 2, seed: int = 0) -> LoRA:
    return random_lora(unet, modules_like(unet, *ATTENTION, path="spatial"), rank, seed)


def assert_same_change(found: LoRA, expected: LoRA) -> None:
    assert set(found.layers) == set(expected.layers)
    for module, layer in expected.layers.items():
        assert torch.equal(found.layers[module].delta(), layer.delta()), module


def assert_same_factors(found: LoRA, expected: LoRA) -> None:
    """The same, without building the changes of a full-size network."""
    assert set(found.layers) == set(expected.layers)
    for module, layer in expected.layers.items():
        other = found.layers[module]
        assert torch.equal(other.up, layer.up) and torch.equal(other.down, layer.down), module
        assert other.scale == layer.scale


# Kohya


@pytest.mark.parametrize("alpha", [None, 2.0, 1.0, 0.5, 32.0])
def test_kohya_alpha_is_divided_by_the_rank_and_none_is_one(tmp_path, unet, alpha):
    lora = appearance_sample(unet, rank=2)
    report = load_any(kohya(tmp_path / "x.safetensors", lora, alpha=alpha), unet)
    assert_same_change(report.lora, scaled(lora, 1.0 if alpha is None else alpha / 2))
    assert (report.format, report.matched, report.total) == ("kohya", len(lora), len(lora))
    assert f"{len(lora)} of {len(lora)} layers matched" in report.text


def test_kohya_linear_layers_written_as_convolutions(tmp_path, unet):
    lora = random_lora(unet, modules_like(unet, *ATTENTION, "proj_in", "proj_out", path="spatial"))
    path = kohya_as_convolutions(tmp_path / "x.safetensors", lora)
    assert_same_change(load_any(path, unet).lora, lora)
    assert_same_change(load_any(path).lora, lora)


def test_kohya_locon_convolutions_with_a_middle_factor(tmp_path, unet):
    module = modules_like(unet, "resnets.0.conv1")[0]
    layer = random_lora(unet, [module], 3).layers[module]
    middle, down = tucker(layer.down, 3)
    key = "lora_unet_" + module.replace(".", "_")
    tensors = {
        "lora_up.weight": layer.up,
        "lora_mid.weight": middle,
        "lora_down.weight": down,
        "alpha": torch.tensor(1.5),
    }
    save_file({f"{key}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    found = load_any(tmp_path / "x.safetensors", unet).lora.layers[module].delta()
    x = torch.randn(1, down.shape[1], 6, 6, generator=torch.Generator().manual_seed(1))
    conv = torch.nn.functional.conv2d
    expected = 0.5 * conv(conv(conv(x, down), middle, padding=1), layer.up)
    assert torch.allclose(conv(x, found, padding=1), expected, rtol=1e-4, atol=1e-5)


def test_a_pointwise_convolution_written_as_linear(tmp_path, unet):
    module = modules_like(unet, "conv_shortcut", path="spatial")[0]
    lora = random_lora(unet, [module])
    key = "lora_unet_" + module.replace(".", "_")
    layer = lora.layers[module]
    flat = {f"{key}.lora_down.weight": layer.down.flatten(1), f"{key}.lora_up.weight": layer.up.flatten(1)}
    save_file(flat, tmp_path / "x.safetensors")
    assert_same_change(load_any(tmp_path / "x.safetensors", unet).lora, lora)


def test_every_name_of_the_real_network_survives_kohyas_underscores(full):
    names = [name for name, module in full.named_modules() if getattr(module, "weight", None) is not None]
    names = [name for name in names if "norm" not in name and not name.endswith(tuple(f"conv{i}.0" for i in range(5)))]
    assert len(names) > 500
    assert [dots(name.replace(".", "_")) for name in names] == names
    assert len({name.replace(".", "_") for name in names}) == len(names)
    assert dots("down_blocks_0_unknown_part") is None
    assert dots("to_q_") is None


def test_full_size_kohya_file_matches_every_layer(tmp_path, full):
    modules = modules_like(full, *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", path="spatial")
    lora = random_lora(full, modules, rank=1)
    report = load_any(kohya(tmp_path / "x.safetensors", lora, alpha=0.5), full)
    assert (report.matched, report.total) == (192, 192)
    assert_same_factors(report.lora, scaled(lora, 0.5))


def test_text_encoder_part_is_left_out_with_a_note_or_applied(tmp_path, unet):
    lora, text_encoder = attention(unet), tiny_text_encoder()
    modules = [name for name, m in text_encoder.named_modules() if isinstance(m, torch.nn.Linear)]
    text = random_lora(text_encoder, modules, seed=3)
    plain = LoRA({name.removeprefix("text_model."): layer for name, layer in text.layers.items()})
    path = kohya(tmp_path / "x.safetensors", lora, alpha=2.0, **text_encoder_part(plain, 1.0))
    without = load_any(path, unet)
    assert without.text_encoder is None
    assert f"{len(text)} text-encoder layers were left out" in without.text
    report = load_any(path, unet, text_encoder=text_encoder)
    assert report.text_encoder is not None
    assert_same_change(report.text_encoder, scaled(text, 0.5))
    before = text_encoder.get_submodule(modules[0]).weight.clone()
    stack = AdapterStack((StackEntry(report.lora, 2.0, text_encoder=report.text_encoder),))
    with applied_to_text_encoder(text_encoder, stack):
        after = text_encoder.get_submodule(modules[0]).weight
        assert torch.allclose(after, before + 2.0 * 0.5 * text.layers[modules[0]].delta(), atol=1e-6)


# PEFT and diffusers


@pytest.mark.parametrize("prefix", ["unet.", "", "base_model.model.", "base_model.model.unet.", "diffusion_model."])
@pytest.mark.parametrize("adapter", ["", "default", "motion_1"])
def test_peft_with_every_prefix_and_adapter_name(tmp_path, unet, prefix, adapter):
    lora = everything_sample(unet)
    report = load_any(peft(tmp_path / "x.safetensors", lora, prefix=prefix, adapter=adapter), unet)
    assert report.format == "peft"
    assert_same_change(report.lora, lora)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 4}, 1.0),
        ({"r": 4, "lora_alpha": 1}, 0.25),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({}, 1.0),
    ],
)
@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_peft_alpha_of_the_configuration(tmp_path, unet, config, scale, where):
    lora = motion_sample(unet, rank=4)
    if where == "beside":
        path = peft_folder(tmp_path / "x", lora, config)
    else:
        prefixed = {f"unet.{key}": value for key, value in config.items()}
        metadata = {"lora_adapter_metadata": json.dumps(prefixed)}
        path = peft(tmp_path / "x.safetensors", lora, metadata=metadata)
    assert_same_change(load_any(path, unet).lora, scaled(lora, scale))


def test_peft_patterns_change_rank_and_alpha_of_single_modules(tmp_path, unet):
    names = modules_like(unet, "attn1.to_q", path="temporal")[:3]
    lora = LoRA({**random_lora(unet, names[:1], 8).layers, **random_lora(unet, names[1:], 2).layers})
    config = {"r": 2, "lora_alpha": 2, "rank_pattern": {names[0]: 8}, "alpha_pattern": {names[0]: 2, names[1]: 6}}
    found = load_any(peft_folder(tmp_path / "x", lora, config), unet).lora
    assert [found.layers[name].scale for name in names] == [0.25, 3.0, 1.0]


@pytest.mark.parametrize(
    "config",
    [
        {"r": 8, "lora_alpha": 8},
        {"r": 4, "lora_alpha": "much"},
        {"r": None},
        {"r": 4, "lora_alpha": math.inf},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"(a+)+$": 3}},
        {"r": math.inf, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": ["to_q"]},
        {"r": 4, "lora_alpha": 4, "use_dora": True},
        [],
    ],
)
def test_peft_configurations_that_cannot_be_followed_are_refused(tmp_path, unet, config):
    with pytest.raises(LoRAFileError):
        load_any(peft_folder(tmp_path / "x", motion_sample(unet, rank=4), config), unet)


def test_diffusers_processor_keys_of_2023(tmp_path, unet):
    lora = attention(unet)
    save_file(diffusers_processors(lora), tmp_path / "x.safetensors")
    report = load_any(tmp_path / "x.safetensors", unet)
    assert report.format == "diffusers"
    assert_same_change(report.lora, lora)


def test_diffusers_bin_file_without_prefix(tmp_path, unet):
    lora = attention(unet)
    folder = tmp_path / "pokemon"
    folder.mkdir()
    torch.save(diffusers_processors(lora, prefix=""), folder / "pytorch_lora_weights.bin")
    assert_same_change(load_any(folder, unet).lora, lora)


@pytest.mark.parametrize("spelling", ["lora.{}", "lora_linear_layer.{}", "lora_{}"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_dotted_spellings(tmp_path, unet, spelling, alpha):
    lora = everything_sample(unet)
    save_file(dotted(lora, spelling, alpha=alpha), tmp_path / "x.safetensors")
    assert_same_change(load_any(tmp_path / "x.safetensors", unet).lora, scaled(lora, 1.0 if alpha is None else 0.25))


@pytest.mark.parametrize("spelling", ["unet._orig_mod.{}", "_orig_mod.{}", "unet.{}"])
def test_a_compiled_network_is_the_network(tmp_path, unet, spelling):
    """torch.compile puts a word of its own into every name."""
    lora = motion_sample(unet)
    factors = {f"{spelling.format(name)}.lora_A.weight": layer.down for name, layer in lora.layers.items()}
    factors |= {f"{spelling.format(name)}.lora_B.weight": layer.up for name, layer in lora.layers.items()}
    save_file(factors, tmp_path / "x.safetensors")
    assert_same_change(load_any(tmp_path / "x.safetensors", unet).lora, scaled(lora, 1.0))


def test_state_dict_inside_a_torch_file(tmp_path, unet):
    lora = motion_sample(unet)
    torch.save({"state_dict": dotted(lora, "lora_{}")}, tmp_path / "x.ckpt")
    assert_same_change(load_any(tmp_path / "x.ckpt", unet).lora, lora)


# Lists of MotionDirector and Separate Motion from Appearance


@pytest.mark.parametrize("preset", ["temporal-all", "tap-k-out", "tap-k", "spatial-self-ff", "temporal-attention"])
def test_lists_are_recognised_by_length_and_shapes(tmp_path, unet, preset):
    lora = random_lora(unet, list(target_modules(unet, preset)), rank=3)
    report = load_any(list_file(tmp_path / "500_unet.pt", lora), unet)
    assert report.format == "list"
    assert preset in report.text
    assert report.lora.metadata["motion_lora.target_preset"] == preset
    assert_same_change(report.lora, lora)


@pytest.mark.parametrize(
    ("preset", "tensors"),
    [("temporal-all", 340), ("spatial-self-ff", 192), ("tap-k-out", 136), ("tap-k", 68), ("temporal-attention", 272)],
)
def test_full_size_lists_need_no_network(tmp_path, full, preset, tensors):
    lora = random_lora(full, list(target_modules(full, preset)), rank=1)
    path = list_file(tmp_path / "x.pt", lora)
    assert len(torch.load(path, weights_only=True)) == tensors
    report = load_any(path)
    assert report.lora.metadata["motion_lora.target_preset"] == preset
    assert_same_factors(report.lora, lora)


def test_spatial_lists_of_several_clips_are_split(tmp_path, unet):
    modules = list(target_modules(unet, "spatial-self-ff"))
    loras = [random_lora(unet, modules, 2, seed) for seed in range(3)]
    path = list_file(tmp_path / "x.pt", *loras)
    for clip, lora in enumerate(loras):
        report = load_any(path, unet, list_index=clip)
        assert_same_change(report.lora, lora)
        assert f"clip {clip} of 3" in report.text
        assert len(report.clips) == 3
        assert_same_change(report.clips[clip], lora)
    with pytest.raises(LoRAFileError, match="3 clips"):
        load_any(path, unet, list_index=3)


def test_a_list_is_checked_pair_by_pair(tmp_path, unet):
    lora = random_lora(unet, list(target_modules(unet, "tap-k-out")), 2)
    names = list(lora)
    swapped = {**lora.layers}
    first, other = names[0], next(n for n in names if lora.layers[n].up.shape != lora.layers[names[0]].up.shape)
    swapped[first], swapped[other] = lora.layers[other], lora.layers[first]
    with pytest.raises(LoRAFileError, match=first.replace(".", r"\.")):
        load_any(list_file(tmp_path / "x.pt", LoRA(swapped)), unet)
    mixed = {**lora.layers, other: random_lora(unet, [other], 5).layers[other]}
    with pytest.raises(LoRAFileError, match="do not fit"):
        load_any(list_file(tmp_path / "y.pt", LoRA(mixed)), unet)


def test_lists_of_other_lengths_and_swapped_factors_are_refused(tmp_path, unet):
    lora = random_lora(unet, list(target_modules(unet, "tap-k")), 2)
    short = LoRA(dict(list(lora.layers.items())[:-1]))
    with pytest.raises(LoRAFileError, match="without names"):
        load_any(list_file(tmp_path / "x.pt", short), unet)
    backwards = LoRA({name: LoRALayer(layer.up, layer.down) for name, layer in lora.layers.items()})
    with pytest.raises(LoRAFileError, match="do not fit"):
        load_any(list_file(tmp_path / "y.pt", backwards), unet)


# Own


def test_own_files_are_read_by_the_same_door(tmp_path, unet):
    lora = motion_sample(unet, scale=0.3)
    report = load_any(save_lora(tmp_path / "x.safetensors", lora), unet)
    assert (report.format, report.matched) == ("motion-lora", len(lora))
    assert_same_change(report.lora, lora)


def test_the_extension_does_not_matter(tmp_path, unet):
    lora = motion_sample(unet)
    kohya(tmp_path / "a.pt", lora)
    list_file(tmp_path / "b.safetensors", random_lora(unet, list(target_modules(unet, "tap-k")), 2))
    assert load_any(tmp_path / "a.pt", unet).format == "kohya"
    assert load_any(tmp_path / "b.safetensors", unet).format == "list"


def test_a_header_whose_length_begins_like_a_pickle(tmp_path, unet):
    lora, path = random_lora(unet, ["conv_in"]), tmp_path / "x.safetensors"
    kohya(path, lora)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    wanted = next(n for n in range(length, 2**17) if n % 256 == 0x80)
    path.write_bytes(wanted.to_bytes(8, "little") + raw[8 : 8 + length].ljust(wanted) + raw[8 + length :])
    assert_same_change(load_any(path, unet).lora, lora)


# Export


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1, 1 / 3, 0.7, -1.3])
@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("export", [export_kohya, export_peft])
@pytest.mark.parametrize("metadata", [True, False])
def test_exports_come_back_bit_for_bit(tmp_path, unet, export, rank, scale, metadata):
    modules = [*modules_like(unet, "attn1.to_q"), *modules_like(unet, "conv1.2", "resnets.0.conv1")]
    lora = random_lora(unet, modules, rank, scale=scale)
    report = load_any(export(tmp_path / "x.safetensors", lora, metadata=metadata), unet)
    assert_same_change(report.lora, lora)


@pytest.mark.parametrize("export", [export_kohya, export_peft])
def test_half_precision_exports_err_by_less_than_a_thousandth(tmp_path, unet, export):
    lora = everything_sample(unet)
    found = load_any(export(tmp_path / "x.safetensors", lora, dtype=torch.float16), unet).lora
    for module, layer in lora.layers.items():
        error = (found.layers[module].delta() - layer.delta()).norm() / layer.delta().norm()
        assert 0 < error <= 2.0**-10


def test_exports_speak_the_other_tools_language(tmp_path, unet):
    module = "transformer_in.transformer_blocks.0.attn1.to_out.0"
    lora = random_lora(unet, [module], 4, scale=0.25)
    tensors = load_file(export_kohya(tmp_path / "k.safetensors", lora))
    name = "lora_unet_transformer_in_transformer_blocks_0_attn1_to_out_0"
    assert set(tensors) == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    assert float(tensors[f"{name}.alpha"]) == 1.0
    metadata = read_header(tmp_path / "k.safetensors").metadata
    assert (metadata["ss_network_dim"], float(metadata["ss_network_alpha"])) == ("4", 1.0)
    export_peft(tmp_path / "p.safetensors", lora)
    config = json.loads(read_header(tmp_path / "p.safetensors").metadata["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"], config["unet.target_modules"]) == (4, 1.0, [module])


def test_peft_reads_our_export(tmp_path, unet):
    """The reference implementation itself, not our reader, gives the known output."""
    import peft as reference

    lora = motion_sample(unet, rank=4, scale=0.5)
    lora = LoRA({name: layer for name, layer in lora.layers.items() if layer.down.ndim == 2})
    path = export_peft(tmp_path / "x.safetensors", lora)
    config = json.loads(read_header(path).metadata["lora_adapter_metadata"])
    plain = {key.removeprefix("unet."): value for key, value in config.items()}
    network = tiny_unet(0)
    reference.inject_adapter_in_model(reference.LoraConfig(**plain), network, "x")
    state = {key.removeprefix("unet."): tensor for key, tensor in load_file(path).items()}
    reference.set_peft_model_state_dict(network, state, adapter_name="x")
    ours = replica_of(unet)
    with applied(ours, AdapterStack((StackEntry(lora),)), 3):
        expected = run(ours)
    assert torch.allclose(run(network.eval()), expected, atol=1e-5)


def test_metadata_travels_through_an_export_without_making_it_our_format(tmp_path, unet):
    lora = motion_sample(unet, scale=0.5).with_metadata(
        **{"motion_lora.captions": '["a walk"]', "modelspec.title": "walk"}
    )
    own = load_lora(save_lora(tmp_path / "o.safetensors", lora))
    for export in (export_kohya, export_peft):
        found = load_any(export(tmp_path / "x.safetensors", own), unet)
        assert found.format in ("kohya", "peft")
        assert found.lora.metadata["motion_lora.captions"] == '["a walk"]'
        assert found.lora.metadata["modelspec.title"] == "walk"
        assert_same_change(found.lora, lora)
        again = load_lora(save_lora(tmp_path / "y.safetensors", found.lora))
        assert_same_change(again, lora)


def test_without_metadata_exports_say_nothing(tmp_path, unet):
    lora = motion_sample(unet).with_metadata(secret="yes")
    assert set(read_header(export_kohya(tmp_path / "k.safetensors", lora, metadata=False)).metadata) == {"format"}
    found = read_header(export_peft(tmp_path / "p.safetensors", lora, metadata=False)).metadata
    assert set(found) == {"format", "lora_adapter_metadata"}


# The others are of one backbone or of attention layers alone: tests/test_animatediff_files.py, tests/test_wan_files.py.
@pytest.mark.parametrize("kind", [name for name in written() if name not in ("animatediff", "comfyui", "diffusers")])
def test_convert_from_every_kind_to_every_kind(tmp_path, unet, kind):
    lora = everything_sample(unet)
    sources = [
        kohya(tmp_path / "k.safetensors", lora, alpha=1.0),
        peft(tmp_path / "p.safetensors", scaled(lora, 1.0)),
        save_lora(tmp_path / "o.safetensors", scaled(lora, 0.5)),
    ]
    for source, scale in zip(sources, (0.5, 1.0, 0.5), strict=True):
        convert(source, tmp_path / "x.safetensors", kind, unet)
        found = load_any(tmp_path / "x.safetensors", unet)
        assert found.format == kind
        assert_same_change(found.lora, scaled(lora, scale))


def test_unknown_kinds_and_names_without_a_kohya_spelling(tmp_path, unet):
    lora = motion_sample(unet)
    with pytest.raises(SettingsError, match="kohya"):
        convert(save_lora(tmp_path / "x.safetensors", lora), tmp_path / "y.safetensors", "gguf")
    odd = LoRA({"blocks.0.odd_name": next(iter(lora.layers.values()))})
    with pytest.raises(LoRAFileError, match="odd_name"):
        export_kohya(tmp_path / "y.safetensors", odd)
    assert not (tmp_path / "y.safetensors").exists()


# Names and learned words


def test_keys_of_no_dialect_have_no_meaning():
    for key in ("a", "weight", "x.weight", "lora_unet_x.lora_down.weight", "x.lora_C.weight", "lora_te3_x.alpha", ""):
        assert parse_key(key) is None, key


# loralib ------------------------------------------------------------------------------------------------------------


def test_loralib_files_of_the_modelscope_era(tmp_path, unet):
    """Linear layers, images' convolutions and temporal convolutions, each checked against the change as it was used."""
    weights = {name: module.weight for name, module in unet.named_modules() if hasattr(module, "weight")}
    linear = next(name for name in weights if name.endswith("attn1.to_q"))
    flat = next(name for name, weight in weights.items() if weight.ndim == 4 and weight.shape[2] == 3)
    timed = next(name for name, weight in weights.items() if weight.ndim == 5 and weight.shape[2] == 3)
    rank, tensors, changes = 2, {}, {}
    for number, name in enumerate((linear, flat, timed)):
        generator, weight = torch.Generator().manual_seed(number), weights[name]
        size = 1 if weight.ndim == 2 else weight.shape[2]
        down = torch.randn(rank * size, weight.shape[1] * size, generator=generator)
        up = torch.randn(weight.shape[0] * size, rank * size, generator=generator)
        tensors |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
        change = (up @ down).view(*weight.shape[:3], size) if weight.ndim == 5 else (up @ down).view(weight.shape)
        changes[name] = change.mean(dim=-1)[..., None, None] if weight.ndim == 5 else change
    save_file(tensors, tmp_path / "era.safetensors")
    report = load_any(tmp_path / "era.safetensors", unet)
    assert report.format == "loralib" and report.matched == 3
    for name, change in changes.items():
        torch.testing.assert_close(report.lora.layers[name].delta(), change, rtol=1e-4, atol=1e-4)
