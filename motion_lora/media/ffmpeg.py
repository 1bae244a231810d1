"""The one door to the ffmpeg program that imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import imageio_ffmpeg

from ..core.errors import ClipError

# Windows would open a console window for every call; the flag does not exist elsewhere.
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)


def run_ffmpeg(arguments: Sequence[str], data: bytes | None = None) -> tuple[int, bytes, str]:
    """Run ffmpeg with `data` on its standard input and return exit status, standard output and its log.

    The process is ended when this call is interrupted. Raises ClipError where there is no ffmpeg for this machine.
    """
    command = [_executable(), "-hide_banner", "-y", *([] if data is not None else ["-nostdin"]), *arguments]
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
        raise ClipError(f"ffmpeg at {command[0]} cannot be started: {error.strerror or error}") from error
    return done.returncode, done.stdout, done.stderr.decode("utf-8", errors="replace")


def _executable() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise ClipError(
            "There is no ffmpeg for this machine: reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to one."
        ) from error
