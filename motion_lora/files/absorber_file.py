"""Appearance absorbers in the own format: a spatial LoRA and learned tokens in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.absorber import Absorber, PlaceholderTokens
from ..core.errors import LoRAFileError
from ..core.lora import LoRA
from ..core.metadata import OWN
from .container import read_header
from .own import (
    ABSORBER_KIND,
    as_stored,
    backbone_from,
    contents,
    described,
    factor_tensors,
    layers_from,
    own_entries,
    require_kind,
    same_lora,
    write_checked,
)

ROWS = "tokens.rows"  # (n, dim) in an absorber's file
NAMES_KEY, WORDS_KEY = f"{OWN}token_names", f"{OWN}token_words"


def save_absorber(path: str | Path, absorber: Absorber, *, metadata: bool = True, overwrite: bool = True) -> Path:
    """Write an appearance absorber: its spatial LoRA and its learned tokens, in one file of the own format.

    Raises LoRAFileError for an absorber with neither, or with whole weights (they are a model's file already).
    """
    path = Path(path)
    if absorber.weights:
        raise LoRAFileError(f"{path.name}: an absorber of whole weights is not saved; keep the model they came from")
    if absorber.spatial is None and absorber.tokens is None:
        raise LoRAFileError("there is nothing to save: the absorber has neither a spatial LoRA nor learned tokens")
    spatial = LoRA({}) if absorber.spatial is None else as_stored(absorber.spatial, None)
    tensors, entries = factor_tensors(spatial), own_entries(spatial, ABSORBER_KIND)
    if absorber.tokens is not None:
        tensors[ROWS] = absorber.tokens.rows.detach().float().cpu()
        entries |= {NAMES_KEY: json.dumps(absorber.tokens.names), WORDS_KEY: json.dumps(absorber.tokens.words)}
    if metadata:
        entries = {**described(path, replace(spatial, metadata=absorber.metadata), tensors), **entries}

    def verify(part: Path) -> None:
        found = load_absorber(part)
        same_lora(found.spatial or LoRA({}), spatial, path.name)
        if found.tokens is not None and not torch.equal(found.tokens.rows, tensors[ROWS]):
            raise LoRAFileError(f"{path.name} was not written: reading it back gave other tokens")

    return write_checked(path, tensors, entries, verify, overwrite)


def load_absorber(path: str | Path) -> Absorber:
    """Read an appearance absorber. Raises LoRAFileError for a file that is something else, or damaged."""
    path = Path(path)
    header = read_header(path)
    require_kind(path.name, header, ABSORBER_KIND)
    tensors, metadata = contents(path, header)
    rows = tensors.pop(ROWS, None)
    tokens = None if rows is None else _tokens(path.name, rows, metadata)
    layers = layers_from(path.name, tensors, metadata) if tensors or tokens is None else {}
    backbone = backbone_from(path.name, metadata)
    return Absorber(LoRA(layers, metadata, backbone=backbone) if layers else None, tokens, metadata)


def _tokens(name: str, rows: Tensor, metadata: Mapping[str, str]) -> PlaceholderTokens:
    from ..core.absorber import PlaceholderTokens

    try:
        names, words = json.loads(metadata[NAMES_KEY]), json.loads(metadata.get(WORDS_KEY, "[]"))
    except (ValueError, KeyError, RecursionError) as error:
        raise LoRAFileError(f"{name} does not name its learned tokens: {NAMES_KEY} is damaged") from error
    lists = isinstance(names, list) and isinstance(words, list)
    if not lists or not names or not all(isinstance(entry, str) for entry in [*names, *words]):
        raise LoRAFileError(f"{name} does not name its learned tokens: {NAMES_KEY} is damaged")
    if rows.ndim != 2 or len(rows) != len(names) or len(words) not in (0, len(names)) or len(set(names)) < len(names):
        raise LoRAFileError(f"{name} names {len(names)} learned tokens and holds rows {tuple(rows.shape)}")
    if not rows.is_floating_point() or not bool(rows.float().isfinite().all()):
        raise LoRAFileError(f"{name}: its learned tokens hold numbers that are not finite; the training has diverged")
    return PlaceholderTokens(tuple(names), rows.float(), tuple(words))
