"""Whole weights of a fine-tuned network in the place of the base's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones.registry import of_network
from ..core.errors import LoRAFileError
from ..core.lora import SPATIAL


def spatial_shapes(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the spatial layers' parameters, by name."""
    backbone = of_network(unet)
    return {name: tuple(p.shape) for name, p in unet.named_parameters() if backbone.layer_of(name) == SPATIAL}


def spatial_weights(tuned: Mapping[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """The weights of a fine-tuned image or video network that fit the spatial layers of `unet`, by parameter name.

    For `Absorber.weights`: a network tuned on a subject, as by DreamBooth, used in place of a trained absorber
    (Customize-A-Video section 5). An image network of the backbone's layout has these names. Raises
    LoRAFileError when nothing fits or a spatial weight has another shape.
    """
    known = spatial_shapes(unet)
    found = {name: weight for name, weight in tuned.items() if name in known}
    wrong = [name for name, weight in found.items() if tuple(weight.shape) != known[name]]
    if wrong or not found:
        what = f"{wrong[0]} has another shape" if wrong else "none of its weights has a name of this base"
        raise LoRAFileError(f"The fine-tuned network does not fit: {what}; use one of the base's own layout.")
    return found


@torch.no_grad()
def install_weights(unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a replica other weights for some parameters; the storage shared with the base is left alone."""
    for name, weight in weights.items():
        module, _, leaf = name.rpartition(".")
        owner = unet.get_submodule(module)
        former = getattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(weight.to(former.device, former.dtype, copy=True), requires_grad=False))
