"""The adapter stack as a value, and the one place where it is applied to a network.

A stack is a small frozen list of (LoRA, strengths, curves) plus the appearance highway. It can be hashed, written into
the metadata of an output, and replayed. Whatever is constant is merged into new tensors of a replica, so ten stacked
LoRAs cost per step what none cost; whatever varies over steps or frames runs beside the module through a forward hook.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .curves import FrameCurve, Schedule
from .errors import LoRAFileError, SettingsError
from .lora import TEMPORAL, LoRA, LoRALayer, layer_of
from .provenance import OWN

if TYPE_CHECKING:
    from .highway import Highway

__all__ = [
    "AdapterStack",
    "AppliedStack",
    "FrameCurve",
    "Schedule",
    "StackEntry",
    "applied",
    "applied_to_text_encoder",
    "block_of",
    "replay",
    "require_fit",
    "title_of",
    "trained_schedule",
]


@dataclass(frozen=True, eq=False)
class StackEntry:
    """One LoRA in a stack. Strengths multiply, may be negative, and act on the change of the weights once.

    A layer's strength is strength * (temporal_strength or spatial_strength) * block_strengths of its block (1 where
    the block is not named; names as in `block_of`), times `steps`, times `frames` where the layer is temporal.
    `text_encoder` is the text part of an imported image LoRA, if it is wanted; its strength is `strength`.
    Without `steps`, a LoRA whose file says that it was trained on a part of the noise acts in that part of the steps;
    `Schedule()` makes it act in all of them.
    """

    lora: LoRA
    strength: float = 1.0
    temporal_strength: float = 1.0
    spatial_strength: float = 1.0
    block_strengths: Mapping[str, float] = field(default_factory=dict)
    steps: Schedule | None = None
    frames: FrameCurve | None = None
    name: str = ""
    text_encoder: LoRA | None = None

    def __post_init__(self) -> None:
        named = {"strength": self.strength, "temporal_strength": self.temporal_strength}
        named |= {"spatial_strength": self.spatial_strength}
        named |= {f"block_strengths[{block!r}]": value for block, value in self.block_strengths.items()}
        for what, value in named.items():
            if not math.isfinite(value):
                raise SettingsError(f"{what} of LoRA {self.name or '(unnamed)'} must be a finite number, got {value}")
        if self.frames is not None and not any(layer_of(module) == TEMPORAL for module in self.lora):
            raise SettingsError(
                f"LoRA {self.name or '(unnamed)'} has no temporal layers, so a strength over frames has nothing to "
                "act on: leave the frame curve out, or use it on a motion LoRA"
            )

    @property
    def schedule(self) -> Schedule | None:
        """The strength over steps: `steps`, or what the LoRA was trained for; None where it is the same in all."""
        return trained_schedule(self.lora.metadata) if self.steps is None else self.steps

    def strength_of(self, module: str) -> float:
        """The strength of one layer before the curves over steps and frames."""
        path = self.temporal_strength if layer_of(module) == TEMPORAL else self.spatial_strength
        return self.strength * path * self.block_strengths.get(block_of(module), 1.0)

    def describe(self) -> dict[str, Any]:
        """Json-able; the LoRAs by fingerprint, so the entry can be replayed from files that are found by it."""
        return {
            "name": self.name,
            "lora": self.lora.fingerprint(),
            "strength": self.strength,
            "temporal_strength": self.temporal_strength,
            "spatial_strength": self.spatial_strength,
            "block_strengths": dict(sorted(self.block_strengths.items())),
            "steps": self.schedule.describe() if self.schedule else None,
            "frames": self.frames.describe() if self.frames else None,
            "text_encoder": self.text_encoder.fingerprint() if self.text_encoder else None,
        }


@dataclass(frozen=True, eq=False)
class AdapterStack:
    """What is sampled with, besides the base: LoRAs in any order (it does not matter) and the appearance highway."""

    entries: tuple[StackEntry, ...] = ()
    highway: Highway | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, entry: StackEntry) -> AdapterStack:
        """A new stack with one entry more; this one stays as it is."""
        return AdapterStack((*self.entries, entry), self.highway)

    def with_highway(self, highway: Highway | None) -> AdapterStack:
        return AdapterStack(self.entries, highway)

    def describe(self) -> dict[str, Any]:
        """Json-able: everything that determines what the stack does, LoRAs by name and fingerprint. See `replay`."""
        highway = None if self.highway is None else asdict(self.highway)
        return {"entries": [entry.describe() for entry in self.entries], "highway": highway}

    def fingerprint(self) -> str:
        """SHA-256 of what the stack does: names and the order of the entries are left out, they change nothing."""
        description = self.describe()
        entries = sorted(json.dumps({**entry, "name": ""}, sort_keys=True) for entry in description["entries"])
        text = json.dumps({"entries": entries, "highway": description["highway"]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def replay(description: Mapping[str, Any], find: Callable[[str, str], LoRA]) -> AdapterStack:
    """The stack that `describe` described; `find(fingerprint, name)` looks the LoRAs up. Raises LoRAFileError."""
    entries = tuple(_replay_entry(entry, find) for entry in description["entries"])
    if description.get("highway") is None:
        return AdapterStack(entries)
    from .highway import Highway  # here, so that a stack without a highway needs no network code

    return AdapterStack(entries, Highway(**description["highway"]))


def block_of(module: str) -> str:
    """The block a module belongs to: "transformer_in", "down_blocks.1", "mid_block", "up_blocks.2", "conv_in", ..."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]


