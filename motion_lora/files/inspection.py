"""What a LoRA file is, as a json-able report: for the command line, the inspect node and the job's history."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapters.fit import base_warning, check_fits
from ..backbones.lora import block_of, blocks_of, layer_of
from ..backbones.registry import named
from ..core.errors import LoRAFileError
from ..core.lora import SPATIAL, TEMPORAL, LoRA, LoRALayer
from ..core.metadata import OWN
from ..media.tables import aligned
from .absorber_file import load_absorber
from .formats import ImportReport
from .own import ABSORBER_KIND, FINGERPRINT_KEY, KIND_KEY, backbone_from, is_own
from .reader import load_any
from .source import Source, open_source

if TYPE_CHECKING:
    from ..core.identity import BaseIdentity

BLOCK_COLUMNS = ("block", "layers", "rank", "norm")
_TEXT_FIELDS = (
    "title", "description", "method", "target_preset", "expert", "alpha", "base_name", "base_weights_hash",
    "num_frames", "height", "width", "fps", "steps", "learning_rate", "seed", "created", "imported_from",
    "format_version",
)  # fmt: skip
_LIST_FIELDS = ("captions", "appearance_captions", "trigger_words")


def inspect(path: str | Path, unet: nn.Module | None = None, identity: BaseIdentity | None = None) -> dict[str, Any]:
    """Everything about a file that a person asks, json-able; raises LoRAFileError with the reason for what it is not.

    Keys: file, size, format, kind, backbone, layers, temporal, spatial, convolutions, ranks, parameters, dtypes, blocks
    (a list of block, layers, ranks, norm), norm, metadata (readable entries), notes, warnings, `fits` where `unet`
    is given.
    """
    source = open_source(path)
    if source.header is not None and is_own(source.header) and source.metadata.get(KIND_KEY) == ABSORBER_KIND:
        return _inspect_absorber(source)
    report = load_any(path, unet)
    lora = report.lora
    warning = base_warning(lora.metadata, identity)
    return {
        **_common(source, lora),
        "format": report.format,
        "kind": "lora",
        "fits": None if unet is None else {"matched": report.matched, "total": report.total},
        "notes": list(report.notes),
        "warnings": [warning] if warning else [],
    }


def verify(path: str | Path, unet: nn.Module | None = None, identity: BaseIdentity | None = None) -> dict[str, Any]:
    """Check a file all the way: container, keys, shapes, finite numbers, the hashes it carries, and `unet` if given.

    Returns {"file", "format", "layers", "checks": [text], "warnings": [text]}; raises LoRAFileError at the first fault.
    """
    source = open_source(path)
    report = load_any(path, unet)
    checks = [f"{report.text}, every number finite", *_check_hashes(source, report)]
    warnings: tuple[str, ...] = ()
    if unet is not None:
        fit = check_fits(report.lora, unet, identity)
        checks.append(f"fits the base: {fit.matched} of {fit.total} layers")
        warnings = fit.warnings
    return {
        "file": source.name,
        "format": report.format,
        "layers": report.total,
        "checks": checks,
        "warnings": list(warnings),
    }


def summary(facts: Mapping[str, Any]) -> dict[str, str]:
    """The report of `inspect` as one line per fact, by its name; what the file does not say is left out."""
    convolutions = f", {facts['convolutions']} of them convolutions" if facts["convolutions"] else ""
    joint = facts["layers"] - facts["temporal"] - facts["spatial"]
    paths = f"{joint} joint" if joint else f"{facts['temporal']} temporal, {facts['spatial']} spatial"
    lines = {
        "file": f"{facts['file']} ({facts['size']:,} bytes)",
        "kind": f"{facts['kind']}, {facts['format']} format",
        "backbone": f"{facts['backbone']} ({named(facts['backbone']).models})",
        "layers": f"{facts['layers']} ({paths}{convolutions})",
        "rank": _joined(facts["ranks"]),
        "parameters": f"{facts['parameters']:,} ({_joined(facts['dtypes'])})",
        "norm": f"{facts['norm']:.4f}",
    }
    if facts.get("tokens"):
        lines["tokens"] = f"{_joined(facts['tokens']['names'])}, width {facts['tokens']['width']}"
    for name, value in facts["metadata"].items():
        lines[name.replace("_", " ")] = "; ".join(value) if isinstance(value, list) else str(value)
    if facts["fits"]:
        lines["fits the base"] = f"{facts['fits']['matched']} of {facts['fits']['total']} layers"
    for number, remark in enumerate((*facts["notes"], *facts["warnings"]), start=1):
        lines[f"note {number}"] = remark
    return lines


def block_rows(facts: Mapping[str, Any]) -> list[tuple[str, int, str, str]]:
    """The blocks of the report as rows under BLOCK_COLUMNS, in the order in which the network runs them."""
    return [(b["block"], b["layers"], _joined(b["ranks"]), f"{b['norm']:.4f}") for b in facts["blocks"]]


def report_text(facts: Mapping[str, Any]) -> str:
    """The whole report as text: a line per fact, then the table of blocks."""
    lines = [f"{name + ':':22}{value}" for name, value in summary(facts).items()]
    table = aligned(block_rows(facts), BLOCK_COLUMNS) if facts["blocks"] else []
    return "\n".join([*lines, "", *table] if table else lines)


def delta_norm(layer: LoRALayer) -> float:
    """Frobenius norm of the change, from the small products: |up down|^2 = sum (up^T up) * (down down^T)."""
    up, down = layer.up.flatten(1).double(), layer.down.flatten(1).double()
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
    return abs(layer.scale) * float(square.sqrt())


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _inspect_absorber(source: Source) -> dict[str, Any]:
    absorber = load_absorber(source.path)
    tokens = absorber.tokens
    lora = absorber.spatial or LoRA({}, absorber.metadata, backbone=backbone_from(source.name, source.metadata))
    return {
        **_common(source, lora),
        "format": "motion-lora",
        "kind": "absorber",
        "tokens": None if tokens is None else {"names": list(tokens.names), "width": tokens.rows.shape[1]},
        "fits": None,
        "notes": ["an appearance absorber: it is used while training and thrown away afterwards"],
        "warnings": [],
    }


def _common(source: Source, lora: LoRA) -> dict[str, Any]:
    paths = Counter(layer_of(lora, module) for module in lora)
    dtypes = {str(t.dtype).removeprefix("torch.") for layer in lora.layers.values() for t in (layer.down, layer.up)}
    blocks = _blocks(lora)
    return {
        "file": source.name,
        "size": source.path.stat().st_size,
        "backbone": lora.backbone,
        "layers": len(lora),
        "temporal": paths[TEMPORAL],
        "spatial": paths[SPATIAL],
        "convolutions": sum(layer.down.ndim > 2 for layer in lora.layers.values()),
        "ranks": list(lora.ranks),
        "parameters": lora.num_parameters,
        "dtypes": sorted(dtypes),
        "norm": _root_of_squares(delta_norm(layer) for layer in lora.layers.values()),
        "blocks": blocks,
        "metadata": _readable(lora.metadata),
    }


def _blocks(lora: LoRA) -> list[dict[str, Any]]:
    """One row per block, in the order in which the network runs them."""
    rows = []
    for block in sorted(blocks_of(lora), key=named(lora.backbone).block_place):
        own = [layer for module, layer in lora.layers.items() if block_of(lora, module) == block]
        norm = _root_of_squares(delta_norm(layer) for layer in own)
        ranks = sorted({layer.rank for layer in own})
        rows.append({"block": block, "layers": len(own), "ranks": ranks, "norm": norm})
    return rows


def _root_of_squares(norms: Iterable[float]) -> float:
    return float(torch.tensor([norm**2 for norm in norms], dtype=torch.float64).sum().sqrt())


def _readable(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our own entries by their plain names; for foreign files what their own metadata says of the same things."""
    found: dict[str, Any] = {key: metadata[OWN + key] for key in _TEXT_FIELDS if metadata.get(OWN + key)}
    found |= {key: entries for key in _LIST_FIELDS if (entries := _list(metadata.get(OWN + key, "")))}
    found.setdefault("title", metadata.get("modelspec.title", ""))
    found.setdefault("base_name", metadata.get("ss_sd_model_name", "") or metadata.get("ss_base_model_version", ""))
    found.setdefault("trigger_words", _trigger_words(metadata))
    return {key: value for key, value in found.items() if value}


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The trigger phrase, or the ten most frequent tags of kohya's training set."""
    if phrase := metadata.get("modelspec.trigger_phrase", ""):
        return [phrase]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []  # foreign and only for show
    return [tag for tag, _ in counts.most_common(10)]


def _list(text: str) -> list[str]:
    try:
        content = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []  # only for show
    return [str(entry) for entry in content] if isinstance(content, list) else []


def _check_hashes(source: Source, report: ImportReport) -> list[str]:
    checks = []
    said = source.metadata.get(FINGERPRINT_KEY, "")
    if said and report.format == "motion-lora":
        if said != report.lora.fingerprint():
            raise LoRAFileError(f"{source.name} was changed after it was written: its layers have another fingerprint")
        checks.append("the layers have the fingerprint that the file names")
    said = source.metadata.get("sshs_model_hash", "")
    if said and source.header is not None:
        if said != _data_hash(source.path, source.header.data_start):
            raise LoRAFileError(f"{source.name} was changed after it was written: its data has another hash")
        checks.append("the data has the hash that the file names")
    return checks


def _data_hash(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
