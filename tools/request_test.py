"""Requests: malformed and hostile requests to the pack's routes on a real server.

    python tools/request_test.py --count 10000
    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python python tools/request_test.py --count 10000

With COMFYUI_DIR the server is ComfyUI itself; without it the double of the tests, around real routes and a real job
store. Prints the row of docs/RELIABILITY.md.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import string
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from comfy_double import hosted  # noqa: E402
from real_host import RealComfyUI  # noqa: E402
from reliability import report  # noqa: E402
from test_routes import Panel, besiege, storm  # noqa: E402

OUT = ROOT / "out" / "requests"
# What ComfyUI itself writes while it runs.
_OWN = ("server.log", "user/comfyui.db", "user/comfyui.log", "user/__manager")


def on_the_double(count: int, seed: int) -> tuple[dict[int, int], list[str]]:
    """How many got which status, and what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="request-test-"))
    with hosted(folder) as host:
        before = files_of(folder)
        found = asyncio.run(besiege(Panel(host).app, count, seed))
        wrong = [f"{number} answers {status}" for status, number in found.items() if status >= 500]
        return found, wrong if files_of(folder) == before else [*wrong, "files came or went"]


class _Client:
    """Sends paths as they are written, where a browser would tidy them up; but no bytes that no URL has."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    def request(self, method: str, path: str, **more: Any) -> Any:
        written = URL(self._url + quote(path, safe=string.printable), encoded=True)
        return self._session.request(method, written, allow_redirects=False, **more)


def on_comfyui(count: int, seed: int) -> tuple[dict[int, int], list[str]]:
    """The same on ComfyUI, with its log."""
    shutil.rmtree(OUT, ignore_errors=True)
    server = RealComfyUI(OUT)

    async def send() -> dict[int, int]:
        async with aiohttp.ClientSession() as session:
            return await storm(_Client(session, server.url), count, seed)

    try:
        server.start()
        # The first look at the panel makes its folder.
        server.jobs()
        before = files_of(OUT)
        found = asyncio.run(send())
        wrong = [] if files_of(OUT) == before else ["files came or went"]
        return found, wrong + faults_in(server.log, found)
    finally:
        server.stop()


def faults_in(log: str, found: Mapping[int, int]) -> list[str]:
    """What of a server's log and answers is this pack's doing.

    ComfyUI looks at the origin of a request before any route does, and answers 500 to one that it cannot parse.
    """
    traces = log.split("Traceback (most recent call last):")[1:]
    is_theirs = [all(sign in part for sign in ("origin_only_middleware", "in urlsplit")) for part in traces]
    wrong = [part.strip()[-200:] for part, theirs in zip(traces, is_theirs, strict=True) if not theirs]
    failed = sum(number for status, number in found.items() if status >= 500)
    if failed > sum(is_theirs):
        wrong.append(f"{failed} answers of 500 and more, {sum(is_theirs)} of them ComfyUI's own")
    return wrong


def files_of(folder: Path) -> list[str]:
    """All names below a folder but those that ComfyUI writes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [name for name in names if not name.startswith(_OWN) and "__pycache__" not in name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    real = "COMFYUI_DIR" in os.environ
    found, wrong = (on_comfyui if real else on_the_double)(options.count, options.seed)
    answers = ", ".join(f"{status}: {number}" for status, number in sorted(found.items()))
    place = "ComfyUI" if real else "a server with the double of ComfyUI"
    note = " (all of 500 by ComfyUI's own origin check)" if real and 500 in found and not wrong else ""
    result = f"{options.count} requests to {place}, alive at the end, no file touched; answers {answers}{note}"
    return report("Requests", result, wrong)


if __name__ == "__main__":
    sys.exit(main())
