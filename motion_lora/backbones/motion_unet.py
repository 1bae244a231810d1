"""diffusers' `UNetMotionModel`: a Stable Diffusion 1.5 image network with the motion modules of AnimateDiff.

Its temporal layers are every `motion_modules.*`, transformers over frames with a position in time; there are no
temporal convolutions. Without time they hand their input through, which leaves the plain image network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionModel
from torch import Tensor, nn

from ..core.errors import ModelError
from .base import Text
from .motion_module import V1, v1_sign
from .unet import ARCHITECTURE, WORDS, UNetBackbone, levels

ANIMATEDIFF_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "UNetMotionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "num_attention_heads": 8,
        "norm_num_groups": 32,
        "motion_num_attention_heads": 8,
        "motion_max_seq_length": 32,
        "use_motion_mid_block": False,
    }
)
"""Stable Diffusion 1.5 with a v3 motion module; v2 has one in the middle block too (`use_motion_mid_block`)."""


_MODULE = re.compile(
    r"(?P<place>.+\.motion_modules\.\d+)\.transformer_blocks\.(?P<block>\d+)\."
    r"(?:attn(?P<attention>[12])\.(?P<projection>to_q|to_k|to_v|to_out\.0)|(?P<feed_forward>ff\.net\.(?:0\.proj|2)))"
)
_FEED_FORWARD = {"ff.net.0.proj": "ff.net.0.processor.proj", "ff.net.2": "ff.net.processor.2"}


class MotionUNet(UNetBackbone):
    """See the module. Attn1 and attn2 of a motion module are both self-attention over frames."""

    name = "animatediff"
    network_class = UNetMotionModel
    models = "Stable Diffusion 1.5 with an AnimateDiff motion module, as one network"
    reference_config = ANIMATEDIFF_CONFIG
    architecture = (
        *ARCHITECTURE, "num_attention_heads", "motion_num_attention_heads", "motion_max_seq_length",
        "use_motion_mid_block", "use_linear_projection",
    )  # fmt: skip
    temporal_words = frozenset({"motion_modules"})
    temporal_transformer = AnimateDiffTransformer3D
    key_words = (*WORDS, "motion_modules")
    own_keys = re.compile(r"motion_modules")
    refusal = "an AnimateDiff motion LoRA: its motion modules are layers that this network does not have"
    takes = "AnimateDiff motion LoRAs, and SD 1.5 image LoRAs"
    text_width = 768
    native_format = "animatediff"

    def prepare(self, network: nn.Module) -> None:
        config: Any = network.config
        if sign := v1_sign(config["motion_max_seq_length"], config["use_motion_mid_block"]):
            raise ModelError(f"The base has {V1.format(sign)}. Put v2 or v3 into its image network.")
        normalise_per_frame(network)

    def bypass(self, layer: nn.Module) -> Callable[..., Any]:
        return _pass

    def producers(self, network: nn.Module) -> list[tuple[str | None, str | None]]:
        found: list[tuple[str | None, str | None]] = [(None, None)]
        for level, block in levels(network.down_blocks):
            for layer in range(len(block.resnets)):
                prefix = f"down_blocks.{level}"
                spatial = f"{prefix}.attentions.{layer}" if hasattr(block, "attentions") else None
                found.append((f"{prefix}.motion_modules.{layer}", spatial))
            if block.downsamplers is not None:
                found.append((None, None))
        return found

    def frames_fault(self, network: nn.Module, num_frames: int) -> str:
        """A motion module has a position for each frame, and no more of them than it was made with."""
        config: Any = network.config
        most = int(config["motion_max_seq_length"])
        if num_frames <= most:
            return ""
        return f"the motion module has positions for {most} frames, not for {num_frames}; take at most {most}"

    def predict(self, network: Callable[..., Any], noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """The network folds the frames into the batch and takes the text of each frame."""
        frames = noisy.shape[2]
        each = Text({name: tensor.repeat_interleave(frames, dim=0) for name, tensor in text.tensors.items()})
        return super().predict(network, noisy, timesteps, each)

    def module_named(self, name: str) -> str:
        """AnimateDiff's own names end in temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q."""
        name = name.replace(".temporal_transformer.", ".")
        return re.sub(r"\.attention_blocks\.([01])\.", lambda found: f".attn{int(found[1]) + 1}.", name)

    def native_key(self, module: str) -> str | None:
        """Of a motion module; guoyww's MotionLoRAs and ADMotionDirector's files have these keys."""
        found = _MODULE.fullmatch(module)
        if found is None:
            return None
        block = f"{found['place']}.temporal_transformer.transformer_blocks.{found['block']}"
        if found["attention"]:
            projection = found["projection"].removesuffix(".0")
            return f"{block}.attention_blocks.{int(found['attention']) - 1}.processor.{projection}_lora"
        return f"{block}.{_FEED_FORWARD[found['feed_forward']]}_lora"

    def is_linear(self, module: str) -> bool:
        """The spatial transformers of Stable Diffusion 1.5 project by 1x1 convolutions."""
        spatial_projection = self.layer_of(module) != "temporal" and module.endswith(("proj_in", "proj_out"))
        return super().is_linear(module) and not spatial_projection


MOTION_UNET = MotionUNet()


class FrameNorm(nn.GroupNorm):
    """A group norm of (b, c, f, h, w) whose statistics are those of each frame."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Each frame alone, the shape stays."""
        frames = hidden_states.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def normalise_per_frame(network: nn.Module, enabled: bool = True) -> None:
    """Let the motion modules of `network` normalise each frame alone, as AnimateDiff's own code and ComfyUI's do.

    diffusers takes the statistics over all frames together. A LoRA must be trained the way it is used: switch it on for
    one that goes to AnimateDiff-Evolved. Changes `network` in place, its replicas inherit it; weights and names stay.
    """
    for module in network.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm.__class__ = FrameNorm if enabled else nn.GroupNorm


def _pass(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states
