"""Writing LoRAs for other tools, each file proved by reading it back through the importer.

In fp32 every change of a weight comes back bit for bit; in fp16 each factor is rounded to 11 bits first.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.registry import named
from ..core.errors import LoRAFileError
from ..core.lora import ALL_NOISE, LoRA, LoRALayer
from ..core.metadata import acts_in_entry
from .formats import ImportReport, format_named
from .names import dotted
from .own import (
    FINGERPRINT_KEY,
    KIND_KEY,
    PEFT_KEY,
    SCALE_KEY,
    VERSION_KEY,
    as_stored,
    described,
    factor_tensors,
    peft_config,
    write_checked,
)
from .reader import load_any

_log = logging.getLogger(__name__)
_ATTENTION = re.compile(r"(?P<attention>.+\.attn\d+)\.(?P<projection>to_[qkv]|to_out)(?:\.0)?")


def export_kohya(
    path: str | Path, lora: LoRA, *, dtype: torch.dtype | None = None, metadata: bool = True, overwrite: bool = True
) -> Path:
    """Write `lora_unet_*` keys with alpha, as kohya's trainer does. Raises LoRAFileError, OutputError."""
    stored = as_stored(lora, dtype)
    tensors: dict[str, Tensor] = {}
    for module, layer in stored.layers.items():
        key = f"lora_unet_{module.replace('.', '_')}"
        if dotted(module.replace(".", "_")) != module:
            raise LoRAFileError(f"{module} has no name in kohya's format: export to peft instead")
        tensors[f"{key}.lora_down.weight"] = layer.down
        tensors[f"{key}.lora_up.weight"] = layer.up
        tensors[f"{key}.alpha"] = _alpha(layer.scale, layer.rank)
    return write_proved(Path(path), stored, tensors, {"ss_network_module": "networks.lora"}, metadata, overwrite)


def export_peft(
    path: str | Path, lora: LoRA, *, dtype: torch.dtype | None = None, metadata: bool = True, overwrite: bool = True
) -> Path:
    """Write `unet.<module>.lora_A/B.weight` with the adapter's configuration, as diffusers does."""
    stored = as_stored(lora, dtype)
    return write_proved(
        Path(path), stored, factor_tensors(stored), {PEFT_KEY: peft_config(stored)}, metadata, overwrite
    )


def export_native(
    path: str | Path, lora: LoRA, *, dtype: torch.dtype | None = None, metadata: bool = True, overwrite: bool = True
) -> Path:
    """Write the file that the family's own tools take: for AnimateDiff what *Load AnimateDiff LoRA* of Evolved loads.

    Such files have no alpha: the scale goes into the up factors. Raises LoRAFileError for a backbone without files of
    its own, or naming the layers that its tools would drop or stumble over.
    """
    stored = as_stored(_folded(lora), dtype)
    return write_proved(Path(path), stored, native_tensors(stored), {}, metadata, overwrite)


def export_animatediff(path: str | Path, lora: LoRA, **options: Any) -> Path:
    """`export_native` for AnimateDiff. Raises LoRAFileError for a LoRA of another family."""
    return _export_of("animatediff", path, lora, options)


def export_comfyui(path: str | Path, lora: LoRA, **options: Any) -> Path:
    """`export_native` for what ComfyUI's own Load LoRA takes. Raises LoRAFileError for a LoRA of another family."""
    return _export_of("comfyui", path, lora, options)


def _export_of(form: str, path: str | Path, lora: LoRA, options: Mapping[str, Any]) -> Path:
    own = named(lora.backbone).native_format
    if own != form:
        raise LoRAFileError(f"a LoRA for {lora.backbone} has no {form} form: write {own or 'peft or kohya'}")
    return export_native(path, lora, **options)


def export_diffusers(
    path: str | Path, lora: LoRA, *, dtype: torch.dtype | None = None, metadata: bool = True, overwrite: bool = True
) -> Path:
    """Write the keys of diffusers before PEFT, as its motion LoRAs for a MotionAdapter have them: attention only.

    They have no alpha: the scale goes into the up factors. Raises LoRAFileError naming a layer of another kind.
    """
    stored = as_stored(_folded(lora), dtype)
    tensors: dict[str, Tensor] = {}
    for module, layer in stored.layers.items():
        found = _ATTENTION.fullmatch(module)
        if found is None:
            raise LoRAFileError(f"{module} is no projection of an attention, the only ones in this format: write peft")
        key = f"unet.{found['attention']}.processor.{found['projection']}_lora"
        tensors |= {f"{key}.down.weight": layer.down, f"{key}.up.weight": layer.up}
    return write_proved(Path(path), stored, tensors, {}, metadata, overwrite)


