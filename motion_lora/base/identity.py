"""Which base model it is: hashes of its architecture and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor

from ..core.identity import BaseIdentity

# What makes two networks the same network; other entries of a config differ between library versions.
_ARCHITECTURE = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "norm_num_groups",
)
_SIGNS_PER_TENSOR = 256


def identify(unet: UNet3DConditionModel, name: str) -> BaseIdentity:
    """The identity of a base: its hashes do not depend on folder, variant, dtype, device or library version."""
    architecture = {key: unet.config.get(key) for key in _ARCHITECTURE}
    encoded = json.dumps(architecture, sort_keys=True, default=list).encode()
    return BaseIdentity(name, hashlib.sha256(encoded).hexdigest(), weights_hash(unet.named_parameters()))


@torch.no_grad()
def weights_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the signs of evenly spread weights of every tensor: rounding to any dtype keeps a sign."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named, key=lambda entry: entry[0]):
        flat = parameter.detach().flatten()
        signs = torch.signbit(flat[:: max(1, flat.numel() // _SIGNS_PER_TENSOR)])
        digest.update(name.encode() + signs.cpu().numpy().tobytes())
    return digest.hexdigest()
