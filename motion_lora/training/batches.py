"""What one step is trained on: the clips made ready once, and the random draw of each step.

Latents and text embeddings are computed before the first step. Whatever is random in a step comes from one generator
that is seeded by the run's seed, the stage and the step, on the CPU: the same on every device and after every resume.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.noise import Process, clip_noise
from ..base.pipeline import VideoPipeline
from ..base.placement import sent
from ..base.tokens import check_length
from ..core.absorber import PlaceholderTokens
from ..core.axes import fold_frames
from ..core.errors import TrainingError
from .looks import motion_similarity, motion_words, moving_caption, restyled_latents

if TYPE_CHECKING:
    from .recipe import Recipe
    from .settings import TrainSettings

logger = logging.getLogger(__name__)

Remember = Callable[[str, Callable[[], Tensor]], Tensor]
"""Gets a name and what makes a tensor; gives the tensor, made now or by an earlier part of the same run."""

# Customize-A-Video A.2. It does not say of what; sides are assumed, not areas.
PATCH_RATIOS = (0.33, 0.67)


@dataclass(frozen=True, eq=False)
class Material:
    """One clip made ready: latents (1, c, f, h, w) fp32 on the device, mirrored too if asked, and its prompts.

    `clip` is its number; a `restyled` copy of a clip has that clip's. `stills` (n, c, 1, h, w) are its frames, each
    encoded as a clip of its own, where the latents' frames are not those of the clip.
    """

    clip: int
    latents: Tensor
    mirrored: Tensor | None
    prompts: dict[str, str]
    restyled: bool = False
    stills: Tensor | None = None
    mirrored_stills: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Draw:
    """What one step sees: a clip or frames of one, shared noise and timesteps, and the choices of its passes.

    latents and noise (b, c, f, h, w), timesteps (b,): one clip, b = 1, or b unordered images, f = 1. The timesteps
    stay on the CPU, where the tables are that they are looked up in: reading them back would wait for the device.
    `prompts` are by kind. What is `restyled` has its look from the base: nothing that holds the clip's look is on.
    """

    clip: int
    prompts: Mapping[str, str]
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    frame: int
    anchor: int
    with_optional: bool
    restyled: bool = False
    stills: Tensor | None = None

    def part(self, start: int, stop: int) -> Draw:
        """Some of its unordered images alone."""
        part = slice(start, stop)
        return replace(self, latents=self.latents[part], noise=self.noise[part], timesteps=self.timesteps[part])

    def one_frame(self) -> Draw:
        """The same noise and timestep on the drawn frame alone."""
        if self.stills is not None:
            place = self.frame * self.latents.shape[2] // len(self.stills)
            still = self.stills[self.frame : self.frame + 1]
            return replace(self, latents=still, noise=self.noise[:, :, place : place + 1])
        frame = slice(self.frame, self.frame + 1)
        return replace(self, latents=self.latents[:, :, frame], noise=self.noise[:, :, frame])


def prepare(
    pipeline: VideoPipeline, recipe: Recipe, tokens: PlaceholderTokens | None, kinds: Iterable[str]
) -> list[Material]:
    """Encode the clips; `pipeline` knows `tokens`, `kinds` are the captions that will be read.

    Raises ClipError for tokens in a caption that the text encoder would cut.
    """
    materials = []
    for number, clip in enumerate(recipe.clips):
        prompts = recipe.prompts(number, tokens, kinds)
        for prompt in prompts.values() if tokens is not None else ():
            check_length(pipeline, prompt)
        # A host may hand over tensors of inference mode, which autograd refuses; a copy is a plain tensor.
        frames = clip.frames.clone()
        flipped = pipeline.encode_frames(frames.flip(2)) if recipe.settings.horizontal_flip > 0 else None
        material = Material(number, pipeline.encode_frames(frames), flipped, prompts)
        if not pipeline.backbone.frames_alone:
            stills = pipeline.encode_frames(frames[:, None])
            flipped = pipeline.encode_frames(frames[:, None].flip(3)) if flipped is not None else None
            material = replace(material, stills=stills, mirrored_stills=flipped)
        materials.append(material)
    return materials


def restyle(
    pipeline: VideoPipeline,
    recipe: Recipe,
    materials: Sequence[Material],
    kinds: Iterable[str],
    remember: Remember,
) -> list[Material]:
    """Each clip once per look that keeps its motion; `pipeline` is the base itself. Raises TrainingError for none.

    What was drawn goes through `remember`, by a name.
    """
    clips, settings = recipe.clips, recipe.settings
    if not settings.looks:
        return []
    copies = []
    for material in materials:
        words = motion_words(clips[material.clip].caption, clips[material.clip].appearance_caption)
        if not words:
            logger.warning(
                "Clip %d: its captions do not say which words are the motion's, so its copies in other looks are "
                "learned without them; give a caption without the motion words as its appearance caption.",
                material.clip + 1,
            )
        seeds = [derived_seed(settings.seed, "look", material.clip, number) for number in range(len(settings.looks))]
        draw = partial(
            restyled_latents,
            pipeline,
            material.latents,
            settings.looks,
            strength=settings.look_strength,
            guidance_scale=settings.look_guidance_scale,
            seeds=seeds,
        )
        drawn = remember(f"looks-{material.clip}", draw).to(material.latents.device)
        alike = motion_similarity(material.latents, drawn) >= settings.look_similarity
        logger.info("%d of %d looks kept the motion of clip %d", int(alike.sum()), len(alike), material.clip + 1)
        if not alike.any():
            raise TrainingError(
                f"None of the {len(alike)} looks kept the motion of clip {material.clip + 1}: lower look_strength "
                f"(here {settings.look_strength:g}), or give looks that are more like the clip."
            )
        kept = [(look, latents) for look, latents, ok in zip(settings.looks, drawn.split(1), alike, strict=True) if ok]
        for look, latents in kept:
            flipped = latents.flip(-1) if settings.horizontal_flip > 0 else None
            prompts = {kind: moving_caption(look, words if kind == "full" else "") for kind in kinds}
            copies.append(Material(material.clip, latents, flipped, prompts, restyled=True))
    return copies


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """A CPU generator for one (micro) step of one stage."""
    return torch.Generator().manual_seed(derived_seed(seed, stage, step))


def derived_seed(seed: int, *what: str | int) -> int:
    """A seed for one purpose, 63 bits; purposes share no numbers, as seed + 1, seed + 2 ... of two runs would."""
    digest = hashlib.sha256("/".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw_clip(
    materials: Sequence[Material],
    step: int,
    settings: TrainSettings,
    schedule: Process,
    generator: torch.Generator,
    multiple: int = 1,
) -> Draw:
    """A whole clip, taken in turn, with one timestep for all its frames."""
    material = materials[step % len(materials)]
    latents, stills = _maybe_mirrored(material, settings.horizontal_flip, generator)
    num_frames = latents.shape[2]
    timesteps = schedule.sample_timesteps(1, generator, settings.timestep_low, settings.timestep_high)
    return Draw(
        clip=material.clip,
        prompts=material.prompts,
        latents=latents,
        noise=sent(clip_noise(tuple(latents.shape), generator, settings.offset_noise), latents.device),
        timesteps=timesteps,
        frame=_integer(num_frames if stills is None else len(stills), generator),
        anchor=_integer(num_frames, generator),
        with_optional=_happens(settings.spatial_path_probability, generator) and not material.restyled,
        restyled=material.restyled,
        stills=stills,
    )


def draw_frames(
    materials: Sequence[Material],
    step: int,
    settings: TrainSettings,
    schedule: Process,
    generator: torch.Generator,
    multiple: int = 1,
) -> Draw:
    """Different frames of one clip as unordered images, each with its own timestep, cropped to patches if asked.

    Sides of patches are multiples of `multiple`.
    """
    material = materials[step % len(materials)]
    latents, stills = _maybe_mirrored(material, settings.horizontal_flip, generator)
    images = fold_frames(latents if stills is None else stills)
    chosen = torch.randperm(len(images), generator=generator)[: settings.frames_per_step]
    images = images[sent(chosen, images.device)]
    if settings.patch_crop:
        images = random_patches(images, generator, multiple)
    latents = images[:, :, None]
    return Draw(
        clip=material.clip,
        prompts=material.prompts,
        latents=latents,
        noise=sent(clip_noise(tuple(latents.shape), generator, settings.offset_noise), latents.device),
        timesteps=schedule.sample_timesteps(len(images), generator),
        frame=0,
        anchor=0,
        with_optional=True,
    )


def random_patches(images: Tensor, generator: torch.Generator, multiple: int = 1) -> Tensor:
    """(b, c, h, w) -> (b, c, h', w'): one random size for the batch, sides 0.33 to 0.67 of the whole, any place each.

    Cropped in latents: their cells are local, so this is the crop of the picture without encoding it again.
    """
    low, high = PATCH_RATIOS
    ratio = low + (high - low) * float(torch.rand((), generator=generator))
    height, width = (max(1, round(ratio * side / multiple)) * multiple for side in images.shape[-2:])
    patches = []
    for image in images:
        top = _integer(image.shape[-2] - height + 1, generator)
        left = _integer(image.shape[-1] - width + 1, generator)
        patches.append(image[:, top : top + height, left : left + width])
    return torch.stack(patches)


def _maybe_mirrored(material: Material, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """The latents of the clip and of its stills."""
    if material.mirrored is not None and _happens(probability, generator):
        return material.mirrored, material.mirrored_stills
    return material.latents, material.stills


def _integer(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _happens(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
