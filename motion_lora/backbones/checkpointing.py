"""Gradient checkpointing, the same on every backbone: diffusers has none for some, and none beside a bypass.

Activations inside a wrapped layer are dropped after the forward pass and computed again in the backward pass: with all
layers about a third more arithmetic for a fraction of the memory. Gradients are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .registry import of_network


@contextmanager
def gradient_checkpointing(unet: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside the context all layers that the backbone of `unet` names are checkpointed; see `checkpointed_layers`."""
    every = range(len(of_network(unet).checkpointed(unet))) if enabled else ()
    with checkpointed_layers(unet, every):
        yield


@contextmanager
def checkpointed_layers(unet: nn.Module, numbers: Collection[int]) -> Iterator[None]:
    """Inside the context the layers with these `numbers`, in the order of the backbone's list, are checkpointed.

    For a network in evaluation mode, where only adapters drop anything, which repeat themselves by their seed: no
    random state is kept and brought back. Enter it before `temporal_bypass`, which replaces the same methods and puts
    them back. Whatever changes what a layer computes (strengths, seeds) must stay as it is from a forward pass to the
    end of its backward pass.
    """
    every = of_network(unet).checkpointed(unet) if numbers else []
    layers = [layer for number, layer in enumerate(every) if number in numbers]
    former = [module.__dict__.get("forward") for module in layers]
    try:
        for module in layers:
            setattr(module, "forward", _checkpointed(module.forward))  # noqa: B010 - to mypy it is a method
        yield
    finally:
        for module, forward in zip(layers, former, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                setattr(module, "forward", forward)  # noqa: B010


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
