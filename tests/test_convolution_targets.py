"""LoRAs on convolutions: one arithmetic from the training to every file, over frames and in a frame."""

from __future__ import annotations

import pytest
import torch
from lora_samples import random_lora, replica_of, run
from tiny import tiny_motion_unet, tiny_pipeline, tiny_unet
from torch import nn
from torch.nn import functional
from training_samples import quick, sample_clip

from motion_lora.adapters.apply import applied
from motion_lora.adapters.arithmetic import merge, resize
from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import TARGETS, parameter_count, target_modules
from motion_lora.backbones.registry import empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.core.curves import FrameCurve, Schedule
from motion_lora.core.errors import LoRAFileError, ModelError, SettingsError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.inspection import inspect, report_text
from motion_lora.files.own import load_lora, save_lora
from motion_lora.files.reader import load_any
from motion_lora.files.writers import export_kohya, export_peft
from motion_lora.training import train

PRESETS = [name for name, row in TARGETS.items() if row.convolutions]
FRAMES = 3


@pytest.fixture(scope="module")
def base():
    return tiny_unet(0)


@pytest.fixture
def unet(base):
    return replica_of(base)


def sample_of(unet: nn.Module, preset: str, rank: int = 2, seed: int = 0) -> LoRA:
    return random_lora(unet, list(target_modules(unet, preset)), rank, seed)


def same_change(found: LoRA, wanted: LoRA) -> bool:
    return set(found) == set(wanted) and all(
        torch.equal(found.layers[module].delta(), wanted.layers[module].delta()) for module in wanted
    )


# Targets


def test_the_presets_hold_what_they_say(unet):
    kinds = {preset: [unet.get_submodule(name) for name in target_modules(unet, preset)] for preset in PRESETS}
    assert {type(module) for module in kinds["temporal-conv"]} == {nn.Conv3d}
    assert {module.kernel_size for module in kinds["temporal-conv"]} == {(3, 1, 1)}
    assert {type(module) for module in kinds["spatial-conv"]} == {nn.Conv2d}
    for layer in ("temporal", "spatial"):
        full = set(target_modules(unet, f"{layer}-full"))
        parts = set(target_modules(unet, f"{layer}-conv")) | set(target_modules(unet, f"{layer}-attention"))
        assert parts < full
        assert all(".ff." in name for name in full - parts)


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ModelError, match="no temporal convolution, so target preset 'temporal-conv'"):
        target_modules(tiny_motion_unet(), "temporal-conv")


# Adapters


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_adapter_changes_nothing_and_has_the_counted_parameters(base, unet, preset):
    add_adapter(unet, "new", target_modules(base, preset), rank=2, alpha=0.5, seed=0)
    weights = Adapter(unet, "new").parameters
    assert sum(weight.numel() for weight in weights.values()) == parameter_count(base, preset, 2)
    assert torch.equal(run(unet, FRAMES), run(base, FRAMES))


