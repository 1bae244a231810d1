"""Rows of docs/RELIABILITY.md: what was done, by which command, with what result, where, when, with which versions."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "diffusers", "peft", "aiohttp")


def report(what: str, result: str, wrong: Sequence[str]) -> int:
    """Print the row, and what went wrong before it; the exit status."""
    for line in wrong:
        sys.stdout.write(f"WRONG {line}\n")
    command = shlex.join(["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]])
    cells = (what, f"`{command}`", result, machine(), f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}")
    sys.stdout.write(f"| {' | '.join((*cells, versions()))} |\n")
    return 1 if wrong else 0


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def versions() -> str:
    """This code's commit, Python, and the packages that take part."""
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    shown = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ", ".join([shown.stdout.strip() or "no git", *found])
