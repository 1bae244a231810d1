"""How well the playground's base model draws what it is told, read back by the probe.

    python -m tools.pretrain_playground.quality [--model FOLDER] [--prompts 200] [--guidance 2.5] [--seed 0]

Colour, shape, background and fill count as right when the probe reads the prompted one from the clip; a known motion
when the probe's rule for known motions gives the prompted one. Held-out motion words were never trained, so the
share of their clips that follow the word's path says whether the base could already do what a LoRA is to teach it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.playground import world
from motion_lora.playground.model import PLAYGROUND_FOLDER
from motion_lora.playground.motions import follows
from motion_lora.playground.probe import Reading, classify_motion, read_clip
from motion_lora.sampling.loop import Sample, sample
from motion_lora.sampling.settings import SampleSettings

logger = logging.getLogger(__name__)

ATTRIBUTES = ("colour", "shape", "background", "fill")
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.5


@dataclass(frozen=True)
class Quality:
    """Shares in [0, 1] over `prompts` clips with known motions and `held_out_prompts` with held-out ones."""

    prompts: int
    colour: float
    shape: float
    background: float
    fill: float
    known_motion: float
    object_found: float
    held_out_prompts: int
    held_out_performed: float
    num_inference_steps: int
    guidance_scale: float


def measure_quality(
    pipeline: VideoPipeline,
    prompts: int = 200,
    *,
    seed: int = 0,
    num_inference_steps: int = NUM_INFERENCE_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Quality:
    """Sample `prompts` clips of random scenes with known motions and a quarter as many with held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    known = [world.sample_scene(generator) for _ in range(prompts)]
    held_out = [world.sample_scene(generator, tuple(world.HELD_OUT_MOTIONS)) for _ in range(max(prompts // 4, 1))]
    clips = _sample(pipeline, [*known, *held_out], seed, num_inference_steps, guidance_scale)
    readings = [read_clip(clip.frames) for clip in clips]
    right = {
        name: _share([getattr(r, name) == getattr(s, name) for r, s in _pairs(readings, known)]) for name in ATTRIBUTES
    }
    return Quality(
        prompts=len(known),
        **right,
        known_motion=_share([classify_motion(r) == s.motion for r, s in _pairs(readings, known)]),
        object_found=_share([bool(r.found.all()) for r in readings]),
        held_out_prompts=len(held_out),
        held_out_performed=_share([follows(r, s.motion) for r, s in _pairs(readings[len(known) :], held_out)]),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )


def _pairs(readings: Sequence[Reading], scenes: Sequence[world.Scene]) -> list[tuple[Reading, world.Scene]]:
    return list(zip(readings[: len(scenes)], scenes, strict=True))


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / max(len(hits), 1)


def _sample(
    pipeline: VideoPipeline, scenes: Sequence[world.Scene], seed: int, steps: int, guidance: float
) -> list[Sample]:
    settings = [
        SampleSettings(
            prompt=world.caption(scene),
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed * 100_000 + index,
        )
        for index, scene in enumerate(scenes)
    ]
    return sample(pipeline, settings, batch_size=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pretrain_playground.quality", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=PLAYGROUND_FOLDER, help="model folder (default: the built-in one)"
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=NUM_INFERENCE_STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--seed", type=int, default=0, help="another seed asks other prompts (default: 0)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = VideoPipeline.load(options.model, dtype="fp32")
    quality = measure_quality(
        pipeline,
        options.prompts,
        seed=options.seed,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
    )
    logger.info("%s", json.dumps(asdict(quality), indent=2))


if __name__ == "__main__":
    main()
