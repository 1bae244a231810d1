"""The appearance highway re-routes the skips that it names and no other, scales them, and leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from tiny import tiny_latents, tiny_unet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from motion_lora.adapters.highway import appearance_highway, plan_highway
from motion_lora.backbones.bypass import temporal_bypass
from motion_lora.backbones.registry import describe, empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.core.errors import SettingsError
from motion_lora.core.highway import Highway

PRESETS = ("code", "all")
NETWORKS = [(3, 1), (3, 2), (2, 1)]


def text(batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, 32, generator=torch.Generator().manual_seed(9))


def run(unet: UNet3DConditionModel, latents: Tensor | None = None) -> Tensor:
    latents = tiny_latents() if latents is None else latents
    return unet(latents, 500, text(latents.shape[0])).sample


def identical_temporal_attention(unet: UNet3DConditionModel) -> None:
    """Zero projections out, so that every temporal transformer of the network is the identity."""
    for module in unet.modules():
        if isinstance(module, TransformerTemporalModel):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)


def plan_by_index(unet: nn.Module, highway: Highway) -> dict[int, tuple[str | None, float]]:
    numbers = {(skip.up_block, skip.position): skip.index for skip in describe(unet).skips}
    return {numbers[r.up_block, r.position]: (r.spatial, r.scale) for r in plan_highway(unet, highway)}


def test_plan_on_modelscope_is_that_of_the_authors_code() -> None:
    unet = empty_network(MODELSCOPE_UNET_CONFIG)
    assert plan_by_index(unet, Highway("code")) == {
        5: (None, 1.1),
        6: (None, 1.1),
        7: ("down_blocks.2.attentions.0", 1.1),
        8: ("down_blocks.2.attentions.1", 1.1),
    }
    assert plan_by_index(unet, Highway("all", scale=1.0)) == {
        1: ("down_blocks.0.attentions.0", 1.0),
        2: ("down_blocks.0.attentions.1", 1.0),
        4: ("down_blocks.1.attentions.0", 1.0),
        5: ("down_blocks.1.attentions.1", 1.0),
        7: ("down_blocks.2.attentions.0", 1.0),
        8: ("down_blocks.2.attentions.1", 1.0),
    }


def test_plan_on_two_levels() -> None:
    unet = tiny_unet(levels=2)
    assert plan_by_index(unet, Highway("code", scale=1.2)) == {
        1: (None, 1.2),
        2: (None, 1.2),
        3: ("down_blocks.1.attentions.0", 1.2),
    }
    assert set(plan_by_index(unet, Highway("all"))) == {1, 3}


def test_scaled_skips_are_those_that_the_code_scales_by_width() -> None:
    """Its rule: skips that meet decoder features as wide as the deepest attention level, in blocks with attention."""
    unet = empty_network(MODELSCOPE_UNET_CONFIG)
    by_width = set()
    for skip in describe(unet).skips:
        block = unet.get_submodule(skip.up_block)
        resnets = block.resnets
        order = len(resnets) - 1 - skip.position
        skip_width = {0: 320, 1: 320, 2: 320, 3: 320, 4: 640, 5: 640, 6: 640}.get(skip.index, 1280)
        if getattr(block, "has_cross_attention", False) and resnets[order].in_channels - skip_width == 1280:
            by_width.add(skip.index)
    scaled = {index for index, (_, scale) in plan_by_index(unet, Highway("code")).items() if scale != 1.0}
    assert scaled == by_width == {5, 6, 7, 8}


@pytest.mark.parametrize(("levels", "layers"), NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_exact_no_op_when_temporal_attention_is_the_identity(preset: str, levels: int, layers: int) -> None:
    unet = tiny_unet(levels=levels, layers_per_block=layers)
    identical_temporal_attention(unet)
    before = run(unet)
    with appearance_highway(unet, Highway(preset, scale=1.0)):
        assert torch.equal(run(unet), before)
    with temporal_bypass(unet):
        before = run(unet)
        with appearance_highway(unet, Highway(preset, scale=1.0)):
            assert torch.equal(run(unet), before)


@pytest.mark.parametrize(("levels", "layers"), NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_decoder_gets_the_spatial_outputs_scaled(preset: str, levels: int, layers: int) -> None:
    """Against tensors that are recorded apart from the highway: every skip of every up block, changed or not."""
    unet = tiny_unet(levels=levels, layers_per_block=layers)
    highway = Highway(preset, scale=1.3)
    plan = plan_by_index(unet, highway)
    outputs: dict[str, Tensor] = {}
    plain: dict[int, Tensor] = {}
    arrived: dict[int, Tensor] = {}
    skips = describe(unet).skips

    def record(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.__setitem__(name, output[0])

    def watch(block: str, into: dict[int, Tensor]) -> Callable[..., None]:
        numbers = {skip.position: skip.index for skip in skips if skip.up_block == block}

        def hook(module: nn.Module, args: object, kwargs: dict) -> None:
            into.update({numbers[i]: tensor for i, tensor in enumerate(kwargs["res_hidden_states_tuple"])})

        return hook

    blocks = sorted({skip.up_block for skip in skips})
    for name in describe(unet).spatial_transformers:
        unet.get_submodule(name).register_forward_hook(record(name))
    handles = [unet.get_submodule(b).register_forward_pre_hook(watch(b, plain), with_kwargs=True) for b in blocks]
    without = run(unet)
    for handle in handles:
        handle.remove()
    with appearance_highway(unet, highway):
        for block in blocks:
            unet.get_submodule(block).register_forward_pre_hook(watch(block, arrived), with_kwargs=True)
        with_highway = run(unet)
    for skip in skips:
        spatial, scale = plan.get(skip.index, (None, 1.0))
        expected = outputs[spatial] if spatial else plain[skip.index]
        assert torch.equal(arrived[skip.index], expected * scale), skip
    assert (with_highway - without).abs().max() > 1e-3


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_main_path_of_the_encoder_is_untouched(preset: str) -> None:
    unet = tiny_unet()
    seen: list[Tensor] = []
    unet.mid_block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(unet)
    with appearance_highway(unet, Highway(preset)):
        run(unet)
    assert torch.equal(*seen)


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_batches_sizes_and_frame_counts(preset: str) -> None:
    """Guidance batches, odd sizes that take the network's upsample-size path, single frames."""
    unet = tiny_unet()
    with appearance_highway(unet, Highway(preset)):
        both = run(unet, torch.cat([tiny_latents(1), tiny_latents(2)]))
        alone = unet(tiny_latents(2), 500, text(2)[1:]).sample
        torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
        for shape in ((1, 4, 1, 8, 8), (1, 4, 3, 6, 10), (2, 4, 2, 8, 12)):
            assert run(unet, torch.randn(shape)).shape == shape


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_checkpointing_gives_the_same_gradients(preset: str) -> None:
    def gradients(checkpointed: bool) -> Tensor:
        unet = tiny_unet()
        weights = [unet.down_blocks[1].temp_attentions[0].proj_out.weight, unet.down_blocks[0].resnets[0].conv1.weight]
        for weight in weights:
            weight.requires_grad_(True)
        kinds = (Transformer2DModel, TransformerTemporalModel, TemporalConvLayer, ResnetBlock2D)
        for module in unet.modules():
            if checkpointed and isinstance(module, kinds):
                module.forward = _checkpointed(module.forward)
        with appearance_highway(unet, Highway(preset)):
            run(unet).square().mean().backward()
        return torch.cat([weight.grad.flatten() for weight in weights])

    plain = gradients(False)
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradients(True), plain, rtol=1e-5, atol=1e-8)


