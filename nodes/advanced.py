"""Settings for ablations and experiments, apart from the training nodes so that these stay short."""

from __future__ import annotations

from typing import Any

from .comfy.sockets import CATEGORY, TrainOptions, io
from .widgets.enums import HIGHWAY_PRESETS, LR_SCHEDULERS, MAX_HIGHWAY_SCALE, SPATIAL_TARGETS
from .widgets.settings import (
    DEFAULT,
    OWN,
    OWN_HINT,
    SWITCH_OPTIONS,
    ZERO_HINT,
    Options,
    amount_input,
    count_input,
    said,
    share_input,
)


class TrainingOptions(io.ComfyNode):
    """Every setting of a training that a method can be varied by."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_TrainingOptions",
            display_name="Advanced Training Settings",
            category=f"{CATEGORY}/train",
            description="What a method is made of, one by one: losses, layers, timesteps, absorber, optimiser. For "
            "ablations; left alone, every setting is the method's own.",
            search_aliases=["ablation", "debiased loss", "min-SNR", "timestep range", "expert settings"],
            inputs=[
                io.Combo.Input(
                    "debiased_loss",
                    options=SWITCH_OPTIONS,
                    default=DEFAULT,
                    tooltip="MotionDirector's appearance-debiased loss beside the plain one, with any method.",
                ),
                share_input(
                    "debias_beta", "Its beta, 1 in the authors' code: how much of the anchor frame is taken away."
                ),
                share_input(
                    "spatial_path_probability", "Share of the steps in which a dual path has its spatial half."
                ),
                io.Combo.Input(
                    "spatial_targets",
                    options=[DEFAULT, *SPATIAL_TARGETS],
                    default=DEFAULT,
                    tooltip="Which spatial layers learn, in methods with a spatial LoRA.",
                ),
                count_input("spatial_rank", "Rank of the spatial LoRA. 0: as the temporal one."),
                amount_input("spatial_alpha", "Alpha of the spatial LoRA. 0: as the temporal one.", 0.05),
                amount_input(
                    "spatial_learning_rate", "Learning rate of the spatial LoRA. 0: as the temporal one.", 1e-5
                ),
                io.Combo.Input(
                    "highway",
                    options=[DEFAULT, "none", *HIGHWAY_PRESETS],
                    default=DEFAULT,
                    tooltip="Train with the appearance highway too. The papers use it only when sampling.",
                ),
                io.Float.Input(
                    "highway_scale",
                    default=OWN,
                    min=OWN,
                    max=MAX_HIGHWAY_SCALE,
                    step=0.05,
                    tooltip=f"What the highway is multiplied by. {OWN_HINT}",
                ),
                share_input("look_strength", "Of looks: how much of a frame is redrawn. Too little keeps its colours."),
                share_input("look_guidance_scale", "Of looks: how strictly a frame is redrawn to its caption.", 0.5),
                share_input("timestep_low", "Lowest noise that the motion is trained at: 0 clean, 1 pure noise."),
                share_input("timestep_high", "Highest noise that the motion is trained at."),
                amount_input("min_snr_gamma", "Min-SNR loss weighting with this gamma, 5 in its paper. 0: off.", 0.5),
                share_input("offset_noise", "Extra noise per channel and frame, in training."),
                io.Combo.Input(
                    "patch_crop",
                    options=SWITCH_OPTIONS,
                    default=DEFAULT,
                    tooltip="Whether the absorber is shown random parts of the frames instead of whole ones.",
                ),
                count_input("frames_per_step", f"Frames in a step of the absorber. {ZERO_HINT}"),
                count_input("absorber_rank", f"Rank of the absorber's spatial LoRA. {ZERO_HINT}"),
                amount_input(
                    "absorber_alpha", f"Strength at which the absorber is trained and used. {ZERO_HINT}", 0.05
                ),
                amount_input("absorber_learning_rate", f"Learning rate of the absorber's LoRA. {ZERO_HINT}", 1e-5),
                count_input("num_tokens", f"The absorber's learned tokens, 1 to 6. {ZERO_HINT}"),
                amount_input("token_learning_rate", f"Learning rate of the tokens. {ZERO_HINT}", 1e-5),
                share_input("dropout", "Dropout on the LoRA's output."),
                share_input("horizontal_flip", "Probability of a mirrored clip: not for motions with a direction."),
                io.Combo.Input(
                    "lr_scheduler",
                    options=[DEFAULT, *LR_SCHEDULERS],
                    default=DEFAULT,
                    tooltip="How the learning rate runs: constant, or half a cosine down to zero.",
                ),
                count_input("warmup_steps", f"Steps over which the learning rate rises. {ZERO_HINT}"),
                share_input("weight_decay", "AdamW's weight decay.", 1e-4),
                count_input("gradient_accumulation", f"Passes for each step of the optimiser. {ZERO_HINT}"),
            ],
            outputs=[
                TrainOptions.Output(
                    "options", display_name="options", tooltip="For Train Motion LoRA or Train Appearance Absorber."
                )
            ],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(Options(said(widgets)))
