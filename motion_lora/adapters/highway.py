"""Appearance highway (AH) of "Separate Motion from Appearance": skip connections that leave out the temporal attention.

In the stock network a skip carries the output of a temporal attention to the decoder, and with it what a motion LoRA
did to the appearance. On the highway it starts one layer earlier, at the spatial attention of the same layer; the main
path stays as it is. Done with hooks, so it works on the unchanged network, at any size, with guidance batches and with
gradient checkpointing, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..backbones.base import Backbone, Skip
from ..backbones.registry import describe, of_network
from ..core.errors import SettingsError
from ..core.highway import Highway


@dataclass(frozen=True)
class Route:
    """What becomes of one skip: where it starts now (None: where it did) and by what it is multiplied."""

    up_block: str
    position: int
    spatial: str | None
    scale: float


def plan_highway(unet: nn.Module, highway: Highway) -> tuple[Route, ...]:
    """The skips of `unet` that the highway changes, by index; raises SettingsError where there are none to re-route."""
    skips = describe(unet).skips
    movable = [skip for skip in skips if skip.temporal and skip.spatial]
    if not movable:
        raise SettingsError(
            "The appearance highway needs skips that start at a temporal attention beside a spatial one; this network "
            "has none. Switch the highway off."
        )
    if highway.preset == "all":
        moved, scaled = movable, movable
    else:
        moved, scaled = _code_preset(skips, movable)
    routes = [
        Route(
            skip.up_block,
            skip.position,
            skip.spatial if skip in moved else None,
            highway.scale if skip in scaled else 1.0,
        )
        for skip in skips
        if skip in moved or skip in scaled
    ]
    return tuple(routes)


def _code_preset(skips: tuple[Skip, ...], movable: list[Skip]) -> tuple[list[Skip], list[Skip]]:
    """Skips that are re-routed and skips that are scaled, both at the deepest level with attention.

    The authors' code scales wherever the decoder's features still have the deepest level's width. These are all skips
    of the first block with attention, and the first that the block after it takes: its last position.
    """
    block = movable[-1].up_block
    moved = [skip for skip in movable if skip.up_block == block]
    here = [skip for skip in skips if skip.up_block == block]
    following = [skip for skip in skips if skip.index == here[0].index - 1]
    return moved, following + here


@contextmanager
def appearance_highway(unet: nn.Module, highway: Highway | None) -> Iterator[None]:
    """Inside the context the skips of `unet` run over the highway; None changes nothing. Use it on a replica.

    Raises SettingsError before anything is touched when the network has no skips that can be re-routed.
    """
    backbone = of_network(unet)
    routes = plan_highway(unet, highway) if highway is not None else ()
    # Output of each spatial attention of the forward pass that is under way, (b * f, c, h, w) each.
    passing: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in sorted({route.spatial for route in routes if route.spatial}):
            hook = unet.get_submodule(name).register_forward_hook(_recorder(backbone, passing, name))
            hooks.callback(hook.remove)
        for block in sorted({route.up_block for route in routes}):
            here = {route.position: route for route in routes if route.up_block == block}
            switch = _switch(backbone, passing, here)
            hook = unet.get_submodule(block).register_forward_pre_hook(switch, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _recorder(backbone: Backbone, passing: dict[str, Tensor], name: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        passing[name] = backbone.transformer_output(output)

    return record


def _switch(backbone: Backbone, passing: dict[str, Tensor], routes: Mapping[int, Route]) -> Any:
    """A pre-hook of an up block that exchanges or scales entries of its tuple of skips."""

    def switch(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        skips = list(backbone.skips_of(kwargs))
        for position, route in routes.items():
            # Taken out, not copied: a tensor kept here would outlive the forward pass that it belongs to.
            skip = passing.pop(route.spatial) if route.spatial else skips[position]
            skips[position] = skip if route.scale == 1.0 else skip * route.scale
        return args, backbone.with_skips(kwargs, tuple(skips))

    return switch