def _folded(lora: LoRA) -> LoRA:
    """The same changes with every scale 1."""
    plain = {m: LoRALayer(layer.down, layer.up * layer.scale) for m, layer in lora.layers.items()}
    return replace(lora, layers=plain)


def native_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The factors under the family's own keys, see `export_native`; every scale must be 1."""
    keys = {module: named(lora.backbone).native_key(module) for module in lora}
    lost = [module for module, key in keys.items() if key is None]
    if lost:
        raise LoRAFileError(
            f"{len(lost)} of {len(lora)} layers have no place in a file for the tools of {lora.backbone}, the first is "
            f"{lost[0]}: write only the temporal layers, or another format"
        )
    down, up = named(lora.backbone).native_suffixes
    downs = {f"{key}{down}": lora.layers[module].down for module, key in keys.items()}
    return downs | {f"{key}{up}": lora.layers[module].up for module, key in keys.items()}


def convert(
    source: str | Path,
    target: str | Path,
    kind: str = "motion-lora",
    unet: nn.Module | None = None,
    *,
    dtype: torch.dtype | None = None,
    metadata: bool = True,
    overwrite: bool = True,
) -> ImportReport:
    """Read any format, write the one that is named `kind` in `formats.FORMATS`; returns what was read.

    Raises SettingsError for a name that cannot be written, LoRAFileError, OutputError.
    """
    write = format_named(kind).writer()
    report = load_any(source, unet)
    write(target, report.lora, dtype=dtype, metadata=metadata, overwrite=overwrite)
    return report


def not_carried(lora: LoRA, kind: str, *, metadata: bool) -> str:
    """What a file of that format will not say of the LoRA, in a sentence; "" where it says everything."""
    if kind == "motion-lora" or metadata or lora.acts_in == ALL_NOISE:
        return ""
    low, high = lora.acts_in
    return (
        f"a {kind} file without metadata cannot say that this LoRA acts in the noise from {low:g} to {high:g} only: it "
        "will act in every sampling step; write it with metadata, or in the motion-lora format"
    )


def write_proved(
    path: Path,
    stored: LoRA,
    tensors: Mapping[str, Tensor],
    entries: Mapping[str, str],
    metadata: bool,
    overwrite: bool,
) -> Path:
    """Write tensors in a foreign format, read them back with `load_any`, and only then give the file its name.

    The LoRA's metadata goes with them, but for the keys that would make it a file of the own format; `entries` are the
    format's own. Raises LoRAFileError where reading back gives another change of any weight, OutputError.
    """
    said = {**described(path, stored, tensors), **acts_in_entry(stored)} if metadata else {}
    if lost := not_carried(stored, "foreign", metadata=metadata):
        _log.warning("%s: %s", path.name, lost)
    for key in (VERSION_KEY, KIND_KEY, SCALE_KEY, FINGERPRINT_KEY):
        said.pop(key, None)
    needed = {key: value for key, value in entries.items() if metadata or key == PEFT_KEY}
    return write_checked(
        path,
        tensors,
        {**said, "format": "pt", **needed},
        lambda part: _same_changes(part, stored, path.name),
        overwrite,
    )


def _same_changes(part: Path, expected: LoRA, name: str) -> None:
    """Alpha over rank may differ from the scale in its last bit; the changes, in fp32, may not."""
    found = load_any(part).lora
    for module in {**found.layers, **expected.layers}:
        a, b = found.layers.get(module), expected.layers.get(module)
        if a is None or b is None or not torch.equal(a.delta(), b.delta()):
            raise LoRAFileError(f"{name} was not written: reading it back gave another change for {module}")


def _alpha(scale: float, rank: int) -> Tensor:
    """An alpha that gives the scale back when divided by the rank: in fp32 if it can be, else in fp64."""
    exact = scale * rank
    single = torch.tensor(exact, dtype=torch.float32)
    if float(single) / rank == scale:
        return single
    candidates = (exact, math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf))
    best = min(candidates, key=lambda alpha: abs(alpha / rank - scale))
    return torch.tensor(best, dtype=torch.float64)
