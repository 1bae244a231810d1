"""Convolutions in the layout of loralib, as the trainers of the ModelScope era wrote them (Stable LoRA, 2023).

    lora_A (k r, k in), lora_B (k out, k r)    the change is B A, viewed as the kernel (out, in, k, k)

Of a temporal convolution (k, 1, 1) that kernel's last axis is averaged. Alpha was set to the rank, so the scale is 1.
Rows of B that belong to one output stand side by side, which makes the same change two ordinary factors, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.lora import LoRALayer


def unfolded(layers: Mapping[str, LoRALayer], network: nn.Module) -> dict[str, LoRALayer]:
    """The same layers with those of convolutions as factors of the kernel; what does not fit is left to the check."""
    modules = dict(network.named_modules())
    return {name: _unfolded(layer, getattr(modules.get(name), "weight", None)) for name, layer in layers.items()}


def _unfolded(layer: LoRALayer, weight: Tensor | None) -> LoRALayer:
    if weight is None or weight.ndim < 4:
        return layer
    out, inside, size = weight.shape[:3]
    rank = layer.down.shape[0]
    if layer.up.shape != (out * size, rank) or layer.down.shape[1] != inside * size:
        return layer
    ones = (1,) * (weight.ndim - 2)
    up = layer.up.reshape(out, size * rank).view(out, size * rank, *ones)
    down = torch.block_diag(*[layer.down] * size).view(size * rank, inside, size, size)
    if weight.ndim == 5:
        down = down.float().mean(dim=-1)[..., None, None].to(layer.down.dtype)
    return LoRALayer(down.contiguous(), up.contiguous(), layer.scale)
