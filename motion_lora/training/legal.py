"""Which training settings are legal: every fault of them named at once, from the descriptions of the fields."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import SettingsError
from ..core.fields import field_faults
from ..methods.losses import DEBIASED
from .settings import TrainSettings


def check_settings(settings: TrainSettings) -> None:
    """Raise one SettingsError that names every fault, with what is legal."""
    faults = [*field_faults(settings).values(), *_look_faults(settings)]
    if not faults:
        faults = list(_pair_faults(settings))
    if faults:
        raise SettingsError("; ".join(faults) + ".")


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
