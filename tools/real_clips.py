"""What every metric of natural video says of copies of real clips: writes bench/real-clips.md.

    python tools/real_clips.py                           clips of ../shared/data/clips
    MOTION_LORA_TEST_CLIPS=DIR python tools/real_clips.py

Scores only; no clip is part of the project. tests/test_real_clips.py asserts the order of the same scores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real_copies import COLUMNS, FPS, NUM_FRAMES, SIDE, VARIABLE, clips_folder, copies_of, scores_of  # noqa: E402
from tiny import tiny_pipeline  # noqa: E402

from motion_lora.apps.bench.report import machine_facts  # noqa: E402
from motion_lora.media.tables import Table  # noqa: E402

RESULTS = ROOT / "bench" / "real-clips.md"
COMMAND = f"{VARIABLE}=shared/data/clips python tools/real_clips.py"
# What the library's own list of versions leaves out: the trackers' and ffmpeg's packages.
_OTHERS = ("opencv-python-headless", "imageio-ffmpeg")


def main() -> int:
    paths = sorted(clips_folder().glob("*.mp4"))
    if not paths:
        sys.stderr.write(f"{clips_folder()} holds no .mp4; {VARIABLE} names another folder.\n")
        return 1
    parts = ["# Metrics of natural video on copies of real clips", _conditions()]
    for path in paths:
        began = time.monotonic()
        parts.append(f"## {path.stem}\n\n{_table(scores_of(copies_of(path)))}")
        sys.stdout.write(f"{path.stem}: {time.monotonic() - began:.0f} s\n")
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return 0


def _conditions() -> str:
    machine = machine_facts(tiny_pipeline())
    others = ", ".join(f"{name} {version(name)}" for name in _OTHERS)
    lines = [
        f"    {COMMAND}",
        "",
        f"{NUM_FRAMES} frames at {FPS} per second, {SIDE} x {SIDE}. `tests/real_copies.py` makes the copies. "
        "Columns by a double are the metric over a stand-in for its network (`tests/metric_doubles.py`), whose weights "
        "were not there: their order means something, their size does not.",
        "",
        *(f"- **{name}**: {what}" for name, what in COLUMNS.items()),
        *(f"- {name}: {machine[name]}" for name in ("processor", "system")),
        f"- versions: {machine['versions']}, {others}",
    ]
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    return Table(
        ("copy", *COLUMNS), [(copy, *(row[name] for name in COLUMNS)) for copy, row in rows.items()]
    ).markdown()


if __name__ == "__main__":
    sys.exit(main())
