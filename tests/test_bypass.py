"""With the temporal layers bypassed the video network is an image network: the same numbers as diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from tiny import tiny_latents, tiny_unet
from torch import Tensor

from motion_lora.backbones.bypass import temporal_bypass, temporal_layers
from motion_lora.backbones.registry import describe, empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG, UNET3D
from motion_lora.core.axes import fold_frames, unfold_frames
from motion_lora.core.lora import TEMPORAL


def text(batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, 32, generator=torch.Generator().manual_seed(9))


def image_network(unet: UNet3DConditionModel) -> UNet2DConditionModel:
    """diffusers' image network in Stable Diffusion 2.1's layout, with the spatial weights of `unet`."""
    config = unet.config
    image = UNet2DConditionModel(
        sample_size=config["sample_size"],
        block_out_channels=config["block_out_channels"],
        down_block_types=[name.replace("3D", "2D") for name in config["down_block_types"]],
        up_block_types=[name.replace("3D", "2D") for name in config["up_block_types"]],
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=config["cross_attention_dim"],
        # The 3-D network's entry is the size of a head, the 2-D network's the number of heads.
        attention_head_dim=[width // config["attention_head_dim"] for width in config["block_out_channels"]],
        norm_num_groups=config["norm_num_groups"],
        use_linear_projection=True,
    )
    spatial = {name: tensor for name, tensor in unet.state_dict().items() if UNET3D.layer_of(name) != TEMPORAL}
    image.load_state_dict(spatial)
    return image.eval()


def test_modelscope_has_39_temporal_layers() -> None:
    unet = empty_network(MODELSCOPE_UNET_CONFIG)
    names = [name for name, _ in temporal_layers(unet)]
    backbone = describe(unet)
    assert len(names) == 39
    assert set(names) == {*backbone.temporal_transformers, *backbone.temporal_convolutions}


@pytest.mark.parametrize("levels", [2, 3])
@torch.no_grad()
def test_equals_the_image_network(levels: int) -> None:
    unet = tiny_unet(levels=levels)
    latents = tiny_latents(num_frames=3)
    with temporal_bypass(unet):
        video = unet(latents, 321, text()).sample
    images = image_network(unet)(fold_frames(latents), 321, text().expand(3, -1, -1)).sample
    torch.testing.assert_close(video, unfold_frames(images, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_are_independent_only_inside() -> None:
    unet = tiny_unet()
    latents = tiny_latents()
    changed = latents.clone()
    changed[:, :, 2] += 1

    def difference() -> Tensor:
        change = unet(changed, 500, text()).sample - unet(latents, 500, text()).sample
        return change.abs().amax(dim=(0, 1, 3, 4))

    with temporal_bypass(unet):
        inside = difference()
    outside = difference()
    assert inside[2] > 1e-3
    assert inside[[0, 1, 3]].max() == 0
    assert outside.min() > 1e-4


@torch.no_grad()
def test_a_clip_equals_its_frames_one_by_one() -> None:
    unet = tiny_unet()
    latents = tiny_latents()
    with temporal_bypass(unet):
        clip = unet(latents, 500, text()).sample
        alone = [unet(latents[:, :, i : i + 1], 500, text()).sample for i in range(4)]
    torch.testing.assert_close(clip, torch.cat(alone, dim=2), rtol=0, atol=1e-5)


@torch.no_grad()
def test_restored_after_use_and_after_errors() -> None:
    unet = tiny_unet()
    before = unet(tiny_latents(), 500, text()).sample
    with pytest.raises(RuntimeError, match="midway"), temporal_bypass(unet):
        raise RuntimeError("midway")
    assert torch.equal(unet(tiny_latents(), 500, text()).sample, before)
    assert not any("forward" in module.__dict__ for module in unet.modules())


@torch.no_grad()
def test_keeps_a_method_that_was_patched_before() -> None:
    """Gradient checkpointing replaces the same methods; whoever comes second must put the first back."""
    unet = tiny_unet()
    original = unet.transformer_in.forward
    calls = []

    def watched(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return original(*args, **kwargs)

    unet.transformer_in.forward = watched
    with temporal_bypass(unet), temporal_bypass(unet):
        unet(tiny_latents(), 500, text())
    assert not calls
    unet(tiny_latents(), 500, text())
    assert len(calls) == 1


@torch.no_grad()
def test_switched_off_it_does_nothing() -> None:
    unet = tiny_unet()
    before = unet(tiny_latents(), 500, text()).sample
    with temporal_bypass(unet, enabled=False):
        assert torch.equal(unet(tiny_latents(), 500, text()).sample, before)


def test_gradients_reach_spatial_weights_only() -> None:
    unet = tiny_unet().requires_grad_(True)
    with temporal_bypass(unet):
        unet(tiny_latents(), 500, text()).sample.square().mean().backward()
    touched = {UNET3D.layer_of(name) for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert touched == {"spatial"}
