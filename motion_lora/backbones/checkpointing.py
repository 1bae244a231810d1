"""Gradient checkpointing, the same on every backbone: diffusers has none for some, and none beside a bypass.

Activations inside a wrapped layer are dropped after the forward pass and computed again in the backward pass: with all
layers about a third more arithmetic for a fraction of the memory. Gradients are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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
    with _wrapped([layer for number, layer in enumerate(every) if number in numbers], _checkpointed):
        yield


@contextmanager
def sequences_in_pieces(unet: nn.Module, count: int) -> Iterator[None]:
    """Inside the context the layers that take sequences one by one take them in `count` parts, each checkpointed.

    Then no more than one part's activations are alive at a time, attention and feed-forward alike, for one more forward
    pass of these layers. Gradients of weights are sums over the parts: the same to rounding. Dropout would drop other
    numbers. Enter it before `checkpointed_layers`, for layers that are both.
    """
    layers = of_network(unet).sequence_layers(unet) if count > 1 else []
    with _wrapped(layers, lambda forward: _in_pieces(forward, count)):
        yield


@contextmanager
def _wrapped(layers: Collection[nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    former = [module.__dict__.get("forward") for module in layers]
    try:
        for module in layers:
            setattr(module, "forward", wrap(module.forward))  # noqa: B010 - to mypy it is a method
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


def _in_pieces(forward: Callable[..., Any], count: int) -> Callable[..., Any]:
    inner = _checkpointed(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        batch = len(hidden)
        size = -(-batch // count)

        def part(value: Any, start: int) -> Any:
            by_sequence = isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch
            return value[start : start + size] if by_sequence else value

        parts = [
            inner(*(part(one, start) for one in args), **{name: part(one, start) for name, one in kwargs.items()})
            for start in range(0, batch, size)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return run
