"""The published methods as rows of one table.

A method is its stages; a stage is the parts that learn in it and the passes of one step. Read two rows side by side
to see in what two papers differ. How long and how fast is in the rows' `defaults` (fields of `TrainSettings`), so that
a comparison can give every method the same budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABSORBERS: dict[str, str] = {
    "dual": "a spatial LoRA and learned tokens, trained apart and loaded together",
    "spatial": "a spatial LoRA",
    "textual-inversion": "learned tokens",
    "none": "no absorber",
}


@dataclass(frozen=True)
class Part:
    """Something that learns: an adapter on the modules of a target preset, or the rows of placeholder tokens.

    `name` also says which settings it takes: "temporal" rank, alpha and learning_rate; "spatial" those that begin with
    spatial_; "absorber" those that begin with absorber_; "tokens" num_tokens and token_learning_rate.
    """

    name: str
    targets: str = ""
    per_clip: bool = False


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    `trains` learn, `holds` are active and frozen; an absorber, where there is one, is active in every pass.
    `frames` is "all" of the drawn batch or "one" at random; `bypass` turns the temporal layers off. `debiased` adds
    the appearance-debiased loss. An `optional` pass is left out in 1 - spatial_path_probability of the steps, and what
    it trains is then off in the whole step.
    """

    trains: tuple[str, ...]
    holds: tuple[str, ...] = ()
    frames: str = "all"
    bypass: bool = False
    caption: str = "full"
    debiased: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """Parts that learn together. `batch`: a step draws one whole "clip", or "frames" of one as unordered images.

    `steps` is the field of `TrainSettings` that says how many steps it takes.
    """

    name: str
    parts: tuple[Part, ...]
    passes: tuple[Pass, ...]
    batch: str = "clip"
    steps: str = "steps"
    source: str = ""


@dataclass(frozen=True)
class Method:
    """A row: `stages` in order, the `absorber` it uses unless told otherwise, `keeps` the parts that are its result.

    One that `needs_looks` is nothing without the setting `looks`, which any other may have too.
    """

    name: str
    title: str
    source: str
    stages: tuple[Stage, ...]
    keeps: tuple[str, ...] = ("temporal",)
    absorber: str = "none"
    needs_looks: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


# Stages -------------------------------------------------------------------------------------------------------------

ABSORB_BY_SPATIAL_LORA = Stage(
    name="absorber-spatial",
    batch="frames",
    steps="absorber_steps",
    parts=(Part("absorber", targets="spatial-attention"),),
    passes=(Pass(("absorber",), bypass=True, caption="appearance"),),
    source="Customize-A-Video section 4.1, Eq. 3; patch crops A.2",
)

ABSORB_BY_TOKENS = Stage(
    name="absorber-tokens",
    batch="frames",
    steps="token_steps",
    parts=(Part("tokens"),),
    passes=(Pass(("tokens",), bypass=True, caption="appearance"),),
    source="Customize-A-Video section 4.1, Eq. 4; patch crops A.2",
)

LEARN_MOTION = Stage(
    name="motion",
    parts=(Part("temporal", targets="temporal-attention"),),
    passes=(Pass(("temporal",)),),
    source="Customize-A-Video section 4.2, Eq. 5",
)

DUAL_PATH = Stage(
    name="motion",
    parts=(Part("spatial", targets="spatial-self-ff", per_clip=True), Part("temporal", targets="temporal-all")),
    passes=(
        Pass(("spatial",), frames="one", bypass=True, optional=True),
        Pass(("temporal",), holds=("spatial",), debiased=True),
    ),
    source="MotionDirector Eq. 4 to 7",
)

DUAL_PATH_TAP = Stage(
    name="motion",
    parts=(Part("spatial", targets="spatial-self-ff", per_clip=True), Part("temporal", targets="tap-k-out")),
    passes=DUAL_PATH.passes,
    source="Separate Motion from Appearance: MotionDirector's training, temporal attention purification in its code",
)

LEARN_IN_MANY_LOOKS = Stage(
    name="motion",
    parts=(Part("temporal", targets="temporal-all"),),
    passes=(Pass(("temporal",)),),
    source="this project: the clip, beside its absorber, and its restyled copies in turn (restyle.py)",
)

LEARN_APPEARANCE = Stage(
    name="appearance",
    parts=(Part("spatial", targets="spatial-self-ff"),),
    passes=(Pass(("spatial",), frames="one", bypass=True),),
    source="MotionDirector, image configurations: the spatial path alone",
)

LEARN_IN_SPATIAL_LAYERS = Stage(
    name="motion",
    parts=(Part("spatial", targets="spatial-attention"),),
    passes=(Pass(("spatial",)),),
    source="ablation: a LoRA that is blind to time sees the whole clip",
)

LEARN_IN_ALL_LAYERS = Stage(
    name="motion",
    parts=(Part("spatial", targets="spatial-attention"), Part("temporal", targets="temporal-attention")),
    passes=(Pass(("spatial", "temporal")),),
    source="ablation: spatial and temporal LoRA learn from the whole clip together",
)

# Defaults -----------------------------------------------------------------------------------------------------------

