"""Contact sheets and labelled grids: clips side by side, the picture a user would post."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..core.errors import OutputError
from .fonts import Font, drawable, font
from .write import to_bytes

BACKGROUND, INK, FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_GAP = 6
_MARGIN = 12
_FONT_SIZE = 15
_LABEL_WIDTH = 190
# Lines are drawn this many times larger and reduced, which Pillow does not do by itself.
_FINER = 4


def contact_sheet(
    rows: Sequence[tuple[str, Tensor]],
    *,
    title: str = "",
    columns: int = 8,
    tile_side: int = 160,
    paths: Sequence[Tensor | None] = (),
) -> Image.Image:
    """One row per clip: its label, then at most `columns` of its frames (f, h, w, 3), evenly spread over time.

    Small frames are enlarged, large ones reduced, to `tile_side` pixels. `paths` are where the object of each row's
    clip is in each of its frames, (f, 2) as x, y in shares of width and height, or None: the path is drawn over every
    tile as a thin line, with a dot at that frame's place, so that the eye compares motions at once.
    Raises OutputError where there is nothing to show, or paths are not those of the rows.
    """
    if not rows:
        raise OutputError("A contact sheet needs at least one row of frames.")
    _check_paths(rows, paths)
    tiles = [
        [_with_path(_tile(pictures[i], tile_side), path, i) for i in _spread(len(pictures), columns)]
        for pictures, path in zip((to_bytes(frames) for _, frames in rows), paths or [None] * len(rows), strict=True)
    ]
    width = max(sum(tile.width + _GAP for tile in row) for row in tiles)
    labels = [_wrap(label, _face(label), _LABEL_WIDTH) for label, _ in rows]
    left = _MARGIN + max(_text_width(label) for label in labels) + _GAP
    top = _MARGIN + (_FONT_SIZE * 2 if title else 0)
    heights = [
        max(max(tile.height for tile in row), _text_height(label)) for row, label in zip(tiles, labels, strict=True)
    ]
    sheet = Image.new(
        "RGB", (left + width + _MARGIN - _GAP, top + sum(heights) + _GAP * len(rows) + _MARGIN), BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN // 2), drawable(title), fill=INK, font=font(_FONT_SIZE + 3, title))
    for row, label, height in zip(tiles, labels, heights, strict=True):
        draw.multiline_text((_MARGIN, top + (height - _text_height(label)) // 2), label, fill=INK, font=_face(label))
        x = left
        for tile in row:
            sheet.paste(tile, (x, top))
            x += tile.width + _GAP
        top += height + _GAP
    return sheet


def grid_frames(
    rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str] = (), *, title: str = "", tile_side: int = 192
) -> Tensor:
    """Clips (f, h, w, 3) in a labelled grid -> frames (f, H, W, 3) in [0, 1], for `write_video`.

    `rows` are (label, clips from left to right), `columns` the labels above. A clip that is shorter than the longest
    stays on its last frame. Raises OutputError for an empty grid or rows of different lengths.
    """
    counts = {len(clips) for _, clips in rows}
    if len(counts) != 1 or counts == {0} or (columns and counts != {len(columns)}):
        raise OutputError(
            f"A grid needs rows of equal length: rows have {sorted(counts)} clips and there are {len(columns)} columns."
        )
    length = max(len(clip) for _, clips in rows for clip in clips)
    pictures = [_grid_picture(rows, columns, title, tile_side, i) for i in range(length)]
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures]).float() / 255


def draw_path(frames: Tensor, path: Tensor | None, *, side: int = 192) -> Tensor:
    """Frames (f, h, w, 3), the longer side brought to `side`, with `path` drawn as in `contact_sheet`; in [0, 1]."""
    drawn = [_with_path(_tile(picture, side), path, i) for i, picture in enumerate(to_bytes(frames))]
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in drawn]).float() / 255


def _grid_picture(
    rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str], title: str, side: int, index: int
) -> Image.Image:
    tiles = [[_tile(to_bytes(clip)[min(index, len(clip) - 1)], side) for clip in clips] for _, clips in rows]
    cell = (max(t.width for row in tiles for t in row), max(t.height for row in tiles for t in row))
    labels = [_wrap(label, _face(label), _LABEL_WIDTH) for label, _ in rows]
    heads = [_wrap(column, _face(column), cell[0]) for column in columns]
    left = _MARGIN + max(_text_width(label) for label in labels) + (_GAP if any(labels) else 0)
    title_top = _MARGIN + (_FONT_SIZE * 2 if title else 0)
    top = title_top + (max(_text_height(head) for head in heads) + _GAP if heads else 0)
    size = (left + len(tiles[0]) * (cell[0] + _GAP) + _MARGIN, top + len(tiles) * (cell[1] + _GAP) + _MARGIN)
    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN // 2), drawable(title), fill=INK, font=font(_FONT_SIZE + 3, title))
    for i, head in enumerate(heads):
        draw.multiline_text((left + i * (cell[0] + _GAP), title_top), head, fill=INK, font=_face(head))
    for j, (row, label) in enumerate(zip(tiles, labels, strict=True)):
        y = top + j * (cell[1] + _GAP)
        draw.multiline_text((_MARGIN, y + (cell[1] - _text_height(label)) // 2), label, fill=INK, font=_face(label))
        for i, tile in enumerate(row):
            x = left + i * (cell[0] + _GAP)
            picture.paste(tile, (x + (cell[0] - tile.width) // 2, y + (cell[1] - tile.height) // 2))
    return picture


def _spread(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    return [int(i) for i in np.linspace(0, length - 1, max(count, 1)).round()]


def _check_paths(rows: Sequence[tuple[str, Tensor]], paths: Sequence[Tensor | None]) -> None:
    if paths and len(paths) != len(rows):
        raise OutputError(f"A contact sheet of {len(rows)} rows was given {len(paths)} paths.")
    for (label, frames), path in zip(rows, paths, strict=False):
        if path is not None and path.shape != (len(frames), 2):
            raise OutputError(
                f"The path of row {label!r} has shape {tuple(path.shape)}; its clip has {len(frames)} frames, so it "
                f"must be ({len(frames)}, 2)."
            )


def _with_path(tile: Image.Image, path: Tensor | None, at: int) -> Image.Image:
    """The tile with the path as a line, dark under light so that it is seen on any ground, and a dot at frame `at`."""
    if path is None:
        return tile
    width, height = (side * _FINER for side in tile.size)
    points = [(x * width, y * height) for x, y in path.tolist()]
    layer = Image.new("RGBA", (width, height), (*INK, 0))
    draw = ImageDraw.Draw(layer)
    thin = max(2, min(width, height) // 90)
    for colour, stroke in (((*INK, 150), 2 * thin), ((*BACKGROUND, 255), thin)):
        draw.line(points, fill=colour, width=stroke, joint="curve")
    x, y = points[at]
    for colour, radius in (((*INK, 255), 3 * thin), ((*BACKGROUND, 255), 2 * thin)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    layer = layer.resize(tile.size, Image.Resampling.BOX)
    return Image.alpha_composite(tile.convert("RGBA"), layer).convert("RGB")


def _tile(picture: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    longest = max(image.size)
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    smooth = Image.Resampling.BICUBIC if longest < side else Image.Resampling.LANCZOS
    return image if longest == side else image.resize(size, smooth)


def _face(text: str) -> Font:
    return font(_FONT_SIZE, text)


def _wrap(text: str, face: Font, width: int) -> str:
    lines: list[str] = []
    for word in drawable(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


def _text_size(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=_face(text))
    return round(box[2]), round(box[3])


def _text_width(text: str) -> int:
    return _text_size(text)[0] + (_GAP if text else 0)


def _text_height(text: str) -> int:
    return _text_size(text)[1]
