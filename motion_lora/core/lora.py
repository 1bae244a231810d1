"""The LoRA as a value: named low-rank factors and what is known about them.

One arithmetic for every file format: a layer changes the weight of one module by `scale * up @ down`. Formats that
carry alpha and rank fold them into `scale` when they are read, so nothing downstream ever sees an alpha.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Layer = str
TEMPORAL: Layer = "temporal"
SPATIAL: Layer = "spatial"
JOINT: Layer = "joint"

DEFAULT_BACKBONE = "unet3d"
"""What a LoRA is for whose file does not say it: the only backbone that there was."""


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """Low-rank change of one weight: down (r, in), up (out, r); of a convolution down (r, in, k), up (out, r, 1)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The full change of the weight, shaped like the weight: scale * up @ down."""
        up, down = self.up.to(dtype), self.down.to(dtype)
        product = up.flatten(1) @ down.flatten(1)
        return self.scale * product.view(up.shape[0], *down.shape[1:])


@dataclass(frozen=True, eq=False)
class LoRA:
    """Layers by dotted module name of the network, and string metadata (see docs/FORMAT.md for its keys).

    `backbone` is the family of networks that it is for, which knows what the names mean (`backbones.lora`).
    """

    layers: Mapping[str, LoRALayer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    backbone: str = DEFAULT_BACKBONE

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks that occur, ascending."""
        return tuple(sorted({layer.rank for layer in self.layers.values()}))

    @property
    def num_parameters(self) -> int:
        return sum(layer.down.numel() + layer.up.numel() for layer in self.layers.values())

    def with_metadata(self, **entries: str) -> LoRA:
        return LoRA(self.layers, {**self.metadata, **entries}, self.backbone)

    def fingerprint(self) -> str:
        """SHA-256 over names, scales and factor bytes: equal when the change of the weights is stored equally."""
        digest = hashlib.sha256()
        for name in sorted(self.layers):
            layer = self.layers[name]
            digest.update(f"{name}|{layer.scale!r}".encode())
            for tensor in (layer.down, layer.up):
                raw = tensor.detach().cpu().float().contiguous()
                digest.update(str(tuple(raw.shape)).encode() + raw.numpy().tobytes())
        return digest.hexdigest()
