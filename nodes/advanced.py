"""Settings for ablations and experiments, apart from the training nodes so that these stay short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .choices import AMOUNTS, COUNTS, HIGHWAY_PRESETS, LR_SCHEDULERS, MAX_HIGHWAY_SCALE, SHARES, SPATIAL_TARGETS
from .sockets import CATEGORY, TrainOptions, io

DEFAULT = "default"
OWN = -1.0
_OWN = "-1: the method's own."
_ZERO = "0: the method's own."
SWITCHES = {"on": True, "off": False}
_SWITCH = [DEFAULT, *SWITCHES]


@dataclass(frozen=True)
class Options:
    """Training settings by name, only those that say something of their own."""

    settings: Mapping[str, Any] = field(default_factory=dict)


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
                    options=_SWITCH,
                    default=DEFAULT,
                    tooltip="MotionDirector's appearance-debiased loss beside the plain one, with any method.",
                ),
                _share("debias_beta", "Its beta, 1 in the authors' code: how much of the anchor frame is taken away."),
                _share("spatial_path_probability", "Share of the steps in which a dual path has its spatial half."),
                io.Combo.Input(
                    "spatial_targets",
                    options=[DEFAULT, *SPATIAL_TARGETS],
                    default=DEFAULT,
                    tooltip="Which spatial layers learn, in methods with a spatial LoRA.",
                ),
                _count("spatial_rank", "Rank of the spatial LoRA. 0: as the temporal one."),
                _amount("spatial_alpha", "Alpha of the spatial LoRA. 0: as the temporal one.", 0.05),
                _amount("spatial_learning_rate", "Learning rate of the spatial LoRA. 0: as the temporal one.", 1e-5),
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
                    tooltip=f"What the highway is multiplied by. {_OWN}",
                ),
                _share("look_strength", "Of looks: how much of a frame is redrawn. Too little keeps its colours."),
                _share("look_guidance_scale", "Of looks: how strictly a frame is redrawn to its caption.", 0.5),
                _share("timestep_low", "Lowest noise that the motion is trained at: 0 clean, 1 pure noise."),
                _share("timestep_high", "Highest noise that the motion is trained at."),
                _amount("min_snr_gamma", "Min-SNR loss weighting with this gamma, 5 in its paper. 0: off.", 0.5),
                _share("offset_noise", "Extra noise per channel and frame, in training."),
                io.Combo.Input(
                    "patch_crop",
                    options=_SWITCH,
                    default=DEFAULT,
                    tooltip="Whether the absorber is shown random parts of the frames instead of whole ones.",
                ),
                _count("frames_per_step", f"Frames in a step of the absorber. {_ZERO}"),
                _count("absorber_rank", f"Rank of the absorber's spatial LoRA. {_ZERO}"),
                _amount("absorber_alpha", f"Strength at which the absorber is trained and used. {_ZERO}", 0.05),
                _amount("absorber_learning_rate", f"Learning rate of the absorber's LoRA. {_ZERO}", 1e-5),
                _count("num_tokens", f"The absorber's learned tokens, 1 to 6. {_ZERO}"),
                _amount("token_learning_rate", f"Learning rate of the tokens. {_ZERO}", 1e-5),
                _share("dropout", "Dropout on the LoRA's output."),
                _share("horizontal_flip", "Probability of a mirrored clip: not for motions with a direction."),
                io.Combo.Input(
                    "lr_scheduler",
                    options=[DEFAULT, *LR_SCHEDULERS],
                    default=DEFAULT,
                    tooltip="How the learning rate runs: constant, or half a cosine down to zero.",
                ),
                _count("warmup_steps", f"Steps over which the learning rate rises. {_ZERO}"),
                _share("weight_decay", "AdamW's weight decay.", 1e-4),
                _count("gradient_accumulation", f"Passes for each step of the optimiser. {_ZERO}"),
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


def said(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among widget values: without those that leave it to the method."""
    zero = {name for name in widgets if name in COUNTS or name in AMOUNTS}
    found = {}
    for name, value in widgets.items():
        if value in (DEFAULT, OWN) or (name in zero and not value):
            continue
        found[name] = SWITCHES.get(value, value) if isinstance(value, str) else value
    return found


def _count(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=0, min=0, max=COUNTS[name], tooltip=tooltip)


def _amount(name: str, tooltip: str, step: float) -> io.Float.Input:
    return io.Float.Input(name, default=0.0, min=0.0, max=AMOUNTS[name], step=step, round=step / 10, tooltip=tooltip)


def _share(name: str, tooltip: str, step: float = 0.05) -> io.Float.Input:
    return io.Float.Input(
        name, default=OWN, min=OWN, max=SHARES[name], step=step, round=step / 10, tooltip=f"{tooltip} {_OWN}"
    )
