"""What the backbone of a LoRA says about its layers: which path, which block."""

from __future__ import annotations

from dataclasses import replace

from ..core.lora import SPATIAL, TEMPORAL, Layer, LoRA
from .registry import named


def layer_of(lora: LoRA, module: str) -> Layer:
    """Which path one of its modules belongs to: "temporal", "spatial" or "joint"."""
    return named(lora.backbone).layer_of(module)


def block_of(lora: LoRA, module: str) -> str:
    """The block that one of its modules belongs to."""
    return named(lora.backbone).block_of(module)


def blocks_of(lora: LoRA) -> tuple[str, ...]:
    """Its blocks, in the order of its layers."""
    return tuple(dict.fromkeys(block_of(lora, module) for module in lora))


def part(lora: LoRA, path: Layer) -> LoRA:
    """Only the layers of one path."""
    layers = {module: layer for module, layer in lora.layers.items() if layer_of(lora, module) == path}
    return replace(lora, layers=layers)


def layers_text(lora: LoRA) -> str:
    """ "temporal", "spatial" or "temporal+spatial": which paths the LoRA changes."""
    paths = {layer_of(lora, module) for module in lora}
    first = [path for path in (TEMPORAL, SPATIAL) if path in paths]
    return "+".join([*first, *sorted(paths.difference(first))])
