"""Which training settings are legal: every fault of them named at once, from the descriptions of the fields."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..core.errors import SettingsError
from ..core.fields import may_be_none, type_of
from ..methods.losses import DEBIASED
from .settings import RANGES, SETTINGS, TrainSettings


def check_settings(settings: TrainSettings) -> None:
    """Raise one SettingsError that names every fault, with what is legal."""
    faults = [*_name_faults(settings), *_number_faults(settings), *_switch_faults(settings), *_look_faults(settings)]
    if not faults:
        faults = list(_pair_faults(settings))
    if faults:
        raise SettingsError("; ".join(faults) + ".")


def _name_faults(settings: TrainSettings) -> Iterator[str]:
    for name, about in SETTINGS.items():
        if about.choices is None:
            continue
        value, legal = getattr(settings, name), about.choices()
        if value not in legal and not (value is None and may_be_none(TrainSettings, name)):
            yield f"{name} is {value!r}, it must be one of: {', '.join(legal)}"


def _number_faults(settings: TrainSettings) -> Iterator[str]:
    for name, (low, high) in RANGES.items():
        value = getattr(settings, name)
        if value is None and may_be_none(TrainSettings, name):
            continue
        whole = type_of(TrainSettings, name) == "int"
        right_kind = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right_kind or not math.isfinite(value) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            yield f"{name} is {value!r}, it must be {what} from {low:g} to {_shown(high)}"


def _switch_faults(settings: TrainSettings) -> Iterator[str]:
    for name in SETTINGS:
        value = getattr(settings, name)
        unset = value is None and may_be_none(TrainSettings, name)
        if type_of(TrainSettings, name) == "bool" and not (isinstance(value, bool) or unset):
            yield f"{name} is {value!r}, it must be true or false"


def _look_faults(settings: TrainSettings) -> Iterator[str]:
    looks = settings.looks
    if not isinstance(looks, tuple) or not all(isinstance(look, str) and look.strip() for look in looks):
        yield f"looks is {looks!r}, it must be a list of captions, none of them empty"


def _pair_faults(settings: TrainSettings) -> Iterator[str]:
    low, high = settings.timestep_low, settings.timestep_high
    if low >= high:
        yield f"timestep_low is {low}, it must be below timestep_high, {high}"
    loss, debiased = settings.loss, settings.debiased_loss
    if loss is not None and debiased is not None and debiased != (loss == DEBIASED):
        yield f"loss is {loss!r} and debiased_loss is {debiased}, which say different things; leave debiased_loss out"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