def _checkpointed(forward: Callable[..., object]) -> Callable[..., object]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


@torch.no_grad()
def test_removed_after_use_and_after_errors() -> None:
    unet = tiny_unet()
    before = run(unet)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())

    with pytest.raises(RuntimeError, match="midway"), appearance_highway(unet, Highway()):
        assert hooks() > 0
        run(unet)
        raise RuntimeError("midway")
    assert hooks() == 0
    assert torch.equal(run(unet), before)


@torch.no_grad()
def test_an_interrupted_forward_pass_does_no_harm_to_the_next() -> None:
    unet = tiny_unet()
    with appearance_highway(unet, Highway("all")):
        expected = run(unet)
        handle = unet.mid_block.register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            run(unet, tiny_latents(5))
        handle.remove()
        assert torch.equal(run(unet), expected)


def _fail(module: nn.Module, args: object) -> None:
    raise RuntimeError("interrupted")


@torch.no_grad()
def test_keeps_no_tensor_between_forward_passes() -> None:
    unet = tiny_unet()
    seen: list[weakref.ref[Tensor]] = []
    for name in describe(unet).spatial_transformers:
        unet.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output[0])))
    with appearance_highway(unet, Highway("all")):
        run(unet)
        gc.collect()
        assert seen and not any(reference() is not None for reference in seen)


@torch.no_grad()
def test_none_changes_nothing() -> None:
    unet = tiny_unet()
    with appearance_highway(unet, None):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_refused_without_such_skips() -> None:
    bare = UNet3DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "UpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
    )
    for preset in PRESETS:
        with pytest.raises(SettingsError, match="this network has none"), appearance_highway(bare, Highway(preset)):
            pass


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"preset": "half"}, "highway preset is 'half'; it must be one of: code, all"),
        ({"scale": -0.1}, r"highway scale is -0\.1; it must be from 0 to 4"),
        ({"scale": float("nan")}, "highway scale is nan"),
    ],
)
def test_wrong_settings(entries: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Highway(**entries)
