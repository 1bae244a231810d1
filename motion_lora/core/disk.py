"""Writing that is whole or not at all, and names that every system takes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import OutputError

_log = logging.getLogger(__name__)
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


def write_atomically(
    path: str | Path, data: bytes, verify: Callable[[Path], None] | None = None, *, overwrite: bool = True
) -> Path:
    """Write beside the target, flush to the disk, let `verify` read it back, and only then take the target's name.

    Whatever goes wrong, the old file stays as it was and nothing half-written is left. Raises OutputError.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path.name} exists already in {path.parent}: choose another name, or allow overwriting")
    part = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(part)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(_write_fault(path, error)) from error
    finally:
        _discard(part)
    return path


def remove_files(paths: Iterable[Path]) -> None:
    """Remove what is there of these; one that cannot be removed stays, with a warning."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # On Windows a virus scanner may hold it.
            _log.warning("%s stays: %s", path, error)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def safe_name(name: str, fallback: str = "motion_lora", limit: int = 120) -> str:
    """A file name (no folders, no suffix) that Windows, macOS and Linux all take; letters of any language stay.

    The limit is in UTF-8 bytes and leaves room for suffixes such as `-000500.preview.png` within 255.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "ignore").decode("utf-8")
    text = "".join("_" if character in '<>:"/\\|?*' else character for character in text)
    text = "".join(character for character in text if unicodedata.category(character)[0] != "C")
    text = re.sub(r"\s+", " ", text).encode("utf-8")[:limit].decode("utf-8", "ignore").strip(" .")
    if text.split(".")[0].strip().upper() in _RESERVED:
        text = f"_{text}"
    return text if text.strip("_ .") else fallback


def path_inside(folder: str | Path, name: str, suffix: str = ".safetensors") -> Path:
    """`folder/name` with the suffix; subfolders are fine, a way out of the folder is not. Raises OutputError.

    Every part goes through `safe_name`, so any text a user types gives a file that can be written.
    """
    folder = Path(folder)
    parts = [part for part in re.split(r"[/\\]+", name.removesuffix(suffix)) if part not in ("", ".")]
    outside = any(part.strip() == ".." for part in parts) or name.startswith(("/", "\\", "~"))
    if outside or re.match(r"[A-Za-z]:[/\\]", name):
        raise OutputError(f"the name {name!r} leads out of the output folder: give a name, with subfolders if you like")
    safe = [safe_name(part) for part in parts] or [safe_name("")]
    target = folder.joinpath(*safe[:-1], safe[-1] + suffix)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"the name {name!r} leads out of the output folder through a link: choose another name")
    return target


def free_path(path: str | Path) -> Path:
    """The path itself, or with -2, -3, ... before its suffix: the first that does not exist yet."""
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


def _write_fault(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"no disk space left for {path.name} in {path.parent}: free some, or choose another folder"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"no permission to write {path.name} in {path.parent}: choose another folder"
    return f"{path.name} cannot be written in {path.parent}: {error.strerror or error}"


def _discard(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself is out of reach; the first error says so
