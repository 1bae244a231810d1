"""Temporal bypass: turns the video network into its image network, as Customize-A-Video's first stage needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .registry import of_network


def temporal_layers(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module that mixes frames, by name, in `named_modules` order."""
    return of_network(unet).temporal_layers(unet)


@contextmanager
def temporal_bypass(unet: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside the context `unet` is without time: each temporal layer is the identity, or, where space and time are
    one attention, each frame is a clip of its own. Frames do not see each other.

    Works on the instance it is given and restores it even after an error; use it on a replica, never on a shared base.
    `unet` has to be called with its default `return_dict` handling (the blocks ask their layers for tuples).
    """
    backbone = of_network(unet)
    layers = backbone.bypassed(unet) if enabled else []
    previous = [(module, module.__dict__.get("forward")) for module, _ in layers]
    try:
        for module, forward in layers:
            setattr(module, "forward", forward)  # noqa: B010 - to mypy it is a method
        yield
    finally:
        for module, former in previous:
            if former is None:
                module.__dict__.pop("forward", None)
            else:
                setattr(module, "forward", former)  # noqa: B010
