"""Training settings: one frozen value whose fields carry their ranges and their help, with a version and a way up.

Defaults are Customize-A-Video's; `TrainSettings.for_method` gives those of another method, `TrainSettings.for_base`
those that a base model asks for. Command line, nodes, checks, hashes and documents read the descriptions of the fields.

A new setting is one field with `since` one above `SETTINGS_VERSION`, which is then raised: settings, checkpoints, jobs
and results of before keep their hashes, since a later field counts only where it is not its default. A field that is
renamed has its former name in `RENAMED`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import SettingsError
from ..core.fields import About, described, setting
from ..core.process import SPREADS, UNIFORM
from ..methods.losses import DEBIASED, DENOISING, LOSSES
from ..methods.stages import Method, Stage
from ..methods.table import ABSORBERS, METHODS
from ..methods.tuning import AUTO, tuning_of

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline

SETTINGS_VERSION = 3
# From version n to n + 1: former name -> name. A former name is never used again for something else.
RENAMED: dict[int, Mapping[str, str]] = {}

LR_SCHEDULERS = ("constant", "cosine")
HIGHWAYS = ("none", "code", "all")
_VERSION_KEY = "version"
_SMALL = 1e-8
_MANY = 1_000_000


def _presets(*layers: str) -> Sequence[str]:
    # The table needs torch, and the help of the command line does without.
    from ..adapters.targets import TARGETS

    return tuple(name for name, preset in TARGETS.items() if preset.layer in layers)


_method = partial(setting, group="method")
_motion = partial(setting, group="motion stage")
_absorber = partial(setting, group="absorber stages")
_optimiser = partial(setting, group="optimisation")
_running = partial(setting, group="how it runs", has_effect=False)
_share = {"low": 0.0, "high": 1.0}
_steps = {"low": 1, "high": _MANY}
_rank = {"low": 1, "high": 1024}
_alpha = {"low": _SMALL, "high": 1024.0}
_rate = {"low": _SMALL, "high": 1.0}


@dataclass(frozen=True)
class TrainSettings:
    """How to train. None means what the method's row says, or the plain field beside it (spatial_rank: rank).

    Each field says what it does and in which range; `SETTINGS` has all descriptions by name. Where nothing else is
    said, values are those of A.4 of Customize-A-Video, and of MotionDirector's code for the optimiser (AdamW), which
    the former does not state.
    """

    method: str = _method("customize-a-video", "Training method, a row of the table.", choices=lambda: tuple(METHODS))
    absorber: str | None = _method(
        None,
        "What holds the clip's look while its motion is learned, with any method.",
        choices=lambda: tuple(ABSORBERS),
    )
    targets: str | None = _method(
        None, "Which layers learn the motion: a target preset.", choices=lambda: _presets("temporal", "joint")
    )
    spatial_targets: str | None = _method(
        None,
        "Which layers learn the look, in methods with a spatial LoRA.",
        choices=lambda: _presets("spatial", "joint"),
    )
    temporal_heads: bool = _method(
        False,
        "Of joint attention: only heads that look over time on the clip, as measured, learn the motion; the rows of "
        "the others stay zero in the file.",
        since=3,
    )
    loss: str | None = _method(
        None,
        "Loss of every pass that sees the clip in motion, with any method, in place of the row's own.",
        choices=lambda: tuple(LOSSES),
        since=2,
    )
    debiased_loss: bool | None = _method(
        None, "MotionDirector's appearance-debiased loss beside the plain one, with any method."
    )
    debias_beta: float = _method(
        1.0, "Its beta, 1 in the authors' code: how much of the anchor frame is taken away.", low=0.0, high=10.0
    )
    spatial_path_probability: float = _method(
        0.8, "Share of the steps in which a dual path has its spatial half.", **_share
    )
    highway: str = _method(
        "none",
        "Train with the appearance highway too. The papers use it only when sampling.",
        choices=lambda: HIGHWAYS,
    )
    highway_scale: float = _method(1.1, "What the highway is multiplied by.", low=0.0, high=4.0)
    looks: tuple[str, ...] = _method(
        (),
        "Captions of other subjects and places, with {motion} where the words for the motion belong: a robot {motion} "
        "in a desert. The clip is redrawn under each and the motion learned from all.",
    )
    look_strength: float = _method(
        0.45, "Of looks: how much of a frame is redrawn. Too little keeps its colours.", low=0.05, high=1.0
    )
    look_guidance_scale: float = _method(
        9.0, "Of looks: how strictly a frame is redrawn to its caption.", low=0.0, high=100.0
    )
    look_similarity: float = _method(
        0.6, "Of looks: copies whose motion is less like the clip's than this are left out.", low=-1.0, high=1.0
    )
    # A.4: rank 4, alpha 1, rate 5e-4; the steps follow from its seven minutes. Alpha is a direct factor, its Eq. 2.
    steps: int = _motion(500, "Steps of the motion stage.", **_steps)
    rank: int = _motion(4, "Rank of the LoRA: its capacity and size.", **_rank)
    alpha: float = _motion(1.0, "Strength at which the LoRA is trained, as a direct factor.", **_alpha)
    learning_rate: float = _motion(5e-4, "Learning rate of the motion stage.", **_rate)
    spatial_rank: int | None = _motion(None, "Rank of a method's spatial LoRA; unset: as the temporal one.", **_rank)
    spatial_alpha: float | None = _motion(None, "Alpha of the spatial LoRA; unset: as the temporal one.", **_alpha)
    spatial_learning_rate: float | None = _motion(
        None, "Learning rate of the spatial LoRA; unset: as the temporal one.", **_rate
    )
    timestep_low: float = _motion(
        0.0, "Lowest noise that the motion is trained at: 0 clean, 1 pure noise.", low=0.0, high=0.999
    )
    timestep_high: float = _motion(1.0, "Highest noise that the motion is trained at.", low=0.001, high=1.0)
    # A.4: rank 1, alpha 0.5, rate 5e-5, half a minute for the LoRA and a minute for 2 to 6 tokens.
    absorber_steps: int = _absorber(300, "Steps of the absorber's spatial LoRA.", **_steps)
    absorber_rank: int = _absorber(1, "Rank of the absorber's spatial LoRA.", **_rank)
    absorber_alpha: float = _absorber(0.5, "Strength at which the absorber is trained and used.", **_alpha)
    absorber_learning_rate: float = _absorber(5e-5, "Learning rate of the absorber's LoRA.", **_rate)
    token_steps: int = _absorber(600, "Steps of the absorber's learned tokens.", **_steps)
    token_learning_rate: float = _absorber(5e-5, "Learning rate of the absorber's tokens.", **_rate)
    num_tokens: int = _absorber(
        4, "The absorber's learned tokens: 2 for a simple look to 6 for a complex one.", low=1, high=6
    )
    patch_crop: bool = _absorber(
        True, "Whether the absorber is shown random parts of the frames instead of whole ones (A.2 of its paper)."
    )
    frames_per_step: int = _absorber(4, "Unordered frames in a step of the absorber.", low=1, high=1024)
    lr_scheduler: str = _optimiser(
        "constant",
        "How the learning rate runs: constant, or half a cosine down to zero.",
        choices=lambda: LR_SCHEDULERS,
    )
    warmup_steps: int = _optimiser(0, "Steps over which the learning rate rises.", low=0, high=_MANY)
    weight_decay: float = _optimiser(1e-2, "AdamW's weight decay.", **_share)
    max_grad_norm: float = _optimiser(1.0, "Gradients are clipped to this norm.", low=_SMALL, high=1e6)
    gradient_accumulation: int = _optimiser(1, "Passes for each step of the optimiser.", low=1, high=1024)
    dropout: float = _optimiser(0.0, "Dropout on the LoRA's output; 0.1 in MotionDirector's code.", low=0.0, high=0.9)
    horizontal_flip: float = _optimiser(
        0.0, "Probability of a mirrored clip: not for motions with a direction.", **_share
    )
    min_snr_gamma: float | None = _optimiser(
        None,
        "Min-SNR loss weighting with this gamma, 5 in its paper (Hang et al. 2023); unset: off.",
        low=_SMALL,
        high=1000.0,
    )
    timestep_sampling: str = _optimiser(
        UNIFORM,
        "Of bases of flow matching: how timesteps are drawn, evenly or logit-normally (Esser et al. 2024), before the "
        "base's shift.",
        choices=lambda: SPREADS,
        since=3,
    )
    offset_noise: float = _optimiser(0.0, "Extra noise per channel and frame, in training.", **_share)
    seed: int = _optimiser(0, "Seed of everything random in the training.", low=0, high=2**64 - 1)
    gradient_checkpointing: bool = _running(False, "About a third more time for a fraction of the memory.")
    memory: float | None = _running(
        None,
        "GB that training may fill, weights included: layers computed twice and whatever else that asks for; unset: as "
        "gradient_checkpointing says.",
        low=_SMALL,
        high=10_000.0,
        since=3,
    )
    compile: bool = _running(False, "torch.compile.")
    offload_encoders: bool = _running(True, "Text encoder and VAE wait in main memory while the motion is learned.")
    deterministic: bool = _running(True, "Only repeatable kernels: the same seed gives the same file.")
    checkpoint_every: int = _running(50, "Steps between checkpoints.", **_steps)
    report_every: int = _running(1, "Steps between readings of the loss, each of which waits for the device.", **_steps)

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

        `AUTO` is the recommended method: Many Looks on the playground, Customize-A-Video elsewhere, in its form for
        joint attention where that is what the base has.
        """
        tuning = tuning_of(pipeline.identity, pipeline.backbone.recommended_method)
        if method == AUTO:
            method = tuning.recommended
        return replace(cls.for_method(method), **tuning.defaults.get(method, {}))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainSettings:
        """What `to_json` of this version or an older one wrote; one that names no version is of the first.

        Raises SettingsError for fields that are not known, which it names with the version.
        """
        version = content.get(_VERSION_KEY, 1)
        fields = {name: value for name, value in content.items() if name != _VERSION_KEY}
        if isinstance(version, int):
            for older in range(version, SETTINGS_VERSION):
                fields = {RENAMED.get(older, {}).get(name, name): value for name, value in fields.items()}
        unknown = [name for name in fields if name not in SETTINGS]
        if unknown or not isinstance(version, int):
            said = ", ".join(unknown) or "no known version"
            raise SettingsError(
                f"These training settings are of version {version!r} and hold {said}, which this MotionLoRA (settings "
                f"version {SETTINGS_VERSION}) does not know; update MotionLoRA, or leave that out."
            )
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """The version and all fields as a dictionary of plain values, for `from_json`."""
        return {_VERSION_KEY: SETTINGS_VERSION, **dataclasses.asdict(self), "looks": list(self.looks)}

    def resolved(self) -> TrainSettings:
        """The same settings with every None filled in that stands for another value. `Recipe` holds them so."""
        method = find_method(self.method)
        return replace(
            self,
            absorber=self.absorber_kind,
            targets=self.targets or _preset_of(method, "targets"),
            spatial_targets=self.spatial_targets or _preset_of(method, "spatial_targets"),
            loss=None if self.loss in (DEBIASED, DENOISING) else self.loss,
            debiased_loss=self._is_debiased(method),
            spatial_rank=self.rank if self.spatial_rank is None else self.spatial_rank,
            spatial_alpha=self.alpha if self.spatial_alpha is None else self.spatial_alpha,
            spatial_learning_rate=(
                self.learning_rate if self.spatial_learning_rate is None else self.spatial_learning_rate
            ),
        )

    @property
    def absorber_kind(self) -> str:
        """The absorber that is asked for, by these settings or by the method's row."""
        return find_method(self.method).absorber if self.absorber is None else self.absorber

    @property
    def loss_in_place(self) -> str | None:
        """The loss that stands in place of the row's; None: each pass has its own."""
        if self.loss is not None:
            return self.loss
        return None if self.debiased_loss is None else (DEBIASED if self.debiased_loss else DENOISING)

    def with_effect(self) -> dict[str, Any]:
        """The resolved fields that decide what comes out; those of later versions only where they say something."""
        fields, plain = dataclasses.asdict(self.resolved()), TrainSettings()
        told = {n for n, about in SETTINGS.items() if about.has_effect}
        told -= {n for n in told if SETTINGS[n].since > 1 and fields[n] == getattr(plain, n)}
        return {name: list(value) if name == "looks" else value for name, value in fields.items() if name in told}

    def hashed(self) -> dict[str, Any]:
        """`with_effect` under each field's first name: what hashes are made of, the same in every version."""
        first = {name: name for name in SETTINGS}
        for names in reversed(RENAMED.values()):
            back = {new: old for old, new in names.items()}
            first = {name: back.get(former, former) for name, former in first.items()}
        return {first[name]: value for name, value in self.with_effect().items()}

    def fingerprint(self) -> str:
        """SHA-256 over `hashed`."""
        return hashlib.sha256(json.dumps(self.hashed(), sort_keys=True).encode()).hexdigest()

    def _is_debiased(self, method: Method) -> bool | None:
        """Whether the debiased loss is on; None where the passes have losses of their own."""
        chosen = {self.loss_in_place} if self.loss_in_place is not None else _losses_of(method)
        return DEBIASED in chosen if chosen in ({DEBIASED}, {DENOISING}, set()) else None