def require_fit(network: nn.Module, lora: LoRA, name: str = "") -> None:
    """Raise LoRAFileError unless the LoRA has layers, every module exists and every change has the weight's shape."""
    label = name or title_of(lora.metadata)
    if not lora.layers:
        raise LoRAFileError(f"{label} holds no layers: there is nothing to apply")
    weights = _weights(network)
    absent = [module for module in lora if module not in weights]
    if absent:
        raise LoRAFileError(
            f"{label} matches {len(lora) - len(absent)} of {len(lora)} layers; the base has no {_some(absent)}: "
            "it was made for another network"
        )
    wrong = [_mismatch(module, lora.layers[module], weights[module]) for module in lora]
    named = [text for text in wrong if text]
    if named:
        raise LoRAFileError(
            f"{label}: {len(named)} of {len(lora)} layers have other sizes than the base: {_some(named)}: "
            "it was made for another network"
        )


def trained_schedule(metadata: Mapping[str, str]) -> Schedule | None:
    """The steps that a LoRA was trained for, by the timesteps in its metadata; None for all, or where nothing is said.

    Sampling runs from noise to the clip in about equal parts of the timesteps, so the part of the noise above
    `timestep_low` is the first 1 - timestep_low of the steps.
    """
    try:
        settings = json.loads(metadata.get(f"{OWN}settings", "{}"))
        low, high = float(settings.get("timestep_low", 0.0)), float(settings.get("timestep_high", 1.0))
    except (ValueError, TypeError, AttributeError):
        return None
    if not 0.0 <= low < high <= 1.0 or (low, high) == (0.0, 1.0):
        return None
    return Schedule(start=1.0 - high, end=1.0 - low)


def title_of(metadata: Mapping[str, str]) -> str:
    """What to call a LoRA in a message: its title, on one line, or "this LoRA"."""
    return " ".join(metadata.get("modelspec.title", "").split())[:80] or "this LoRA"


class AppliedStack:
    """A stack at work on a replica. `at` moves the step; `merged` and `varying` count the modules of either kind."""

    def __init__(self, branches: Mapping[str, _Branch], merged: int) -> None:
        self._branches = branches
        self.merged = merged
        self.varying = len(branches)

    def at(self, step_fraction: float) -> None:
        """Set the strengths for a step, 0 = first, 1 = last (i / (n - 1)). Free where nothing varies over steps."""
        if not 0.0 <= step_fraction <= 1.0:
            raise SettingsError(f"the step position must lie in [0, 1], got {step_fraction}")
        for branch in self._branches.values():
            branch.set_step(step_fraction)


@contextmanager
def applied(unet: nn.Module, stack: AdapterStack, num_frames: int, *, merge: bool = True) -> Iterator[AppliedStack]:
    """Inside the context `unet` works with the stack's LoRAs; afterwards, errors included, it is what it was.

    `unet` is a replica owned by the caller: its touched modules get new parameters W + sum(s * delta), computed in
    fp32 and cast to W's dtype; the base's storage is never written. `num_frames` is the length of what is sampled.
    `merge=False` applies everything through hooks. The highway is not entered here; the sampler does it.
    Raises LoRAFileError before anything is touched when a LoRA does not fit, SettingsError for unknown block names.
    """
    if num_frames < 1:
        raise SettingsError(f"num_frames must be at least 1, got {num_frames}")
    _check_entries(unet, stack)
    constant, varying = _plan(stack, num_frames, merge)
    with _at_work(unet, constant, varying) as at_work:
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
            parts += [_Part(module, layer, key, entry.strength) for module, layer in layers]
    with _at_work(text_encoder, _grouped(parts), {}):
        yield


