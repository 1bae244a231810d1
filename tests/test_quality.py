"""The measure of the base's quality, on clips whose truth is known: rendered ones in the model's place."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from pretrain_playground import quality

from motion_lora.playground import world
from motion_lora.playground.prompts import other_looks

PROMPTS = 12


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[world.Scene]:
    """Every scene that was asked for; the model draws all of them as asked."""
    asked: list[world.Scene] = []

    def draw(pipeline: object, scenes: Sequence[world.Scene], *settings: object) -> list[SimpleNamespace]:
        asked.extend(scenes)
        return [SimpleNamespace(frames=world.render(scene)) for scene in scenes]

    monkeypatch.setattr(quality, "_sample", draw)
    return asked


def test_what_is_drawn_as_asked_is_right(drawn: list[world.Scene]) -> None:
    found = quality.measure_quality(None, PROMPTS)
    assert (found.colour, found.shape, found.background, found.known_motion) == (1, 1, 1, 1)
    assert found.object_found == 1 and found.held_out_performed == 1
    assert (found.prompts, found.held_out_prompts) == (PROMPTS, PROMPTS // 4)
    assert {scene.motion for scene in drawn[:PROMPTS]} <= set(world.KNOWN_MOTIONS)
    assert {scene.motion for scene in drawn[PROMPTS:]} <= set(world.HELD_OUT_MOTIONS)


def test_what_is_drawn_in_other_looks_and_still_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(pipeline: object, scenes: Sequence[world.Scene], *settings: object) -> list[SimpleNamespace]:
        others = [other_looks(world.Scene(**{**vars(scene), "motion": "still"}), 1)[0] for scene in scenes]
        return [SimpleNamespace(frames=world.render(other)) for other in others]

    monkeypatch.setattr(quality, "_sample", draw)
    found = quality.measure_quality(None, PROMPTS)
    assert (found.colour, found.shape, found.background, found.held_out_performed) == (0, 0, 0, 0)
    assert found.known_motion < 0.5, "only those that were asked to stay still"


def test_another_seed_on_the_command_line_asks_other_prompts(
    drawn: list[world.Scene], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quality.VideoPipeline, "load", lambda folder, dtype: None)
    said = []
    for seed in ("0", "1", "1"):
        drawn.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pretrain_playground"):
            quality.main(["--prompts", str(PROMPTS), "--seed", seed])
        assert json.loads(caplog.messages[-1])["prompts"] == PROMPTS
        said.append([world.caption(scene) for scene in drawn])
    assert said[0] != said[1] == said[2]
