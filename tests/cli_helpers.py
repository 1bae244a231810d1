"""Running the command line inside the tests, and what its commands need to run on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_frames, write_tiny_folder

from motion_lora.apps.cli import OK, USER_ERROR, main
from motion_lora.media.write import write_video

CAPTION = "a red square moving right over sand"
APPEARANCE = "a red square over sand"
CAPTIONS = ("--caption", CAPTION, "--appearance-caption", APPEARANCE, "--absorb-words", "red square")
FEW_STEPS = ("--steps", "4", "--absorber-steps", "2", "--token-steps", "2")


def run(*words: object) -> int:
    """Exit status of one command."""
    return main([str(word) for word in words])


def succeeds(*words: object) -> None:
    assert run(*words) == OK


def fails(capsys: pytest.CaptureFixture[str], *words: object, status: int = USER_ERROR) -> str:
    """Run a command that must be refused, with nothing on stdout; returns its one line on stderr."""
    capsys.readouterr()
    assert run(*words) == status
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


def write_base(folder: Path, levels: int = 3) -> Path:
    return write_tiny_folder(folder / "tiny", levels=levels)


def write_clip(folder: Path, num_frames: int = 4, name: str = "clip.mp4", fps: float = 8) -> Path:
    return write_video(folder / name, tiny_frames(num_frames=num_frames), fps)
