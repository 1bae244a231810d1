"""The one door to the ffmpeg program that imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

import imageio_ffmpeg
import numpy as np

from ..core.errors import ClipError

# Windows would open a console window for every call; the flag does not exist elsewhere.
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_LONGEST_LOG = 64 * 2**20
_LONGEST_HEADER = 20  # lines
Kept = TypeVar("Kept")


def run_ffmpeg(arguments: Sequence[str], data: bytes | None = None) -> tuple[int, bytes, str]:
    """Run ffmpeg with `data` on its standard input and return exit status, standard output and its log.

    The process is ended when this call is interrupted. Raises ClipError where there is no ffmpeg for this machine.
    """
    command = _command(arguments, nostdin=data is None)
    try:
        done = subprocess.run(
            command,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            check=False,
            creationflags=_NO_WINDOW,
        )
    except OSError as error:
        raise _cannot_start(command, error) from error
    return done.returncode, done.stdout, done.stderr.decode("utf-8", errors="replace")


def read_pictures(
    arguments: Sequence[str], wanted: Sequence[int], keep: Callable[[np.ndarray], Kept]
) -> tuple[list[Kept], int, str]:
    """What `keep` makes of the wanted ones (ascending) of the pictures that ffmpeg writes, its status and its log.

    ffmpeg writes PAM pictures to its standard output; `keep` gets each as uint8 (h, w, channels) as soon as it is
    there, so that only one is in memory at its full size. Fewer come back where the stream ends early.
    """
    kept: list[Kept] = []
    command = _command(arguments, nostdin=True)
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, creationflags=_NO_WINDOW
            )
        except OSError as error:
            raise _cannot_start(command, error) from error
        assert process.stdout is not None
        try:
            position = 0
            while len(kept) < len(wanted) and (picture := _next_picture(process.stdout)) is not None:
                if position == wanted[len(kept)]:
                    kept.append(keep(picture))
                position += 1
        finally:
            if len(kept) >= len(wanted):
                process.kill()
            process.stdout.close()
            status = process.wait()
        log.seek(0)
        return kept, status, log.read(_LONGEST_LOG).decode("utf-8", errors="replace")


def _next_picture(stream: IO[bytes]) -> np.ndarray | None:
    """The next PAM picture, or None at the end, also in the middle of a picture."""
    header: dict[str, str] = {}
    for _ in range(_LONGEST_HEADER):
        line = stream.readline(256).decode("ascii", errors="replace").split()
        if not line or line == ["ENDHDR"]:
            break
        header[line[0]] = line[-1]
    if not {"WIDTH", "HEIGHT", "DEPTH"} <= set(header):
        return None
    height, width, channels = (int(header[key]) for key in ("HEIGHT", "WIDTH", "DEPTH"))
    data = stream.read(height * width * channels)
    if len(data) < height * width * channels:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def _command(arguments: Sequence[str], *, nostdin: bool) -> list[str]:
    return [_executable(), "-hide_banner", "-y", *(["-nostdin"] if nostdin else []), *arguments]


def _cannot_start(command: Sequence[str], error: OSError) -> ClipError:
    return ClipError(f"ffmpeg at {command[0]} cannot be started: {error.strerror or error}")


def _executable() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ClipError(
            "There is no ffmpeg for this machine: reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one."
        ) from error
