"""Adapters of a small network, merged at the start of each forward pass, all weights of one shape in one product.

Beside a small weight an adapter costs more than the layer itself: four operations and, at a rank near the width, three
times the arithmetic. Here W + scale * up @ down is made for all of them together, with the graph through which the
factors learn, and the fast layers (`backbones.faster`) take it in place of their own weight. The same function to
rounding; fp32 only, as a 16-bit weight would not hold the change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..backbones.faster import MERGED, SMALL, mergeable

PACKING = "motion_lora_packing"
"""Attribute in which a network keeps its `Packing`."""
# A larger network has so many tokens to a weight that a product with the weight costs more than one with the factors.
_SMALL_NETWORK = 20_000_000

Factors = Callable[[LoraLayer, str], tuple[nn.Module, nn.Module]]
"""The two factors of an adapter of a host: (down, up) with a `weight` each."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Weights of one shape under the same adapters: `weights` (m, out, in) of the base, and who takes them.

    `adapters` has (scale, downs, ups) of each adapter; `takers` the layer for each run of `counts` weights.
    """

    weights: Tensor
    adapters: list[tuple[float, list[nn.Module], list[nn.Module]]]
    takers: list[nn.Module] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def merge(self) -> None:
        """Leave the merged weight with each taker, those of an attention as one."""
        total = self.weights
        for scale, downs, ups in self.adapters:
            down = torch.stack([_matrix(one) for one in downs])
            up = torch.stack([_matrix(one) for one in ups])
            total = torch.baddbmm(total, up, down, alpha=scale)
        for taker, piece in zip(self.takers, total.split(self.counts), strict=True):
            taker.__dict__[MERGED] = piece.flatten(0, 1)


class Packing:
    """Merges the adapters of one network; a forward pre-hook of it. `changed` after anything about them changed."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors
        self._groups: list[_Group] | None = None
        self._takers: list[nn.Module] = []
        self.enabled = True

    @property
    def weights(self) -> list[Tensor]:
        """The copies of the network's weights that are kept side by side."""
        return [group.weights for group in self._groups or ()]

    def changed(self) -> None:
        """Forget the plan, and every merged weight."""
        self._groups = None
        for taker in self._takers:
            taker.__dict__.pop(MERGED, None)
        self._takers = []

    def __call__(self, network: nn.Module, args: Any) -> None:
        if not self.enabled:
            return
        if self._groups is None:
            self._groups = self._planned(network)
            self._takers = [taker for group in self._groups for taker in group.takers]
        for group in self._groups:
            group.merge()

    def _planned(self, network: nn.Module) -> list[_Group]:
        members: dict[tuple[Any, ...], list[tuple[nn.Module, list[LoraLayer]]]] = {}
        if sum(parameter.numel() for parameter in network.parameters()) > _SMALL_NETWORK:
            return []
        modules = dict(network.named_modules())
        taken: set[str] = set()
        for _, taker, names in mergeable(network):
            hosts = [modules[name] for name in names]
            keys = {_key(host) for host in hosts}
            key = keys.pop()
            if keys or key is None or taken.intersection(names):
                continue
            taken.update(names)
            members.setdefault(key, []).append((taker, [h for h in hosts if isinstance(h, LoraLayer)]))
        return [self._group(takers) for takers in members.values()]

    def _group(self, members: Sequence[tuple[nn.Module, list[LoraLayer]]]) -> _Group:
        hosts = [host for _, several in members for host in several]
        weights: list[Any] = [host.get_base_layer().weight for host in hosts]
        adapters = []
        for name in hosts[0].active_adapters:
            factors = [self._factors(host, name) for host in hosts]
            downs, ups = [down for down, _ in factors], [up for _, up in factors]
            adapters.append((float(hosts[0].scaling[name]), downs, ups))
        # Kept for every pass after this one, which may be one that only counts.
        with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
            stacked = torch.stack([weight.detach().flatten(1) for weight in weights])
        return _Group(stacked, adapters, [taker for taker, _ in members], [len(several) for _, several in members])


def _matrix(factor: Any) -> Tensor:
    weight: Tensor = factor.weight
    return weight.flatten(1)


def _key(host: Any) -> tuple[Any, ...] | None:
    """What hosts share that are merged in one product; None for what is not merged."""
    kind: type[Any] = type(host)
    if not issubclass(kind, LoraLayer) or not host.active_adapters:
        return None
    base: Any = host.get_base_layer()
    hooked = host._forward_hooks or host._forward_pre_hooks or base._forward_hooks or base._forward_pre_hooks
    weight = base.weight
    if hooked or weight.dtype is not torch.float32 or weight.numel() > SMALL or weight.requires_grad:
        return None
    return (*weight.shape, weight.device, *_adapters(host)) if not _drops(host) else None


def _adapters(host: Any) -> tuple[tuple[str, int, float], ...]:
    return tuple((name, host.r[name], float(host.scaling[name])) for name in host.active_adapters)


def _drops(host: Any) -> bool:
    factors: Mapping[str, Any] = host.lora_B
    return any(factors[name].dropout and factors[name].training for name in host.active_adapters)
