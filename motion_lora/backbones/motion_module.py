"""AnimateDiff's motion modules as files: recognised by their tensors, named as diffusers names them.

guoyww's names are `down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q`,
diffusers' are without `temporal_transformer`, with `attn1` and `attn2`, and one position encoding for both. The version
of a module is told by its content: v2 has one in the middle block, v3 has none and 32 positions, v1 has 24. diffusers'
conversion gives a module the positions that its caller asks for, 32 unless told otherwise, and v1 then has the tensors
of v3: only the version of diffusers in its config and its name are left to tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
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
V1 = (
    "a v1 motion module ({}): it belongs to an image network whose group norms run over all frames, which no other "
    "module has"
)
"""What is said of one, with what it shows by."""

# Of diffusers, 0.<minor>: 0.22 and 0.23 saved the first adapters in autumn 2023, v3 came out in December, after 0.24.
_BEFORE_V3 = re.compile(r"0\.(?:\d|1\d|2[0-3])(?:\.|$)")
_V1_NAME = re.compile(r"motion-adapter-v1-[45](?!-?[23])|mm_sd_v1[45](?!_?v[23])", re.IGNORECASE)
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


def recognise(
    name: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] = MappingProxyType({})
) -> MotionModule:
    """What the motion module `name` is, by the shapes of its tensors, in guoyww's names or diffusers'.

    `config` is that of a diffusers folder; where it says other positions than the tensors have, the tensors are right.
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
    most, middle = frames.pop(), any(key.startswith("mid_block.") for key in own)
    if sign := v1_sign(most, middle, name, config):
        raise ModelError(_refusal(name, V1.format(sign)))
    return MotionModule("v2" if middle else "v3", most, widths)


def v1_sign(frames: int, middle: bool, name: str = "", config: Mapping[str, Any] = MappingProxyType({})) -> str:
    """What tells that a module is v1, in words; "" for one that is not, as every module with one in the middle block.

    `frames` is how many positions it has, `name` where it lies, `config` a diffusers folder's, empty for a file.
    """
    if frames == _V1_FRAMES and not middle:
        return f"{_V1_FRAMES} positions"
    if middle:
        return ""
    if _BEFORE_V3.match(version := str(config.get("_diffusers_version", ""))):
        return f"its config.json was written by diffusers {version}, before there was v3"
    return "by its name" if _V1_NAME.search(_own_name(name)) else ""


def _own_name(place: str) -> str:
    """Of a file or folder; in the cache of the hub, models--owner--name/snapshots/<commit>, that of the model."""
    parts = PurePath(place).parts or ("",)
    return parts[-3] if parts[-2:-1] == ("snapshots",) and len(parts) > 2 else parts[-1]


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