def test_factors_of_a_convolution(base, unet):
    module = target_modules(base, "temporal-conv")[0]
    weight = base.get_submodule(module).weight
    add_adapter(unet, "new", [module], rank=8, alpha=0.5, seed=0)
    layer = Adapter(unet, "new").read().layers[module]
    assert layer.down.shape == (8, weight.shape[1], 3, 1, 1)
    assert layer.up.shape == (weight.shape[0], 8, 1, 1, 1)
    assert not layer.up.any()
    assert layer.down.std().item() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_adapter_does_what_its_factors_say(base, unet, preset):
    """With factors set by hand, the network equals the one whose weights are W + alpha * up @ down."""
    add_adapter(unet, "new", target_modules(base, preset), rank=2, alpha=0.5, seed=0)
    adapter, generator = Adapter(unet, "new"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapter.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    changed = replica_of(base)
    for module, layer in adapter.read().layers.items():
        own = changed.get_submodule(module)
        product = torch.einsum("or,ri...->oi...", layer.up.flatten(1), layer.down)
        own.weight = nn.Parameter(own.weight + 0.5 * product, requires_grad=False)
    torch.testing.assert_close(run(unet, FRAMES), run(changed, FRAMES), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(run(unet, FRAMES), run(base, FRAMES), atol=1e-2)


def test_ranks_that_no_convolution_takes(base, unet):
    module = target_modules(base, "temporal-conv")[0]
    limit = base.get_submodule(module).weight.shape[0]
    with pytest.raises(SettingsError, match=f"takes 1 to {limit}"):
        add_adapter(unet, "new", [module], rank=limit + 1, alpha=1.0, seed=0)
    with pytest.raises(ModelError, match="GroupNorm takes no LoRA"):
        add_adapter(unet, "new", ["conv_norm_out"], rank=1, alpha=1.0, seed=0)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ModelError, match="grouped convolution"):
        add_adapter(grouped, "new", ["0"], rank=1, alpha=1.0, seed=0)


# Training


@pytest.mark.parametrize("preset", ["temporal-conv", "temporal-full"])
def test_training_reaches_the_convolutions(preset):
    pipeline = tiny_pipeline(levels=2)
    for checkpointing in (False, True):
        settings = quick(method="temporal-only", targets=preset, steps=2, gradient_checkpointing=checkpointing)
        lora = train(pipeline, [sample_clip()], settings).lora
        assert list(lora) == list(target_modules(pipeline.unet, preset))
        assert all(layer.up.any() for layer in lora.layers.values())


@pytest.mark.parametrize("preset", ["spatial-conv", "spatial-full"])
def test_a_spatial_lora_learns_on_the_image_network(preset):
    pipeline = tiny_pipeline(levels=2)
    lora = train(pipeline, [sample_clip()], quick(method="motiondirector-image", spatial_targets=preset, steps=2)).lora
    assert list(lora) == list(target_modules(pipeline.unet, preset))
    assert all(layer.up.any() for layer in lora.layers.values())


def test_a_rank_beyond_a_convolution_is_said_before_training():
    pipeline = tiny_pipeline(levels=2)
    with pytest.raises(SettingsError, match="rank is 33, this base takes 1 to 32 with targets 'temporal-conv'"):
        train(pipeline, [sample_clip()], quick(method="temporal-only", targets="temporal-conv", rank=33))


# Stack


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [None, Schedule(end=0.5)])
def test_merged_and_varying_strengths_agree(unet, preset, steps):
    lora = sample_of(unet, preset)
    stack = AdapterStack((StackEntry(lora, strength=0.7, steps=steps),))
    outputs = []
    for merge_constants in (True, False):
        with applied(unet, stack, FRAMES, merge=merge_constants) as work:
            work.at(0.0)
            outputs.append(run(unet, FRAMES))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    if steps is not None:
        with applied(unet, stack, FRAMES) as work:
            work.at(1.0)
            assert torch.equal(run(unet, FRAMES), run(replica_of(unet), FRAMES))


