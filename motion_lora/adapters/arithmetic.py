"""Arithmetic on LoRAs: merge several into one, change the rank, take the difference of two networks.

Everything works on the change of the weights, scale * up @ down, in fp64, and gives layers of scale 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbones.registry import of_keys
from ..core.errors import LoRAFileError, SettingsError
from ..core.lora import LoRA, LoRALayer
from ..core.metadata import OWN

# Keys of one training that are no longer true of what arithmetic made of it.
_STALE = ("format_version", "kind", "scale", "fingerprint", "alpha", "training_fingerprint", "steps", "acts_in")
_OVERSAMPLING, _POWER_STEPS = 16, 6


@dataclass(frozen=True, eq=False)
class Resized:
    """A LoRA of another rank, and how much of its energy it kept: squared singular values, in all and by module."""

    lora: LoRA
    kept: float
    kept_by_module: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Extracted:
    """The difference of two networks as a LoRA, the share of its energy that fits, and changed weights left out."""

    lora: LoRA
    kept: float
    left_out: tuple[str, ...]


def merge(loras: Sequence[LoRA], strengths: Sequence[float] | None = None) -> LoRA:
    """One LoRA whose change is the sum of strength * change, exactly: factors side by side, so ranks add up.

    `resize` brings the rank down again. What was trained for some of the sampling steps still acts in those alone.
    Raises SettingsError for no LoRAs, strengths that do not go with them, or LoRAs that act in different steps,
    LoRAFileError where a module has other sizes from one LoRA to the other.
    """
    strengths = [1.0] * len(loras) if strengths is None else list(strengths)
    if not loras or len(strengths) != len(loras):
        raise SettingsError(f"merging needs LoRAs and as many strengths, got {len(loras)} and {len(strengths)}")
    if not all(math.isfinite(strength) for strength in strengths):
        raise SettingsError(f"strengths must be finite numbers, got {strengths}")
    if len({lora.acts_in for lora in loras}) > 1:
        raise SettingsError(
            "these LoRAs act in different sampling steps (they were trained on different timesteps), which one file "
            "cannot say: put them on a stack instead"
        )
    backbones = sorted({lora.backbone for lora in loras})
    if len(backbones) > 1:
        raise LoRAFileError(f"the LoRAs do not belong to one network: they are for {' and '.join(backbones)}")
    layers = {}
    for module in dict.fromkeys(module for lora in loras for module in lora):
        pairs = [(lora.layers[module], s) for lora, s in zip(loras, strengths, strict=True) if module in lora.layers]
        layers[module] = _side_by_side(module, pairs)
    return LoRA(layers, _merged_metadata(loras, strengths), loras[0].acts_in, backbones[0])


def resize(lora: LoRA, rank: int | None = None, *, energy: float | None = None) -> Resized:
    """The nearest LoRA of a lower rank (truncated SVD), by `rank`, by the share of `energy` to keep, or both.

    With both, each module keeps that share if `rank` allows. A rank is never raised: it would add only zeros.
    Raises SettingsError unless rank >= 1 and 0 < energy <= 1.
    """
    if rank is None and energy is None:
        raise SettingsError("resizing needs a rank, or a share of energy to keep")
    if rank is not None and rank < 1:
        raise SettingsError(f"rank is {rank}; it must be at least 1")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise SettingsError(f"energy is {energy}; it must be above 0 and at most 1")
    layers, totals, keeps = {}, {}, {}
    for module, layer in lora.layers.items():
        left, values, right = _svd(layer)
        keep = _rank_for(values, rank, energy)
        totals[module], keeps[module] = float(values.square().sum()), float(values[:keep].square().sum())
        layers[module] = _from_svd(layer, left[:, :keep], values[:keep], right[:keep])
    total = sum(totals.values())
    shares = {module: keeps[module] / totals[module] if totals[module] else 1.0 for module in layers}
    kept = sum(keeps.values()) / total if total else 1.0
    return Resized(replace(lora, layers=layers, metadata=_changed(lora.metadata)), kept, shares)


def extract(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int, modules: Sequence[str] | None = None
) -> Extracted:
    """The difference of two checkpoints (state dicts of one network) as a LoRA of at most `rank`.

    `modules` limits it, for example to a target preset; by default every linear or convolution weight that differs.
    What changed and is no such weight (biases, norms), or is not among `modules`, is named in `left_out`.
    Raises SettingsError for a bad rank, LoRAFileError if the two are not of one network or nothing differs.
    """
    if rank < 1:
        raise SettingsError(f"rank is {rank}; it must be at least 1")
    _require_same_network(base, tuned)
    changed = [name for name in base if not torch.equal(base[name], tuned[name].to(base[name].dtype))]
    wanted = None if modules is None else {f"{module}.weight" for module in modules}
    usable = [name for name in changed if name.endswith(".weight") and base[name].ndim >= 2]
    usable = [name for name in usable if wanted is None or name in wanted]
    if not usable:
        raise LoRAFileError("the two checkpoints do not differ in any weight that a LoRA could hold")
    layers, total, kept = {}, 0.0, 0.0
    for name in usable:
        difference = tuned[name].detach().cpu().double() - base[name].detach().cpu().double()
        layer, energy = _low_rank(difference, rank)
        layers[name.removesuffix(".weight")] = layer
        total += float(difference.square().sum())
        kept += energy
    left_out = tuple(name for name in changed if name not in usable)
    lora = LoRA(layers, {f"{OWN}imported_from": "difference"}, backbone=of_keys(base).name)
    return Extracted(lora, kept / total, left_out)


def _side_by_side(module: str, pairs: Sequence[tuple[LoRALayer, float]]) -> LoRALayer:
    shapes = {(layer.up.shape[0], *layer.down.shape[1:]) for layer, _ in pairs}
    if len(shapes) > 1:
        raise LoRAFileError(f"the LoRAs do not belong to one network: {module} has the sizes {sorted(shapes)}")
    downs = [layer.down.float() for layer, _ in pairs]
    ups = [(strength * layer.scale * layer.up.double()).float() for layer, strength in pairs]
    return LoRALayer(torch.cat(downs), torch.cat(ups, dim=1))


def _svd(layer: LoRALayer) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the change without building it: QR of both factors, then the SVD of the small middle."""
    up, down = layer.scale * layer.up.flatten(1).double(), layer.down.flatten(1).double()
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ left, values, right @ q_down.T


