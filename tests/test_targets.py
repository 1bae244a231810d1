"""The counts that the papers print, and the exact modules in order, on the ModelScope network without weights."""

from __future__ import annotations

import hashlib

import pytest
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from tiny import tiny_unet
from torch import nn

from motion_lora.adapters.targets import TARGETS, parameter_count, target_modules
from motion_lora.backbones.registry import empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG, UNET3D
from motion_lora.core.errors import ModelError, SettingsError


@pytest.fixture(scope="module")
def modelscope() -> UNet3DConditionModel:
    return empty_network(MODELSCOPE_UNET_CONFIG)


COUNTS = [
    ("temporal-attention", 136, 4, 831_488),  # Customize-A-Video, Table 3: 831.5K
    ("spatial-attention", 128, 1, 207_488),  # Customize-A-Video, Table 3: 207.5K
    ("temporal-all", 170, 2, 779_520),  # Customize-A-Video, Table 3, MotionDirector: 779.5K
    ("temporal-all", 170, 4, 1_559_040),
    ("spatial-self-ff", 96, 1, 274_560),
    ("tap-k-out", 68, 1, 103_936),
    ("tap-k", 34, 1, 51_968),
    ("tap-qk", 68, 1, 103_936),
    ("temporal-conv", 88, 1, 322_560),  # 22 layers of four (3, 1, 1) convolutions, 4 * width each
    ("temporal-full", 258, 1, 712_320),
    ("spatial-conv", 58, 1, 524_160),
    ("spatial-full", 218, 1, 906_368),
]


@pytest.mark.parametrize(("preset", "modules", "rank", "parameters"), COUNTS)
def test_published_counts(
    modelscope: UNet3DConditionModel, preset: str, modules: int, rank: int, parameters: int
) -> None:
    assert len(target_modules(modelscope, preset)) == modules
    assert parameter_count(modelscope, preset, rank) == parameters


# SHA-256 of the lines "name in_features out_features" that the reference implementations' own injection gives.
ORDERS = {
    "temporal-all": "f3d899959beb991a6b175ac9402e79238473d052e5b5874c0b9fcaa3c4eb7d59",
    "spatial-self-ff": "3d65104c733acba25b502616e469418b86c89e1b0d30669803a57790980d545b",
    "tap-k-out": "d12c8adc0e06975f63418e14a40f194268d6ff2f17c2a59ff2e051a9cfc1b5d3",
    "tap-k": "bc5011929c3620e76bfc2631b21ef23da283e484c2ad73ef14d40616ce5cd5ab",
    "temporal-attention": "81c407cfc242131600235b930cc7356c3b821f842cdd5102e0d2e79bed36e71f",
    "spatial-attention": "1ce247d6997670f17d2525872ab24ab28458951877f81c892e197edd01d0c480",
}


@pytest.mark.parametrize("preset", ORDERS)
def test_modules_and_their_order(modelscope: UNet3DConditionModel, preset: str) -> None:
    lines = []
    for name in target_modules(modelscope, preset):
        module = modelscope.get_submodule(name)
        assert isinstance(module, nn.Linear)
        lines.append(f"{name} {module.in_features} {module.out_features}")
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ORDERS[preset]


UNET_PRESETS = [name for name, row in TARGETS.items() if row.layer != "joint"]


@pytest.mark.parametrize("preset", UNET_PRESETS)
def test_order_is_that_of_named_modules(modelscope: UNet3DConditionModel, preset: str) -> None:
    places = {name: place for place, (name, _) in enumerate(modelscope.named_modules())}
    order = [places[name] for name in target_modules(modelscope, preset)]
    assert order == sorted(order)


@pytest.mark.parametrize("preset", UNET_PRESETS)
def test_presets_stay_on_their_layer(modelscope: UNet3DConditionModel, preset: str) -> None:
    assert {UNET3D.layer_of(name) for name in target_modules(modelscope, preset)} == {TARGETS[preset].layer}


@pytest.mark.parametrize("preset", [name for name in TARGETS if name.startswith("tap")])
def test_purification_leaves_values_and_feed_forward_alone(modelscope: UNet3DConditionModel, preset: str) -> None:
    names = target_modules(modelscope, preset)
    assert not any("to_v" in name or ".ff." in name for name in names)
    if preset == "tap-qk":
        assert {name.rsplit(".", 1)[1] for name in names} == {"to_q", "to_k"}


@pytest.mark.parametrize("levels", [2, 3])
def test_small_networks_have_every_preset(levels: int) -> None:
    unet = tiny_unet(levels=levels)
    for preset in UNET_PRESETS:
        names = target_modules(unet, preset)
        weights = [unet.get_submodule(name).weight for name in names]
        assert parameter_count(unet, preset, 3) == 3 * sum(len(weight) + weight[0].numel() for weight in weights)


def test_wrong_requests_are_refused(modelscope: UNet3DConditionModel) -> None:
    with pytest.raises(SettingsError, match="'temporal'; it must be one of: temporal-attention"):
        target_modules(modelscope, "temporal")
    with pytest.raises(SettingsError, match="rank is 0"):
        parameter_count(modelscope, "tap-k", 0)
    with pytest.raises(ModelError):
        target_modules(nn.Linear(2, 2), "tap-k")
    bare = UNet3DConditionModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock3D",),
        up_block_types=("UpBlock3D",),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
    )
    assert all(name.startswith("mid_block") for name in target_modules(bare, "spatial-attention"))