SETTINGS: Mapping[str, About] = described(TrainSettings)
"""The description of every setting, by name."""
RANGES: Mapping[str, tuple[float, float]] = {
    name: (about.low, about.high)
    for name, about in SETTINGS.items()
    if about.low is not None and about.high is not None
}
"""Lowest and highest legal value of every number, both included."""


def find_method(name: str) -> Method:
    """The row of that name; raises SettingsError that lists the names."""
    if name not in METHODS:
        raise SettingsError(f"method is {name!r}; it must be one of: {', '.join(METHODS)}.")
    return METHODS[name]


def absorber_stages(settings: TrainSettings) -> tuple[Stage, ...]:
    """The stages that train the absorber these settings ask for, with any method."""
    return ABSORBERS[settings.absorber_kind].stages


def main_stages(settings: TrainSettings) -> tuple[Stage, ...]:
    """The stages of the method's row that are no absorber's, with the loss of the settings where they name one."""
    absorbing = [stage for kind in ABSORBERS.values() for stage in kind.stages]
    stages = (stage for stage in find_method(settings.method).stages if stage not in absorbing)
    return tuple(_with_loss(stage, settings.loss_in_place) for stage in stages)


def all_stages(settings: TrainSettings, *, absorber_given: bool = False) -> tuple[Stage, ...]:
    """The stages in the order in which `train` runs them; without absorber stages where an absorber is given."""
    return (*(() if absorber_given else absorber_stages(settings)), *main_stages(settings))


def step_plan(settings: TrainSettings, *, absorber_given: bool = False) -> dict[str, int]:
    """Steps by stage name, in the order in which `train` runs them."""
    stages = all_stages(settings, absorber_given=absorber_given)
    return {stage.name: int(getattr(settings, stage.steps)) for stage in stages}


def _with_loss(stage: Stage, loss: str | None) -> Stage:
    if loss is None or stage.batch != "clip":
        return stage
    return replace(stage, passes=tuple(replace(p, loss=loss) if p.sees_motion else p for p in stage.passes))


def _preset_of(method: Method, name: str) -> str | None:
    """The row's preset where the setting `name` would stand; None where no part, or parts of several, ask for it."""
    found = {p.targets for stage in method.stages for p in stage.parts if p.setting("targets") == name}
    return found.pop() if len(found) == 1 else None


def _losses_of(method: Method) -> set[str]:
    """The losses of the passes that a loss of the settings would replace."""
    return {p.loss for stage in method.stages if stage.batch == "clip" for p in stage.passes if p.sees_motion}