def _from_svd(like: LoRALayer, left: Tensor, values: Tensor, right: Tensor) -> LoRALayer:
    """Both factors share the root of the singular values, so neither is tiny in half precision."""
    root = values.sqrt()
    ones = (1,) * (like.down.ndim - 2)
    down = (root[:, None] * right).view(-1, *like.down.shape[1:])
    up = (left * root).view(left.shape[0], -1, *ones)
    return LoRALayer(down.float().contiguous(), up.float().contiguous())


def _rank_for(values: Tensor, rank: int | None, energy: float | None) -> int:
    keep = len(values)
    if energy is not None and bool(values.any()):
        shares = values.square().cumsum(0) / values.square().sum()
        # the last bit of a sum must not ask for one more rank
        keep = int((shares < energy - 1e-12).sum()) + 1
    return max(1, min(keep, len(values), rank if rank is not None else keep))


def _low_rank(difference: Tensor, rank: int) -> tuple[LoRALayer, float]:
    """The best factors of at most `rank`, and the energy they hold. Large matrices by subspace iteration, seeded.

    Halko, Martinsson and Tropp 2011, Algorithms 4.4 and 5.1: a full SVD of one feed-forward weight takes seconds.
    """
    matrix = difference.flatten(1)
    width = min(rank + _OVERSAMPLING, *matrix.shape)
    if 4 * width >= min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        basis = matrix @ torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
        for _ in range(_POWER_STEPS):
            basis = torch.linalg.qr(matrix @ (matrix.T @ torch.linalg.qr(basis).Q)).Q
        basis = torch.linalg.qr(basis).Q
        small, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ small
    nonzero = int((values > values[0] * 1e-12).sum()) if bool(values.any()) else 1
    keep = max(1, min(rank, nonzero))
    like = LoRALayer(difference[:1], difference[:, :1])
    layer = _from_svd(like, left[:, :keep], values[:keep], right[:keep])
    return layer, float(values[:keep].square().sum())


def _require_same_network(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
    odd = sorted(set(base) ^ set(tuned))
    odd += [name for name in base if name in tuned and base[name].shape != tuned[name].shape]
    if odd:
        raise LoRAFileError(f"the two checkpoints are not of one network: {len(odd)} tensors differ, first {odd[0]}")


def _changed(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what the change of the factors has made untrue."""
    stale = {OWN + key for key in _STALE}
    return {key: value for key, value in metadata.items() if key not in stale}


def _merged_metadata(loras: Sequence[LoRA], strengths: Sequence[float]) -> dict[str, str]:
    """What all agree on stays; captions and trigger words are put together; the parts are named with their strength."""
    first = _changed(loras[0].metadata)
    common = {key: v for key, v in first.items() if all(lora.metadata.get(key) == v for lora in loras)}
    for key in (f"{OWN}captions", f"{OWN}trigger_words"):
        entries = [entry for lora in loras for entry in _json_list(lora.metadata.get(key, ""))]
        if entries:
            common[key] = json.dumps(list(dict.fromkeys(entries)), ensure_ascii=False)
    titles = [lora.metadata.get("modelspec.title", "") or lora.fingerprint()[:12] for lora in loras]
    parts = [
        {"title": title, "fingerprint": lora.fingerprint(), "strength": strength}
        for title, lora, strength in zip(titles, loras, strengths, strict=True)
    ]
    title = " + ".join(titles)
    common |= {f"{OWN}merged_from": json.dumps(parts, ensure_ascii=False), "modelspec.merged_from": ", ".join(titles)}
    return common | {f"{OWN}title": title, "modelspec.title": title}


def _json_list(text: str) -> list[str]:
    try:
        content = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []  # foreign metadata that is only carried along
    return [str(entry) for entry in content] if isinstance(content, list) else []
