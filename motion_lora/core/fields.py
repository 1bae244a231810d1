"""A setting is described once, where it stands: a dataclass field that says its range, its help and its effect.

Command line, nodes, checks and hashes read the description; nothing repeats it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEY = "about"
MISSING: Any = dataclasses.MISSING


@dataclass(frozen=True)
class About:
    """What is known of one setting.

    `help` is one or two sentences for people; `low` and `high` are the legal range of a number, both included;
    `choices` gives the legal names of a text; `has_effect` says whether it decides what comes out; `since` is the
    version of the settings that first had it.
    """

    help: str
    group: str = ""
    low: float | None = None
    high: float | None = None
    choices: Callable[[], Sequence[str]] | None = None
    has_effect: bool = True
    since: int = 1


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with its description; `about` are the fields of `About`. `MISSING` is no default at all."""
    return dataclasses.field(default=default, metadata={_KEY: About(help, **about)})


def described(kind: type) -> Mapping[str, About]:
    """The description of each field of a dataclass that has one, by name, in order."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(kind) if _KEY in f.metadata}


def type_of(kind: type, name: str) -> str:
    """The type of a field as it is written, without None: "int", "float", "bool", "str" or "tuple[str, ...]"."""
    (found,) = (field for field in dataclasses.fields(kind) if field.name == name)
    return str(found.type).removesuffix(" | None")


def may_be_none(kind: type, name: str) -> bool:
    """Whether None is a value of the field."""
    return any(field.name == name and "None" in str(field.type) for field in dataclasses.fields(kind))


# Checks -------------------------------------------------------------------------------------------------------------


def field_faults(settings: Any, most: Mapping[str, float] | None = None) -> dict[str, str]:
    """What is wrong with single fields of a described dataclass, by name: choices, numbers, switches and texts.

    `most` lowers the upper ends of some ranges, such as that of steps on a base with fewer.
    """
    faults = {}
    for name, about in described(type(settings)).items():
        value, kind = getattr(settings, name), type_of(type(settings), name)
        if value is None and may_be_none(type(settings), name):
            continue
        if about.low is not None and about.high is not None:
            about = dataclasses.replace(about, high=(most or {}).get(name, about.high))
        if fault := _fault(value, kind, about):
            faults[name] = f"{name} is {value!r}, it must be {fault}"
    return faults


def number_fault(value: object, whole: bool, low: float, high: float) -> str:
    """What `value` must be, where it is no number, or no whole number, from `low` to `high`; "" where it is one."""
    right_kind = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if right_kind and isinstance(value, int | float) and math.isfinite(value) and low <= value <= high:
        return ""
    return f"{'a whole number' if whole else 'a number'} from {low:g} to {_shown(high)}"


def _fault(value: object, kind: str, about: About) -> str:
    if about.choices is not None:
        return "" if value in (legal := about.choices()) else f"one of: {', '.join(legal)}"
    if about.low is not None and about.high is not None:
        return number_fault(value, kind == "int", about.low, about.high)
    right = {"bool": bool, "str": str}.get(kind, object)
    return "" if isinstance(value, right) else {"bool": "true or false", "str": "text"}[kind]


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
