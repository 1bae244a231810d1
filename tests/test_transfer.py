"""The proof at small scale: real training on the built-in model, on a motion that it has never seen."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from motion_lora.apps.demo import REFERENCE_LOOK
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.lora import LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.media.read import clip_from_frames
from motion_lora.playground import world
from motion_lora.playground.defaults import PLAYGROUND_LOOKS
from motion_lora.playground.model import load_playground
from motion_lora.playground.motions import motion_fidelity
from motion_lora.playground.probe import Reading, read_clip
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import TrainSettings, train
from motion_lora.training.looks import motion_similarity, restyled_latents

pytestmark = pytest.mark.slow
SCENE = world.Scene(motion="orbit", **REFERENCE_LOOK)


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return load_playground(device="cpu")


@pytest.fixture(scope="module")
def reference() -> Reading:
    return read_clip(world.render(SCENE))


def fidelity(base: VideoPipeline, reference: Reading, lora: LoRA | None) -> float:
    """Mean motion fidelity of four videos under the clip's own caption."""
    stack = AdapterStack() if lora is None else AdapterStack((StackEntry(lora),))
    asked = [SampleSettings(world.caption(SCENE), guidance_scale=2.5, num_inference_steps=12, seed=s) for s in range(4)]
    return statistics.fmean(motion_fidelity(reference, read_clip(v.frames)) for v in sample(base, asked, stack=stack))


def test_a_short_training_teaches_a_motion_that_the_base_does_not_know(base: VideoPipeline, reference: Reading) -> None:
    clip = clip_from_frames(world.render(SCENE), world.FPS, caption=world.caption(SCENE))
    # Feed-forward layers too: attention alone needs 400 steps or more with some seeds.
    few = {"targets": "temporal-all", "learning_rate": 3e-3, "steps": 250}
    settings = replace(TrainSettings.for_base(base, "temporal-only"), **few)
    before, after = fidelity(base, reference, None), fidelity(base, reference, train(base, [clip], settings).lora)
    assert after > before + 0.2, f"{before:.2f} without the LoRA, {after:.2f} with it"


def test_copies_in_other_looks_keep_the_motion(base: VideoPipeline, reference: Reading) -> None:
    """What training keeps by `motion_similarity`, which knows nothing of this world, moves as the reference does."""
    source = base.encode_frames(world.render(SCENE))
    looks, seeds = PLAYGROUND_LOOKS[:8], tuple(range(8))
    copies = restyled_latents(base, source, looks, strength=0.45, guidance_scale=2.5, seeds=seeds)
    alike = motion_similarity(source, copies)
    fidelities = torch.tensor([motion_fidelity(reference, read_clip(v)) for v in base.decode_latents(copies)])
    kept = alike >= TrainSettings().look_similarity
    assert kept.any() and not kept.all()
    assert fidelities[kept].mean() > 0.8 and fidelities[kept].mean() > fidelities[~kept].mean() + 0.2
