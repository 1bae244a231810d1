"""What is known of a network: where its layers and its skips are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skip:
    """One skip connection: entry `index` of the UNet's residuals, taken by `up_block` at `position` of its tuple.

    `temporal` is the temporal transformer whose output it carries, `spatial` the spatial transformer of the same
    layer; both are None for a skip that starts at a convolution, and `spatial` alone for the one of `transformer_in`.
    """

    index: int
    up_block: str
    position: int
    temporal: str | None
    spatial: str | None


@dataclass(frozen=True)
class Backbone:
    """Where the layers of one network are, each tuple in `named_modules` order (the middle block comes last)."""

    name: str
    spatial_transformers: tuple[str, ...]
    temporal_transformers: tuple[str, ...]
    temporal_convolutions: tuple[str, ...]
    residual_blocks: tuple[str, ...]
    skips: tuple[Skip, ...]
    cross_attention_dim: int
    in_channels: int
