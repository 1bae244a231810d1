"""Lists of MotionDirector and Separate Motion from Appearance: tensors without names, in the order of the modules.

    [up_0, down_0, up_1, down_1, ...]   up (out, r), down (r, in), scale 1, no metadata

Which modules they belong to follows from length and shapes: 340 tensors are MotionDirector's temporal path, 136 and 68
those of Separate Motion from Appearance, 192 a spatial path, 192 * N the spatial paths of N clips, interleaved layer by
layer. ModelScope trainers of 2023 (Text-To-Video-Finetuning, by its default target UNet3DConditionModel) wrote every
linear and convolution layer of the network, (out, r, 1, 1, 1) and (r, in, 3, 1, 1) for those over frames, with the rank
cut to a layer's channels. Every pair is checked against its module; the reference code checks none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from ..adapters.fit import weights_of
from ..adapters.targets import target_modules
from ..backbones.registry import DEFAULT, empty_network, of_network
from ..core.errors import LoRAFileError, ModelError
from ..core.lora import LoRA, LoRALayer
from .source import Source

WHOLE = "all-layers"  # no preset: every linear and convolution layer, in the order of the modules
_SPATIAL = ("spatial-self-ff", "spatial-attention")
MAX_CLIPS = 64


def read_list(source: Source, unet: nn.Module | None) -> tuple[str, tuple[LoRA, ...]]:
    """The target preset of a list file, and one LoRA (several for an N-clip spatial file). Raises LoRAFileError."""
    network = reference_network() if unet is None else unet
    backbone = of_network(network)
    if not backbone.list_targets:
        raise LoRAFileError(f"{source.name} is a list of tensors without names, of ModelScope: {backbone.takes} fit")
    shapes = list(source.shapes.values())
    known = {preset: _modules(network, preset) for preset in (*backbone.list_targets, WHOLE)}
    refused = ""
    for preset, modules in known.items():
        clips = len(shapes) // (2 * len(modules)) if modules else 0
        fits_length = bool(clips) and len(shapes) == 2 * clips * len(modules)
        if not fits_length or (clips > 1 and preset not in _SPATIAL) or clips > MAX_CLIPS:
            continue
        fault = _first_fault(network, modules, shapes, clips)
        if not fault:
            return preset, _split(source, modules, clips, preset, backbone.name)
        refused = refused or f"it has as many tensors as {preset}, but {fault}"
    lengths = ", ".join(f"{2 * len(modules)} for {preset}" for preset, modules in known.items())
    reason = refused or f"this network takes {lengths}"
    raise LoRAFileError(f"{source.name} is a list of {len(shapes)} tensors without names: {reason}")


@functools.lru_cache(maxsize=1)
def reference_network() -> nn.Module:
    """The network that such files are of, without its weights (meta device), where no network is at hand."""
    return empty_network(DEFAULT.reference_config)


def _modules(network: nn.Module, preset: str) -> tuple[str, ...]:
    if preset == WHOLE:
        return tuple(weights_of(network))
    try:
        return target_modules(network, preset)
    except ModelError:
        return ()


def _first_fault(network: nn.Module, modules: Sequence[str], shapes: Sequence[tuple[int, ...]], clips: int) -> str:
    """What is wrong with the first pair that does not fit; empty where all fit and have one rank, cut to channels."""
    common = max(shape[0] if shape else 0 for shape in shapes[1::2])
    for place, module in enumerate(modules):
        weight = network.get_submodule(module).weight
        assert isinstance(weight, torch.Tensor)
        rank = min(common, *weight.shape[:2])
        wanted_up = (weight.shape[0], rank, *[1] * (weight.ndim - 2))
        wanted_down = (rank, *weight.shape[1:])
        for clip in range(clips):
            start = 2 * (place * clips + clip)
            up, down = shapes[start], shapes[start + 1]
            if up != wanted_up or down != wanted_down or rank < 1:
                return (
                    f"tensors {start} and {start + 1} (up {up}, down {down}) do not fit {module} {tuple(weight.shape)}"
                )
    return ""


def _split(source: Source, modules: Sequence[str], clips: int, preset: str, backbone: str) -> tuple[LoRA, ...]:
    tensors = list(source.read().values())
    loras = []
    for clip in range(clips):
        starts = {module: 2 * (place * clips + clip) for place, module in enumerate(modules)}
        layers = {module: LoRALayer(tensors[start + 1], tensors[start]) for module, start in starts.items()}
        loras.append(LoRA(layers, {"motion_lora.target_preset": preset}, backbone=backbone))
    return tuple(loras)
