"""Reading a LoRA of any supported format: recognised by content, applied whole or refused with the reason.

Alpha is folded into each layer's scale once, here, and nowhere else: kohya's alpha is divided by the rank, PEFT's by
the rank (or its root) that its configuration names, and a file without any alpha has scale 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.fit import require_fit
from ..backbones.base import Backbone
from ..backbones.registry import of_network
from ..core.errors import LoRAFileError
from ..core.lora import LoRA, LoRALayer
from ..core.metadata import OWN, acts_in_of
from .formats import ImportReport, ReadFor, recognised
from .lists import read_list, reference_network
from .loralib import unfolded
from .names import TEXT, UNET, Key, dialect_of, parse_key
from .own import (
    LORA_KIND,
    PEFT_KEY,
    contents,
    lora_from,
    require_finite,
    require_kind,
    require_pairs,
    require_plausible,
)
from .refusals import backbone_of, refuse_foreign
from .source import ADAPTER_CONFIG, Source, json_object, open_source


def load_any(
    path: str | Path, unet: nn.Module | None = None, *, text_encoder: nn.Module | None = None, list_index: int = 0
) -> ImportReport:
    """Read a LoRA file (or a folder of diffusers or PEFT) of any format of `formats.FORMATS`.

    `unet` is the network it is for: every layer must exist there with its shape, or the file is refused. Without one,
    only the file itself is checked. `text_encoder` asks for the text part of an image LoRA, and is what it is checked
    against; without one that part is left out with a note. `list_index` picks from an N-clip spatial list.
    Raises LoRAFileError in one line that names the keys and the likely reason; never runs anything from the file.
    """
    source = open_source(path)
    row = recognised(source)
    # What no format recognises is read as names: that refuses it with what it is instead, or with its keys.
    read = row.reader() if row else read_named
    report = read(source, ReadFor(unet, text_encoder, list_index))
    if unet is not None:
        require_fit(unet, report.lora, source.name)
    return report


def read_own(source: Source, read_for: ReadFor) -> ImportReport:
    """The own format; docs/FORMAT.md. Raises LoRAFileError."""
    assert source.header is not None
    require_kind(source.name, source.header, LORA_KIND)
    tensors, metadata = contents(source.path, source.header)
    lora = lora_from(source.name, tensors, metadata)
    return ImportReport(lora, "motion-lora", len(lora), len(lora))


def read_positional(source: Source, read_for: ReadFor) -> ImportReport:
    """A list of tensors without names. Raises LoRAFileError."""
    clip = read_for.list_index
    preset, loras = read_list(source, read_for.unet)
    if not 0 <= clip < len(loras):
        raise LoRAFileError(f"{source.name} holds the LoRAs of {len(loras)} clips: there is no clip {clip}")
    for lora in loras:
        require_finite(source.name, lora.layers)
    notes = [f"a list without names, recognised as {preset} by its {len(source.shapes)} tensors"]
    if len(loras) > 1:
        notes.append(f"clip {clip} of {len(loras)}")
    chosen = loras[clip]
    lora = replace(chosen, metadata={**chosen.metadata, **_origin(source, "list")})
    return ImportReport(lora, "list", len(lora), len(lora), tuple(notes), clips=loras)


def read_named(source: Source, read_for: ReadFor) -> ImportReport:
    """Tensors with names, in the dialects of `names.parse_key`. Raises LoRAFileError."""
    unet, text_encoder = read_for.unet, read_for.text_encoder
    backbone = of_network(unet) if unet is not None else backbone_of(source)
    refuse_foreign(source, unet, backbone)
    keys = _parsed_keys(source, backbone)
    dialect = dialect_of(keys.values())
    for key, shape in source.shapes.items():
        if keys[key].role != "alpha":
            require_plausible(source.name, key, shape)
    tensors = source.read()
    config = _peft_config(source)
    layers = {part: _assemble(source.name, part, keys, tensors, config, backbone) for part in (UNET, TEXT)}
    if not layers[UNET]:
        raise LoRAFileError(f"{source.name} changes only a text encoder: it has no layers for the video network")
    if dialect == "loralib":
        layers[UNET] = unfolded(layers[UNET], unet or reference_network())
    about = {**_carried(source), **_origin(source, dialect)}
    lora = LoRA(_shaped(layers[UNET], unet), about, acts_in_of(about), backbone.name)
    text, notes = _text_part(source.name, layers[TEXT], text_encoder)
    return ImportReport(lora, dialect, len(lora), len(lora), notes, text)


def read_native(source: Source, read_for: ReadFor) -> ImportReport:
    """AnimateDiff's own names; ADMotionDirector's are read alike. Raises LoRAFileError."""
    report = read_named(source, read_for)
    lora = report.lora.with_metadata(**_origin(source, "animatediff"))
    return replace(report, lora=lora, format="animatediff")


def read_comfyui(source: Source, read_for: ReadFor) -> ImportReport:
    """PEFT's factors under ComfyUI's own names. Raises LoRAFileError."""
    report = read_named(source, read_for)
    lora = report.lora.with_metadata(**_origin(source, "comfyui"))
    return replace(report, lora=lora, format="comfyui")


def _parsed_keys(source: Source, backbone: Backbone) -> dict[str, Key]:
    """Every key must mean something, and no two the same: what is not understood would be left out in silence."""
    keys = {key: _own_name(parse_key(key), backbone) for key in source.shapes}
    unknown = [key for key, parsed in keys.items() if parsed is None]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        named = ", ".join(key[:80] for key in unknown[:3]) + more
        raise LoRAFileError(
            f"{source.name}: {len(keys) - len(unknown)} of {len(keys)} keys are known; no LoRA for these networks has "
            f"{named}"
        )
    known = {key: parsed for key, parsed in keys.items() if parsed is not None}
    if not known:
        raise LoRAFileError(f"{source.name} holds no tensors: it is no LoRA")
    if len({parsed[:3] for parsed in known.values()}) < len(known):
        raise LoRAFileError(f"{source.name} holds two tensors for one place: it mixes adapters; export them one by one")
    return known


def _own_name(key: Key | None, backbone: Backbone) -> Key | None:
    return key if key is None or key.part == TEXT else key._replace(module=backbone.module_named(key.module))


def _assemble(
    name: str,
    part: str,
    keys: Mapping[str, Key],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    backbone: Backbone,
) -> dict[str, LoRALayer]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, parsed in keys.items():
        if parsed.part == part:
            modules.setdefault(parsed.module, {})[parsed.role] = tensors[key]
    layers = {}
    for module, roles in modules.items():
        if not {"down", "up"} <= set(roles):
            missing = "down" if "down" not in roles else "up"
            raise LoRAFileError(f"{name}: {module} has no {missing} factor; the file was damaged or edited")
        down = _with_mid(name, module, roles["down"], roles["mid"]) if "mid" in roles else roles["down"]
        scale = _scale(name, part, module, down.shape[0], roles.get("alpha"), config)
        layers[module] = LoRALayer(down, roles["up"], scale)
    if layers:
        layers = {module: _squeezed(module, layer, backbone) for module, layer in layers.items()}
        require_pairs(name, layers)
        require_finite(name, layers)
    return layers


def _with_mid(name: str, module: str, down: Tensor, mid: Tensor) -> Tensor:
    """Kohya's Tucker form of a convolution, up (out, r, 1, 1) o mid (r, r, k, k) o down (r, in, 1, 1): mid o down."""
    rank = down.shape[0]
    if mid.ndim < 3 or mid.shape[:2] != (rank, rank) or down.ndim != mid.ndim or math.prod(down.shape[2:]) != 1:
        raise LoRAFileError(f"{name}: the middle factor of {module} does not fit the others")
    return torch.einsum("rs...,si->ri...", mid.float(), down.flatten(1).float()).contiguous()


