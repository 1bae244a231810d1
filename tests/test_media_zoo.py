"""Every animal of tools/media_zoo.py: read right, or refused with its reason; and what long and large videos cost."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import media_zoo
import numpy as np
import pytest
import torch
from media_zoo import Animal

from motion_lora.core.errors import ClipError
from motion_lora.media import colour, ffmpeg, video
from motion_lora.media.probe import facts_of
from motion_lora.media.read import read_frames
from motion_lora.media.timing import Timeline

pytestmark = pytest.mark.slow
ANIMALS = media_zoo.zoo()


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media_zoo.make_master(tmp_path_factory.mktemp("zoo") / "master.mkv")


def test_there_are_enough_animals_and_no_name_twice() -> None:
    assert len({animal.name for animal in ANIMALS}) == len(ANIMALS) >= 60


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name[:40].encode("ascii", "replace").decode())
def test_animal(animal: Animal, master: Path, tmp_path: Path) -> None:
    path = tmp_path / animal.name
    animal.make(path, master)
    assert media_zoo.verdict(path, animal) == ""


def test_the_zoo_sees_a_wrong_colour_and_a_wrong_time() -> None:
    right = torch.from_numpy(np.stack([np.asarray(picture) for picture in media_zoo.pictures()])).float() / 255
    animal = Animal("film", lambda path, source: None)
    assert media_zoo._wrong(right, animal) == ""
    assert "the square is at" in media_zoo._wrong(right.flip(0), animal)
    assert "colour" in media_zoo._wrong(right * 0.9, animal)


def test_no_command_line_grows_with_the_frames(master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows ends a command line at 32,767 characters; one expression a frame passed that after 90 s of video."""
    assert sum(map(len, video._selection(range(100_000)))) < 100
    assert max(len("".join(video._selection(range(0, count, 3)))) for count in (300, 600, 9000)) < 5000
    seen: list[int] = []
    plain = ffmpeg._command
    monkeypatch.setattr(
        ffmpeg, "_command", lambda a, nostdin: seen.append(sum(map(len, a))) or plain(a, nostdin=nostdin)
    )
    read_frames(master, num_frames=5, fps=3)
    assert len(seen) == 2 and max(seen) < 2000


def test_4k_in_is_not_4k_in_memory(tmp_path: Path) -> None:
    path, count = tmp_path / "large.mp4", 24
    film = f"testsrc2=size=1920x1080:rate=24:duration={count / 24}"
    media_zoo.ffmpeg("-f", "lavfi", "-i", film, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "30", str(path))
    one = 1920 * 1080 * 3
    sizes: list[int] = []

    def fit(picture: np.ndarray) -> torch.Tensor:
        sizes.append(tracemalloc.get_traced_memory()[0])
        return torch.zeros(8, 8, 3)

    tracemalloc.start()
    try:
        frames, _ = video.read_video(path, video.Request(count, 24.0, 0.0), fit)
    finally:
        tracemalloc.stop()
    assert len(frames) == len(sizes) == count
    assert max(sizes) < 4 * one, "only what is being fitted is there at its full size"


def test_frames_are_regular_only_where_their_numbers_say_their_times() -> None:
    assert Timeline.regular(100, 29.97).is_regular
    assert not Timeline((0.0, 0.1, 0.2, 0.6, 1.0), 0.4, 4.0).is_regular


LOG = """
  Stream #0:0[0x1]: Video: hevc (Main 10), yuv420p10le, 640x360, 24 fps
      DOVI configuration record: version: 1.0, profile: {dolby}, level: 3
Stream mapping:
[Parsed_showinfo_0 @ 0x1] n:   0 pts:      0 pts_time:0  fmt:yuv420p10le cl:left sar:1/1 s:640x360 i:P iskey:1
[Parsed_showinfo_0 @ 0x1] color_range:tv color_space:{matrix} color_primaries:bt2020 color_trc:smpte2084
"""


@pytest.mark.parametrize(
    ("dolby", "matrix", "message"), [(5, "bt2020nc", "Dolby Vision profile 5"), (8, "ipt-c2", "matrix ipt-c2")]
)
def test_colours_that_cannot_be_read_right_are_refused(dolby: int, matrix: str, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        colour.filters(facts_of(LOG.format(dolby=dolby, matrix=matrix)), "film.mp4")
    assert colour.filters(facts_of(LOG.format(dolby=8, matrix="bt2020nc")), "film.mp4")


def test_hdr_without_the_filter_for_it_is_refused_and_never_read_dull(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    animal = next(animal for animal in ANIMALS if animal.name == "hdr_pq.mov")
    path = tmp_path / animal.name
    animal.make(path, master)
    monkeypatch.setattr(video, "read_pictures", lambda *args: ([], 1, "No such filter: 'zscale'"))
    with pytest.raises(ClipError, match="lacks zscale"):
        read_frames(path)


def test_frames_after_a_change_of_size_are_where_they_were(master: Path, tmp_path: Path) -> None:
    """ffmpeg's own numbers start anew there, and the list of times does not."""
    path = tmp_path / "joined.ts"
    media_zoo._joined("96:64", "48:32")(path, master)
    frames, _ = read_frames(path, num_frames=16, fps=4)
    places = media_zoo.square_places(frames)
    wanted = [index * media_zoo.STEP for index in range(0, 16, 2)] * 2
    assert max(abs(a - b) for a, b in zip(places, wanted, strict=True)) <= media_zoo.STEP
