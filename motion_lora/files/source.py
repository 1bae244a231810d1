"""Opening a file of unknown origin: what it is decides its content, and nothing in it is ever run.

Safetensors files are known by their checked header before any tensor is read. Torch files (zip or pickle) go through
torch's weights-only reader, which builds tensors and containers and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LoRAFileError
from .container import MAX_DATA_BYTES, Header, read_header, read_tensors
from .own import is_own, require_plausible

ADAPTER_CONFIG = "adapter_config.json"
# Names under which diffusers and PEFT put a LoRA into a folder, the preferred one first.
FOLDER_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
# What the weights-only reader raises on damaged input, seen by fuzzing it.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    MemoryError,
    OverflowError,
    ImportError,
)


@dataclass(frozen=True, eq=False)
class Source:
    """A file that was opened: shapes by key, metadata, and a way to read the tensors after they were looked at.

    `header` is there for safetensors files; `positional` says that the keys are places in a list without names.
    """

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    read: Callable[[], dict[str, Tensor]]
    header: Header | None = None
    positional: bool = False


def open_source(path: str | Path) -> Source:
    """Open a LoRA file, or the one in a folder of diffusers or PEFT. Raises LoRAFileError; never runs code."""
    path = _file_of(Path(path))
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise LoRAFileError(f"{path.name} cannot be read: {error.strerror or error}") from error
    # The length of a safetensors header may begin like a zip or a pickle; the brace after it tells.
    if start[8:] != b"{" and start.startswith((b"PK\x03\x04", b"\x80")):
        return _torch_source(path)
    header = read_header(path)
    metadata = {**header.metadata, **_config_beside(path)}
    return Source(path.name, path, header.shapes, metadata, lambda: read_tensors(path, header), header)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise LoRAFileError(f"the folder {path.name} holds no LoRA ({FOLDER_FILES[0]} or {FOLDER_FILES[1]}): name the file")


def _config_beside(path: Path) -> dict[str, str]:
    """PEFT keeps rank and alpha in a file beside the weights."""
    config = path.with_name(ADAPTER_CONFIG)
    if not path.name.startswith("adapter_model") or not config.is_file():
        return {}
    try:
        if config.stat().st_size > 2**20:
            raise LoRAFileError(f"{ADAPTER_CONFIG} beside {path.name} is too large to be one")
        return {ADAPTER_CONFIG: config.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise LoRAFileError(f"{ADAPTER_CONFIG} beside {path.name} cannot be read: it holds the strength") from error


def _torch_source(path: Path) -> Source:
    content = _named(path.name, _load_weights_only(path))
    for key, tensor in content[0].items():
        # Before anything is copied: a tensor may claim any shape over a few bytes.
        require_plausible(path.name, key, tuple(tensor.shape)) if tensor.ndim > 1 else _require_short(path.name, tensor)
    shapes = {key: tuple(tensor.shape) for key, tensor in content[0].items()}

    def read() -> dict[str, Tensor]:
        return {key: tensor.detach().clone().contiguous() for key, tensor in content[0].items()}

    return Source(path.name, path, shapes, _config_beside(path), read, positional=content[1])


def _load_weights_only(path: Path) -> Any:
    if path.stat().st_size > MAX_DATA_BYTES:
        raise LoRAFileError(f"{path.name} holds {path.stat().st_size / 2**30:.1f} GiB: that is a model, not a LoRA")
    try:
        with path.open("rb") as file:  # given a path, torch goes by its extension
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise LoRAFileError(
                f"{path.name} holds more than tensors, and reading the rest could run code: it was not opened; ask for "
                "a .safetensors file"
            ) from error
        raise LoRAFileError(f"{path.name} cannot be read as a torch file: it is damaged or something else") from error


def _named(name: str, content: Any) -> tuple[dict[str, Tensor], bool]:
    """Tensors by key, and whether the keys are only places in a list."""
    if isinstance(content, list | tuple):
        if content and all(isinstance(tensor, Tensor) for tensor in content):
            return {str(place): tensor for place, tensor in enumerate(content)}, True
        raise LoRAFileError(f"{name} holds a list of {_kinds(content)}: a LoRA list holds tensors, two per layer")
    if not isinstance(content, dict):
        raise LoRAFileError(f"{name} holds a {type(content).__name__}, not the tensors of a LoRA")
    if {"pixel_values", "latents"} & set(content):
        raise LoRAFileError(f"{name} holds a cached clip of MotionDirector's training, not a LoRA")
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content.get("string_to_param"), dict):
        content = {f"string_to_param.{key}": tensor for key, tensor in content["string_to_param"].items()}
    if not content or not all(isinstance(key, str) and key.isprintable() for key in content):
        raise LoRAFileError(f"{name} names no tensors: it is no LoRA")
    tensors = {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    if len(tensors) < len(content):
        other = next(key for key in content if key not in tensors)
        raise LoRAFileError(f"{name} holds {other[:80]!r} besides tensors: it is a training state or something else")
    return tensors, False


def _kinds(content: Any) -> str:
    return ", ".join(sorted({type(entry).__name__ for entry in content})) or "nothing"


def _require_short(name: str, tensor: Tensor) -> None:
    if tensor.numel() > 2**20:
        raise LoRAFileError(f"{name} holds a tensor of {tensor.numel()} numbers in a row: no LoRA does")


def is_own_source(source: Source) -> bool:
    """Whether an opened file is of the own format, of any version and kind."""
    return source.header is not None and is_own(source.header)


def json_object(name: str, what: str, text: str) -> dict[str, Any]:
    """Parse JSON from foreign metadata. Raises LoRAFileError unless it is an object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoRAFileError(f"{name}: {what} is damaged") from error
    if not isinstance(content, dict):
        raise LoRAFileError(f"{name}: {what} is damaged")
    return content
