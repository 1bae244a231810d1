"""The one place where an adapter stack is applied to a network.

Whatever is the same in all frames is merged into new tensors of a replica, again in each step where it varies over
steps, so ten stacked LoRAs cost per step what none cost; what varies over frames runs beside the module in a hook.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.lora import layer_of
from ..backbones.registry import named, of_network
from ..core.errors import SettingsError
from ..core.lora import DEFAULT_BACKBONE, TEMPORAL
from ..core.stack import AdapterStack, StackEntry
from .branches import Branch
from .fit import require_fit, weights_of
from .merging import AppliedLayer, Scheduled, merged_weight

_log = logging.getLogger(__name__)


class AppliedStack:
    """A stack at work on a replica. `at` moves the step; `merged` and `varying` count the modules of either kind."""

    def __init__(self, branches: Mapping[str, Branch], merged: int, scheduled: Sequence[Scheduled] = ()) -> None:
        self._branches = branches
        self._scheduled = scheduled
        self.merged = merged
        self.varying = len(branches)

    def at(self, step_fraction: float) -> None:
        """Set the strengths for a step, 0 = first, 1 = last (i / (n - 1)). Free where nothing varies over steps."""
        if not 0.0 <= step_fraction <= 1.0:
            raise SettingsError(f"the step position must lie in [0, 1], got {step_fraction}")
        for one in self._scheduled:
            one.set_step(step_fraction)
        for branch in self._branches.values():
            branch.set_step(step_fraction)

    def on_frames(self, frames: Sequence[int]) -> None:
        """Which frames of the whole the network is given next, for strengths that vary over frames."""
        for branch in self._branches.values():
            branch.set_frames(frames)


@contextmanager
def applied(unet: nn.Module, stack: AdapterStack, num_frames: int, *, merge: bool = True) -> Iterator[AppliedStack]:
    """Inside the context `unet` works with the stack's LoRAs; afterwards, errors included, it is what it was.

    `unet` is a replica owned by the caller: its touched modules get new parameters W + sum(s * delta), computed in
    fp32 and cast to W's dtype; the base's storage is never written. `num_frames` is how many frames its latents have.
    `merge=False` applies everything through hooks. The highway is not entered here; the sampler does it.
    Raises LoRAFileError before anything is touched when a LoRA does not fit, SettingsError for unknown block names.
    """
    if num_frames < 1:
        raise SettingsError(f"num_frames must be at least 1, got {num_frames}")
    backbone = of_network(unet)
    _check_entries(unet, stack, backbone)
    same, varying = _plan(stack, num_frames, merge)
    with _at_work(unet, same, varying, backbone) as at_work:
        yield at_work


@contextmanager
def applied_to_text_encoder(text_encoder: nn.Module, stack: AdapterStack) -> Iterator[None]:
    """Merge the text-encoder parts of the stack into a replica of the text encoder; restored on exit."""
    parts = []
    for entry in stack.entries:
        if entry.text_encoder is not None:
            require_fit(text_encoder, entry.text_encoder, entry.name)
            key = entry.text_encoder.fingerprint()
            layers = entry.text_encoder.layers.items()
            parts += [AppliedLayer(module, layer, key, entry.strength) for module, layer in layers]
    with _at_work(text_encoder, _grouped(parts), {}, named(DEFAULT_BACKBONE)):
        yield


def check_frames(entry: StackEntry) -> None:
    """Raise SettingsError for a strength over frames on a LoRA without temporal layers."""
    if entry.frames is not None and not any(layer_of(entry.lora, module) == TEMPORAL for module in entry.lora):
        raise SettingsError(
            f"LoRA {entry.name or '(unnamed)'} has no temporal layers, so a strength over frames has nothing to "
            "act on: leave the frame curve out, or use it on a motion LoRA"
        )


def strength_of(entry: StackEntry, module: str) -> float:
    """The strength of one layer of an entry before the curves over steps and frames."""
    backbone = named(entry.lora.backbone)
    return entry.strength_of(backbone.layer_of(module), backbone.block_of(module))


def _plan(
    stack: AdapterStack, num_frames: int, merge: bool
) -> tuple[dict[str, list[AppliedLayer]], dict[str, list[AppliedLayer]]]:
    parts = [part for entry in stack.entries for part in _parts(entry, num_frames)]
    same = [part for part in parts if merge and part.frames is None]
    varying = [part for part in parts if not (merge and part.frames is None)]
    return _grouped(same), _grouped(varying)


def _parts(entry: StackEntry, num_frames: int) -> Iterator[AppliedLayer]:
    """The layers of an entry; constant curves are folded into the strength."""
    key = entry.lora.fingerprint()
    for module, layer in entry.lora.layers.items():
        strength, steps, frames = strength_of(entry, module), entry.schedule, None
        if steps is not None and steps.constant is not None:
            strength, steps = strength * steps.constant, None
        if entry.frames is not None and layer_of(entry.lora, module) == TEMPORAL:
            if entry.frames.constant is not None:
                strength *= entry.frames.constant
            else:
                frames = tuple(entry.frames.samples(num_frames))
        yield AppliedLayer(module, layer, key, strength, steps, frames)


def _grouped(parts: Sequence[AppliedLayer]) -> dict[str, list[AppliedLayer]]:
    """By module, in an order that does not depend on the stack's; equal layers are added up, and dropped at 0.

    Adding strengths before the tensors makes s and -s of one LoRA the untouched base, bit for bit.
    """
    groups: dict[str, dict[tuple[Any, ...], list[AppliedLayer]]] = {}
    for part in parts:
        key = (part.key, repr(part.steps), repr(part.frames))
        groups.setdefault(part.module, {}).setdefault(key, []).append(part)
    summed = {module: [_summed(by_key[key]) for key in sorted(by_key)] for module, by_key in groups.items()}
    kept = {module: [part for part in group if part.strength != 0.0] for module, group in summed.items()}
    return {module: group for module, group in kept.items() if group}


def _summed(parts: Sequence[AppliedLayer]) -> AppliedLayer:
    first = parts[0]
    strength = math.fsum(part.strength for part in parts)
    return AppliedLayer(first.module, first.layer, first.key, strength, first.steps, first.frames)


@contextmanager
def _at_work(
    network: nn.Module,
    same: Mapping[str, list[AppliedLayer]],
    varying: Mapping[str, list[AppliedLayer]],
    backbone: Backbone,
) -> Iterator[AppliedStack]:
    modules = dict(network.named_modules())
    originals: list[tuple[nn.Module, nn.Parameter]] = []
    handles = []
    try:
        faint, scheduled = [], []
        for name, parts in same.items():
            module = modules[name]
            weight = module._parameters["weight"]
            assert weight is not None  # `require_fit` has seen it
            constant = [part for part in parts if part.steps is None]
            merged, enough = merged_weight(weight, constant)
            faint += [] if enough else [weight.dtype]
            originals.append((module, weight))
            module._parameters["weight"] = nn.Parameter(merged, requires_grad=False)
            if len(constant) < len(parts):
                scheduled.append(Scheduled(module, weight, parts))
        _warn_of_faint(faint)
        branches = {name: Branch(name, modules[name], parts, backbone.frame_axis) for name, parts in varying.items()}
        for name, branch in branches.items():
            handles.append(modules[name].register_forward_hook(branch))
        yield AppliedStack(branches, len(originals), scheduled)
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in originals:
            module._parameters["weight"] = weight


def _warn_of_faint(dtypes: Sequence[torch.dtype]) -> None:
    """Say once that the weights cannot hold changes so small; `dtypes` has one of each such layer."""
    if dtypes:
        precision = str(dtypes[0]).removeprefix("torch.")
        way_out = "load the base in fp32" if dtypes[0] == torch.float16 else "load the base in fp16 or fp32"
        _log.warning(
            "the change of %d layers is too small for %s, part of it is lost: %s", len(dtypes), precision, way_out
        )


def _check_entries(unet: nn.Module, stack: AdapterStack, backbone: Backbone) -> None:
    blocks = sorted({backbone.block_of(module) for module in weights_of(unet)}) if stack.entries else []
    for entry in stack.entries:
        require_fit(unet, entry.lora, entry.name)
        check_frames(entry)
        unknown = sorted(set(entry.block_strengths) - set(blocks))
        if unknown:
            raise SettingsError(f"no such block: {', '.join(unknown)}; this base has {', '.join(blocks)}")
