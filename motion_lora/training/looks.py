"""One motion in many looks: the frames of a clip redrawn by the base's own spatial layers, to train a motion LoRA on.

A temporal LoRA that sees one clip learns the motion of that clip's look: with the clip's own caption the base then
performs it, with another look it does not. Seen in many looks, only the motion is common to what it sees. This is the
part of this project's own recipe that no paper has: each frame is noised part of the way and denoised again under
another caption (SDEdit, Meng et al. 2022) with every temporal layer bypassed, so that no motion of the base gets in.
Some copies lose the object's place on the way; `motion_similarity` tells which, and training leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.bypass import temporal_bypass
from ..base.pipeline import VideoPipeline
from ..sampling.loop import sample
from ..sampling.settings import SampleSettings

MOTION = "{motion}"

# Steps of a whole sampling; `strength` of them are run.
NUM_INFERENCE_STEPS = 20
_LATENTS_AT_ONCE = 2**14


def motion_similarity(reference: Tensor, latents: Tensor) -> Tensor:
    """How alike it is where and when two clips change, in [-1, 1] each: (1 or n, c, f, h, w) twice -> (n,).

    Correlation of |z[t + 1] - z[t]| (norm over channels) over places, all frames together: looks do not count, nor
    how strong a change is, and a frame whose change is the same everywhere says nothing.
    """
    one, two = (_changes(clip) for clip in (reference, latents))
    return torch.nn.functional.cosine_similarity(one, two, dim=1)


def _changes(latents: Tensor) -> Tensor:
    change = latents.float().diff(dim=2).norm(dim=1)
    return (change - change.mean(dim=(-2, -1), keepdim=True)).flatten(1)


def still_caption(look: str) -> str:
    """What a frame of a look is redrawn under: the look without the place of its motion words."""
    return " ".join(look.replace(MOTION, " ").split())


def moving_caption(look: str, motion_words: str) -> str:
    """What the motion is learned under: the look with the clip's motion words, at its end where it names no place."""
    place = look if MOTION in look else f"{look} {MOTION}"
    return " ".join(place.replace(MOTION, motion_words).split())


def motion_words(caption: str, appearance_caption: str) -> str:
    """What a caption says more than its appearance caption, if that is one phrase; "" otherwise."""
    full, still = caption.split(), appearance_caption.split()
    if not still:
        return ""
    same = 0
    while same < min(len(full), len(still)) and full[same] == still[same]:
        same += 1
    rest = len(still) - same
    return " ".join(full[same : len(full) - rest]) if full[len(full) - rest :] == still[same:] else ""


def restyled_latents(
    pipeline: VideoPipeline,
    latents: Tensor,
    looks: Sequence[str],
    *,
    strength: float = 0.4,
    guidance_scale: float = 9.0,
    seeds: Sequence[int],
) -> Tensor:
    """The clip's scaled latents (1, c, f, h, w) once per look: (n, c, f, h, w) fp32 on CPU.

    `strength` in (0, 1] is the share of the noise: too little keeps the clip's colours, too much loses its places. All
    frames of a copy get the same noise, so that they are redrawn alike.
    Raises SettingsError for values out of range.
    """
    draft = pipeline.replica()
    frames, height, width = pipeline.clip_shape(latents)
    wanted = [
        SampleSettings(
            prompt=still_caption(look),
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=guidance_scale,
            seed=seed,
            edit_strength=strength,
        )
        for look, seed in zip(looks, seeds, strict=True)
    ]
    source = latents.expand(len(wanted), -1, -1, -1, -1)
    noise = torch.cat([_same_in_all_frames(latents, seed) for seed in seeds])
    # Sampling takes a replica of its own, which keeps the bypass of this one.
    with temporal_bypass(draft.unet):
        made = sample(draft, wanted, source=source, latents=noise, decode=False, batch_size=copies_at_once(latents))
    return torch.cat([one.latents for one in made]).float().cpu().clone()


def _same_in_all_frames(latents: Tensor, seed: int) -> Tensor:
    noise = torch.randn(latents[:, :, :1].shape, generator=torch.Generator().manual_seed(seed))
    return noise.expand(latents.shape).contiguous()


def copies_at_once(latents: Tensor) -> int:
    """Copies in one batch: one of a real base, whose guided pair needs as much memory as the training, many of tiny."""
    return min(8, max(1, _LATENTS_AT_ONCE // latents.numel()))