@dataclass(frozen=True, eq=False)
class _Part:
    """One layer of one entry: its constant strength, and what varies."""

    module: str
    layer: LoRALayer
    key: str
    strength: float
    steps: Schedule | None = None
    frames: tuple[float, ...] | None = None


def _plan(stack: AdapterStack, num_frames: int, merge: bool) -> tuple[dict[str, list[_Part]], dict[str, list[_Part]]]:
    parts = [part for entry in stack.entries for part in _parts(entry, num_frames)]
    constant = [part for part in parts if merge and part.steps is None and part.frames is None]
    varying = [part for part in parts if not (merge and part.steps is None and part.frames is None)]
    return _grouped(constant), _grouped(varying)


def _parts(entry: StackEntry, num_frames: int) -> Iterator[_Part]:
    """The layers of an entry; constant curves are folded into the strength."""
    key = entry.lora.fingerprint()
    for module, layer in entry.lora.layers.items():
        strength, steps, frames = entry.strength_of(module), entry.schedule, None
        if steps is not None and steps.constant is not None:
            strength, steps = strength * steps.constant, None
        if entry.frames is not None and layer_of(module) == TEMPORAL:
            if entry.frames.constant is not None:
                strength *= entry.frames.constant
            else:
                frames = tuple(entry.frames.samples(num_frames))
        yield _Part(module, layer, key, strength, steps, frames)


def _grouped(parts: Sequence[_Part]) -> dict[str, list[_Part]]:
    """By module, in an order that does not depend on the stack's; equal layers are added up, and dropped at 0.

    Adding strengths before the tensors makes s and -s of one LoRA the untouched base, bit for bit.
    """
    groups: dict[str, dict[tuple[Any, ...], list[_Part]]] = {}
    for part in parts:
        key = (part.key, repr(part.steps), repr(part.frames))
        groups.setdefault(part.module, {}).setdefault(key, []).append(part)
    summed = {module: [_summed(by_key[key]) for key in sorted(by_key)] for module, by_key in groups.items()}
    kept = {module: [part for part in group if part.strength != 0.0] for module, group in summed.items()}
    return {module: group for module, group in kept.items() if group}


def _summed(parts: Sequence[_Part]) -> _Part:
    first = parts[0]
    strength = math.fsum(part.strength for part in parts)
    return _Part(first.module, first.layer, first.key, strength, first.steps, first.frames)


@contextmanager
def _at_work(
    network: nn.Module, constant: Mapping[str, list[_Part]], varying: Mapping[str, list[_Part]]
) -> Iterator[AppliedStack]:
    modules = dict(network.named_modules())
    originals: list[tuple[nn.Module, nn.Parameter]] = []
    handles = []
    try:
        branches = {name: _Branch(name, modules[name], parts) for name, parts in varying.items()}
        for name, parts in constant.items():
            module = modules[name]
            weight = module._parameters["weight"]
            assert weight is not None  # `require_fit` has seen it
            merged = nn.Parameter(_merged(weight, parts), requires_grad=False)
            originals.append((module, weight))
            module._parameters["weight"] = merged
        for name, branch in branches.items():
            handles.append(modules[name].register_forward_hook(branch))
        yield AppliedStack(branches, len(constant))
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in originals:
            module._parameters["weight"] = weight


@torch.no_grad()
def _merged(weight: Tensor, parts: Sequence[_Part]) -> Tensor:
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for part in parts:
        down, up = part.layer.down.to(weight.device), part.layer.up.to(weight.device)
        total += part.strength * LoRALayer(down, up, part.layer.scale).delta()
    return (weight.float() + total).to(weight.dtype)


