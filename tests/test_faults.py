"""Everything that a job does to a disk made to fail in turn: nothing is lost, no thread dies, the next job runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty_disk import FAULTS, FaultyDisk, weather


def test_a_sound_disk_loses_nothing_and_every_kind_of_access_is_counted(tmp_path: Path) -> None:
    sound = FaultyDisk(tmp_path)
    assert weather(tmp_path, sound) == []
    assert set(sound.done) == {"open", "mkdir", "rename", "unlink", "replace", "link", "fsync", "rmtree"}


@pytest.mark.parametrize(("name", "number", "times"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_nothing_is_lost_wherever_the_disk_fails(tmp_path: Path, name: str, number: int, times: int) -> None:
    lost, place = {}, 0
    while True:
        folder = tmp_path / str(place)
        faulty = FaultyDisk(folder, place, number, times)
        found = weather(folder, faulty)
        if not faulty.failed:
            break
        if found:
            lost[f"{place}: {faulty.failed}"] = found
        place += 1
    assert place > 50 and lost == {}
