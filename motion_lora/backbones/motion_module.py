"""AnimateDiff's motion modules as files: recognised by their tensors, named as diffusers names them.

guoyww's names are `down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q`,
diffusers' are without `temporal_transformer`, with `attn1` and `attn2`, and one position encoding for both. The version
of a module is told by its content: v2 has one in the middle block, v3 has none and 32 positions, v1 has 24.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ModelError

HEADS = 8
"""Of the attention over frames, in all of guoyww's modules; no file says it."""

_MODULE = re.compile(r"(?:module\.)?(?P<name>(?:(?:down|up)_blocks\.\d+|mid_block)\.motion_modules\.\d+\..+)")
_RENAMES = (
    (".temporal_transformer.", "."),
    (".attention_blocks.0.pos_encoder.pe", ".pos_embed.pe"),
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
)
# diffusers keeps one table of positions for both attentions of a block.
_SECOND_TABLE = ".attention_blocks.1.pos_encoder.pe"
_TABLE = ".pos_embed.pe"
_V1_FRAMES = 24
_LEVELS = 4
_MODULES_FOR = "motion modules for Stable Diffusion 1.5 (v2: mm_sd_v15_v2, v3: v3_sd15_mm)"
_V1 = (
    "a v1 motion module (24 positions): it belongs to an image network whose group norms run over all frames, which no "
    "other module has"
)
# In the order in which they are tried: found in any name, it is what the file is instead.
_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        r"_lora\.|\.lora_[AB]\.|lora_unet_": "a LoRA: load it as one, and choose the motion module that it is for",
        r"pos_encoder\.positional_encoding": "a HotShot-XL module, for SDXL",
        r"(?:^|\.)img_encoder\.": "an AnimateLCM-I2V module, which takes a picture",
        r"^(?:module\.)?conv_in\.": "a PIA or FancyVideo module, which takes a picture",
        r"^model\.diffusion_model\.": "a whole Stable Diffusion checkpoint: choose it as the base model",
    }
)


@dataclass(frozen=True)
class MotionModule:
    """What a file's tensors tell: "v2" or "v3", the most frames it has positions for, the width of each level."""

    version: str
    max_frames: int
    widths: tuple[int, ...]

    def network_config(self) -> dict[str, Any]:
        """The entries of the joint network's config that the module decides."""
        return {
            "motion_max_seq_length": self.max_frames,
            "use_motion_mid_block": self.version == "v2",
            "motion_num_attention_heads": HEADS,
        }


def recognise(name: str, shapes: Mapping[str, tuple[int, ...]]) -> MotionModule:
    """What the motion module `name` is, by the shapes of its tensors, in guoyww's names or diffusers'.

    Raises ModelError for v1, for modules of SDXL, and for what is no motion module, saying what it is.
    """
    for pattern, what in _OTHERS.items():
        if any(re.search(pattern, key) for key in shapes):
            raise ModelError(_refusal(name, what))
    own = {found["name"].replace(*_RENAMES[0]): shape for key, shape in shapes.items() if (found := _MODULE.match(key))}
    widths = tuple(_width(own, level) for level in range(len({key.split(".")[1] for key in own if "down" in key[:4]})))
    if not own or 0 in widths:
        raise ModelError(_refusal(name, "no motion module: it has no motion_modules"))
    if len(widths) != _LEVELS:
        raise ModelError(_refusal(name, f"a motion module with {len(widths)} levels, as of the SDXL beta"))
    frames = {shape[1] for key, shape in own.items() if key.endswith((".pos_encoder.pe", _TABLE))}
    if len(frames) != 1:
        raise ModelError(_refusal(name, "a motion module without positions, as AnimateLCM's"))
    most = frames.pop()
    if most == _V1_FRAMES:
        raise ModelError(_refusal(name, _V1))
    return MotionModule("v2" if any(key.startswith("mid_block.") for key in own) else "v3", most, widths)


def network_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module under the names that they have in the joint network; what is no part of it is left out.

    Raises ModelError where the two attentions of a block have other positions.
    """
    own = {found["name"]: tensor for key, tensor in tensors.items() if (found := _MODULE.match(key))}
    weights: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.endswith(_SECOND_TABLE):
            first = own.get(name.replace(_SECOND_TABLE, _SECOND_TABLE.replace("1", "0")))
            if first is None or not torch.equal(first, tensor):
                raise ModelError(f"{name} of the motion module differs from its neighbour's. Download the file again.")
            continue
        for old, new in _RENAMES:
            name = name.replace(old, new)
        weights[name] = tensor
    return weights


def _width(own: Mapping[str, tuple[int, ...]], level: int) -> int:
    """Of one level of the down path; 0 where there is none."""
    return int(own.get(f"down_blocks.{level}.motion_modules.0.norm.weight", (0,))[0])


def _refusal(name: str, what: str) -> str:
    return f"{name} is {what}. What fits here are {_MODULES_FOR}."
