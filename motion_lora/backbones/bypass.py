"""Temporal bypass: turns the video network into its image network, as Customize-A-Video's first stage needs it.

On `UNet3DConditionModel` the 17 temporal transformers (`transformer_in` included) and the 22 temporal convolutions of
the ModelScope configuration hand their input through; what is left equals the Stable Diffusion 2.1 layout exactly.
Stock diffusers runs its temporal layers even for a single frame, so one frame is not a bypass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn


def temporal_layers(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module that mixes frames, by name, in `named_modules` order."""
    kinds = (TransformerTemporalModel, TemporalConvLayer)
    return [(name, module) for name, module in unet.named_modules() if isinstance(module, kinds)]


def _pass_transformer(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)


def _pass_convolution(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def temporal_bypass(unet: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside the context every temporal layer of `unet` is the identity, so frames do not see each other.

    Works on the instance it is given and restores it even after an error; use it on a replica, never on a shared base.
    `unet` has to be called with its default `return_dict` handling (the blocks ask their layers for tuples).
    """
    layers = temporal_layers(unet) if enabled else []
    previous = [(module, module.__dict__.get("forward")) for _, module in layers]
    try:
        for _, module in layers:
            attention = isinstance(module, TransformerTemporalModel)
            module.forward = _pass_transformer if attention else _pass_convolution
        yield
    finally:
        for module, forward in previous:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
