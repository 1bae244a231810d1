"""diffusers' `UNet3DConditionModel`: ModelScope text-to-video, ZeroScope, the playground.

Its temporal layers are `transformer_in`, every `temp_attentions.*` and every `temp_convs.*`; all else has the names and
shapes of Stable Diffusion 2.1's image network. Without time, the 17 temporal transformers (`transformer_in` included)
and the 22 temporal convolutions of the ModelScope configuration hand their input through; what is left equals that
image network exactly. Stock diffusers runs its temporal layers even for a single frame, so one frame is not a bypass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

from .unet import ARCHITECTURE, WORDS, UNetBackbone, levels

MODELSCOPE_UNET_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "UNet3DConditionModel",
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": 64,
        "norm_num_groups": 32,
    }
)
"""The network of ModelScope text-to-video-ms-1.7b and of ZeroScope, which fine-tunes it."""


class UNet3D(UNetBackbone):
    """See the module. Temporal attn1 and attn2 are both self-attention over frames, without a position in time."""

    name = "unet3d"
    network_class = UNet3DConditionModel
    models = "ModelScope text-to-video-ms-1.7b, ZeroScope, or the built-in playground"
    reference_config = MODELSCOPE_UNET_CONFIG
    architecture = ARCHITECTURE
    temporal_words = frozenset({"transformer_in", "temp_attentions", "temp_convs"})
    temporal_transformer = TransformerTemporalModel
    temporal_convolution = TemporalConvLayer
    key_words = (*WORDS, "transformer_in", "temp_attentions", "temp_convs", "conv3", "conv4")
    list_targets = (
        "temporal-all", "tap-k-out", "tap-k", "spatial-self-ff", "temporal-attention", "spatial-attention", "tap-qk",
        "temporal-conv",
    )  # fmt: skip
    own_keys = re.compile(r"temp_attentions|temp_convs|transformer_in")
    refusal = "a motion LoRA for ModelScope or ZeroScope: its temporal layers are others than this network's"
    takes = "motion LoRAs for ModelScope or ZeroScope, and SD 2.1 image LoRAs"
    text_width = 1024

    def bypass(self, layer: nn.Module) -> Callable[..., Any]:
        return _pass_transformer if isinstance(layer, TransformerTemporalModel) else _pass_convolution

    def producers(self, network: nn.Module) -> list[tuple[str | None, str | None]]:
        found: list[tuple[str | None, str | None]] = [("transformer_in", None)]
        for level, block in levels(network.down_blocks):
            for layer in range(len(block.resnets)):
                if getattr(block, "has_cross_attention", False):
                    prefix = f"down_blocks.{level}"
                    found.append((f"{prefix}.temp_attentions.{layer}", f"{prefix}.attentions.{layer}"))
                else:
                    found.append((None, None))
            if block.downsamplers is not None:
                found.append((None, None))
        return found


UNET3D = UNet3D()


def _pass_transformer(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """The blocks ask their transformers for tuples."""
    return (hidden_states,)


def _pass_convolution(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states
