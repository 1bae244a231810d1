"""Training settings: one frozen value, its legal ranges, and every fault of it named at once.

Defaults are Customize-A-Video's; `TrainSettings.for_method` gives those of another method, `TrainSettings.for_base`
those that a base model asks for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..adapters.targets import TARGETS
from ..base.pipeline import VideoPipeline
from ..core.errors import SettingsError
from ..core.lora import SPATIAL, TEMPORAL
from ..methods.stages import Method, Stage
from ..methods.table import ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS, ABSORBERS, METHODS
from ..methods.tuning import AUTO, tuning_of

LR_SCHEDULERS = ("constant", "cosine")
HIGHWAYS = ("none", "code", "all")

# How it is run, not what comes out: these may differ between a checkpoint and the run that goes on from it.
_WITHOUT_EFFECT = (
    "gradient_checkpointing",
    "compile",
    "offload_encoders",
    "deterministic",
    "checkpoint_every",
    "report_every",
)

_SMALL = 1e-8
# Lowest and highest legal value, both included.
RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (1, 1_000_000),
    "absorber_steps": (1, 1_000_000),
    "token_steps": (1, 1_000_000),
    "rank": (1, 1024),
    "spatial_rank": (1, 1024),
    "absorber_rank": (1, 1024),
    "alpha": (_SMALL, 1024.0),
    "spatial_alpha": (_SMALL, 1024.0),
    "absorber_alpha": (_SMALL, 1024.0),
    "learning_rate": (_SMALL, 1.0),
    "spatial_learning_rate": (_SMALL, 1.0),
    "absorber_learning_rate": (_SMALL, 1.0),
    "token_learning_rate": (_SMALL, 1.0),
    "num_tokens": (1, 6),
    "frames_per_step": (1, 1024),
    "dropout": (0.0, 0.9),
    "debias_beta": (0.0, 10.0),
    "spatial_path_probability": (0.0, 1.0),
    "horizontal_flip": (0.0, 1.0),
    "timestep_low": (0.0, 0.999),
    "timestep_high": (0.001, 1.0),
    "min_snr_gamma": (_SMALL, 1000.0),
    "offset_noise": (0.0, 1.0),
    "warmup_steps": (0, 1_000_000),
    "weight_decay": (0.0, 1.0),
    "max_grad_norm": (_SMALL, 1e6),
    "gradient_accumulation": (1, 1024),
    "highway_scale": (0.0, 4.0),
    "look_strength": (0.05, 1.0),
    "look_guidance_scale": (0.0, 100.0),
    "look_similarity": (-1.0, 1.0),
    "checkpoint_every": (1, 1_000_000),
    "report_every": (1, 1_000_000),
    "seed": (0, 2**64 - 1),
}


@dataclass(frozen=True)
class TrainSettings:
    """How to train. None means what the method's row says (absorber, targets, debiasing) or the plain field beside it.

    Method (see `methods.METHODS`)
        method                    a row of the table
        absorber                  "dual", "spatial", "textual-inversion" or "none", with any method
        targets, spatial_targets  target presets of the temporal and of the spatial LoRA
        debiased_loss             MotionDirector's L_ad beside the plain loss, with any method
        debias_beta               its beta; 1 in MotionDirector's code
        spatial_path_probability  share of the steps in which a dual path has its spatial half; 0.8 in that code
        highway, highway_scale    train with the appearance highway, "none", "code" or "all"; the papers do not
        looks                     captions of other subjects and places, with {motion} where the words for the motion
                                  belong (without it, at the end); every clip is redrawn under each of them and the
                                  motion is learned from all (looks.py), with any method that learns a motion
        look_strength, look_guidance_scale
            how much of a frame is redrawn, and how strictly to its caption
        look_similarity           copies whose motion is less like the clip's than this are left out
    Motion stage
        steps, rank, alpha, learning_rate
            A.4 of Customize-A-Video: rank 4, alpha 1, rate 5e-4; the steps follow from its seven minutes. alpha
            multiplies the product directly (its Eq. 2)
        spatial_rank, spatial_alpha, spatial_learning_rate
            of the spatial LoRA of dual path, image path and ablations; None: as the three above
        timestep_low, timestep_high
            the part of the noise schedule that is trained on, 0 clean, 1 pure noise
    Absorber stages
        absorber_steps, absorber_rank, absorber_alpha, absorber_learning_rate
            the spatial LoRA; A.4: rank 1, alpha 0.5, rate 5e-5, half a minute
        token_steps, token_learning_rate, num_tokens
            the tokens; A.4: rate 5e-5, a minute, 2 to 6 tokens by the complexity of the look (1 is allowed here)
        patch_crop                random crops of 0.33 to 0.67 of the sides (A.2)
        frames_per_step           unordered frames in a step
    Optimisation (AdamW; not stated by Customize-A-Video, so MotionDirector's values)
        lr_scheduler, warmup_steps, weight_decay, max_grad_norm, gradient_accumulation
        dropout                   on the LoRA's output; 0.1 in MotionDirector's code
        horizontal_flip           probability of a mirrored clip; 0.5 in the image configurations of that code
        min_snr_gamma             Min-SNR loss weighting (Hang et al. 2023), None is off
        offset_noise              extra noise per channel and frame, off
        seed                      of everything random
    How it runs (without effect on the result beyond rounding)
        gradient_checkpointing    a third more time for a fraction of the memory
        compile                   torch.compile
        offload_encoders          text encoder and VAE wait in main memory while the motion is learned
        deterministic             only repeatable kernels: the same seed gives the same file
        checkpoint_every, report_every
            steps between checkpoints; steps between readings of the loss, each of which waits for the device
    """

    method: str = "customize-a-video"
    absorber: str | None = None
    targets: str | None = None
    spatial_targets: str | None = None
    debiased_loss: bool | None = None
    debias_beta: float = 1.0
    spatial_path_probability: float = 0.8
    highway: str = "none"
    highway_scale: float = 1.1
    looks: tuple[str, ...] = ()
    look_strength: float = 0.45
    look_guidance_scale: float = 9.0
    look_similarity: float = 0.6
    steps: int = 500
    rank: int = 4
    alpha: float = 1.0
    learning_rate: float = 5e-4
    spatial_rank: int | None = None
    spatial_alpha: float | None = None
    spatial_learning_rate: float | None = None
    timestep_low: float = 0.0
    timestep_high: float = 1.0
    absorber_steps: int = 300
    absorber_rank: int = 1
    absorber_alpha: float = 0.5
    absorber_learning_rate: float = 5e-5
    token_steps: int = 600
    token_learning_rate: float = 5e-5
    num_tokens: int = 4
    patch_crop: bool = True
    frames_per_step: int = 4
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    dropout: float = 0.0
    horizontal_flip: float = 0.0
    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    seed: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    offload_encoders: bool = True
    deterministic: bool = True
    checkpoint_every: int = 50
    report_every: int = 1

    def __post_init__(self) -> None:
        # JSON and TOML know lists only; a single text stays what it is, so that it can be told off.
        looks: object = self.looks
        if isinstance(looks, list):
            object.__setattr__(self, "looks", tuple(looks))

    @classmethod
    def for_method(cls, method: str) -> TrainSettings:
        """The defaults of a method, as its authors have them. Raises SettingsError for an unknown name."""
        return cls(method=method, **find_method(method).defaults)

    @classmethod
    def for_base(cls, pipeline: VideoPipeline, method: str = AUTO) -> TrainSettings:
        """The defaults of a method on this base: the authors', or those that the base's size asks for (see `Tuning`).

        `AUTO` is the recommended method: Many Looks on the playground, Customize-A-Video elsewhere.
        """
        tuning = tuning_of(pipeline.identity.name)
        if method == AUTO:
            method = tuning.recommended
        return replace(cls.for_method(method), **tuning.defaults.get(method, {}))

    def resolved(self) -> TrainSettings:
        """The same settings with every None filled in that stands for another value."""
        method = find_method(self.method)
        return replace(
            self,
            absorber=method.absorber if self.absorber is None else self.absorber,
            targets=self.targets or _targets_of(method, "temporal"),
            spatial_targets=self.spatial_targets or _targets_of(method, "spatial"),
            debiased_loss=_is_debiased(method) if self.debiased_loss is None else self.debiased_loss,
            spatial_rank=self.rank if self.spatial_rank is None else self.spatial_rank,
            spatial_alpha=self.alpha if self.spatial_alpha is None else self.spatial_alpha,
            spatial_learning_rate=(
                self.learning_rate if self.spatial_learning_rate is None else self.spatial_learning_rate
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary of plain values; `TrainSettings(**...)` of it is the same value."""
        return {**dataclasses.asdict(self), "looks": list(self.looks)}

    def with_effect(self) -> dict[str, Any]:
        """The resolved fields that decide what comes out."""
        fields = self.resolved().to_json()
        return {name: value for name, value in fields.items() if name not in _WITHOUT_EFFECT}

    def fingerprint(self) -> str:
        """SHA-256 over `with_effect`."""
        return hashlib.sha256(json.dumps(self.with_effect(), sort_keys=True).encode()).hexdigest()


def find_method(name: str) -> Method:
    """The row of that name; raises SettingsError that lists the names."""
    if name not in METHODS:
        raise SettingsError(f"method is {name!r}; it must be one of: {', '.join(METHODS)}.")
    return METHODS[name]


def absorber_stages(settings: TrainSettings) -> tuple[Stage, ...]:
    """The stages that train the absorber these settings ask for, with any method."""
    kind = settings.resolved().absorber
    chosen = {ABSORB_BY_SPATIAL_LORA: ("spatial", "dual"), ABSORB_BY_TOKENS: ("textual-inversion", "dual")}
    return tuple(stage for stage, kinds in chosen.items() if kind in kinds)


def main_stages(settings: TrainSettings) -> tuple[Stage, ...]:
    """The stages of the method's row that are no absorber's."""
    absorbing = (ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS)
    return tuple(stage for stage in find_method(settings.method).stages if stage not in absorbing)


def all_stages(settings: TrainSettings, *, absorber_given: bool = False) -> tuple[Stage, ...]:
    """The stages in the order in which `train` runs them; without absorber stages where an absorber is given."""
    return (*(() if absorber_given else absorber_stages(settings)), *main_stages(settings))


def step_plan(settings: TrainSettings, *, absorber_given: bool = False) -> dict[str, int]:
    """Steps by stage name, in the order in which `train` runs them."""
    stages = all_stages(settings, absorber_given=absorber_given)
    return {stage.name: int(getattr(settings, stage.steps)) for stage in stages}


def check_settings(settings: TrainSettings) -> None:
    """Raise one SettingsError that names every fault, with what is legal."""
    faults = [*_name_faults(settings), *_number_faults(settings), *_switch_faults(settings), *_look_faults(settings)]
    if not faults and settings.timestep_low >= settings.timestep_high:
        low, high = settings.timestep_low, settings.timestep_high
        faults.append(f"timestep_low is {low}, it must be below timestep_high, {high}")
    if faults:
        raise SettingsError("; ".join(faults) + ".")


def _targets_of(method: Method, part: str) -> str | None:
    found = [p.targets for stage in method.stages for p in stage.parts if p.name == part]
    return found[0] if found else None


def _is_debiased(method: Method) -> bool:
    return any(a_pass.debiased for stage in method.stages for a_pass in stage.passes)


def _name_faults(settings: TrainSettings) -> Iterator[str]:
    temporal = [name for name, preset in TARGETS.items() if preset.layer == TEMPORAL]
    spatial = [name for name, preset in TARGETS.items() if preset.layer == SPATIAL]
    legal: dict[str, tuple[Any, ...]] = {
        "method": tuple(METHODS),
        "absorber": (None, *ABSORBERS),
        "targets": (None, *temporal),
        "spatial_targets": (None, *spatial),
        "lr_scheduler": LR_SCHEDULERS,
        "highway": HIGHWAYS,
    }
    for name, values in legal.items():
        if (value := getattr(settings, name)) not in values:
            yield f"{name} is {value!r}, it must be one of: {', '.join(v for v in values if v is not None)}"


def _number_faults(settings: TrainSettings) -> Iterator[str]:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(settings)}
    for name, (low, high) in RANGES.items():
        value = getattr(settings, name)
        if value is None and "None" in kinds[name]:
            continue
        whole = kinds[name].startswith("int")
        right_kind = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right_kind or not math.isfinite(value) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            yield f"{name} is {value!r}, it must be {what} from {low:g} to {_shown(high)}"


def _switch_faults(settings: TrainSettings) -> Iterator[str]:
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), str(field.type)
        if kind.startswith("bool") and not (isinstance(value, bool) or (value is None and "None" in kind)):
            yield f"{field.name} is {value!r}, it must be true or false"


def _look_faults(settings: TrainSettings) -> Iterator[str]:
    looks = settings.looks
    if not isinstance(looks, tuple) or not all(isinstance(look, str) and look.strip() for look in looks):
        yield f"looks is {looks!r}, it must be a list of captions, none of them empty"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