class _Branch:
    """The varying change of one module: all its layers side by side, one gain per rank (and per frame)."""

    def __init__(self, name: str, module: nn.Module, parts: Sequence[_Part]) -> None:
        weight = module._parameters["weight"]
        assert weight is not None  # `require_fit` has seen it
        self.name = name
        self._dtype, self._device = weight.dtype, weight.device
        self._down = self._placed(torch.cat([part.layer.down.float() for part in parts]))
        ups = [part.layer.scale * part.layer.up.float() for part in parts]
        self._up = self._placed(torch.cat(ups, dim=1))
        self._ranks = torch.tensor([part.layer.rank for part in parts])
        self._schedules = [part.steps for part in parts]
        self._strengths = _strength_table(parts).repeat_interleave(self._ranks, dim=1)
        self._gains: Tensor | None = None
        self._refresh(0.0)

    def set_step(self, position: float) -> None:
        if any(schedule is not None for schedule in self._schedules):
            self._refresh(position)

    def _refresh(self, position: float) -> None:
        factors = torch.tensor([1.0 if s is None else s.value(position) for s in self._schedules])
        gains = self._strengths * factors.repeat_interleave(self._ranks)
        self._gains = self._placed(gains) if bool(gains.any()) else None

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=self._device, dtype=self._dtype)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._gains is None:
            return None
        if isinstance(module, nn.Linear):
            hidden = functional.linear(args[0], self._down)
            return output + functional.linear(hidden * self._for_tokens(hidden, self._gains), self._up)
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            convolve = functional.conv2d if isinstance(module, nn.Conv2d) else functional.conv3d
            hidden = convolve(args[0], self._down, None, module.stride, module.padding, module.dilation)
            return output + convolve(hidden * self._for_maps(hidden, self._gains), self._up)
        raise SettingsError(f"{self.name} is a {type(module).__name__}: a strength that varies cannot act on it")

    def _for_tokens(self, hidden: Tensor, gains: Tensor) -> Tensor:
        """(frames or 1, ranks) against (b * h * w, f, ranks): frames are the tokens of a temporal transformer."""
        if len(gains) == 1:
            return gains[0]
        if hidden.ndim != 3 or hidden.shape[1] != len(gains):
            raise SettingsError(self._frames_text(hidden, gains))
        return gains

    def _for_maps(self, hidden: Tensor, gains: Tensor) -> Tensor:
        """(frames or 1, ranks) against (b, ranks, f, h, w) or (b * f, ranks, h, w)."""
        if len(gains) == 1:
            return gains[0].view(-1, *[1] * (hidden.ndim - 2))
        if hidden.ndim != 5 or hidden.shape[2] != len(gains):
            raise SettingsError(self._frames_text(hidden, gains))
        return gains.T[:, :, None, None]

    def _frames_text(self, hidden: Tensor, gains: Tensor) -> str:
        return f"{self.name} got {tuple(hidden.shape)}, but the strength over frames was made for {len(gains)} frames"


def _strength_table(parts: Sequence[_Part]) -> Tensor:
    """(frames, parts), or (1, parts) where no part varies over frames."""
    frames = max((len(part.frames) for part in parts if part.frames is not None), default=1)
    columns = [[part.strength * value for value in part.frames or (1.0,) * frames] for part in parts]
    return torch.tensor(columns).T


def _check_entries(unet: nn.Module, stack: AdapterStack) -> None:
    blocks = sorted({block_of(module) for module in _weights(unet)}) if stack.entries else []
    for entry in stack.entries:
        require_fit(unet, entry.lora, entry.name)
        unknown = sorted(set(entry.block_strengths) - set(blocks))
        if unknown:
            raise SettingsError(f"no such block: {', '.join(unknown)}; this base has {', '.join(blocks)}")


def _weights(network: nn.Module) -> dict[str, Tensor]:
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return {name: module.weight for name, module in network.named_modules() if isinstance(module, kinds)}


def _mismatch(module: str, layer: LoRALayer, weight: Tensor) -> str:
    """Empty where the layer's change has the weight's shape and its two factors belong together."""
    up, down = tuple(layer.up.shape), tuple(layer.down.shape)
    ones = (1,) * (len(down) - 2)
    if len(down) >= 2 and up[1:] == (down[0], *ones) and (up[0], *down[1:]) == tuple(weight.shape):
        return ""
    return f"{module} (up {up} and down {down} for a weight {tuple(weight.shape)})"


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _replay_entry(entry: Mapping[str, Any], find: Callable[[str, str], LoRA]) -> StackEntry:
    name = str(entry["name"])
    text = entry.get("text_encoder")
    return StackEntry(
        find(str(entry["lora"]), name),
        strength=entry["strength"],
        temporal_strength=entry["temporal_strength"],
        spatial_strength=entry["spatial_strength"],
        block_strengths=entry["block_strengths"],
        steps=Schedule(**entry["steps"]) if entry["steps"] else None,
        frames=FrameCurve(**entry["frames"]) if entry["frames"] else None,
        name=name,
        text_encoder=find(str(text), name) if text else None,
    )
