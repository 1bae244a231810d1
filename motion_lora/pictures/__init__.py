"""Pictures for people: videos, GIFs, PNGs, contact sheets, labelled grid videos, tables, plots; written atomically."""

from __future__ import annotations

from .plots import Line, Point, plot_lines, plot_losses, plot_points
from .sheets import contact_sheet, grid_frames
from .tables import draw_table
from .writing import VIDEO_SUFFIXES, write_gif, write_png, write_video

__all__ = [
    "VIDEO_SUFFIXES",
    "Line",
    "Point",
    "contact_sheet",
    "draw_table",
    "grid_frames",
    "plot_lines",
    "plot_losses",
    "plot_points",
    "write_gif",
    "write_png",
    "write_video",
]
