"""Which base model it is: hashes of its architecture and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ..backbones.registry import of_network
from ..core.identity import BaseIdentity

_SIGNS_PER_TENSOR = 256


def identify(unet: nn.Module, name: str) -> BaseIdentity:
    """The identity of a base: its hashes do not depend on folder, variant, dtype, device or library version."""
    config: Any = unet.config
    architecture = {key: config.get(key) for key in of_network(unet).architecture}
    encoded = json.dumps(architecture, sort_keys=True, default=list).encode()
    return BaseIdentity(name, hashlib.sha256(encoded).hexdigest(), _weights_hash(unet))


@torch.no_grad()
def _weights_hash(module: nn.Module) -> str:
    """SHA-256 over the signs of evenly spread weights of every tensor: rounding to any dtype keeps a sign."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        signs = torch.signbit(flat[:: max(1, flat.numel() // _SIGNS_PER_TENSOR)])
        digest.update(name.encode() + signs.cpu().numpy().tobytes())
    return digest.hexdigest()
