"""What a base asks for over the methods' own defaults, and which method it is best trained by.

The papers' defaults (table.py) are for bases of full size. A base of another size registers a `Tuning`, with what
recognises it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.identity import BaseIdentity

# In the place of a method's name: the one that the base is best trained by, as far as that has been measured.
AUTO = "auto"


@dataclass(frozen=True)
class Tuning:
    """`recommended` is the method that `AUTO` stands for; `defaults` are fields of `TrainSettings` by method."""

    recommended: str = "customize-a-video"
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_TUNINGS: list[tuple[Callable[[BaseIdentity], bool], Tuning]] = []


def register_tuning(recognise: Callable[[BaseIdentity], bool], tuning: Tuning) -> None:
    """Use `tuning` for every base that `recognise` knows by its identity."""
    _TUNINGS.append((recognise, tuning))


def tuning_of(identity: BaseIdentity, recommended: str = Tuning.recommended) -> Tuning:
    """What was registered for that base, or the methods as their authors have them, `recommended` the first."""
    return next((tuning for recognise, tuning in _TUNINGS if recognise(identity)), Tuning(recommended))
