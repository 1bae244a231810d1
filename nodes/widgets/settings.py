"""Widgets of training settings that may be left to the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..comfy.sockets import io
from .enums import AMOUNTS, COUNTS, SHARES

DEFAULT = "default"
OWN = -1.0
OWN_HINT = "-1: the method's own."
ZERO_HINT = "0: the method's own."
SWITCHES = {"on": True, "off": False}
SWITCH_OPTIONS = [DEFAULT, *SWITCHES]


@dataclass(frozen=True)
class Options:
    """Training settings by name, only those that say something of their own."""

    settings: Mapping[str, Any] = field(default_factory=dict)


def said(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among widget values: without those that leave it to the method."""
    zero = {name for name in widgets if name in COUNTS or name in AMOUNTS}
    found = {}
    for name, value in widgets.items():
        if value in (DEFAULT, OWN) or (name in zero and not value):
            continue
        found[name] = SWITCHES.get(value, value) if isinstance(value, str) else value
    return found


def count_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=0, min=0, max=COUNTS[name], tooltip=tooltip)


def amount_input(name: str, tooltip: str, step: float) -> io.Float.Input:
    return io.Float.Input(name, default=0.0, min=0.0, max=AMOUNTS[name], step=step, round=step / 10, tooltip=tooltip)


def share_input(name: str, tooltip: str, step: float = 0.05) -> io.Float.Input:
    return io.Float.Input(
        name, default=OWN, min=OWN, max=SHARES[name], step=step, round=step / 10, tooltip=f"{tooltip} {OWN_HINT}"
    )
