"""tools/gpu_check.py runs to its end on a CPU, and a row that fails is a row and a status."""

from __future__ import annotations

from pathlib import Path

import gpu_check
import pytest


def test_a_part_of_it_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "check.md"
    words = ["--device", "cpu", "--small", "--output", str(output)]
    assert gpu_check.main([*words, "--only", "merged as unmerged, fp32"]) == 0
    written = output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == written and "1 ok, 0 FAILED" in written


def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    def broken() -> str:
        raise RuntimeError("no such kernel\nand more")

    def left_out() -> str:
        raise gpu_check.SkipError("not here")

    rows = [gpu_check.run_check(name, work) for name, work in (("a", broken), ("b", left_out), ("c", lambda: "fine"))]
    assert [(row.outcome, row.detail) for row in rows] == [
        ("FAILED", "RuntimeError: no such kernel"), ("skipped", "not here"), ("ok", "fine"),
    ]  # fmt: skip
