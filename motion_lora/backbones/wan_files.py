"""Wan's own single files, as ComfyUI has them: which model they hold, and their tensors under diffusers' names.

Everything is told by names and shapes. The two experts of Wan 2.2 A14B are alike in both: only a file's name says
which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from ..core.errors import ModelError
from .wan import WAN_1_3B_CONFIG, diffusers_name

_PREFIX = re.compile(r"(?:model\.)?diffusion_model\.")
_MARK, _HEAD_SIZE = "head.modulation", 128
# Tensors that only other models of the family have, and what those take beside the text.
_OTHERS = (
    ("vace_patch_embedding.weight", "VACE, which takes a control video"),
    ("face_adapter.fuser_blocks.0.k_norm.weight", "Animate, which takes a pose and a face video"),
    ("img_emb.proj.0.bias", "image-to-video, which takes a picture"),
    ("control_adapter.conv.weight", "camera control, which takes a camera path"),
    ("casual_audio_encoder.encoder.final_linear.weight", "S2V, which takes speech"),
    ("audio_proj.audio_proj_glob_1.layer.bias", "HuMo, which takes audio"),
    ("ref_conv.weight", "Fun Control, which takes a reference picture"),
)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = (".scale_weight", ".weight_scale")
_NO_WEIGHTS = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
_TEXT_TO_VIDEO = "Choose a Wan text-to-video file (T2V 1.3B or 14B, 2.2 A14B or 5B)"

HIGH_NOISE_FROM = 0.875
"""The noise from which Wan 2.2 A14B's text-to-video has its high-noise expert at work; below it the other one."""


def is_native(names: Mapping[str, Any]) -> bool:
    """Whether tensors' names are those of a Wan transformer in its own spelling."""
    return any(_PREFIX.sub("", name) == _MARK for name in names)


def network_config(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The entries of diffusers' config of the network whose tensors have these shapes.

    Raises ModelError that says what it is, for a model that takes more than a text or is none of Wan's.
    """
    own = {_PREFIX.sub("", name): shape for name, shape in shapes.items()}
    if _MARK not in own:
        raise ModelError(f"{where} holds no Wan transformer: it has no {_MARK}. {_TEXT_TO_VIDEO}.")
    for tensor, what in _OTHERS:
        if tensor in own:
            raise ModelError(f"{where} is Wan {what}; that is not supported. {_TEXT_TO_VIDEO}.")
    width, channels = own[_MARK][-1], own["patch_embedding.weight"][1]
    made = own["head.head.weight"][0] // 4
    if channels != made:
        raise ModelError(
            f"{where} takes {channels} channels and makes {made}: it is Wan image-to-video or Fun Control, which "
            f"take a picture or a control video; that is not supported. {_TEXT_TO_VIDEO}."
        )
    numbers = {int(name.split(".")[1]) for name in own if name.startswith("blocks.")}
    return {
        **WAN_1_3B_CONFIG,
        "num_attention_heads": max(1, width // _HEAD_SIZE),
        "attention_head_dim": min(width, _HEAD_SIZE),
        "in_channels": channels,
        "out_channels": made,
        "text_dim": own["text_embedding.0.weight"][1],
        "freq_dim": own["time_embedding.0.weight"][1],
        "ffn_dim": own["blocks.0.ffn.0.weight"][0],
        "num_layers": len(numbers),
    }


def expert_of(file_name: str) -> str:
    """ "high" or "low" for an expert of Wan 2.2 A14B, by the words in the name of its file; "" for any other model."""
    found = re.search(r"(high|low)[-_. ]?noise", file_name.lower())
    return found[1] if found else ""


def network_weights(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a native file under diffusers' names; fp8 becomes bf16, times its scale where it has one.

    Raises ModelError for weights that are stored in another way than as numbers.
    """
    own = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    weights = {}
    for name, tensor in own.items():
        if name.endswith(_NO_WEIGHTS):
            continue
        if not tensor.is_floating_point():
            raise ModelError(
                f"{where}: {name} is stored as {tensor.dtype}, a quantisation that is not read. Take fp16."
            )
        weights[diffusers_name(name)] = _plain(name, tensor, own) if tensor.dtype in _FP8 else tensor
    return weights


def vae_config(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The entries of diffusers' config of the autoencoder with these tensors; raises ModelError for any other file."""
    first = tensors.get("encoder.conv1.weight")
    if first is None or "decoder.conv1.weight" not in tensors:
        raise ModelError(f"{where} is not Wan's autoencoder. Take wan_2.1_vae.safetensors.")
    if first.shape[1] != 3:
        raise ModelError(f"{where} is the autoencoder of Wan 2.2 5B, which is read from a diffusers folder only.")
    return {"base_dim": first.shape[0]}


def vae_weights(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of wan_2.1_vae.safetensors under diffusers' names. Raises ModelError for any other file."""
    vae_config(tensors, where)
    converted: dict[str, Tensor] = convert_wan_vae_to_diffusers(dict(tensors))
    return converted


def _plain(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    stem = name.removesuffix(".weight")
    scale = next((own[stem + ending] for ending in _SCALES if stem + ending in own), None)
    if scale is None:
        return tensor.to(torch.bfloat16)
    return (tensor.float() * scale.float()).to(torch.bfloat16)
