"""Which base model it is: hashes of its architecture and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.registry import of_network
from ..core.identity import BaseIdentity

_SIGNS_PER_TENSOR = 256


def identify(unet: nn.Module, name: str) -> BaseIdentity:
    """The identity of a base: its hashes do not depend on folder, variant, dtype, device or library version."""
    config: Any = unet.config
    architecture = {key: config.get(key) for key in of_network(unet).architecture}
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
