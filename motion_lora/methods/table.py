"""The published methods as rows of one table.

A method is its stages; a stage is the parts that learn in it and the passes of one step. Read two rows side by side
to see in what two papers differ. How long and how fast is in the rows' `defaults` (fields of `TrainSettings`), so that
a comparison can give every method the same budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .losses import DEBIASED
from .stages import AbsorberKind, Method, Part, Pass, Stage

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
    parts=(Part("tokens", prefix="token_"),),
    passes=(Pass(("tokens",), bypass=True, caption="appearance"),),
    source="Customize-A-Video section 4.1, Eq. 4; patch crops A.2",
)

ABSORB_BY_JOINT_LORA = Stage(
    name="absorber-joint",
    batch="frames",
    steps="absorber_steps",
    parts=(Part("absorber", targets="joint-attention"),),
    passes=(Pass(("absorber",), bypass=True, caption="appearance"),),
    source="Customize-A-Video section 4.1 on joint attention; Follow-Your-Motion, first stage",
)

ABSORBERS: dict[str, AbsorberKind] = {
    "dual": AbsorberKind(
        "a spatial LoRA and learned tokens, trained apart and loaded together",
        (ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS),
    ),
    "spatial": AbsorberKind("a spatial LoRA", (ABSORB_BY_SPATIAL_LORA,)),
    "textual-inversion": AbsorberKind("learned tokens", (ABSORB_BY_TOKENS,)),
    "none": AbsorberKind("no absorber"),
    "joint": AbsorberKind("a LoRA on joint attention, which only ever sees single frames", (ABSORB_BY_JOINT_LORA,)),
}

LEARN_MOTION = Stage(
    name="motion",
    parts=(Part("temporal", targets="temporal-attention", prefix=""),),
    passes=(Pass(("temporal",)),),
    source="Customize-A-Video section 4.2, Eq. 5",
)

DUAL_PATH = Stage(
    name="motion",
    parts=(
        Part("spatial", targets="spatial-self-ff", per_clip=True),
        Part("temporal", targets="temporal-all", prefix=""),
    ),
    passes=(
        Pass(("spatial",), frames="one", bypass=True, optional=True),
        Pass(("temporal",), holds=("spatial",), loss=DEBIASED),
    ),
    source="MotionDirector Eq. 4 to 7",
)

DUAL_PATH_TAP = Stage(
    name="motion",
    parts=(Part("spatial", targets="spatial-self-ff", per_clip=True), Part("temporal", targets="tap-k-out", prefix="")),
    passes=DUAL_PATH.passes,
    source="Separate Motion from Appearance: MotionDirector's training, temporal attention purification in its code",
)

LEARN_IN_MANY_LOOKS = Stage(
    name="motion",
    parts=(Part("temporal", targets="temporal-difference", prefix=""),),
    passes=(Pass(("temporal",)),),
    source="this project: the clip, beside its absorber, and its restyled copies in turn (training/looks.py)",
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
    parts=(Part("spatial", targets="spatial-attention"), Part("temporal", targets="temporal-attention", prefix="")),
    passes=(Pass(("spatial", "temporal")),),
    source="ablation: spatial and temporal LoRA learn from the whole clip together",
)

LEARN_MOTION_JOINT = Stage(
    name="motion",
    parts=(Part("motion", targets="joint-qk", prefix=""),),
    passes=(Pass(("motion",)),),
    source="Customize-A-Video section 4.2 on joint attention, query and key alone (DreamRelation)",
)

DUAL_PATH_JOINT = Stage(
    name="motion",
    parts=(
        Part("spatial", targets="joint-attention", per_clip=True),
        Part("motion", targets="joint-attention", prefix=""),
    ),
    passes=(
        Pass(("spatial",), frames="one", bypass=True, optional=True),
        Pass(("motion",), holds=("spatial",), loss=DEBIASED),
    ),
    source="MotionDirector as CMC ports it: both LoRAs on the same layers, told apart by what they see",
)

LEARN_IN_JOINT_LAYERS = Stage(
    name="motion",
    parts=(Part("motion", targets="joint-all", prefix=""),),
    passes=(Pass(("motion",)),),
    source="ablation: the usual LoRA of video transformers",
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

# Ranks and rates of Follow-Your-Motion's code for Wan 2.1; not tried on a real base.
_JOINT: Mapping[str, Any] = {
    "steps": 500,
    "rank": 16,
    "alpha": 1.0,
    "learning_rate": 1e-4,
    "absorber_steps": 500,
    "absorber_rank": 16,
    "absorber_alpha": 1.0,
    "absorber_learning_rate": 1e-4,
    # Cut out, a patch would have other positions than in the clip.
    "patch_crop": False,
}

# Found on the playground (bench/) and not tried on a real base: only where motion is decided, at high noise.
_MANY_LOOKS: Mapping[str, Any] = {
    "steps": 800,
    "rank": 32,
    "alpha": 1.0,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
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
    Method(
        name="joint-customize-a-video",
        title="Customize-A-Video on joint attention",
        source="Ren et al. 2024, arXiv 2402.14780, carried over to video transformers by this project",
        stages=(ABSORB_BY_JOINT_LORA, LEARN_MOTION_JOINT),
        keeps=("motion",),
        absorber="joint",
        defaults=_JOINT,
    ),
    Method(
        name="joint-motiondirector",
        title="MotionDirector on joint attention",
        source="Zhao et al. 2023, arXiv 2310.08465, as CMC carries it over",
        stages=(DUAL_PATH_JOINT,),
        keeps=("motion",),
        defaults={**_JOINT, "spatial_path_probability": 0.8, "debias_beta": 1.0},
    ),
    Method(
        name="joint-lora",
        title="LoRA alone on joint attention",
        source="ablation",
        stages=(LEARN_IN_JOINT_LAYERS,),
        keeps=("motion",),
        defaults=_JOINT,
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
