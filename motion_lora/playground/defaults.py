"""What the playground's size asks for in training, over each method's own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..methods.tuning import Tuning, register_tuning
from .model import is_playground_identity

# The playground's network is a thousandth of ModelScope's, and its latents are 8 x 8: a third of that is no patch.
_PLAYGROUND: Mapping[str, Any] = {
    "steps": 400,
    "learning_rate": 2e-3,
    "spatial_learning_rate": 2e-3,
    "absorber_steps": 100,
    # At 1e-3 it hardly learns the look: of a caption without colour and background it drew the clip's in .42 of the
    # frames, the base in .35; at 5e-3 in .96 (orbit, 6 videos).
    "absorber_learning_rate": 5e-3,
    "token_steps": 100,
    "token_learning_rate": 1e-3,
    "patch_crop": False,
    "frames_per_step": 8,
}
_PLAYGROUND_MOTION: Mapping[str, Any] = {
    **_PLAYGROUND,
    "steps": 500,
    "rank": 32,
    "spatial_rank": 4,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
}

# In the playground's words; every shape, colour and background is among them.
PLAYGROUND_LOOKS = (
    "a green circle {motion} over snow",
    "a purple square {motion} over meadow",
    "a yellow cross {motion} over brick",
    "a blue ring {motion} over sand",
    "a pink triangle {motion} over night",
    "a cyan cross {motion} over snow",
    "a red ring {motion} over meadow",
    "a orange square {motion} over sand",
    "a blue circle {motion} over night",
    "a green triangle {motion} over brick",
    "a pink ring {motion} over snow",
    "a cyan circle {motion} over sand",
    "a yellow ring {motion} over night",
    "a purple triangle {motion} over sand",
    "a orange cross {motion} over meadow",
    "a pink square {motion} over brick",
    "a cyan ring {motion} over brick",
    "a green square {motion} over night",
    "a yellow circle {motion} over meadow",
    "a purple circle {motion} over brick",
    "a orange triangle {motion} over night",
    "a red cross {motion} over sand",
    "a blue triangle {motion} over meadow",
    "a pink cross {motion} over night",
    "a blue square {motion} over sand",
    "a green ring {motion} over night",
    "a purple cross {motion} over snow",
    "a yellow square {motion} over brick",
    "a cyan triangle {motion} over meadow",
    "a orange circle {motion} over snow",
    "a purple ring {motion} over meadow",
    "a green cross {motion} over sand",
)

PLAYGROUND_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "customize-a-video": _PLAYGROUND_MOTION,
    "motiondirector": _PLAYGROUND_MOTION,
    # Its convolutions pass what stands still unchanged, and most looks are not the clip's: no absorber is needed.
    "many-looks": {
        **_PLAYGROUND_MOTION,
        "absorber": "none",
        "looks": PLAYGROUND_LOOKS,
        "look_strength": 0.6,
        "look_guidance_scale": 2.5,
    },
    "separate-motion-appearance": _PLAYGROUND_MOTION,
    "motiondirector-image": {**_PLAYGROUND, "rank": 4, "steps": 300},
    "temporal-only": _PLAYGROUND_MOTION,
    "spatial-only": _PLAYGROUND,
    "spatial-temporal": _PLAYGROUND,
}
"""What the playground's size asks for, over each method's own defaults."""

# The recommended one is this project's recipe, best on the playground under equal time (bench/) and measured
# nowhere else.
PLAYGROUND_TUNING = Tuning("many-looks", PLAYGROUND_DEFAULTS)
register_tuning(is_playground_identity, PLAYGROUND_TUNING)
