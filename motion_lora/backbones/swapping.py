"""Block swap: the weights of blocks wait in main memory and come to the device one block after another.

A block computes with copies of its frozen weights that are gone when it is done, in the forward pass and, where it is
computed twice (`checkpointing`), again in the backward pass: the numbers are the same to the bit. Without that its
graph would hold the copies, so a training swaps no block that it does not recompute. Blocks are exchanged by their
class, which their replicas have too: a preview of a training runs so as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .registry import of_network

_WITHOUT_PINNING = ("cpu", "meta", "mps")


def fetched(weight: Tensor, device: torch.device) -> Tensor:
    """A weight on the device where it is needed; itself where it is there."""
    return weight.to(device, non_blocking=True)


def block_bytes(network: nn.Module) -> list[int]:
    """What each block that can be swapped frees, in the order of the backbone; the largest is on the device at work."""
    blocks = of_network(network).swappable_blocks(network)
    return [sum(p.numel() * p.element_size() for p in block.parameters() if not p.requires_grad) for block in blocks]


@contextmanager
def swapped_blocks(networks: Sequence[nn.Module], numbers: Collection[int]) -> Iterator[None]:
    """Inside the context the blocks with these `numbers` have their weights in main memory, of all `networks` at once.

    The networks share their weights: a base and its replicas, first the base. Frozen weights that are the base's leave,
    factors of adapters stay. Afterwards all is where it was.
    """
    every = [_blocks(network, numbers) for network in networks]
    blocks = [block for of_one in every for block in of_one]
    # By their storage: in a replica with adapters the same weights have other names.
    own = {_key(weight) for block in every[0] for weight in block.parameters()}
    shared = [weight for block in blocks for weight in block.parameters() if _key(weight) in own]
    devices = [weight.device for weight in shared]
    kinds: list[Any] = [type(block) for block in blocks]
    try:
        for block, kind in zip(blocks, kinds, strict=True):
            block.__class__ = _swapping(kind)
        _move(shared, [torch.device("cpu")] * len(shared))
        yield
    finally:
        _move(shared, devices)
        for block, kind in zip(blocks, kinds, strict=True):
            block.__class__ = kind


def _blocks(network: nn.Module, numbers: Collection[int]) -> list[nn.Module]:
    return [block for i, block in enumerate(of_network(network).swappable_blocks(network)) if i in numbers]


def _key(weight: Tensor) -> tuple[int, int]:
    return weight.untyped_storage()._cdata, int(weight.storage_offset())


def _move(parameters: Sequence[nn.Parameter], devices: Sequence[torch.device]) -> None:
    """Each to its device, what was one storage is one again. Pinned in main memory, so that it comes back fast."""
    made: dict[tuple[int, int], Tensor] = {}
    # The old ones are kept until all are moved: a storage that was freed could come back under the same number.
    old = [parameter.data for parameter in parameters]
    with torch.inference_mode(False), torch.no_grad():
        for parameter, device in zip(parameters, devices, strict=True):
            if parameter.device == device:
                continue
            key = _key(parameter)
            if key not in made:
                there = parameter.data.to(device, copy=True)
                leaves = device.type == "cpu" and parameter.device.type not in _WITHOUT_PINNING
                made[key] = there.pin_memory() if leaves else there
            parameter.data = made[key]
    del old


@lru_cache(maxsize=8)
def _swapping(kind: Any) -> Any:
    """A class of blocks that fetch their weights."""

    class Swapping(kind):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            device = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).device
            with _with_weights_on(self, device):
                return kind.forward(self, *args, **kwargs)

    return Swapping


@contextmanager
def _with_weights_on(block: nn.Module, device: torch.device) -> Iterator[None]:
    held: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    try:
        for module in block.modules():
            for name, weight in module._parameters.items():
                if weight is not None and not weight.requires_grad:
                    held.append((module._parameters, name, weight))
                    # A host's table of parameters takes any tensor, as torch.func.functional_call has it.
                    module._parameters[name] = fetched(weight, device)  # type: ignore[assignment]
        yield
    finally:
        for table, name, weight in held:
            table[name] = weight
