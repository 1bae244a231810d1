"""The playground's exact scores: right answers for clips that are drawn to have them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from motion_lora.core.errors import SettingsError
from motion_lora.playground import world
from motion_lora.playground.motions import compare_motion, follows, motion_fidelity, nearest_motion
from motion_lora.playground.probe import Reading, read_clip
from motion_lora.playground.scores import diversity, leakage, score_clip, score_reading

REFERENCE = world.Scene("circle", "red", "sand", "orbit", scale=0.2)
ASKED = world.Scene("square", "blue", "snow", "orbit", fill="striped", phase=0.4, radius=0.19)


def reading_of(scene: world.Scene) -> Reading:
    return read_clip(world.render(scene))


@pytest.fixture(scope="module")
def reference() -> Reading:
    return reading_of(REFERENCE)


def test_a_perfect_clip(reference: Reading) -> None:
    score = score_clip(world.render(ASKED), ASKED, reference)
    assert score.alignment == 1 and all(score.right.values())
    assert score.leakage == {"background": 0, "colour": 0, "shape": 0, "fill": 0} and score.mean_leakage == 0
    assert score.fidelity > 0.95 and score.consistency == 1 and score.found == 1
    assert score.size_jitter < 0.05
    assert score.motion is not None and score.motion.speed_ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("attribute", ["background", "colour", "shape", "fill"])
def test_each_attribute_that_leaks_is_seen(reference: Reading, attribute: str) -> None:
    leaked = replace(ASKED, **{attribute: getattr(REFERENCE, attribute)})
    score = score_clip(world.render(leaked), ASKED, reference)
    assert score.leakage[attribute] == 1 and score.mean_leakage == pytest.approx(0.25)
    assert score.right == {name: name != attribute for name in score.right} and score.alignment == 0.75


def test_a_wrong_answer_that_is_not_the_references_is_no_leakage(reference: Reading) -> None:
    score = score_clip(world.render(replace(ASKED, colour="green")), ASKED, reference)
    assert not score.right["colour"] and score.leakage["colour"] == 0


def test_what_was_asked_for_as_the_reference_has_it_cannot_leak(reference: Reading) -> None:
    asked = replace(REFERENCE, colour="blue")
    assert leakage(reading_of(REFERENCE), asked, reference) == {"colour": 1}
    assert score_reading(reading_of(REFERENCE), REFERENCE, reference).mean_leakage == 0


def test_leakage_in_some_frames_counts_as_their_share(reference: Reading) -> None:
    frames = torch.cat([world.render(ASKED)[:6], world.render(replace(ASKED, colour="red"))[6:]])
    score = score_clip(frames, ASKED, reference)
    assert score.leakage["colour"] == pytest.approx(0.25) and score.right["colour"]
    assert score.consistency == pytest.approx(1 - 1 / 7 / 4)


def test_no_object_is_no_motion_but_a_background(reference: Reading) -> None:
    score = score_clip(world.background("sand").expand(8, -1, -1, -1), ASKED, reference)
    assert score.motion is None and score.fidelity == 0 and score.found == 0
    assert score.leakage == {"background": 1, "colour": 0, "shape": 0, "fill": 0} and score.alignment == 0


def test_size_jitter(reference: Reading) -> None:
    steady, breathing = (
        torch.cat([world.render(replace(ASKED, radius=radius))[i : i + 1] for i, radius in enumerate(radii)])
        for radii in ([0.18] * 8, [0.16, 0.2] * 4)
    )
    assert score_clip(steady, ASKED, reference).size_jitter < 0.03
    assert score_clip(breathing, ASKED, reference).size_jitter == pytest.approx(math.log(0.2 / 0.16) / 2, abs=0.03)


def test_motion_fidelity_through_the_probe(reference: Reading) -> None:
    other = replace(ASKED, motion="bounce")
    assert motion_fidelity(reference, reading_of(ASKED)) > 0.95
    recoloured = compare_motion(reference, reading_of(replace(REFERENCE, colour="blue", background="snow")))
    assert recoloured is not None
    assert recoloured.velocity_correlation > 0.98 and recoloured.trajectory_error < 0.1
    assert motion_fidelity(reference, reading_of(other)) < 0.3
    assert motion_fidelity(reference, reading_of(replace(ASKED, motion="still"))) < 0.1
    nothing = read_clip(world.background("sand").expand(8, -1, -1, -1))
    assert motion_fidelity(reference, nothing) == 0 and compare_motion(nothing, reference) is None


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_every_motion_is_recognised_and_no_other(motion: str) -> None:
    generator = torch.Generator().manual_seed(3)
    reading = reading_of(world.sample_scene(generator, (motion,)))
    assert nearest_motion(reading)[0] == motion
    assert [name for name in world.MOTIONS if follows(reading, name)] == [motion]


def test_an_aimless_path_follows_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 0.5 + 0.12 * torch.randn(8, 2, generator=generator).clamp(-2, 2)
    reading = read_clip(world.render_frames([replace(ASKED, fill="plain")] * 8, centres))
    assert not any(follows(reading, name) for name in world.MOTIONS)
    assert nearest_motion(read_clip(world.background("sand").expand(8, -1, -1, -1))) == (None, 0.0)


def test_diversity_over_seeds() -> None:
    base = replace(REFERENCE, motion="right", scale=0.1, radius=0.16)
    places = [reading_of(replace(base, centre=(x, 0.5))) for x in (0.4, 0.6)]
    found = diversity(places)
    assert found.position == pytest.approx(0.1, abs=0.01) and found.size < 0.02 and found.speed < 0.05
    sizes = diversity([reading_of(replace(base, radius=radius)) for radius in (0.15, 0.2)])
    assert sizes.size == pytest.approx(math.log(0.2 / 0.15) / 2, abs=0.03) and sizes.position < 0.02
    speeds = diversity([reading_of(replace(base, scale=scale)) for scale in (0.1, 0.2)])
    assert speeds.speed == pytest.approx(math.log(2) / 2, abs=0.03)
    with pytest.raises(SettingsError, match="1 have one"):
        diversity([places[0], read_clip(world.background("sand").expand(8, -1, -1, -1))])
