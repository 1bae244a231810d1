"""Pictures for people: videos, GIFs, PNGs, contact sheets, labelled grid videos and plots, all written atomically."""

from __future__ import annotations

from .plots import Line, Point, plot_lines, plot_losses, plot_points
from .sheets import contact_sheet, grid_frames
from .writing import VIDEO_SUFFIXES, write_gif, write_png, write_video

__all__ = [
    "VIDEO_SUFFIXES",
    "Line",
    "Point",
    "contact_sheet",
    "grid_frames",
    "plot_lines",
    "plot_losses",
    "plot_points",
    "write_gif",
    "write_png",
    "write_video",
]
