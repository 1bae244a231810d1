"""The playground's world: scenes, captions, and the paths that pre-training shows without words."""

from __future__ import annotations

import pytest
import torch
from pretrain_playground.pool import wandering_scenes

from motion_lora.playground import world
from motion_lora.playground.motions import FOLLOWS, ideal_fidelity


@pytest.fixture(scope="module")
def wandering() -> list[world.Scene]:
    return wandering_scenes(torch.Generator().manual_seed(0), 25)


def test_a_scene_names_what_the_world_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"no motion .hover.; it has: left, .*wander"):
        world.Scene("circle", "red", "sand", "hover")
    with pytest.raises(ValueError, match=r"radius is 0\.5"):
        world.Scene("circle", "red", "sand", "left", radius=0.5)


def test_captions_say_what_is_seen_and_how_it_moves() -> None:
    scene = world.Scene("ring", "pink", "snow", "orbit", fill="striped")
    assert world.caption(scene) == "a striped pink ring circling around over snow"
    assert world.appearance_caption(scene) == "a striped pink ring over snow"
    assert world.appearance_words(scene) == "striped pink ring"
    assert world.caption(scene, ("colour",)) == "a striped ring circling around over snow"
    assert world.caption(scene, ("background", "colour")) == "a striped ring circling around"
    assert world.appearance_caption(scene, ("background",)) == "a striped pink ring"


def test_wandering_has_no_words() -> None:
    scene = world.Scene("ring", "pink", "snow", world.WANDER, phase=0.3)
    assert world.caption(scene) == world.appearance_caption(scene)


def test_a_wandering_path_is_a_function_of_its_phase() -> None:
    paths = [world.trajectory(world.Scene("ring", "pink", "snow", world.WANDER, phase=p)) for p in (0.3, 0.3, 0.31)]
    assert torch.equal(paths[0], paths[1]) and not torch.allclose(paths[0], paths[2], atol=0.05)


def test_wandering_stays_on_the_canvas(wandering: list[world.Scene]) -> None:
    for scene in wandering:
        path = world.trajectory(scene)
        assert path.min() >= scene.radius and path.max() <= 1 - scene.radius
        extent = (path.amax(dim=0) - path.amin(dim=0)).max() / 2
        assert extent == pytest.approx(scene.scale, abs=1e-5), "it fills its extent in one direction"


def test_what_is_held_out_stays_unseen(wandering: list[world.Scene]) -> None:
    for scene in wandering:
        path = world.trajectory(scene)
        assert max(ideal_fidelity(path, motion) for motion in world.HELD_OUT_MOTIONS) < FOLLOWS
    known = {world.sample_scene(torch.Generator().manual_seed(seed)).motion for seed in range(40)}
    assert known == set(world.KNOWN_MOTIONS), "other pre-training clips show known motions only"
