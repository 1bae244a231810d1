"""The backbones that are known, found by name, by network, by config or by the names of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..core.errors import LoRAFileError, ModelError
from ..core.lora import DEFAULT_BACKBONE
from .base import Backbone, Layout
from .motion_unet import MOTION_UNET
from .unet3d import UNET3D
from .wan import WAN

_ALL: tuple[Backbone, ...] = (UNET3D, MOTION_UNET, WAN)
BACKBONES: Mapping[str, Backbone] = MappingProxyType({backbone.name: backbone for backbone in _ALL})
DEFAULT: Backbone = BACKBONES[DEFAULT_BACKBONE]
"""What files are for that do not say it and are not told by their keys."""

_OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "UNet2DConditionModel": "an image network (Stable Diffusion); it has no temporal layers to learn a motion with",
        "UNet2DModel": "an unconditional image network",
        "MotionAdapter": "an AnimateDiff motion adapter without the image network that it goes into",
        "UNetSpatioTemporalConditionModel": "a Stable Video Diffusion network; it takes an image, not a text",
        "WanVACETransformer3DModel": "Wan VACE; it takes a control video",
        "WanAnimateTransformer3DModel": "Wan Animate; it takes a pose and a face video",
        "I2VGenXLUNet": "an I2VGen-XL network; it takes an image beside the text",
    }
)


def supported() -> str:
    """The network classes that are known, with the models that have them."""
    return " or ".join(f"{each.network_class.__name__} ({each.models})" for each in BACKBONES.values())


def named(name: str) -> Backbone:
    """The backbone of that name, as LoRA files say it. Raises LoRAFileError."""
    if name not in BACKBONES:
        raise LoRAFileError(
            f"a LoRA is for the backbone {name[:40]!r}, which is not one of {', '.join(BACKBONES)}: update MotionLoRA"
        )
    return BACKBONES[name]


def of_network(network: nn.Module) -> Backbone:
    """The backbone of a network, also of a replica with adapters. Raises ModelError, saying what it is instead."""
    for backbone in BACKBONES.values():
        if isinstance(network, backbone.network_class):
            return backbone
    name = type(network).__name__
    of_class(name, "The given network")
    raise ModelError(f"The given network is not diffusers' own {name}. Choose a {supported()}.")


def of_class(class_name: str, where: str) -> Backbone:
    """The backbone of a config's `_class_name`. Raises ModelError that says what the class is instead."""
    for backbone in BACKBONES.values():
        if class_name == backbone.network_class.__name__:
            return backbone
    kind = _OTHER_KINDS.get(class_name, "not a network that is known here")
    raise ModelError(f"{where} is a {class_name}: {kind}. Choose a model with a {supported()}.")


def of_keys(names: Collection[str]) -> Backbone:
    """The backbone that names of tensors tell of; `DEFAULT` where all that they name is common to several."""
    return next((backbone for backbone in BACKBONES.values() if backbone.recognises_keys(names)), DEFAULT)


def describe(network: nn.Module) -> Layout:
    """The layers of `network`; raises ModelError, saying what it is, for one of no known backbone."""
    return of_network(network).describe(network)


def empty_network(config: Mapping[str, Any]) -> nn.Module:
    """A network without weights (on the meta device) from a `config.json`'s entries, to count and to name modules."""
    backbone = of_class(str(config.get("_class_name", DEFAULT.network_class.__name__)), "The network config")
    kind: Any = backbone.network_class
    try:
        with torch.device("meta"):
            network: nn.Module = kind.from_config(dict(config))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"The network config makes no {kind.__name__}: {error}") from error
    return network
