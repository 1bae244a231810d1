"""Curves and block strengths as people type them: one line of text in a widget, a flag or a settings file."""

from __future__ import annotations

import math
from collections.abc import Collection

from .curves import CURVES, Points
from .errors import SettingsError


def curve_from(text: str) -> str | Points:
    """The shape of a curve: one of CURVES by name, or points such as "0:1, 0.5:0.2, 1:0" (position:factor).

    Raises SettingsError for anything else; whether the positions ascend is checked where the curve is made.
    """
    name = text.strip()
    if ":" not in name:
        if name not in CURVES:
            raise SettingsError(
                f"unknown curve {name!r}: use one of {', '.join(CURVES)}, or points such as 0:1, 0.5:0.2, 1:0"
            )
        return name
    pairs = []
    for part in _parts(text):
        position, _, factor = part.partition(":")
        pairs.append((_number(position, part, "a point"), _number(factor, part, "a point")))
    return tuple(pairs)


def block_strengths_from(text: str, known: Collection[str] = ()) -> dict[str, float]:
    """Strengths by block from "down_blocks.0=0.5, mid_block=0"; empty text names none, so that all stay at 1.

    Raises SettingsError for what is no block=number, a block named twice, and one that is not among `known`, if given.
    """
    strengths: dict[str, float] = {}
    for part in _parts(text):
        block, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not block:
            raise SettingsError(f"{part!r} is no block strength: write block=number, such as down_blocks.0=0.5")
        if block in strengths:
            raise SettingsError(f"the block {block} has two strengths in {text!r}: name it once")
        if known and block not in known:
            raise SettingsError(f"there is no block {block!r} in this LoRA: it has {', '.join(known)}")
        strengths[block] = _number(value, part, "a block strength")
    return strengths


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", ",").replace(";", ",").split(",") if part.strip()]


def _number(text: str, part: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{part!r} is no number for {what}: {text.strip()!r} must be a finite number")
    return value
