"""Faults: everything that a job does to a disk made to fail in turn, with each kind of error, on a toy job.

    python tools/fault_test.py

A fault is a write, flush, rename, link, folder or removal below the user's folder that fails: once for a full disk, a
broken disk and a sharing violation, and for good, until the job has ended, for a lost permission. Afterwards the same
job is asked for again and another one after it. Prints the row of docs/RELIABILITY.md.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from faulty_disk import FAULTS, FaultyDisk, weather  # noqa: E402
from reliability import report  # noqa: E402


def main() -> int:
    logging.disable(logging.CRITICAL)
    root, wrong, tried = Path(tempfile.mkdtemp(prefix="fault-test-")), [], {}
    for name, number, times in FAULTS:
        place = 0
        while True:
            folder = root / name.replace(" ", "-") / str(place)
            faulty = FaultyDisk(folder, place, number, times)
            lost = weather(folder, faulty)
            if not faulty.failed:
                break
            if lost:
                wrong.append(f"{name}, place {place} ({faulty.failed}): {'; '.join(lost)}")
            place += 1
        tried[name] = place
    count = sum(tried.values())
    places = ", ".join(f"{name} {number}" for name, number in tried.items())
    result = f"{count - len(wrong)} of {count} lost nothing, no thread died, the next job ran ({places})"
    return report("Faults", result, wrong)


if __name__ == "__main__":
    sys.exit(main())
