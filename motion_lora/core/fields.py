"""A setting is described once, where it stands: a dataclass field that says its range, its help and its effect.

Command line, nodes, checks and hashes read the description; nothing repeats it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEY = "about"


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
    """A dataclass field with its description; `about` are the fields of `About`."""
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
