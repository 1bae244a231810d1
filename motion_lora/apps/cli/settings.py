"""The settings of training and sampling as options, from the descriptions of their fields.

Where no default is named, it is the method's or the base's (and on the built-in model its own, where its size needs
another).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...core.fields import described, type_of
from ...methods.table import ABSORBERS, METHODS
from ...sampling.settings import SampleSettings
from ...training.settings import TrainSettings
from .options import Option

_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
_ALSO = {
    "method": "motion-lora methods lists them (default: auto, the base's own)",
    "absorber": "or a file as for --load-absorber",
    "targets": "motion-lora targets lists them",
    "scheduler": "ddim, dpmpp-2m-karras, euler, euler-ancestral or unipc",
}
# Those whose names a command lists, or whose table needs torch.
_LISTED = ("method", "targets", "spatial_targets", "scheduler")
# Every prompt is sampled with every seed.
_SEVERAL = {"prompt": "may be given several times (required)", "seed": "may be given several times"}


def _options(kind: type, several: Mapping[str, str]) -> tuple[Option, ...]:
    return tuple(_option(kind, field.name, field.default, several) for field in dataclasses.fields(kind))


def _option(settings: type, name: str, default: Any, several: Mapping[str, str]) -> Option:
    kind, about = type_of(settings, name), described(settings)[name]
    said = (about.help.rstrip("."), _names(settings, name), _ALSO.get(name, ""), several.get(name, ""))
    many = kind not in _KINDS
    return Option(
        name,
        _KINDS.get(kind, str),
        f"{'; '.join(part for part in said if part)}{_default(name, default)}",
        many=many or name in several,
        metavar="CAPTION" if many else None,
        names=tuple(ABSORBERS) if name == "absorber" else (),
    )


def _names(settings: type, name: str) -> str:
    """The legal names, where there are few of them and no command that lists them."""
    choices = described(settings)[name].choices
    return "" if choices is None or name in _LISTED else ", ".join(choices())


def _default(name: str, default: Any) -> str:
    """The default, unless it is another from method to method or there is nothing to name."""
    if name == "method" or default in (None, (), "") or any(name in row.defaults for row in METHODS.values()):
        return ""
    if default is dataclasses.MISSING:
        return ""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"


TRAIN_OPTIONS = _options(TrainSettings, {})
# How much of a source is redrawn is an option of video to video.
SAMPLE_OPTIONS = tuple(option for option in _options(SampleSettings, _SEVERAL) if option.name != "edit_strength")
