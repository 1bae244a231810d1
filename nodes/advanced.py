"""Settings for ablations and experiments, apart from the training nodes so that these stay short."""

from __future__ import annotations

from typing import Any

from ..motion_lora.jobs import AUTO
from .comfy import server
from .comfy.sockets import CATEGORY, TrainOptions, io
from .widgets.enums import SPATIAL_TARGETS
from .widgets.settings import Options, setting_input

# A workflow keeps the values of widgets by their place: new names go last.
_NAMES = (
    "debiased_loss",
    "debias_beta",
    "spatial_path_probability",
    "spatial_targets",
    "spatial_rank",
    "spatial_alpha",
    "spatial_learning_rate",
    "highway",
    "highway_scale",
    "look_strength",
    "look_guidance_scale",
    "timestep_low",
    "timestep_high",
    "min_snr_gamma",
    "offset_noise",
    "patch_crop",
    "frames_per_step",
    "absorber_rank",
    "absorber_alpha",
    "absorber_learning_rate",
    "num_tokens",
    "token_learning_rate",
    "dropout",
    "horizontal_flip",
    "lr_scheduler",
    "warmup_steps",
    "weight_decay",
    "gradient_accumulation",
    "loss",
    "memory",
)
_SHOWN = (
    "debiased_loss",
    "loss",
    "spatial_targets",
    "spatial_rank",
    "highway",
    "timestep_low",
    "timestep_high",
    "look_strength",
    "lr_scheduler",
    "weight_decay",
)
_STEPS = {
    "spatial_learning_rate": 1e-5,
    "look_guidance_scale": 0.5,
    "min_snr_gamma": 0.5,
    "absorber_learning_rate": 1e-5,
    "token_learning_rate": 1e-5,
    "weight_decay": 1e-4,
}


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
                setting_input(
                    name,
                    _STEPS.get(name, 0.05),
                    options=SPATIAL_TARGETS if name == "spatial_targets" else None,
                    advanced=name not in _SHOWN,
                )
                for name in _NAMES
            ]
            + [
                io.Combo.Input(
                    "device",
                    options=[AUTO, *server.devices()],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Of several cards, the one that trains; one job at a time on each. auto: the base's own, "
                    "or the next that is free.",
                )
            ],
            outputs=[
                TrainOptions.Output(
                    "options", display_name="options", tooltip="For Train Motion LoRA or Train Appearance Absorber."
                )
            ],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(Options.of(widgets))
