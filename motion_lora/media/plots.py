"""Plots drawn with PIL alone: lines with bands, losses raw and smoothed, points with error bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from ..core.errors import OutputError
from .fonts import Font, drawable, font
from .sheets import BACKGROUND, FAINT, INK

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow.
PALETTE = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (90, 90, 90),
    (140, 60, 160),
)
_SIZE = (900, 560)
_OVERSAMPLE = 2  # drawn twice as large and reduced: PIL's lines are not anti-aliased
_GRID = (228, 228, 228)
_TICKS = 6
_SPREAD_PERCENT = 1.0
_ROOM_FOR_NAMES = 0.3  # beyond the end of the x axis, in lengths of it
# Where a point's name may stand, in lines above or below it: the nearest that is free.
_NAME_SHIFTS = tuple(sorted((n - 0.5 for n in range(-6, 8)), key=lambda shift: abs(shift + 0.5)))
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A named curve. `low` and `high` are a band around it; `smooth` > 1 draws y faintly, its moving average boldly.

    Points that are not finite are left out.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    smooth: int = 1


@dataclass(frozen=True)
class Point:
    """A named point with the low and high ends of its error bars, which need not lie evenly around it."""

    label: str
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = field(default=())

    def place(self, value: float) -> float:
        """Position of a value, 0 at the low end and 1 at the high end."""
        if self.log:
            value = math.log10(max(value, 1e-30))
        return (value - self.low) / (self.high - self.low)


def plot_lines(
    lines: Sequence[Line], *, title: str = "", x_label: str = "", y_label: str = "", log_y: bool = False
) -> Image.Image:
    """Curves over a common x axis, with a legend; more than there are colours are named at their ends instead.

    Raises OutputError where no point is finite.
    """
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if _drawable(x, y, log_y)]
    bands = [v for line in lines for v in (*line.low, *line.high) if _drawable(0, v, log_y)]
    if not points:
        raise OutputError("There is nothing to plot: no point has finite coordinates.")
    crowded = any(line.smooth > 1 for line in lines)
    heights = _without_outliers([y for _, y in points]) if crowded else [y for _, y in points]
    xs, many = [x for x, _ in points], len(lines) > len(PALETTE)
    room = [max(xs) + _ROOM_FOR_NAMES * (max(xs) - min(xs))] if many else []
    canvas = _Canvas(_axis([*xs, *room], pad=0.0), _axis([*heights, *bands], log=log_y))
    canvas.frame(title, x_label, y_label)
    for index, line in enumerate(lines):
        _draw_line(canvas, line, PALETTE[index % len(PALETTE)], log_y)
    if many:
        canvas.names([_last_point(line, log_y) for line in lines], beyond=True)
    else:
        canvas.legend([line.label for line in lines])
    return canvas.finish()


def plot_losses(losses: Mapping[str, Sequence[float]], *, title: str = "loss", log_y: bool = False) -> Image.Image:
    """One curve per stage over its steps: every step faintly, a moving average over 5 % of the steps boldly."""
    lines = [
        Line(stage, range(1, len(values) + 1), values, smooth=max(1, len(values) // 20))
        for stage, values in losses.items()
    ]
    return plot_lines(lines, title=title, x_label="step", y_label="loss", log_y=log_y)


def plot_points(points: Sequence[Point], *, title: str = "", x_label: str = "", y_label: str = "") -> Image.Image:
    """Points with error bars, each with its label beside it. Raises OutputError where no point is finite."""
    finite = [p for p in points if _drawable(p.x, p.y, False)]
    if not finite:
        raise OutputError("There is nothing to plot: no point has finite coordinates.")
    xs = [end for p in finite for end in _ends(p.x, p.x_ends)]
    ys = [end for p in finite for end in _ends(p.y, p.y_ends)]
    canvas = _Canvas(_axis(xs), _axis(ys))
    canvas.frame(title, x_label, y_label)
    for index, point in enumerate(finite):
        canvas.marker(point, PALETTE[index % len(PALETTE)])
    canvas.names(finite)
    return canvas.finish()


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the finite values in a window around each point, without the outermost percent of all values."""
    if window <= 1:
        return list(values)
    kept = _without_outliers([v for v in values if math.isfinite(v)])
    low, high = (min(kept), max(kept)) if kept else (0.0, 0.0)
    result = []
    for middle in range(len(values)):
        near = values[max(0, middle - window // 2) : middle + window // 2 + 1]
        inside = [min(max(v, low), high) for v in near if math.isfinite(v)]
        result.append(sum(inside) / len(inside) if inside else math.nan)
    return result


def _last_point(line: Line, log_y: bool) -> Point:
    """The line's end with its name, which is empty where nothing of it is drawn."""
    drawn = [(x, y) for x, y in zip(line.x, line.y, strict=True) if _drawable(x, y, log_y)]
    return Point(line.label, *drawn[-1]) if drawn else Point("", 0.0, 1.0)


def _draw_line(canvas: _Canvas, line: Line, colour: tuple[int, int, int], log_y: bool) -> None:
    if line.low and line.high:
        canvas.band(line, _faint(colour, 0.75))
    if line.smooth > 1:
        canvas.curve(line.x, line.y, _faint(colour, 0.65), 1, log_y)
    canvas.curve(line.x, moving_average(line.y, line.smooth), colour, 2, log_y)


class _Canvas:
    """A white picture with a plotting area of its own, so that nothing drawn there runs over the labels."""

    def __init__(self, x: _Axis, y: _Axis) -> None:
        self.x, self.y = x, y
        width, height = (side * _OVERSAMPLE for side in _SIZE)
        self.left, self.right = 92 * _OVERSAMPLE, width - 24 * _OVERSAMPLE
        self.top, self.bottom = 48 * _OVERSAMPLE, height - 64 * _OVERSAMPLE
        self.image = Image.new("RGB", (width, height), BACKGROUND)
        self.area = Image.new("RGB", (self.right - self.left, self.bottom - self.top), BACKGROUND)
        self.draw = ImageDraw.Draw(self.area)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point in the plotting area; what is far outside stays just outside."""
        across, up = (min(max(place, -0.5), 1.5) for place in (self.x.place(x), self.y.place(y)))
        return across * self.area.width, (1 - up) * self.area.height

    def frame(self, title: str, x_label: str, y_label: str) -> None:
        """Grid, ticks, labels and title."""
        outside = ImageDraw.Draw(self.image)
        face, bold = font(14 * _OVERSAMPLE), font(16 * _OVERSAMPLE, x_label + y_label)
        for tick in self.x.ticks:
            x, _ = self.at(tick, self.y.ticks[0])
            self.draw.line([(x, 0), (x, self.area.height)], fill=_GRID, width=_OVERSAMPLE)
            below = (self.left + x, self.bottom + 6 * _OVERSAMPLE)
            outside.text(below, f"{tick:g}", fill=FAINT, font=face, anchor="ma")
        for tick in self.y.ticks:
            _, y = self.at(self.x.ticks[0], tick)
            self.draw.line([(0, y), (self.area.width, y)], fill=_GRID, width=_OVERSAMPLE)
            beside = (self.left - 8 * _OVERSAMPLE, self.top + y)
            outside.text(beside, f"{tick:.4g}", fill=FAINT, font=face, anchor="rm")
        middle = (self.left + self.right) / 2
        head = font(19 * _OVERSAMPLE, title)
        outside.text((middle, 14 * _OVERSAMPLE), drawable(title), fill=INK, font=head, anchor="ma")
        outside.text((middle, self.bottom + 34 * _OVERSAMPLE), drawable(x_label), fill=INK, font=bold, anchor="ma")
        self._upright(drawable(y_label), bold)

    def _upright(self, text: str, face: Font) -> None:
        if not text:
            return
        box = self.draw.textbbox((0, 0), text, font=face)
        label = Image.new("RGB", (round(box[2]) + 4, round(box[3]) + 4), BACKGROUND)
        ImageDraw.Draw(label).text((0, 0), text, fill=INK, font=face)
        turned = label.rotate(90, expand=True)
        self.image.paste(turned, (8 * _OVERSAMPLE, (self.top + self.bottom - turned.height) // 2))

    def curve(
        self, xs: Sequence[float], ys: Sequence[float], colour: tuple[int, int, int], width: int, log_y: bool
    ) -> None:
        """A line through the drawable points, broken at the others; a lone point becomes a dot."""
        run: list[tuple[float, float]] = []
        for x, y in [*zip(xs, ys, strict=True), (math.nan, math.nan)]:
            if _drawable(x, y, log_y):
                run.append(self.at(x, y))
            elif run:
                self._stroke(run, colour, width)
                run = []

    def _stroke(self, run: list[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        if len(run) == 1:
            self._dot(run[0], colour, 3)
        else:
            self.draw.line(run, fill=colour, width=width * _OVERSAMPLE, joint="curve")

    def band(self, line: Line, colour: tuple[int, int, int]) -> None:
        """The area between `low` and `high`."""
        rows = [row for row in zip(line.x, line.low, line.high, strict=True) if all(map(math.isfinite, row))]
        if len(rows) > 1:
            outline = [self.at(x, low) for x, low, _ in rows] + [self.at(x, high) for x, _, high in reversed(rows)]
            self.draw.polygon(outline, fill=colour)

    def marker(self, point: Point, colour: tuple[int, int, int]) -> None:
        """A dot with its error bars."""
        (left, right), (low, high) = _ends(point.x, point.x_ends), _ends(point.y, point.y_ends)
        for start, end in (((left, point.y), (right, point.y)), ((point.x, low), (point.x, high))):
            self.draw.line([self.at(*start), self.at(*end)], fill=_faint(colour, 0.35), width=2 * _OVERSAMPLE)
        self._dot(self.at(point.x, point.y), colour, 6)

    def names(self, points: Sequence[Point], *, beyond: bool = False) -> None:
        """Every point's label beside it, as there are more points than colours that eyes can tell apart.

        `beyond` stacks them on the right, where the lines that end at the points do not run.
        """
        face = font(13 * _OVERSAMPLE, "".join(point.label for point in points))
        gap, height = 9 * _OVERSAMPLE, 16 * _OVERSAMPLE
        places, texts = [self.at(point.x, point.y) for point in points], [drawable(point.label) for point in points]
        widths = [face.getlength(text) for text in texts]
        if beyond:
            middles = stacked([y for _, y in places], height)
            lefts = [x + 2 * gap for x, _ in places]
        else:
            boxes = name_boxes(places, [(width, height) for width in widths], gap, self.area.size)
            middles, lefts = [(box[1] + box[3]) / 2 for box in boxes], [box[0] for box in boxes]
        for index, (x, y) in enumerate(places):
            left, middle, width = lefts[index], middles[index], widths[index]
            if abs(middle - y) > gap / 2 or beyond:
                colour = PALETTE[index % len(PALETTE)]
                near = left if left > x else left + width
                self.draw.line([(x, y), (near, middle)], fill=_faint(colour, 0.5), width=_OVERSAMPLE)
            self.draw.text((left, middle), texts[index], fill=INK, font=face, anchor="lm")

    def _dot(self, place: tuple[float, float], colour: tuple[int, int, int], radius: int) -> None:
        x, y = place
        reach = radius * _OVERSAMPLE
        self.draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)

    def legend(self, labels: Sequence[str]) -> None:
        """Names where they hide the least, in a corner if one is free, in the order of drawing."""
        named = [(drawable(label), PALETTE[i % len(PALETTE)]) for i, label in enumerate(labels) if label]
        if not named:
            return
        face, step = font(14 * _OVERSAMPLE, "".join(label for label, _ in named)), 20 * _OVERSAMPLE
        size = (round(max(face.getlength(label) for label, _ in named)) + 44 * _OVERSAMPLE, step * len(named))
        left, top = self._emptiest_place(size)
        self.draw.rectangle([left, top, left + size[0], top + size[1]], fill=BACKGROUND, outline=_GRID)
        for i, (label, colour) in enumerate(named):
            y = top + step * i + step // 2
            ends = [(left + 8 * _OVERSAMPLE, y), (left + 30 * _OVERSAMPLE, y)]
            self.draw.line(ends, fill=colour, width=3 * _OVERSAMPLE)
            self.draw.text((left + 36 * _OVERSAMPLE, y), label, fill=INK, font=face, anchor="lm")

    def _emptiest_place(self, size: tuple[int, int]) -> tuple[int, int]:
        gap = 8 * _OVERSAMPLE
        room = (self.area.width - size[0] - 2 * gap, self.area.height - size[1] - 2 * gap)
        # The first of equals is taken: corners from the top right on, then the other places.
        corners = [(1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
        others = [(column / 4, row / 12) for column in (4, 0, 3, 1, 2) for row in range(13)]
        places = [(round(gap + x * room[0]), round(gap + y * room[1])) for x, y in (*corners, *others)]
        return min(places, key=lambda at: self._ink((at[0], at[1], at[0] + size[0], at[1] + size[1])))

    def _ink(self, box: tuple[int, int, int, int]) -> int:
        """How much of a box of the plotting area is coloured, neither paper nor grid."""
        saturation = self.area.crop(box).convert("HSV").getchannel("S").histogram()
        return sum(saturation[16:])

    def finish(self) -> Image.Image:
        """The picture at its real size."""
        self.image.paste(self.area, (self.left, self.top))
        border = [self.left, self.top, self.right, self.bottom]
        ImageDraw.Draw(self.image).rectangle(border, outline=FAINT, width=_OVERSAMPLE)
        return self.image.resize(_SIZE, Image.Resampling.LANCZOS)


def name_boxes(
    places: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], gap: float, area: tuple[int, int]
) -> list[Box]:
    """A box (left, top, right, bottom) per name beside its place: the nearest that hides no dot and no earlier name.

    `sizes` are the names' widths and heights, `area` is what they must stay in.
    """
    taken: list[Box] = [(x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in places]
    inside: Box = (0, 0, *area)
    for (x, y), (width, height) in zip(places, sizes, strict=True):
        options = [
            (left, y + shift * height, left + width, y + (shift + 1) * height)
            for shift in _NAME_SHIFTS
            for left in (x + gap, x - gap - width)
        ]
        hidden = [
            width * height - _overlap(option, inside) + sum(_overlap(option, other) for other in taken)
            for option in options
        ]
        taken.append(options[hidden.index(min(hidden))])
    return taken[len(places) :]


def stacked(heights: Sequence[float], step: float) -> list[float]:
    """The positions nearest to `heights` (least squares) that keep their order and are `step` apart or more."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Less their rank times the step they only have to rise: isotonic regression by pooling what does not.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = heights[index] - rank * step, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    risen = [mean for mean, count in pools for _ in range(count)]
    found = dict(zip(order, (mean + rank * step for rank, mean in enumerate(risen)), strict=True))
    return [found[index] for index in range(len(heights))]


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _axis(values: Sequence[float], *, log: bool = False, pad: float = 0.05) -> _Axis:
    if log:
        values = [math.log10(v) for v in values]
    low, high = min(values), max(values)
    room = (high - low) * pad or (0.0 if high > low else abs(high) * 0.05 or 0.5)
    low, high = low - room, high + room
    if log:
        return _Axis(low, high, True, _log_ticks(low, high))
    return _Axis(low, high, False, _round_ticks(low, high))


def _round_ticks(low: float, high: float) -> tuple[float, ...]:
    """About `_TICKS` multiples of 1, 2 or 5 times a power of ten inside the range."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1)) or (low,)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    marks = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = tuple(m for m in marks if low <= math.log10(m) <= high)
    return inside if len(inside) > 1 else (10.0**low, 10.0**high)


def _without_outliers(values: Sequence[float]) -> list[float]:
    """All but the highest and lowest percent: one exploding step must not flatten the curve."""
    ordered = sorted(values)
    cut = int(len(ordered) * _SPREAD_PERCENT / 100)
    return ordered[cut : len(ordered) - cut]


def _drawable(x: float, y: float, log_y: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)


def _ends(value: float, ends: tuple[float, float] | None) -> tuple[float, float]:
    """The ends of an error bar, the value itself where there is none or it is not finite."""
    low, high = ends or (value, value)
    return (low if math.isfinite(low) else value), (high if math.isfinite(high) else value)


def _faint(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(channel + (255 - channel) * share) for channel in colour)
    return red, green, blue
