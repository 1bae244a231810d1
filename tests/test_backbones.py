"""What is said about a network has to be what the network does: checked against real forward passes."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny import tiny_latents, tiny_unet, tiny_unet_config, tiny_vae
from torch import nn

from motion_lora.backbones.base import Skip
from motion_lora.backbones.registry import describe, empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG, UNET3D
from motion_lora.core.errors import ModelError


def test_modelscope_inventory() -> None:
    unet = empty_network(MODELSCOPE_UNET_CONFIG)
    backbone = describe(unet)
    assert sum(p.numel() for p in unet.parameters()) == 1_411_233_860
    assert all(p.is_meta for p in unet.parameters())
    counts = (backbone.spatial_transformers, backbone.temporal_transformers, backbone.temporal_convolutions)
    assert [len(names) for names in counts] == [16, 17, 22]
    assert (backbone.cross_attention_dim, backbone.in_channels) == (1024, 4)
    assert backbone.temporal_transformers[0] == "transformer_in"
    # List-format LoRA files depend on this order.
    assert backbone.spatial_transformers[-1] == "mid_block.attentions.0"
    assert backbone.temporal_transformers[-1] == "mid_block.temp_attentions.0"
    assert backbone.temporal_convolutions[-2:] == ("mid_block.temp_convs.0", "mid_block.temp_convs.1")


def test_modelscope_skips() -> None:
    skips = describe(empty_network(MODELSCOPE_UNET_CONFIG)).skips

    def layer(index: int, up: int, position: int, level: int, number: int) -> Skip:
        names = f"down_blocks.{level}.temp_attentions.{number}", f"down_blocks.{level}.attentions.{number}"
        return Skip(index, f"up_blocks.{up}", position, *names)

    def plain(index: int, up: int, position: int) -> Skip:
        return Skip(index, f"up_blocks.{up}", position, None, None)

    assert skips == (
        Skip(0, "up_blocks.3", 0, "transformer_in", None),
        layer(1, 3, 1, 0, 0),
        layer(2, 3, 2, 0, 1),
        plain(3, 2, 0),
        layer(4, 2, 1, 1, 0),
        layer(5, 2, 2, 1, 1),
        plain(6, 1, 0),
        layer(7, 1, 1, 2, 0),
        layer(8, 1, 2, 2, 1),
        plain(9, 0, 0),
        plain(10, 0, 1),
        plain(11, 0, 2),
    )


@pytest.mark.parametrize(("levels", "layers"), [(3, 1), (3, 2), (2, 1)])
def test_skips_are_what_the_network_does(levels: int, layers: int) -> None:
    """The very tensor that a temporal transformer returns arrives at the place that the table names."""
    unet = tiny_unet(levels=levels, layers_per_block=layers)
    skips = describe(unet).skips
    returned: dict[str, torch.Tensor] = {}
    arrived: dict[tuple[str, int], torch.Tensor] = {}

    def produce(name: str) -> None:
        def hook(module: nn.Module, args: object, output: tuple[torch.Tensor]) -> None:
            returned[name] = output[0]

        unet.get_submodule(name).register_forward_hook(hook)

    def consume(name: str) -> None:
        def hook(module: nn.Module, args: object, kwargs: dict) -> None:
            arrived.update({(name, i): tensor for i, tensor in enumerate(kwargs["res_hidden_states_tuple"])})

        unet.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    for name in describe(unet).temporal_transformers:
        produce(name)
    for name in {skip.up_block for skip in skips}:
        consume(name)
    unet(tiny_latents(), 500, torch.randn(1, 16, 32))
    assert {(skip.up_block, skip.position) for skip in skips} == set(arrived)
    origins = {id(tensor): name for name, tensor in returned.items()}
    for skip in skips:
        assert origins.get(id(arrived[skip.up_block, skip.position])) == skip.temporal
    assert [skip.index for skip in skips] == list(range(len(arrived)))


def test_spatial_partner_belongs_to_the_same_layer() -> None:
    for skip in describe(tiny_unet(levels=2)).skips:
        if skip.spatial is not None:
            assert skip.temporal == skip.spatial.replace(".attentions.", ".temp_attentions.")


def test_other_networks_are_refused_by_what_they_are() -> None:
    narrow = {"block_out_channels": (8, 8), "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
    image = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **narrow,
    )
    with pytest.raises(ModelError, match="UNet2DConditionModel: an image network"):
        describe(image)
    with pytest.raises(ModelError, match="Linear: not a network that is known"):
        describe(nn.Linear(2, 2))


def test_config_of_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match="UNetSpatioTemporalConditionModel: a Stable Video Diffusion"):
        empty_network({"_class_name": "UNetSpatioTemporalConditionModel"})
    with pytest.raises(ModelError, match="makes no UNet3DConditionModel"):
        empty_network({**tiny_unet_config(), "block_out_channels": (32,)})


def test_size_multiple() -> None:
    vae = tiny_vae()
    assert UNET3D.size_multiple(tiny_unet(levels=3), vae) == 16
    assert UNET3D.size_multiple(tiny_unet(levels=2), vae) == 8