# Ranks, alphas and learning rates: Customize-A-Video A.4. It states no step counts: `steps` follows from its seven
# minutes for the temporal LoRA and `absorber_steps`, `token_steps` from its half a minute and its minute, on one A5000.
_CUSTOMIZE_A_VIDEO: Mapping[str, Any] = {
    "steps": 500,
    "rank": 4,
    "alpha": 1.0,
    "learning_rate": 5e-4,
    "absorber_steps": 300,
    "absorber_rank": 1,
    "absorber_alpha": 0.5,
    "absorber_learning_rate": 5e-5,
    "token_steps": 600,
    "token_learning_rate": 5e-5,
    "num_tokens": 4,
    "dropout": 0.0,
}

# MotionDirector_train.py and configs/config_single_video.yaml.
_MOTION_DIRECTOR: Mapping[str, Any] = {
    "steps": 150,
    "rank": 32,
    "alpha": 1.0,
    "learning_rate": 5e-4,
    "dropout": 0.1,
    "spatial_path_probability": 0.8,
    "debias_beta": 1.0,
    "weight_decay": 1e-2,
}

# configs/config_single_image.yaml
_IMAGE_PATH: Mapping[str, Any] = {**_MOTION_DIRECTOR, "steps": 300, "weight_decay": 1e-4, "horizontal_flip": 0.5}

# Its configs are MotionDirector's but for the number of steps.
_SEPARATE: Mapping[str, Any] = {**_MOTION_DIRECTOR, "steps": 1000}

# Found on the playground (bench/equal-time) and not tried on a real base: only where motion is decided, at high noise.
_MANY_LOOKS: Mapping[str, Any] = {
    "steps": 800,
    "rank": 32,
    "alpha": 1.0,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "timestep_low": 0.6,
}

# The table ----------------------------------------------------------------------------------------------------------

_ROWS = (
    Method(
        name="customize-a-video",
        title="Customize-A-Video",
        source="Ren et al. 2024, arXiv 2402.14780",
        stages=(ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS, LEARN_MOTION),
        absorber="dual",
        defaults=_CUSTOMIZE_A_VIDEO,
    ),
    Method(
        name="motiondirector",
        title="MotionDirector",
        source="Zhao et al. 2023, arXiv 2310.08465",
        stages=(DUAL_PATH,),
        defaults=_MOTION_DIRECTOR,
    ),
    Method(
        name="separate-motion-appearance",
        title="Separate Motion from Appearance",
        source="Liu et al. 2025, arXiv 2501.16714",
        stages=(DUAL_PATH_TAP,),
        defaults=_SEPARATE,
    ),
    Method(
        name="motiondirector-image",
        title="MotionDirector, image path",
        source="Zhao et al. 2023, arXiv 2310.08465; image configurations of its code",
        stages=(LEARN_APPEARANCE,),
        keeps=("spatial",),
        defaults=_IMAGE_PATH,
    ),
    Method(
        name="many-looks",
        title="Many Looks",
        source="this project",
        stages=(ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS, LEARN_IN_MANY_LOOKS),
        absorber="dual",
        needs_looks=True,
        defaults=_MANY_LOOKS,
    ),
    Method(
        name="temporal-only",
        title="Temporal LoRA alone (T-LoRA)",
        source="Customize-A-Video, ablation without absorber",
        stages=(LEARN_MOTION,),
        defaults=_CUSTOMIZE_A_VIDEO,
    ),
    Method(
        name="spatial-only",
        title="Spatial LoRA alone (S-LoRA)",
        source="ablation",
        stages=(LEARN_IN_SPATIAL_LAYERS,),
        keeps=("spatial",),
        defaults=_CUSTOMIZE_A_VIDEO,
    ),
    Method(
        name="spatial-temporal",
        title="Spatial and temporal LoRA (ST-LoRA)",
        source="ablation",
        stages=(LEARN_IN_ALL_LAYERS,),
        keeps=("spatial", "temporal"),
        defaults=_CUSTOMIZE_A_VIDEO,
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}

# In the place of a method's name: the one that the base is best trained by, as far as that has been measured.
AUTO = "auto"
# This project's recipe, best on the playground under equal time (bench/equal-time) and measured nowhere else.
_ON_PLAYGROUND = "many-looks"
_ELSEWHERE = "customize-a-video"


def recommended_method(on_playground: bool) -> str:
    """What `AUTO` stands for."""
    return _ON_PLAYGROUND if on_playground else _ELSEWHERE


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
# Motion is decided on the noisy timesteps: on these alone, with a learning rate that falls, 400 steps are enough.
_PLAYGROUND_MOTION: Mapping[str, Any] = {
    **_PLAYGROUND,
    "rank": 32,
    "spatial_rank": 4,
    "learning_rate": 5e-3,
    "lr_scheduler": "cosine",
    "timestep_low": 0.6,
}
# Attention and feed-forward layers together learn faster.
_PLAYGROUND_ALL_LAYERS: Mapping[str, Any] = {**_PLAYGROUND_MOTION, "learning_rate": 3e-3}

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
)

PLAYGROUND_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "customize-a-video": _PLAYGROUND_MOTION,
    "motiondirector": _PLAYGROUND_ALL_LAYERS,
    "many-looks": {**_PLAYGROUND_ALL_LAYERS, "steps": 700, "looks": PLAYGROUND_LOOKS, "look_guidance_scale": 2.5},
    "separate-motion-appearance": _PLAYGROUND_MOTION,
    "motiondirector-image": {**_PLAYGROUND, "rank": 4, "steps": 300},
    "temporal-only": _PLAYGROUND_MOTION,
    "spatial-only": _PLAYGROUND,
    "spatial-temporal": _PLAYGROUND,
}
"""What the playground's size asks for, over each method's own defaults."""
