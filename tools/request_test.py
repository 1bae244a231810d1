"""Requests: malformed and hostile requests to the pack's routes on a real aiohttp server.

    python tools/request_test.py --count 10000

ComfyUI itself is the double of the tests; server, routes and job store are real. Prints the row of docs/RELIABILITY.md.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from comfy_double import hosted  # noqa: E402
from reliability import report  # noqa: E402
from test_routes import Panel, besiege  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="request-test-"))
    with hosted(folder) as host:
        before = sorted(folder.rglob("*"))
        found = asyncio.run(besiege(Panel(host).app, options.count, options.seed))
        wrong = [f"{number} answers {status}" for status, number in found.items() if status >= 500]
        if sorted(folder.rglob("*")) != before:
            wrong.append("files came or went")
    answers = ", ".join(f"{status}: {number}" for status, number in sorted(found.items()))
    return report("Requests", f"{options.count} requests, server alive, no file touched; answers {answers}", wrong)


if __name__ == "__main__":
    sys.exit(main())
