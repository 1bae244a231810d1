"""The LoRA as a value: named low-rank factors and what is known about them.

One arithmetic for every file format: a layer changes the weight of one module by `scale * up @ down`. Formats that
carry alpha and rank fold them into `scale` when they are read, so nothing downstream ever sees an alpha.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Layer = str
TEMPORAL: Layer = "temporal"
SPATIAL: Layer = "spatial"
NoiseRange = tuple[float, float]
ALL_NOISE: NoiseRange = (0.0, 1.0)
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
    """Layers by dotted module name of the network, string metadata (docs/FORMAT.md has its keys), and where it acts.

    `acts_in` is the part of the noise, from 0 clean to 1 pure noise, in which alone it acts: what it was trained on.
    `backbone` is the family of networks that it is for, which knows what the names mean (`backbones.lora`).
    """

    layers: Mapping[str, LoRALayer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    acts_in: NoiseRange = ALL_NOISE
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
        return replace(self, metadata={**self.metadata, **entries})

    def fingerprint(self) -> str:
        """SHA-256 over names, scales and factor bytes: equal when the change of the weights is stored equally.

        `acts_in` does not count: it is when the change is made, not what it is.
        """
        digest = hashlib.sha256()
        for name in sorted(self.layers):
            layer = self.layers[name]
            digest.update(f"{name}|{layer.scale!r}".encode())
            for tensor in (layer.down, layer.up):
                raw = tensor.detach().cpu().float().contiguous()
                digest.update(str(tuple(raw.shape)).encode() + raw.numpy().tobytes())
        return digest.hexdigest()
