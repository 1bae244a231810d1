"""A few hundred broken files of every kind; tools/fuzz_files.py reads ten thousand."""

from __future__ import annotations

from pathlib import Path

import fuzz_files
import pytest


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz_files.Kind]:
    return {kind.name: kind for kind in fuzz_files.kinds(tmp_path_factory.mktemp("sound"))}


NAMES = ("LoRA", "absorber", "checkpoint", "job", "captions", "settings")


@pytest.mark.parametrize("name", NAMES)
def test_sound_files_are_read(kinds: dict[str, fuzz_files.Kind], name: str, tmp_path: Path) -> None:
    assert set(kinds) == set(NAMES)
    assert [kinds[name].read(data, tmp_path) for data in kinds[name].sound] == ["read"] * len(kinds[name].sound)


@pytest.mark.parametrize("name", NAMES)
def test_broken_files_are_refused_in_one_line_or_read_whole(kinds: dict[str, fuzz_files.Kind], name: str) -> None:
    found = fuzz_files.fuzz(kinds[name], 300)
    assert found["refused"] > 30, "the mutations reach something"
