"""Libraries that only a metric needs: asked for when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from ...core.errors import ClipError, SettingsError
from ...core.surroundings import BROKEN


def require(module: str, package: str, purpose: str) -> Any:
    """The module, or SettingsError that names what to install."""
    try:
        return importlib.import_module(module)
    # Built for another torch or numpy, a library raises all sorts of errors while it is imported.
    except BROKEN as error:
        raise SettingsError(
            f"{purpose} needs {package}, which is not installed or does not load ({error}): install {package}."
        ) from error


def check_frames(frames: Tensor, at_least: int, purpose: str) -> Tensor:
    """Frames (f, h, w, 3) as float32; raises ClipError for another shape or fewer frames than the metric needs."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < at_least:
        raise ClipError(
            f"{purpose} needs frames (f, h, w, 3), {at_least} or more of them; the shape is {tuple(frames.shape)}."
        )
    return frames.detach().float()
