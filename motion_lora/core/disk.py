"""Writing that is whole or not at all, patience with files that others hold, and names that every system takes.

Everything that the package puts on a disk goes through here: one place knows what a full disk, a folder without
permission and a file in use look like, tries again where that helps, and says what to do where it does not.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from .errors import OutputError

_log = logging.getLogger(__name__)
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
_Result = TypeVar("_Result")

# Seconds between two tries: on Windows a virus scanner, an indexer or a player holds a file for a moment.
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_IN_USE = {errno.EBUSY, errno.ETXTBSY}
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# What hard links are answered with where a file system has none: FAT drives, some network folders.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL}


# Patience -------------------------------------------------------------------------------------------------------------


def retried(action: Callable[[], _Result]) -> _Result:
    """What `action` gives; called again, for less than a second in all, while a file is in use or access is denied.

    Windows says "access denied" (PermissionError) both for good and while somebody has the file open.
    """
    for pause in _PAUSES:
        try:
            return action()
        except OSError as error:
            if not (isinstance(error, PermissionError) or error.errno in _IN_USE):
                raise
        time.sleep(pause)
    return action()


# Files ----------------------------------------------------------------------------------------------------------------


def write_atomically(
    path: str | Path,
    data: bytes,
    verify: Callable[[Path], None] | None = None,
    *,
    overwrite: bool = True,
    durable: bool = True,
) -> Path:
    """Write beside the target, flush to the disk, let `verify` read it back, and only then take the target's name.

    Whatever goes wrong, the old file stays as it was and nothing half-written is left. Not `durable`, the flush is left
    out: for what may be lost with the power, since it waits for the disk. Raises OutputError; not to `overwrite`, also
    for a file that came there in the meantime.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise OutputError(_taken(path))
    part = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        retried(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        retried(lambda: _write(part, data, durable))
        if verify is not None:
            verify(part)
        retried(lambda: os.replace(part, path) if overwrite else _take_name(part, path))
    except FileExistsError as error:
        raise OutputError(_taken(path) if path.exists() else fault_of(path, error)) from error
    except OSError as error:
        raise OutputError(fault_of(path, error)) from error
    finally:
        _discard(part)
    return path


def write_new(path: str | Path, data: bytes) -> Path:
    """Write under the path's name, or with -2, -3, ... before its suffix: never over another file, even one that comes
    there at the same moment. The path that it became. Raises OutputError."""
    while True:
        target = free_path(path)
        try:
            return write_atomically(target, data, overwrite=False)
        except OutputError:
            if not os.path.lexists(target) or target.parent.is_file():
                raise


def remove_files(paths: Iterable[Path]) -> None:
    """Remove what is there of these; one that cannot be removed stays, with a warning."""
    for path in paths:
        try:
            retried(lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]
        except OSError as error:
            _log.warning("%s stays: %s", path, error)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_tree(folder: Path) -> bool:
    """Remove a folder with all that is in it; whether nothing is left. What cannot be removed stays, with a warning.

    Of a folder that lies elsewhere and is linked here, what it holds and the link.
    """
    try:
        if folder.is_symlink():
            shutil.rmtree(folder.resolve(), ignore_errors=True)
            retried(lambda: folder.unlink())
        else:
            retried(lambda: shutil.rmtree(folder))
    except FileNotFoundError:
        return not os.path.lexists(folder)
    except OSError as error:
        _log.warning("%s stays: %s", folder, error)
        return False
    return True


def move(source: Path, target: Path) -> Path:
    """Give a file or folder another name on the same disk. Raises OutputError, FileNotFoundError for no source."""
    try:
        return retried(lambda: source.rename(target))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(fault_of(source, error)) from error


# What can be known before ---------------------------------------------------------------------------------------------


def check_target(path: str | Path, needed: int = 0) -> None:
    """Raise OutputError unless a file of this name, of `needed` bytes, can be written; leaves nothing behind.

    Tried by writing a name as long as a numbered one would be, in the nearest folder above that exists.
    """
    path = Path(path)
    folder = nearest_folder(path)
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, where {path.name} needs a folder: move it, or choose another name")
    # As long as "-000500-2" would make it.
    stem = uuid.uuid4().hex + "x" * len(path.name)
    probe = folder / f".{stem}"[: max(40, len(path.name.encode("utf-8")) + 9)]
    try:
        retried(lambda: _write(probe, b"?", False))
    except OSError as error:
        raise OutputError(fault_of(path, error)) from error
    finally:
        _discard(probe)
    check_space(folder, needed)


def check_space(folder: Path, needed: int) -> None:
    """Raise OutputError when fewer than `needed` bytes are free where the folder is or will be."""
    try:
        free = shutil.disk_usage(nearest_folder(folder / "file")).free
    except OSError:
        return  # a disk that does not say: it is found out by writing
    if free < needed:
        raise OutputError(
            f"{folder} has {free / 2**20:.0f} MB free and about {needed / 2**20:.0f} MB are needed: free some, or "
            "choose another folder"
        )


def nearest_folder(path: Path) -> Path:
    """The closest thing above a path that exists: a folder, or a file that stands in the way."""
    absolute = path.absolute()
    return next((above for above in absolute.parents if os.path.lexists(above)), absolute.parent)


# Names ----------------------------------------------------------------------------------------------------------------


def safe_name(name: str, fallback: str = "motion_lora", limit: int = 120) -> str:
    """A file name (no folders, no suffix) that Windows, macOS and Linux all take; letters of any language stay.

    The limit is in UTF-8 bytes and leaves room for suffixes such as `-000500.preview.png` within 255.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "ignore").decode("utf-8")
    text = "".join("_" if character in '<>:"/\\|?*' else character for character in re.sub(r"\s+", " ", text))
    text = "".join(character for character in text if unicodedata.category(character)[0] != "C")
    text = text.encode("utf-8")[:limit].decode("utf-8", "ignore").strip(" .")
    if text.split(".")[0].strip().upper() in _RESERVED:
        text = f"_{text}"
    return text if text.strip("_ .") else fallback


def path_inside(folder: str | Path, name: str, suffix: str = ".safetensors") -> Path:
    """`folder/name` with the suffix; subfolders are fine, a way out of the folder is not. Raises OutputError.

    Every part goes through `safe_name`, so any text a user types gives a file that can be written. A link in the folder
    is followed: only its owner can have put it there, to keep files on another drive.
    """
    folder = Path(folder)
    parts = [part for part in re.split(r"[/\\]+", name.removesuffix(suffix)) if part not in ("", ".")]
    outside = any(part.strip() == ".." for part in parts) or name.startswith(("/", "\\", "~"))
    if outside or re.match(r"[A-Za-z]:[/\\]", name):
        raise OutputError(f"the name {name!r} leads out of the output folder: give a name, with subfolders if you like")
    safe = [safe_name(part) for part in parts] or [safe_name("")]
    return folder.joinpath(*safe[:-1], safe[-1] + suffix)


def free_path(path: str | Path) -> Path:
    """The path itself, or with -2, -3, ... before its suffix: the first that does not exist yet."""
    return next(candidate for candidate in numbered_paths(Path(path)) if not os.path.lexists(candidate))


def numbered_paths(path: Path) -> Iterator[Path]:
    """The path, then with -2, -3, ... before its suffix."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


# What went wrong ------------------------------------------------------------------------------------------------------


def fault_of(path: Path, error: OSError) -> str:
    """What an error of the disk means for a file that was to be written, and the way out."""
    if error.errno in _FULL:
        return f"no disk space left for {path.name} in {path.parent}: free some, or choose another folder"
    if error.errno == errno.ENAMETOOLONG:
        return f"{path.name} in {path.parent} is too long a name for this disk: give a shorter one"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"no permission to write {path.name} in {path.parent}: close what has it open, or choose another folder"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return (
            f"{path.name} cannot be written: {path.parent} is or lies below a file: move that, or choose another folder"
        )
    return f"{path.name} cannot be written in {path.parent}: {error.strerror or error}"


def plain_fault(error: OSError) -> str:
    """The same for an error whose file is nobody's choice: one line with a way out."""
    if error.errno in _FULL:
        return "no disk space left: free some and try again"
    name = Path(str(error.filename)).name if error.filename else "a file"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"no permission for {name}: close what has it open, or give back the right to write, and try again"
    return f"{name}: {error.strerror or error}: see that its disk is there, and try again"


def _taken(path: Path) -> str:
    return f"{path.name} exists already in {path.parent}: choose another name, or allow overwriting"


def _write(path: Path, data: bytes, durable: bool) -> None:
    # Opened for writing, not for creating alone: a try that was cut short may have left its name.
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _take_name(part: Path, path: Path) -> None:
    """Give a file its name unless something has it, in one step where the disk knows hard links."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        part.rename(path)


def _discard(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)  # where even this fails the folder is out of reach; the first error says so
