"""Settings from flags and from a TOML file: one description of each setting serves both. Flags win over the file.

A setting's name is the library's parameter; its flag is that name with dashes. Values of the file are checked as
strictly as flags: an unknown key or a wrong type is refused by name.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.decoding import decode_text
from ...core.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Option:
    """One setting: `kind` is str, int, float, bool or Path; `many` takes several values, in the file a list.

    A str with `names` is one of those, or a path where there is one.
    """

    name: str
    kind: type
    help: str
    choices: tuple[str, ...] = ()
    many: bool = False
    flag: str = ""
    metavar: str | None = None
    names: tuple[str, ...] = ()

    @property
    def spelling(self) -> str:
        """The flag as typed."""
        return self.flag or "--" + self.name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option], title: str) -> None:
    """Add a group of flags; a flag that is not given leaves no trace, so that the file's value can show through."""
    group = parser.add_argument_group(title)
    for option in options:
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": option.help}
        if option.kind is bool:
            group.add_argument(option.spelling, action=argparse.BooleanOptionalAction, **common)
            continue
        common |= {"type": option.kind, "metavar": option.metavar or _metavar(option)}
        if option.choices:
            common["choices"] = option.choices
        if option.many:
            common["action"] = "append"
        group.add_argument(option.spelling, **common)


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that names the TOML file."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings; flags win over it")


def gather(parsed: argparse.Namespace, options: Sequence[Option], tables: Sequence[str] = ()) -> dict[str, Any]:
    """The values of all given options, the flags' over the file's. Keys in `tables` are passed on unchecked."""
    config = getattr(parsed, "config", None)
    values = read_toml(config, options, tables) if config else {}
    flags = {option.name: getattr(parsed, option.name) for option in options if hasattr(parsed, option.name)}
    return {**values, **flags}


def read_toml(path: Path, options: Sequence[Option], tables: Sequence[str] = ()) -> dict[str, Any]:
    """Values of a TOML file, checked against the options. Paths in it are relative to the file's own folder.

    Raises SettingsError for a file that cannot be read, an unknown key, or a value of the wrong type.
    """
    try:
        content = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise SettingsError(f"Settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"Settings file {path} is not valid TOML: {error}") from error
    return check_table(content, options, tables, where=str(path), folder=path.parent)


def check_table(
    content: Mapping[str, Any], options: Sequence[Option], tables: Sequence[str], *, where: str, folder: Path
) -> dict[str, Any]:
    """One table of a settings file as typed values; raises SettingsError that names the key.

    `tables` are keys that hold a list of tables, which are passed on as they are.
    """
    if not isinstance(content, Mapping):
        raise SettingsError(f"{where} must be a table of settings, got {content!r}.")
    for key in tables:
        if not isinstance(content.get(key, []), list):
            raise SettingsError(f"{where}: {key} must be a list of tables; write [[{key}]] above each.")
    known = {option.name: option for option in options}
    for key in content:
        if key not in known and key not in tables:
            raise SettingsError(f"{where}: there is no setting {key!r}.{_suggest(key, [*known, *tables])}")
    checked = {key: _typed(known[key], value, where, folder) for key, value in content.items() if key in known}
    return {**checked, **{key: content[key] for key in tables if key in content}}


def file_and_strength(entry: Sequence[str], what: str) -> tuple[Path, float]:
    """The two words of a flag such as --lora: a file, and a strength that is 1 if it is left out."""
    if len(entry) > 2:
        raise SettingsError(f"{what} takes one file and one strength, got {' '.join(entry)!r}; repeat it for more.")
    try:
        return Path(entry[0]), float(entry[1]) if len(entry) == 2 else 1.0
    except ValueError as error:
        raise SettingsError(f"{what} {entry[0]}: the strength {entry[1]!r} is no number.") from error


def named_words(words: Sequence[str], options: Sequence[Option], what: str) -> dict[str, Any]:
    """The name=value words of a flag such as --lora as typed values; raises SettingsError that names the word."""
    known = {option.name: option for option in options}
    values: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise SettingsError(f"{what}: there is no setting {name!r}.{_suggest(name, list(known))}")
        try:
            values[name] = known[name].kind(text)
        except ValueError as error:
            raise SettingsError(f"{what}: {name} is {text!r}, which is no number.") from error
    return values


def _metavar(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(option.kind, "TEXT")


def _suggest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known settings: {', '.join(sorted(known))}."


def _typed(option: Option, value: Any, where: str, folder: Path) -> Any:
    if option.many:
        if not isinstance(value, list):
            raise SettingsError(f"{where}: {option.name} must be a list of values, got {value!r}.")
        return [_scalar(option, entry, where, folder) for entry in value]
    return _scalar(option, value, where, folder)


def _scalar(option: Option, value: Any, where: str, folder: Path) -> Any:
    """TOML has its own types, so nothing is parsed here: an int may stand for a float, nothing else is converted."""
    expected: dict[type, tuple[type, ...]] = {Path: (str,), float: (int, float)}
    wrong = not isinstance(value, expected.get(option.kind, (option.kind,))) or (
        isinstance(value, bool) and option.kind is not bool
    )
    if wrong:
        raise SettingsError(f"{where}: {option.name} must be of type {option.kind.__name__}, got {value!r}.")
    if option.choices and value not in option.choices:
        raise SettingsError(f"{where}: {option.name} is {value!r}; it must be one of: {', '.join(option.choices)}.")
    if option.kind is Path:
        return folder / Path(value).expanduser()
    if option.names and value not in option.names and (place := folder / Path(value).expanduser()).exists():
        return str(place)
    return option.kind(value)