def _scale(name: str, part: str, module: str, rank: int, alpha: Tensor | None, config: Mapping[str, Any]) -> float:
    """Alpha in the file wins over a configuration; neither means 1."""
    if alpha is not None:
        value = float(alpha) if alpha.numel() == 1 else math.nan
        if not math.isfinite(value) or value == 0.0:
            raise LoRAFileError(f"{name}: the alpha of {module} is {alpha.flatten().tolist()[:3]}, not a number to use")
        return value / rank
    return _configured_scale(name, part, module, rank, config) if config else 1.0


def _configured_scale(name: str, part: str, module: str, rank: int, config: Mapping[str, Any]) -> float:
    """PEFT: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; both may differ by module."""
    prefix = {UNET: "unet.", TEXT: "text_encoder."}[part]
    own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)} or config
    try:
        alpha = float(_pattern_value(name, module, own.get("alpha_pattern"), own.get("lora_alpha", rank)))
        said = int(_pattern_value(name, module, own.get("rank_pattern"), own.get("r", rank)))
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise LoRAFileError(f"{name}: its adapter configuration has no usable alpha for {module}") from error
    if said != rank or not math.isfinite(alpha):
        raise LoRAFileError(f"{name}: {module} has rank {rank}, its adapter configuration says {said}, alpha {alpha}")
    return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _pattern_value(name: str, module: str, pattern: Any, default: Any) -> Any:
    """PEFT's patterns are regular expressions; those in files are plain names, and only these are followed."""
    for key, value in (pattern or {}).items():
        plain = key.removeprefix("^").replace("\\.", ".")
        if re.search(r"[^\w.]", plain):
            raise LoRAFileError(f"{name}: the pattern {key[:60]!r} of its adapter configuration is not a module name")
        if module == plain or module.endswith(f".{plain}"):
            return value
    return default


