"""What pre-training is drawn from: random scenes, and the pool of clips that were rendered and encoded once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from motion_lora.core.axes import unfold_frames
from motion_lora.playground import world
from motion_lora.playground.motions import FOLLOWS, ideal_fidelities

from .architecture import FrozenParts, to_pixels

LATENT_OBJECT_WEIGHT = 2.0
POOL_SIZE = 3072
_CLIPS_AT_ONCE = 16
_PATHS_AT_ONCE = 256
# A clip played backwards is another clip of the world: twice the pool for nothing.
_BACKWARDS = {"left": "right", "right": "left", "up": "down", "down": "up"}


def random_scenes(generator: torch.Generator, count: int) -> list[world.Scene]:
    """Scenes of the known motions."""
    return [world.sample_scene(generator) for _ in range(count)]


def wandering_scenes(generator: torch.Generator, count: int) -> list[world.Scene]:
    """Scenes on random smooth paths, none of which follows a motion that is held out."""
    scenes: list[world.Scene] = []
    while len(scenes) < count:
        drawn = [world.sample_scene(generator, motions=(world.WANDER,)) for _ in range(_PATHS_AT_ONCE)]
        paths = torch.stack([world.trajectory(scene) for scene in drawn])
        nearest = torch.stack([ideal_fidelities(paths, motion) for motion in world.HELD_OUT_MOTIONS]).amax(dim=0)
        scenes += [scene for scene, free in zip(drawn, (nearest < FOLLOWS).tolist(), strict=True) if free]
    return scenes[:count]


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

    def draw(self, generator: torch.Generator, count: int) -> tuple[list[world.Scene], Tensor, Tensor]:
        """Scenes, latents and weights of `count` clips, half of them played backwards."""
        drawn = torch.randint(len(self.scenes), (count,), generator=generator).tolist()
        backwards = (torch.rand(count, generator=generator) < 0.5).tolist()
        scenes = [_turned(self.scenes[i]) if back else self.scenes[i] for i, back in zip(drawn, backwards, strict=True)]
        latents, weight = (
            torch.stack([t[i].flip(1) if back else t[i] for i, back in zip(drawn, backwards, strict=True)])
            for t in (self.latents, self.weight)
        )
        return scenes, latents, weight


def _turned(scene: world.Scene) -> world.Scene:
    """What a scene of a known motion shows when it is played backwards, as far as a caption tells."""
    return replace(scene, motion=_BACKWARDS.get(scene.motion, scene.motion))


def build_pool(work: Path, parts: FrozenParts, size: int) -> Pool:
    """Encode `size` clips of known motions and as many that wander, or read what a run left in `work`."""
    known = random_scenes(torch.Generator().manual_seed(11), size)
    wandering = wandering_scenes(torch.Generator().manual_seed(12), size)
    files = {work / f"pool-{size}.safetensors": known, work / f"pool-wander-{size}.safetensors": wandering}
    encoded = [_encoded(path, parts, scenes) for path, scenes in files.items()]
    latents, weight = (torch.cat([tensors[name].float() for tensors in encoded]) for name in ("latents", "weight"))
    return Pool((*known, *wandering), latents, weight)


def _encoded(path: Path, parts: FrozenParts, scenes: Sequence[world.Scene]) -> dict[str, Tensor]:
    if not path.exists():
        chunks = [scenes[i : i + _CLIPS_AT_ONCE] for i in range(0, len(scenes), _CLIPS_AT_ONCE)]
        latents, weights = zip(*(_encode_scenes(parts, chunk) for chunk in chunks), strict=True)
        temporary = path.with_suffix(".tmp")
        stacked = {"latents": torch.cat(latents), "weight": torch.cat(weights)}
        save_file({name: t.half().contiguous() for name, t in stacked.items()}, str(temporary))
        os.replace(temporary, path)
    return load_file(str(path))


def _encode_scenes(parts: FrozenParts, scenes: Sequence[world.Scene]) -> tuple[Tensor, Tensor]:
    """Latents (n, c, f, h, w) and loss weights (n, 1, f, h, w) of n clips."""
    centres = torch.cat([world.trajectory(scene) for scene in scenes])
    drawn = [scene for scene in scenes for _ in range(world.NUM_FRAMES)]
    pixels = to_pixels(world.render_frames(drawn, centres))
    weight = object_weight(coverage_of(drawn, centres))
    return unfold_frames(parts.encode(pixels), len(scenes)), unfold_frames(weight, len(scenes))
