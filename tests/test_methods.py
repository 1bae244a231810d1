"""The table of methods: every row can be run, and says what its paper says."""

from __future__ import annotations

import dataclasses

import pytest

from motion_lora.adapters.targets import TARGETS, parameter_count
from motion_lora.backbones.registry import empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.core.lora import SPATIAL, TEMPORAL
from motion_lora.methods.stages import Stage
from motion_lora.methods.table import ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS, ABSORBERS, METHODS
from motion_lora.playground.defaults import PLAYGROUND_DEFAULTS
from motion_lora.training import TrainSettings, check_settings

PUBLISHED = ("customize-a-video", "motiondirector", "motiondirector-image", "separate-motion-appearance")
OWN = ("many-looks",)
ABLATIONS = ("temporal-only", "spatial-only", "spatial-temporal")
JOINT = ("joint-customize-a-video", "joint-motiondirector", "joint-lora")
SETTINGS = {field.name for field in dataclasses.fields(TrainSettings)}
STAGES = {stage.name: stage for method in METHODS.values() for stage in method.stages}


def main_stage(name: str) -> Stage:
    return METHODS[name].stages[-1]


def test_rows():
    assert set(METHODS) == {*PUBLISHED, *OWN, *ABLATIONS, *JOINT}
    assert all(name == row.name and row.title and row.source for name, row in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_consistent(name):
    row = METHODS[name]
    assert row.absorber in ABSORBERS and row.stages
    trained = {part.name for stage in row.stages for part in stage.parts}
    assert set(row.keeps) <= trained
    for stage in row.stages:
        parts = {part.name for part in stage.parts}
        assert {learner for a_pass in stage.passes for learner in a_pass.trains} == parts, "every part learns somewhere"
        assert {held for a_pass in stage.passes for held in a_pass.holds} <= parts
        assert stage.steps in SETTINGS and stage.source
        for part in stage.parts:
            layer = "joint" if name in JOINT else {"temporal": TEMPORAL}.get(part.name, SPATIAL)
            assert part.name == "tokens" or TARGETS[part.targets].layer == layer


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_legal_settings(name):
    assert set(METHODS[name].defaults) <= SETTINGS and set(PLAYGROUND_DEFAULTS.get(name, {})) <= SETTINGS
    check_settings(TrainSettings.for_method(name))
    check_settings(dataclasses.replace(TrainSettings.for_method(name), **PLAYGROUND_DEFAULTS.get(name, {})))


def test_customize_a_video():
    """Sections 4.1 and 4.2, A.2, A.4."""
    row = METHODS["customize-a-video"]
    assert row.stages[:2] == (ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS) and row.absorber == "dual"
    for stage in row.stages[:2]:
        (absorbing,) = stage.passes
        assert stage.batch == "frames" and absorbing.bypass and absorbing.caption == "appearance"
    (learning,) = main_stage("customize-a-video").passes
    assert learning.trains == ("temporal",) and learning.frames == "all" and not learning.bypass
    assert learning.caption == "full" and learning.loss == "denoising" and row.keeps == ("temporal",)
    assert TrainSettings.for_method("customize-a-video") == TrainSettings(), "the plain defaults are this paper's"
    chosen = TrainSettings()
    assert (chosen.rank, chosen.alpha, chosen.learning_rate) == (4, 1.0, 5e-4)
    assert (chosen.absorber_rank, chosen.absorber_alpha, chosen.absorber_learning_rate) == (1, 0.5, 5e-5)
    assert 2 <= chosen.num_tokens <= 6 and chosen.patch_crop


def test_motiondirector():
    """Eq. 4 to 7 and its code: dual path, spatial LoRA per clip, held while the motion is learned."""
    spatial, temporal = main_stage("motiondirector").passes
    assert spatial.trains == ("spatial",) and spatial.bypass and spatial.frames == "one" and spatial.optional
    assert temporal.trains == ("temporal",) and temporal.holds == ("spatial",) and temporal.loss == "debiased"
    assert not temporal.bypass and temporal.frames == "all"
    per_clip = {part.name: part.per_clip for part in main_stage("motiondirector").parts}
    assert per_clip == {"spatial": True, "temporal": False}
    chosen = TrainSettings.for_method("motiondirector")
    assert (chosen.rank, chosen.dropout, chosen.spatial_path_probability) == (32, 0.1, 0.8)
    assert chosen.resolved().absorber == "none" and chosen.resolved().spatial_rank == 32


def test_separate_motion_from_appearance_is_motiondirector_but_for_its_targets():
    theirs, ours = main_stage("motiondirector"), main_stage("separate-motion-appearance")
    assert ours.passes == theirs.passes and ours.parts[0] == theirs.parts[0]
    assert ours.parts[1] == dataclasses.replace(theirs.parts[1], targets="tap-k-out")
    assert TrainSettings.for_method("separate-motion-appearance").steps == 1000


def test_on_joint_attention_the_rows_are_those_of_their_papers_but_for_the_layers():
    learning, absorbing = main_stage("joint-customize-a-video"), METHODS["joint-customize-a-video"].stages[0]
    assert absorbing.passes == ABSORB_BY_SPATIAL_LORA.passes and absorbing.batch == "frames"
    assert learning.parts[0].targets == "joint-qk" and learning.passes[0].loss == "denoising"
    theirs, ours = main_stage("motiondirector"), main_stage("joint-motiondirector")
    assert [p.trains + p.holds for p in theirs.passes] == [("spatial",), ("temporal", "spatial")]
    assert [p.trains + p.holds for p in ours.passes] == [("spatial",), ("motion", "spatial")]
    assert {part.targets for part in ours.parts} == {"joint-attention"}, "told apart by what they see"


def test_image_path_is_the_spatial_half_with_one_lora_for_all():
    (only,) = main_stage("motiondirector-image").passes
    assert only == dataclasses.replace(main_stage("motiondirector").passes[0], optional=False)
    assert [part.per_clip for part in main_stage("motiondirector-image").parts] == [False]
    assert METHODS["motiondirector-image"].keeps == ("spatial",)


def test_counts_of_the_rows_on_modelscope():
    """Customize-A-Video Table 3."""
    unet = empty_network(MODELSCOPE_UNET_CONFIG)

    def count(name: str, part: str, rank: int) -> int:
        (preset,) = (p.targets for p in main_stage(name).parts if p.name == part)
        return parameter_count(unet, preset, rank)

    assert count("customize-a-video", "temporal", 4) == 831_488
    assert parameter_count(unet, ABSORB_BY_SPATIAL_LORA.parts[0].targets, 1) == 207_488
    assert count("motiondirector", "temporal", 2) == 779_520
    assert count("motiondirector", "temporal", 4) == 1_559_040
    assert count("motiondirector", "spatial", 1) == 274_560
    assert count("separate-motion-appearance", "temporal", 1) == 103_936
    assert count("spatial-temporal", "spatial", 1) == 207_488