def _peft_config(source: Source) -> dict[str, Any]:
    for key in (PEFT_KEY, ADAPTER_CONFIG):
        if key in source.metadata:
            config = json_object(source.name, key, source.metadata[key])
            if any(config.get(f"{prefix}use_dora") for prefix in ("", "unet.")):
                raise LoRAFileError(f"{source.name} is a DoRA: it also rescales the weights, which a LoRA cannot hold")
            return config
    return {}


def _squeezed(module: str, layer: LoRALayer, backbone: Backbone) -> LoRALayer:
    """Factors of a linear layer may be written as 1x1 convolutions (kohya, where the layer once was one)."""
    pointwise = layer.down.ndim == 4 and layer.up.ndim == 4 and layer.down.shape[2:] == layer.up.shape[2:] == (1, 1)
    if not pointwise or not backbone.is_linear(module):
        return layer
    return LoRALayer(layer.down.flatten(1), layer.up.flatten(1), layer.scale)


def _shaped(layers: Mapping[str, LoRALayer], unet: nn.Module | None) -> dict[str, LoRALayer]:
    """And the other way round, where the network at hand has a 1x1 convolution."""
    if unet is None:
        return dict(layers)
    modules = dict(unet.named_modules())
    shaped = {}
    for name, layer in layers.items():
        weight = getattr(modules.get(name), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > layer.down.ndim == 2 and math.prod(weight.shape[2:]) == 1:
            ones = (1,) * (weight.ndim - 2)
            layer = LoRALayer(
                layer.down.view(*layer.down.shape, *ones), layer.up.view(*layer.up.shape, *ones), layer.scale
            )
        shaped[name] = layer
    return shaped


def _text_part(
    name: str, layers: Mapping[str, LoRALayer], text_encoder: nn.Module | None
) -> tuple[LoRA | None, tuple[str, ...]]:
    if not layers:
        return None, ()
    if text_encoder is None:
        return None, (
            f"{len(layers)} text-encoder layers were left out: words may act weaker than where it comes from",
        )
    known = {module for module, _ in text_encoder.named_modules()}
    named = {module if module in known else f"text_model.{module}": layer for module, layer in layers.items()}
    lora = LoRA(named, {"modelspec.title": f"the text-encoder part of {name}"})
    require_fit(text_encoder, lora, f"the text-encoder part of {name}")
    note = f"{len(lora)} text-encoder layers are applied: they change what every word means, for the motion LoRA too"
    return lora, (note,)


def _carried(source: Source) -> dict[str, str]:
    """Metadata that stays true after the import; how the foreign file is to be read does not."""
    return {key: value for key, value in source.metadata.items() if key not in (PEFT_KEY, ADAPTER_CONFIG, "format")}


def _origin(source: Source, kind: str) -> dict[str, str]:
    title = source.metadata.get("modelspec.title", "") or source.path.stem
    return {f"{OWN}imported_from": kind, "modelspec.title": title}
