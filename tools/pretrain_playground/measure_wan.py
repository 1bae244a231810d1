"""Do query and key carry the motion and keep the look out? The recipe for joint attention where the truth is known.

    python -m tools.pretrain_playground.measure_wan --model DIR --output TABLE.json [--motions orbit bounce]

One clip of each held-out motion is learned by each row of `ROWS`; then the motion is asked for in four other looks,
none of which shares shape, colour or background with the clip. Fidelity is to the clip's motion; leakage is the share
of frames with the clip's own look; looks is the share of attributes drawn as asked. The base itself is the first row. A
motion that is done stays in the table's file, from which a run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.clip import Clip
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.playground import world
from motion_lora.playground.probe import read_clip
from motion_lora.playground.prompts import other_looks
from motion_lora.playground.scores import score_clip
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import TrainSettings, train

logger = logging.getLogger(__name__)

LOOKS = 4
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.5
# Of the playground's size, as its own tuning is; the same steps for all.
_TUNING: dict[str, Any] = {
    "rank": 16,
    "learning_rate": 2e-3,
    "lr_scheduler": "cosine",
    "absorber_steps": 150,
    "absorber_rank": 8,
    "absorber_learning_rate": 2e-3,
    "frames_per_step": 9,
}
ROWS: dict[str, dict[str, Any]] = {
    "q,k beside a frozen absorber": {"method": "joint-customize-a-video"},
    "the same, frame-difference loss": {"method": "joint-customize-a-video", "loss": "frame-difference"},
    "q,k without an absorber": {"method": "joint-customize-a-video", "absorber": "none"},
    "q,k,v,o beside a frozen absorber": {"method": "joint-customize-a-video", "targets": "joint-attention"},
    "MotionDirector on joint attention": {"method": "joint-motiondirector"},
    "plain LoRA on all layers": {"method": "joint-lora"},
}


def settings_of(row: dict[str, Any], steps: int) -> TrainSettings:
    """The row's method with the tuning."""
    return replace(TrainSettings.for_method(row["method"]), **{**_TUNING, **row, "steps": steps})


def clip_of(motion: str, num_frames: int) -> tuple[world.Scene, Clip]:
    """The clip of a held-out motion that is learned."""
    generator = torch.Generator().manual_seed(sorted(world.HELD_OUT_MOTIONS).index(motion) + 50)
    scene = world.sample_scene(generator, (motion,))
    frames = world.render(scene, num_frames)
    return scene, Clip(frames, world.FPS, world.caption(scene), world.appearance_caption(scene))


def scores_of(pipeline: VideoPipeline, scene: world.Scene, clip: Clip, stack: AdapterStack) -> dict[str, float]:
    """Means over the other looks."""
    reference, asked = read_clip(clip.frames), other_looks(scene, LOOKS)
    wanted = [
        SampleSettings(
            world.caption(look),
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            seed=900 + number,
        )
        for number, look in enumerate(asked)
    ]
    made = sample(pipeline, wanted, stack=stack)
    found = [score_clip(one.frames, look, reference) for one, look in zip(made, asked, strict=True)]
    return {
        "fidelity": statistics.fmean(score.fidelity for score in found),
        "leakage": statistics.fmean(score.mean_leakage for score in found),
        "looks": statistics.fmean(score.alignment for score in found),
        "found": statistics.fmean(score.found for score in found),
    }


def measure(pipeline: VideoPipeline, motions: Sequence[str], steps: int, output: Path) -> dict[str, Any]:
    """The table, motion by motion; what `output` has already is not made again."""
    table: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    for motion in motions:
        scene, clip = clip_of(motion, pipeline.default_num_frames)
        for name, row in {"base": None, **ROWS}.items():
            if motion in table.setdefault(name, {}):
                continue
            entries: tuple[StackEntry, ...] = ()
            if row is not None:
                entries = (StackEntry(train(pipeline, [clip], settings_of(row, steps)).lora),)
            table[name][motion] = scores_of(pipeline, scene, clip, AdapterStack(entries))
            output.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
            logger.info("%s, %s: %s", motion, name, table[name][motion])
    return table


def rows(table: dict[str, Any]) -> list[str]:
    """The table in Markdown, means over the motions."""
    lines = ["| | motion fidelity | leakage | looks as asked | object found |", "|---|---|---|---|---|"]
    for name, motions in table.items():
        means = [
            statistics.fmean(one[key] for one in motions.values()) for key in ("fidelity", "leakage", "looks", "found")
        ]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pretrain_playground.measure_wan", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the tiny Wan's folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that keeps the table")
    parser.add_argument("--steps", type=int, default=300, help="of the motion stage (default: %(default)s)")
    parser.add_argument("--motions", nargs="*", choices=tuple(world.HELD_OUT_MOTIONS), default=None)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pipeline = VideoPipeline.load(options.model, dtype="fp32", device="cpu")
    table = measure(pipeline, options.motions or tuple(world.HELD_OUT_MOTIONS), options.steps, options.output)
    logger.info("\n%s", "\n".join(rows(table)))


if __name__ == "__main__":
    main()
