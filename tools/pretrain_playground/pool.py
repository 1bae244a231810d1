"""What pre-training is drawn from: random scenes, and the pool of clips that were rendered and encoded once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from motion_lora.core.axes import unfold_frames
from motion_lora.playground import world
from motion_lora.playground.motions import FOLLOWS, ideal_fidelity

from .architecture import FrozenParts, to_pixels

LATENT_OBJECT_WEIGHT = 2.0
POOL_SIZE = 4096


def random_scenes(generator: torch.Generator, count: int) -> list[world.Scene]:
    """Scenes of the known motions."""
    return [world.sample_scene(generator) for _ in range(count)]


def wandering_scenes(generator: torch.Generator, count: int) -> list[world.Scene]:
    """Scenes on random smooth paths, none of which follows a motion that is held out."""
    scenes: list[world.Scene] = []
    while len(scenes) < count:
        scene = world.sample_scene(generator, motions=(world.WANDER,))
        path = world.trajectory(scene)
        if all(ideal_fidelity(path, motion) < FOLLOWS for motion in world.HELD_OUT_MOTIONS):
            scenes.append(scene)
    return scenes


def coverage_of(scenes: Sequence[world.Scene], centres: Tensor) -> Tensor:
    """How much of each pixel the object covers: (n, 1, h, w) in [0, 1]."""
    return world.coverage(scenes, centres)[:, None]


def object_weight(coverage: Tensor) -> Tensor:
    """Coverage (n, 1, h, w) -> loss weight of each latent cell (n, 1, h / 8, w / 8): small objects are what matters."""
    return 1 + LATENT_OBJECT_WEIGHT * F.max_pool2d(coverage, 8)


@dataclass(frozen=True)
class Pool:
    """Clips that were rendered and encoded once, because encoding them anew costs a third of a training step.

    latents (n, c, f, h, w) and loss weight (n, 1, f, h, w), both scaled and sized as the UNet sees them.
    """

    scenes: tuple[world.Scene, ...]
    latents: Tensor
    weight: Tensor


def build_pool(work: Path, parts: FrozenParts, size: int) -> Pool:
    """Encode `size` clips of known motions and half as many that wander, or read what a run left in `work`."""
    known = random_scenes(torch.Generator().manual_seed(11), size)
    wandering = wandering_scenes(torch.Generator().manual_seed(12), size // 2)
    files = {work / f"pool-{size}.safetensors": known, work / f"pool-wander-{size // 2}.safetensors": wandering}
    encoded = [_encoded(path, parts, scenes) for path, scenes in files.items()]
    latents, weight = (torch.cat([tensors[name].float() for tensors in encoded]) for name in ("latents", "weight"))
    return Pool((*known, *wandering), latents, weight)


def _encoded(path: Path, parts: FrozenParts, scenes: Sequence[world.Scene]) -> dict[str, Tensor]:
    if not path.exists():
        latents, weights = zip(*(_encode_scene(parts, scene) for scene in scenes), strict=True)
        temporary = path.with_suffix(".tmp")
        save_file({"latents": torch.stack(latents).half(), "weight": torch.stack(weights).half()}, str(temporary))
        os.replace(temporary, path)
    return load_file(str(path))


def _encode_scene(parts: FrozenParts, scene: world.Scene) -> tuple[Tensor, Tensor]:
    centres = world.trajectory(scene)
    drawn = [scene] * world.NUM_FRAMES
    pixels = to_pixels(world.render_frames(drawn, centres))
    weight = object_weight(coverage_of(drawn, centres))
    return unfold_frames(parts.encode(pixels), 1)[0], unfold_frames(weight, 1)[0]
