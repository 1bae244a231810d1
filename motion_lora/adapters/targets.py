"""Target presets: which modules of a network a LoRA changes. Each published choice is one row.

The hosts are the spatial or the temporal transformers of the backbone, or those that join both; in a host a preset
takes projections of its attentions and, or not, its feed-forward. On ModelScope's network the parameter counts equal
those that the papers print. In temporal hosts the first and the second attention both look over frames. Convolutions
are those of the temporal convolution layers, (3, 1, 1) over frames, or those of the residual blocks inside a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..backbones.base import Selection
from ..backbones.registry import of_network
from ..core.errors import ModelError, SettingsError
from ..core.lora import JOINT, SPATIAL, TEMPORAL, Layer
from .fit import weight_of

_ALL = ("query", "key", "value", "output")
_BOTH = ("first", "second")


@dataclass(frozen=True)
class TargetPreset:
    """A row of the table: on which layers, which projections of which attentions, feed-forward, convolutions or not.

    `zero_sum`: the kernels of the LoRA's convolutions over frames sum to zero over time, so that what stands still
    passes unchanged and only what changes from frame to frame can be changed.
    """

    name: str
    layer: Layer
    attentions: tuple[str, ...]
    projections: tuple[str, ...]
    feed_forward: bool
    convolutions: bool
    source: str
    zero_sum: bool = False

    @property
    def selection(self) -> Selection:
        """What the row asks a backbone for."""
        return Selection(self.layer, self.attentions, self.projections, self.feed_forward, self.convolutions)


_CAV, _MD, _SM = "Customize-A-Video", "MotionDirector", "Separate Motion from Appearance"
_OWN, _RELATION = "this project", "DreamRelation, where query and key carry the motion"

_PRESETS = (
    TargetPreset("temporal-attention", TEMPORAL, _BOTH, _ALL, False, False, f"{_CAV}: T-LoRA, Table 3"),
    TargetPreset("temporal-all", TEMPORAL, _BOTH, _ALL, True, False, f"{_MD}: temporal path, reference code"),
    TargetPreset("temporal-conv", TEMPORAL, (), (), False, True, f"{_OWN}: the convolutions over frames alone"),
    TargetPreset(
        "temporal-difference",
        TEMPORAL,
        _BOTH,
        _ALL,
        True,
        True,
        f"{_OWN}: temporal-full, its convolutions blind to what stands still",
        zero_sum=True,
    ),
    TargetPreset("temporal-full", TEMPORAL, _BOTH, _ALL, True, True, f"{_OWN}: attention, feed-forward, convolutions"),
    TargetPreset("tap-k", TEMPORAL, _BOTH, ("key",), False, False, f"{_SM}: TAP as the paper is reported"),
    TargetPreset("tap-k-out", TEMPORAL, _BOTH, ("key", "output"), False, False, f"{_SM}: TAP as in its code"),
    TargetPreset(
        "tap-qk", TEMPORAL, _BOTH, ("query", "key"), False, False, f"{_SM}: TAP as its abstract says, Value untouched"
    ),
    TargetPreset("spatial-attention", SPATIAL, _BOTH, _ALL, False, False, f"{_CAV}: S-LoRA absorber, Table 3"),
    TargetPreset("spatial-self-ff", SPATIAL, ("first",), _ALL, True, False, f"{_MD}: spatial path, reference code"),
    TargetPreset("spatial-conv", SPATIAL, (), (), False, True, "LoCon: the residual blocks' convolutions alone"),
    TargetPreset("spatial-full", SPATIAL, _BOTH, _ALL, True, True, "LoCon: attention, feed-forward, convolutions"),
    TargetPreset("joint-qk", JOINT, ("first",), ("query", "key"), False, False, _RELATION),
    TargetPreset("joint-attention", JOINT, ("first",), _ALL, False, False, f"{_MD}, as CMC carries it over"),
    TargetPreset("joint-all", JOINT, _BOTH, _ALL, True, False, "the usual LoRA of video transformers: all ten layers"),
)

TARGETS: dict[str, TargetPreset] = {preset.name: preset for preset in _PRESETS}


def find_preset(name: str) -> TargetPreset:
    """The preset of that name; raises SettingsError that lists the names."""
    if name not in TARGETS:
        raise SettingsError(f"target preset is {name!r}; it must be one of: {', '.join(TARGETS)}.")
    return TARGETS[name]


def target_modules(unet: nn.Module, preset: str) -> tuple[str, ...]:
    """Dotted names of the modules that the preset adapts on `unet`, in `named_modules` order.

    Raises SettingsError for an unknown preset, ModelError for a network that is not supported or lacks such layers.
    """
    row = find_preset(preset)
    names = of_network(unet).select(unet, row.selection)
    if not names:
        kind = "transformer" if row.attentions else "convolution"
        raise ModelError(
            f"The network has no {row.layer} {kind}, so target preset {preset!r} adapts nothing on it; a "
            f"{of_network(unet).name} takes others, as method {of_network(unet).recommended_method!r} does."
        )
    return names


def parameter_count(unet: nn.Module, preset: str, rank: int) -> int:
    """Trainable parameters of a LoRA of that rank: rank * (in * kernel + out) over the preset's modules."""
    if rank < 1:
        raise SettingsError(f"rank is {rank}; it must be at least 1.")
    weights = (weight_of(unet.get_submodule(name)) for name in target_modules(unet, preset))
    return rank * sum(weight.shape[0] + weight[0].numel() for weight in weights)
