"""What a base asks for over the methods' own defaults, and which method it is best trained by.

The papers' defaults (table.py) are for bases of full size. A base of another size registers a `Tuning` under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# In the place of a method's name: the one that the base is best trained by, as far as that has been measured.
AUTO = "auto"


@dataclass(frozen=True)
class Tuning:
    """`recommended` is the method that `AUTO` stands for; `defaults` are fields of `TrainSettings` by method."""

    recommended: str = "customize-a-video"
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_TUNINGS: dict[str, Tuning] = {}


def register_tuning(base_name: str, tuning: Tuning) -> None:
    """Use `tuning` for every base whose name begins with `base_name`."""
    _TUNINGS[base_name] = tuning


def tuning_of(base_name: str) -> Tuning:
    """What was registered for a base of that name, or the methods as their authors have them."""
    return next((tuning for name, tuning in _TUNINGS.items() if base_name.startswith(name)), Tuning())
