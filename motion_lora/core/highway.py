"""The appearance highway as a value: which skips are re-routed, and by what it is scaled."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SettingsError

HIGHWAY_PRESETS = ("code", "all")
MAX_SCALE = 4.0


@dataclass(frozen=True)
class Highway:
    """Which skips are re-routed, and by what the highway is scaled.

    preset "code": the skips of the deepest level with attention, as in the authors' code (7 and 8 of ModelScope's 12).
        `scale` multiplies what that code multiplies: every skip that the first up block of that level takes, and the
        first one that the next block takes (8, 7, 6 and 5), re-routed or not.
    preset "all": every skip that starts at a temporal attention beside a spatial one, as the abstract says (1, 2, 4,
        5, 7 and 8); `scale` multiplies these.

    The default scale is that of the authors' command line; 1 re-routes without scaling.
    """

    preset: str = "code"
    scale: float = 1.1

    def __post_init__(self) -> None:
        if self.preset not in HIGHWAY_PRESETS:
            raise SettingsError(f"highway preset is {self.preset!r}; it must be one of: {', '.join(HIGHWAY_PRESETS)}.")
        if not 0.0 <= self.scale <= MAX_SCALE:
            raise SettingsError(f"highway scale is {self.scale}; it must be from 0 to {MAX_SCALE:g}.")
