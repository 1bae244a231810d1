"""How much each head of Wan's attention looks over time: measured on a clip, from queries and keys.

The mass of a head on time is the mean weight that it gives a key at the query's own place in another frame, that on
space the mean weight of another key in the query's frame. Follow-Your-Motion (arXiv 2506.05207) tells heads apart so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

# So many queries of a clip, evenly spread, stand for all: the weights of all are tokens squared.
_QUERIES = 64
# Of diffusers' attention, by place.
_ARGUMENTS = ("hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")


def head_masses(network: nn.Module, frames: int, run: Callable[[], object]) -> dict[str, Tensor]:
    """(heads, 2) of each attention over the clip, mass on time and mass on space, while `run` calls the network once.

    `frames` are those of the latents.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            said = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            found[name] = masses(attention, said["hidden_states"], said["rotary_emb"], frames)

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name.endswith(".attn1"):
                hooks.callback(module.register_forward_pre_hook(watch(name), with_kwargs=True).remove)
        run()
    return found


def masses(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], frames: int) -> Tensor:
    """(heads, 2) on the CPU for tokens (1, frames * places, dim) in the order of the frames; see the module."""
    projected = attention.norm_q(attention.to_q(hidden)), attention.norm_k(attention.to_k(hidden))
    query, key = (_rotated(one.unflatten(2, (attention.heads, -1)).float(), *rotary)[0] for one in projected)
    tokens = len(key)
    places = tokens // frames
    every = torch.arange(tokens, device=key.device)
    # A stride without a common factor reaches every place.
    chosen = every[:: max(1, tokens // _QUERIES)]
    weights = torch.einsum("qhd,khd->hqk", query[chosen], key).div(math.sqrt(key.shape[-1])).softmax(-1)
    another = chosen[:, None] != every
    in_time = (chosen[:, None] % places == every % places) & another
    in_frame = (chosen[:, None] // places == every // places) & another
    means = [(weights * mask).sum(dim=(1, 2)) / mask.sum().clamp(min=1) for mask in (in_time, in_frame)]
    return torch.stack(means, dim=1).cpu()


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (1, tokens, heads, dim), pairs of neighbours turned by the angles of their token."""
    first, second = heads[..., 0::2], heads[..., 1::2]
    c, s = cos[..., 0::2].float(), sin[..., 1::2].float()
    return torch.stack((first * c - second * s, first * s + second * c), dim=-1).flatten(-2)
