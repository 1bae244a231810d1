"""Which device a job is run on, where a machine has several: the one that is named, or the next free one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.errors import SettingsError

AUTO = "auto"


def choose_device(wanted: str, own: str, devices: Sequence[str], waiting: Callable[[str], int]) -> str:
    """`wanted`, or for AUTO the one of `devices` with the fewest jobs, of several the base's `own`, else the first.

    `waiting` says how many jobs a device has, running or queued. Raises SettingsError for one that is not there.
    """
    if wanted != AUTO:
        if wanted not in (own, *devices):
            raise SettingsError(f"device is {wanted!r}; here it can be: {', '.join((AUTO, *devices))}.")
        return wanted
    # A base on another kind of device was put there on purpose.
    if own not in devices:
        return own
    return min(devices, key=lambda device: (waiting(device), device != own))
