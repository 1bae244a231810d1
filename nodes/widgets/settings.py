"""Widgets of training settings that may be left to the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...motion_lora.core.fields import type_of
from ...motion_lora.jobs import AUTO as AUTO_DEVICE
from ...motion_lora.methods.tuning import AUTO
from ...motion_lora.training.settings import SETTINGS, TrainSettings
from ..comfy.sockets import io
from .enums import AMOUNTS, COUNTS, SHARES

if TYPE_CHECKING:
    from ...motion_lora.base.pipeline import VideoPipeline

DEFAULT = "default"
OWN = -1.0
OWN_HINT = "-1: the method's own."
ZERO_HINT = "0: the method's own."
SWITCHES = {"on": True, "off": False}


@dataclass(frozen=True)
class Options:
    """Training settings by name, only those that say something of their own, and the device that trains."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = AUTO_DEVICE

    @classmethod
    def of(cls, widgets: Mapping[str, Any]) -> Options:
        """What the widgets of Advanced Training Settings say."""
        settings = {name: value for name, value in widgets.items() if name != "device"}
        return cls(said(settings), str(widgets.get("device", AUTO_DEVICE)))


def said(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among widget values: without those that leave it to the method."""
    zero = {name for name in widgets if name in COUNTS or name in AMOUNTS}
    found = {}
    for name, value in widgets.items():
        if value in (DEFAULT, OWN) or (name in zero and not value):
            continue
        found[name] = SWITCHES.get(value, value) if isinstance(value, str) else value
    return found


def settings_from(base: VideoPipeline, widgets: dict[str, Any]) -> TrainSettings:
    """Training settings: the defaults of the method on this base, with every widget that says something of its own."""
    numbers = {name: widgets[name] for name in (*COUNTS, *AMOUNTS) if widgets.get(name)}
    chosen = {name: widgets.get(name, DEFAULT) for name in ("absorber", "targets", "patch_crop")}
    looks = tuple(line.strip() for line in widgets.get("looks", "").splitlines() if line.strip())
    return replace(
        TrainSettings.for_base(base, widgets.get("method", AUTO)),
        **numbers,
        **{name: SWITCHES.get(value, value) for name, value in chosen.items() if value != DEFAULT},
        **(widgets.get("options") or Options()).settings,
        **({"looks": looks} if looks else {}),
        seed=widgets["seed"],
        gradient_checkpointing=widgets["gradient_checkpointing"],
        # Repeatable kernels are a switch of the whole process, which other models share.
        deterministic=base.device.type == "cpu",
    )


def setting_input(
    name: str,
    step: float = 0.05,
    *,
    options: Sequence[str] | None = None,
    zero: str = ZERO_HINT,
    advanced: bool = False,
) -> io.Input:
    """The widget of a training setting, by its description; left alone it means the method's own value.

    `options` are the names it offers where the description's cannot be had without torch, `zero` says what 0 means.
    """
    about, kind, more = SETTINGS[name], type_of(TrainSettings, name), {"advanced": advanced or None}
    if kind in ("bool", "str"):
        names = SWITCHES if kind == "bool" else options or (about.choices or tuple)()
        return io.Combo.Input(name, options=[DEFAULT, *names], default=DEFAULT, tooltip=about.help, **more)
    hint = OWN_HINT if name in SHARES else zero
    # Some say themselves what they are where nobody sets them.
    tooltip = about.help.replace("unset:", "0:") if "unset:" in about.help else f"{about.help} {hint}"
    label = f"{name} ({-1 if name in SHARES else 0}: auto)"
    if name in COUNTS:
        return io.Int.Input(name, label, default=0, min=0, max=COUNTS[name], tooltip=tooltip, **more)
    unset, high = (OWN, SHARES[name]) if name in SHARES else (0.0, AMOUNTS[name])
    return io.Float.Input(
        name, label, default=unset, min=unset, max=high, step=step, round=step / 10, tooltip=tooltip, **more
    )
