"""The safetensors container, its header checked before anything is read.

It is 8 bytes of header length (little endian), a JSON header, the tensors' bytes. It is read here and not through the
safetensors package, because a header that lies has to be refused before memory is asked for, and because a memory map
would keep the file open; it is written here because the package writes metadata in random order, and the same training
has to give the same file.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.disk import retried
from ..core.errors import LoRAFileError

_log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 * 2**20  # the largest seen in real files, tag lists included, stay under 10 MiB
MAX_DATA_BYTES = 2 * 2**30  # every linear layer of ModelScope at rank 320 in fp32 is 1 GiB
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `begin` and `end` count from the start of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked safetensors header: every tensor lies inside the file, without gaps or overlaps."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: info.shape for key, info in self.tensors.items()}


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file; reads nothing else. Raises LoRAFileError, one line, for anything amiss."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise LoRAFileError(f"{path.name} is a folder, not a file: name the LoRA file in it")
        with retried(lambda: path.open("rb")) as file:
            start = file.read(8)
            length = _header_length(path.name, start, size)
            raw = file.read(length)
    except OSError as error:
        raise LoRAFileError(f"{path.name} cannot be read: {error.strerror or error}") from error
    return _parse_header(path.name, raw, size)


def read_tensors(
    path: str | Path, header: Header | None = None, keys: Iterable[str] | None = None, *, own: bool = False
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all or those named, in memory of their own. Raises LoRAFileError.

    MAX_DATA_BYTES is for files that come in; one of our `own`, such as a checkpoint, is as large as we made it.
    """
    path = Path(path)
    header = header or read_header(path)
    wanted = {key: header.tensors[key] for key in (header.tensors if keys is None else keys)}
    total = sum(info.end - info.begin for info in wanted.values())
    if total > MAX_DATA_BYTES and not own:
        raise LoRAFileError(f"{path.name} holds {total / 2**30:.1f} GiB: that is a model, not a LoRA")
    try:
        with retried(lambda: path.open("rb")) as file:
            return {key: _read_tensor(file, header.data_start, info) for key, info in wanted.items()}
    except EOFError as error:
        raise LoRAFileError(f"{path.name} ends too early: it was cut off, fetch it again") from error
    except OSError as error:
        raise LoRAFileError(f"{path.name} cannot be read: {error.strerror or error}") from error


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; the same input gives the same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    chunks, position = [], 0
    # Wide numbers first, so that every tensor starts at a multiple of its item size: readers map them in place.
    for key in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        raw = tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [position, position + len(raw)]
        header[key] = {
            "dtype": _NAMES[tensors[key].dtype],
            "shape": list(tensors[key].shape),
            "data_offsets": offsets,
        }
        chunks.append(raw)
        position += len(raw)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(chunks)


def _header_length(name: str, start: bytes, size: int) -> int:
    if start == b"version ":
        raise LoRAFileError(f"{name} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    if start.lstrip().lower().startswith((b"<!doc", b"<html")):
        raise LoRAFileError(f"{name} is a web page, not a LoRA: the download needs a login or another link")
    if len(start) < 8:
        raise LoRAFileError(f"{name} is {size} bytes long: it is empty or was cut off, fetch it again")
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise LoRAFileError(f"{name} is no safetensors file, or was cut off: its header would be {length} bytes long")
    return length


def _parse_header(name: str, raw: bytes, size: int) -> Header:
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        metadata = content.pop("__metadata__", None) or {}
        tensors = {key: _tensor_info(entry) for key, entry in content.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        if not all(key.isprintable() for key in tensors):
            raise ValueError("names with control characters")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise LoRAFileError(f"the header of {name} is damaged: {reason}") from error
    data_start = 8 + len(raw)
    position = 0
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise LoRAFileError(f"the header of {name} is damaged: {key[:80]} does not start where the last one ends")
        position = info.end
    if data_start + position != size:
        raise LoRAFileError(
            f"{name} should hold {data_start + position} bytes and holds {size}: it was cut off, fetch it again"
        )
    return Header(tensors, metadata, data_start)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    dtype = _DTYPES.get(entry["dtype"])
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"number format {entry['dtype']!r} is not known")
    numbers = [*shape, *offsets]
    if len(offsets) != 2 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes that are no numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for the shape {shape}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _read_tensor(file: Any, data_start: int, info: TensorInfo) -> Tensor:
    if info.end == info.begin:
        return torch.empty(info.shape, dtype=info.dtype)
    buffer = bytearray(info.end - info.begin)
    file.seek(data_start + info.begin)
    if file.readinto(buffer) != len(buffer):
        raise EOFError
    return torch.frombuffer(buffer, dtype=info.dtype).reshape(info.shape)
