"""Weights that exist only as pickles (.bin, .pt), as ZeroScope's do, written once as safetensors.

torch's weights-only reader builds tensors and nothing else, so that no code of the file can run. The result lies beside
the pickle, or where that folder cannot be written, in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import ModelError

logger = logging.getLogger(__name__)

_ENDINGS = (".bin", ".pt", ".pth")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, AssertionError, EOFError, OSError, MemoryError, OverflowError, ImportError),
)


def with_safetensors(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """The folder itself where it has safetensors of `stem` or nothing at all; else where its pickles were written anew.

    Of several variants the one that suits `dtype` is taken. Raises ModelError for pickles that hold more than tensors,
    are damaged, or where there is no place for the result.
    """
    if any(folder.glob(f"{stem}*.safetensors")):
        return folder
    pickles = _chosen(folder, stem, dtype)
    if not pickles:
        return folder
    kept = _cache_for(pickles)
    if all((kept / _new_name(path, stem)).is_file() for path in pickles):
        return kept
    try:
        _convert(pickles, folder, stem)
        return folder
    except OSError as error:
        logger.warning("%s cannot be written (%s): the weights go to %s", folder, error.strerror or error, kept)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _convert(pickles, kept, stem)
        return kept
    except OSError as error:
        size = sum(path.stat().st_size for path in pickles) / 2**30
        raise ModelError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), and neither it nor {kept} takes the "
            f"{size:.1f} GiB of a copy as safetensors ({error.strerror or error}): free some space there."
        ) from error


def _chosen(folder: Path, stem: str, dtype: torch.dtype) -> list[Path]:
    """One variant's files, whole or all of its shards, in order."""
    variants: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        found = re.fullmatch(rf"(?:{re.escape(stem)}|pytorch_model)(\.[^.]+?)?(-\d{{5}}-of-\d{{5}})?", path.stem)
        if path.suffix in _ENDINGS and found:
            variants.setdefault(found[1] or "", []).append(path)
    order = (".fp16", "") if dtype == torch.float16 else ("", ".fp16")
    name = next((name for name in (*order, *variants) if name in variants), None)
    if name is None:
        return []
    whole = [path for path in variants[name] if not _SHARD.search(path.name)]
    shards = [path for path in variants[name] if _SHARD.search(path.name)]
    if not whole and shards:
        promised = int(_SHARD.search(shards[0].name)[2])  # type: ignore[index]
        if len(shards) != promised:
            raise ModelError(f"{folder} has {len(shards)} of {promised} weight files. Download the missing ones.")
    return whole[:1] or shards


def _convert(pickles: Sequence[Path], target: Path, stem: str) -> None:
    """All of them or none: each is written under a passing name, and only then do they take theirs."""
    parts: list[tuple[Path, Path]] = []
    try:
        for path in pickles:
            part = target / f".{uuid.uuid4().hex}.tmp"
            parts.append((part, target / _new_name(path, stem)))
            logger.info("%s is written once as safetensors in %s", path.name, target)
            with part.open("xb"):  # the first to say that nothing can be written here, before gigabytes are read
                pass
            _save(_read(path), part)
        for part, name in parts:
            os.replace(part, name)
    finally:
        for part, _ in parts:
            part.unlink(missing_ok=True)


def _save(tensors: dict[str, Tensor], part: Path) -> None:
    try:
        save_file(tensors, str(part), {"format": "pt"})
    except RuntimeError as error:  # the package's own error for a disk that refuses
        raise OSError(str(error)) from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file by name, nothing else in it and no code. Raises ModelError."""
    content = _loaded(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(f"{path} holds no weights by name. Get the model's safetensors.")
    return tensors


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise ModelError(
                f"{path} holds more than tensors, and reading the rest could run code: it was not opened. Get the "
                "model's safetensors."
            ) from error
        raise ModelError(f"{path} cannot be read: it is damaged or cut off. Download the file again.") from error


def _read(path: Path) -> dict[str, Tensor]:
    content = _loaded(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ModelError(f"{path} holds no weights by name. Get the model's safetensors.")
    # Tensors that share memory, as tied weights do, are one each in safetensors.
    return {str(name): tensor.detach().clone().contiguous() for name, tensor in content.items()}


def _new_name(path: Path, stem: str) -> str:
    return re.sub(rf"^(?:{re.escape(stem)}|pytorch_model)", stem, path.stem) + ".safetensors"


def _cache_for(pickles: Sequence[Path]) -> Path:
    """A folder that is for these very files."""
    said = [f"{path.resolve()}|{path.stat().st_size}|{path.stat().st_mtime_ns}" for path in pickles]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "motion_lora" / "weights" / hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
