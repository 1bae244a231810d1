"""Target presets: which modules of a network a LoRA changes. Each published choice is one row.

The hosts are the spatial or the temporal transformers (`transformer_in` among the latter); in a host a preset takes
projections of its attentions and, or not, its feed-forward. On ModelScope's network the parameter counts equal those
that the papers print. On temporal hosts attn1 and attn2 are both self-attention over frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..backbones.unet3d import describe
from ..core.errors import ModelError, SettingsError
from ..core.lora import SPATIAL, TEMPORAL, Layer

_ALL = ("to_q", "to_k", "to_v", "to_out.0")
_BOTH = ("attn1", "attn2")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class TargetPreset:
    """A row of the table: which transformers (`layer`), which projections of which attentions, feed-forward or not."""

    name: str
    layer: Layer
    attentions: tuple[str, ...]
    projections: tuple[str, ...]
    feed_forward: bool
    source: str

    @property
    def endings(self) -> frozenset[str]:
        """Module names relative to a transformer block."""
        attention = {f"{attention}.{projection}" for attention in self.attentions for projection in self.projections}
        return frozenset(attention.union(_FEED_FORWARD if self.feed_forward else ()))


_CAV, _MD, _SM = "Customize-A-Video", "MotionDirector", "Separate Motion from Appearance"

_PRESETS = (
    TargetPreset("temporal-attention", TEMPORAL, _BOTH, _ALL, False, f"{_CAV}: T-LoRA, Table 3"),
    TargetPreset("temporal-all", TEMPORAL, _BOTH, _ALL, True, f"{_MD}: temporal path, reference code"),
    TargetPreset("tap-k", TEMPORAL, _BOTH, ("to_k",), False, f"{_SM}: TAP as the paper is reported"),
    TargetPreset("tap-k-out", TEMPORAL, _BOTH, ("to_k", "to_out.0"), False, f"{_SM}: TAP as in its code"),
    TargetPreset(
        "tap-qk", TEMPORAL, _BOTH, ("to_q", "to_k"), False, f"{_SM}: TAP as its abstract says, Value untouched"
    ),
    TargetPreset("spatial-attention", SPATIAL, _BOTH, _ALL, False, f"{_CAV}: S-LoRA absorber, Table 3"),
    TargetPreset("spatial-self-ff", SPATIAL, ("attn1",), _ALL, True, f"{_MD}: spatial path, reference code"),
)

TARGETS: dict[str, TargetPreset] = {preset.name: preset for preset in _PRESETS}


def find_preset(name: str) -> TargetPreset:
    """The preset of that name; raises SettingsError that lists the names."""
    if name not in TARGETS:
        raise SettingsError(f"target preset is {name!r}; it must be one of: {', '.join(TARGETS)}.")
    return TARGETS[name]


def target_modules(unet: nn.Module, preset: str) -> tuple[str, ...]:
    """Dotted names of the linear modules that the preset adapts on `unet`, in `named_modules` order.

    Raises SettingsError for an unknown preset, ModelError for a network that is not supported or lacks such layers.
    """
    row = find_preset(preset)
    names = tuple(_matching(unet, row))
    if not names:
        raise ModelError(
            f"The network has no {row.layer} transformer, so target preset {preset!r} adapts nothing on it."
        )
    return names


def parameter_count(unet: nn.Module, preset: str, rank: int) -> int:
    """Trainable parameters of a LoRA of that rank: rank * (in + out) over the preset's modules."""
    if rank < 1:
        raise SettingsError(f"rank is {rank}; it must be at least 1.")
    modules = (unet.get_submodule(name) for name in target_modules(unet, preset))
    return rank * sum(_width(module) for module in modules)


def _matching(unet: nn.Module, preset: TargetPreset) -> Iterator[str]:
    backbone = describe(unet)
    hosts = backbone.temporal_transformers if preset.layer == TEMPORAL else backbone.spatial_transformers
    for host in hosts:
        for name, module in unet.get_submodule(host).named_modules():
            # name: transformer_blocks.<number>.<ending>
            ending = name.split(".", 2)[2:]
            if isinstance(module, nn.Linear) and ending and ending[0] in preset.endings:
                yield f"{host}.{name}"


def _width(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.in_features + module.out_features