def test_strength_over_frames_is_that_of_the_frame_that_changes(unet):
    """Known answer on one (3, 1, 1) convolution: frame f of the output gets gain f times the change's own frame f."""
    module = target_modules(unet, "temporal-conv")[0]
    lora = random_lora(unet, [module])
    stack = AdapterStack((StackEntry(lora, frames=FrameCurve(curve=((0.0, 0.0), (1.0, 1.0)))),))
    convolution, seen = unet.get_submodule(module), {}

    def look(_, args, output):
        seen["in"], seen["out"] = args[0], output

    gains = torch.tensor(FrameCurve(curve=((0.0, 0.0), (1.0, 1.0))).samples(FRAMES))
    with applied(unet, stack, FRAMES):
        handle = convolution.register_forward_hook(look)
        run(unet, FRAMES)
        handle.remove()
    plain = convolution(seen["in"])
    delta = lora.layers[module].delta()
    change = functional.conv3d(seen["in"], delta, None, convolution.stride, convolution.padding)
    torch.testing.assert_close(seen["out"], plain + change * gains.view(1, 1, -1, 1, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(seen["out"][:, :, 0], plain[:, :, 0])


# Arithmetic


@pytest.mark.parametrize("preset", PRESETS)
def test_merge_and_resize(unet, preset):
    first, second = sample_of(unet, preset, 2, 0), sample_of(unet, preset, 1, 1)
    both = merge([first, second], [0.5, -1.0])
    for module, layer in both.layers.items():
        wanted = 0.5 * first.layers[module].delta() - second.layers[module].delta()
        torch.testing.assert_close(layer.delta(), wanted, rtol=1e-4, atol=1e-5)
    back = resize(merge([first, first], [1.0, 1.0]), rank=2)
    assert back.kept == pytest.approx(1.0)
    for module, layer in back.lora.layers.items():
        assert layer.rank <= 2
        torch.testing.assert_close(layer.delta(), 2 * first.layers[module].delta(), rtol=1e-3, atol=1e-5)


# Files


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("write", [save_lora, export_kohya, export_peft])
def test_every_format_brings_them_back(tmp_path, unet, preset, write):
    sample = sample_of(unet, preset)
    lora = LoRA({module: LoRALayer(layer.down, layer.up, 0.25) for module, layer in sample.layers.items()})
    report = load_any(write(tmp_path / "x.safetensors", lora), unet)
    assert same_change(report.lora, lora)
    assert (report.matched, report.total) == (len(lora), len(lora))


def test_the_own_format_gives_back_the_factors(tmp_path, unet):
    lora = sample_of(unet, "temporal-full")
    assert load_lora(save_lora(tmp_path / "x.safetensors", lora)).fingerprint() == lora.fingerprint()


def test_kohya_names(tmp_path, unet):
    module = "down_blocks.0.temp_convs.0.conv2.3"
    header = load_any(export_kohya(tmp_path / "x.safetensors", random_lora(unet, [module])))
    assert list(header.lora) == [module]


def list_of(unet: nn.Module, modules: list[str], rank: int) -> tuple[LoRA, list[torch.Tensor]]:
    """As Text-To-Video-Finetuning writes it: up, down, up, down, the rank cut to a layer's channels."""
    layers = {}
    for module in modules:
        cut = min(rank, *unet.get_submodule(module).weight.shape[:2])
        layers |= random_lora(unet, [module], cut).layers
    tensors = [tensor for layer in layers.values() for tensor in (layer.up, layer.down)]
    return LoRA(layers), tensors


def test_lists_of_trainers_of_2023(tmp_path, unet):
    every = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    for name, modules in (("all-layers", every), ("temporal-conv", list(target_modules(unet, "temporal-conv")))):
        lora, tensors = list_of(unet, modules, rank=6)
        torch.save(tensors, tmp_path / "0_unet.pt")
        report = load_any(tmp_path / "0_unet.pt", unet)
        assert same_change(report.lora, lora)
        assert f"recognised as {name}" in report.text
    torch.save([*tensors[:-1], tensors[-1][:, :, :1]], tmp_path / "1_unet.pt")
    with pytest.raises(LoRAFileError, match="do not fit"):
        load_any(tmp_path / "1_unet.pt", unet)


def test_a_list_of_every_layer_needs_no_network(tmp_path):
    full = empty_network(MODELSCOPE_UNET_CONFIG)
    every = [name for name, module in full.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    lora, tensors = list_of(full, every, rank=1)
    assert len(tensors) == 1148
    torch.save(tensors, tmp_path / "0_unet.pt")
    assert list(load_any(tmp_path / "0_unet.pt").lora) == every
    assert load_any(tmp_path / "0_unet.pt").lora.fingerprint() == lora.fingerprint()


def test_inspection_counts_them(tmp_path, unet):
    lora = sample_of(unet, "temporal-full")
    facts = inspect(save_lora(tmp_path / "x.safetensors", lora), unet)
    convolutions = len(target_modules(unet, "temporal-conv"))
    assert facts["convolutions"] == convolutions
    assert f"{len(lora)} temporal, 0 spatial, {convolutions} of them convolutions" in report_text(facts)
    linear = inspect(save_lora(tmp_path / "y.safetensors", sample_of(unet, "temporal-all")))
    assert linear["convolutions"] == 0 and "convolutions" not in report_text(linear)
