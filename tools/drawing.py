"""The visual language of the pictures of methods, as SVG; draw_methods.py says what is in each picture.

A picture is a list of rows. Most rows are one pass of a training step or of sampling: frames go in, one level of the
UNet is drawn as its four alternating blocks, and what comes out is a loss and what becomes of the LoRA, or a video.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

# GitHub shows a README about this wide. Everything below is in pixels at that width.
WIDTH = 860
MARGIN = 20
HEADING = 50
ROW = 166
LEVEL_TOP = 34
BLOCK, GAP, BLOCK_HEIGHT = 101, 12, 44
LEVEL_LEFT = 200
BLOCKS_LEFT = LEVEL_LEFT + 10
LEVEL_WIDTH = 4 * BLOCK + 3 * GAP + 20
LEVEL_HEIGHT = 118
CENTRE = 42
RIGHT = LEVEL_LEFT + LEVEL_WIDTH + 18
FRAME = 30
STRIDE = FRAME + 3
FRAMES = 5
STRIP = FRAMES * STRIDE - 3

INK, MUTED, RULE = "#1f2933", "#5b6773", "#d5dbe1"
TRAINED, USED = "#c2410c", "#2b7a3d"
COLOURS = {"red": "#d62f2f", "blue": "#2f5fd6", "green": "#2f9e44", "yellow": "#e0a800", "pink": "#e0569b"}
COLOURS |= {"purple": "#8247c9", "noise": "#888888"}
BACKGROUNDS = {"sand": "#f3e4c2", "snow": "#e6eff7", "meadow": "#cfe8bf", "night": "#333b5c", "brick": "#dcae98"}
KINDS = {"spatial": ("#d9e6f7", "#3f6fb0"), "temporal": ("#eadff6", "#7a4fb3")}
BLOCKS = (
    ("ResNet", "conv", "spatial"),
    ("temporal", "conv", "temporal"),
    ("spatial", "attention", "spatial"),
    ("temporal", "attention", "temporal"),
)

# What of a layer a target preset adapts; presets are those of motion_lora/targets.py.
ADAPTED = {
    "spatial-attention": "self, cross",
    "spatial-self-ff": "self, FF",
    "temporal-attention": "Q K V Out",
    "temporal-all": "Q K V Out, FF",
    "temporal-difference": "Q K V Out, FF, Conv",
    "tap-k-out": "K Out",
    "tap-k": "K",
    "tap-qk": "Q K",
    "": "",
}
ERROR = "mean (\u03b5 \u2212 \u03b5_{\u03b8})\u00b2"


class Drawing:
    """SVG elements in the order they are painted."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, tag: str, content: str = "", /, **attributes: object) -> None:
        """One element; underscores of attribute names stand for hyphens."""
        named = (f'{name.replace("_", "-")}="{_value(value)}"' for name, value in attributes.items())
        opened = " ".join((tag, *named))
        self.parts.append(f"<{opened}>{content}</{tag}>" if content else f"<{opened}/>")

    def text(
        self, x: float, y: float, words: str, size: float = 12, fill: str = INK, bold: bool = False, anchor: str = ""
    ) -> None:
        """Words with their baseline at y; "_{...}" is a subscript, "**...**" is bold."""
        plain = re.sub(r"\*\*(.+?)\*\*", r'<tspan font-weight="bold">\1</tspan>', escape(words))
        content, *pieces = re.split(r"_\{(.+?)\}", plain)
        for small, after in zip(pieces[::2], pieces[1::2], strict=True):
            content += f'<tspan dy="3" font-size="{size - 2:g}">{small}</tspan>'
            content += f'<tspan dy="-3">{after}</tspan>' if after else ""
        extra = {"font_weight": "bold"} if bold else {}
        if anchor:
            extra["text_anchor"] = anchor
        self.add("text", content, x=x, y=y, font_size=size, fill=fill, **extra)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 5, **more: object
    ) -> None:
        """A rectangle with round corners."""
        self.add("rect", x=x, y=y, width=width, height=height, rx=radius, fill=fill, **more)

    def line(self, path: str, stroke: str = MUTED, width: float = 1.6, **more: object) -> None:
        """A path that is stroked and not filled."""
        self.add("path", d=path, fill="none", stroke=stroke, stroke_width=width, **more)

    def arrow(self, x: float, y: float, end: float, stroke: str = MUTED, width: float = 1.6, **more: object) -> None:
        """A horizontal arrow to `end`, in either direction."""
        back = 7 if end > x else -7
        self.line(f"M{x:g} {y:g}H{end - back:g}", stroke, width, **more)
        self.add("path", d=f"M{end:g} {y:g}l{-back * 1.2:g} -4.5v9z", fill=stroke)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(str(value), {'"': "&quot;"})


# Frames -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What a frame shows: a coloured shape over a background, or noise where `shape` is empty."""

    shape: str
    colour: str = "noise"
    background: str = "snow"


CLIP = Look("circle", "red", "sand")
MOVED = Look("square", "blue", "snow")
NOISE = Look("")


@dataclass(frozen=True)
class Strip:
    """Frames in a row. `order` says which moment of the motion each shows, `marks` outlines some of them.

    `faded` are frames that are not used, `patches` marks a random crop in each, `noisy` is the share of noise.
    """

    look: Look
    order: tuple[int, ...] = (0, 1, 2, 3, 4)
    faded: tuple[int, ...] = ()
    marks: Mapping[int, str] = field(default_factory=dict)
    patches: bool = False
    noisy: float = 0.0
    looks: tuple[Look, ...] = ()


def draw_strip(drawing: Drawing, x: float, y: float, strip: Strip, size: float = FRAME) -> None:
    """The frames from the left, `size` high and wide."""
    for place, moment in enumerate(strip.order):
        left = x + place * (size + 3)
        look = strip.looks[place] if strip.looks else strip.look
        if place in strip.faded:
            drawing.parts.append('<g opacity="0.25">')
        _draw_frame(drawing, left, y, size, look, moment, strip.noisy)
        if place in strip.faded:
            drawing.parts.append("</g>")
        if strip.patches:
            corner = (4, 11, 9, 3, 12)[place], (5, 10, 2, 11, 7)[place]
            drawing.box(left + corner[0], y + corner[1], 15, 15, "none", 0, stroke=INK, stroke_dasharray="3 2")
        if place in strip.marks:
            drawing.box(left - 1, y - 1, size + 2, size + 2, "none", 3, stroke=strip.marks[place], stroke_width=3)


def _draw_frame(drawing: Drawing, x: float, y: float, size: float, look: Look, moment: int, noisy: float) -> None:
    if not look.shape:
        drawing.box(x, y, size, size, "#e4e4e4", 3)
        _draw_noise(drawing, x, y, size, moment, 1.0)
    else:
        drawing.box(x, y, size, size, BACKGROUNDS[look.background], 3)
        angle = 2 * math.pi * moment / FRAMES - math.pi / 2
        middle = x + size * (0.5 + 0.26 * math.cos(angle)), y + size * (0.5 + 0.26 * math.sin(angle))
        _draw_shape(drawing, *middle, size * 0.17, look)
        if noisy:
            _draw_noise(drawing, x, y, size, moment, noisy)
    drawing.box(x, y, size, size, "none", 3, stroke="#9aa5b1")


def _draw_shape(drawing: Drawing, x: float, y: float, r: float, look: Look) -> None:
    colour, x, y, r = COLOURS[look.colour], round(x, 1), round(y, 1), round(r, 1)
    if look.shape == "circle":
        drawing.add("circle", cx=x, cy=y, r=r, fill=colour)
    elif look.shape == "ring":
        drawing.add("circle", cx=x, cy=y, r=r - 1, fill="none", stroke=colour, stroke_width=2.5)
    elif look.shape == "square":
        drawing.box(round(x - r, 1), round(y - r, 1), 2 * r, 2 * r, colour, 0)
    elif look.shape == "triangle":
        drawing.add("path", d=f"M{x:g} {y - r:g}l{r:g} {2 * r:g}h{-2 * r:g}z", fill=colour)
    else:
        drawing.line(f"M{x - r:g} {y:g}h{2 * r:g}M{x:g} {y - r:g}v{2 * r:g}", colour, 3.5)


def _draw_noise(drawing: Drawing, x: float, y: float, size: float, seed: int, share: float) -> None:
    """A share of the frame's cells in two greys."""
    cells, cell = 7, size / 7
    chance = random.Random(seed)
    for fill in ("#555555", "#b9b9b9"):
        path = [
            f"M{x + column * cell:.1f} {y + row * cell:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z"
            for row in range(cells)
            for column in range(cells)
            if chance.random() < 0.4 * share
        ]
        drawing.add("path", d="".join(path), fill=fill)


# The network --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """One level of the UNet in a pass, in the words of motion_lora/methods/table.py.

    `targets` gives a part's target preset; a part trains, is held frozen, or is used in sampling. `weights` says that
    the spatial layers have another model's weights.
    """

    targets: Mapping[str, str] = field(default_factory=dict)
    trains: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    bypass: bool = False
    weights: bool = False


CHIPS = {
    "trains": ("LoRA trains", TRAINED, "#ffffff", TRAINED),
    "holds": ("LoRA held", "#fff1e6", INK, TRAINED),
    "uses": ("LoRA in use", USED, "#ffffff", USED),
    "weights": ("other weights", "#fff1e6", INK, TRAINED),
}


def draw_level(drawing: Drawing, y: float, level: Level) -> None:
    """The four blocks on their data line, with bypasses above and LoRAs below."""
    drawing.box(LEVEL_LEFT, y, LEVEL_WIDTH, LEVEL_HEIGHT, "#f6f8fa", 8, stroke=RULE)
    middle = y + CENTRE
    drawing.line(f"M{LEVEL_LEFT} {middle:g}H{LEVEL_LEFT + LEVEL_WIDTH}")
    for number, (first, second, kind) in enumerate(BLOCKS):
        state = "bypassed" if level.bypass and kind == "temporal" else ""
        state = "replaced" if level.weights and kind == "spatial" else state
        _draw_block(drawing, number, y, (first, second), kind, state)
    for state in ("trains", "holds", "uses"):
        for part in getattr(level, state):
            number = 3 if part == "temporal" else 2
            draw_chip(drawing, block_left(number), y + 74, state, ADAPTED[level.targets.get(part, "")], branch=True)
    for number in (0, 2) if level.weights else ():
        draw_chip(drawing, block_left(number), y + 74, "weights", "held frozen", branch=True)


def block_left(number: int) -> int:
    """Left edge of a block of the level, from 0."""
    return BLOCKS_LEFT + number * (BLOCK + GAP)


def _draw_block(drawing: Drawing, number: int, y: float, words: tuple[str, str], kind: str, state: str) -> None:
    x, top, middle = block_left(number), y + CENTRE - BLOCK_HEIGHT / 2, y + CENTRE
    fill, stroke = (CHIPS["weights"][1], CHIPS["weights"][3]) if state == "replaced" else KINDS[kind]
    if state == "bypassed":
        drawing.line(f"M{x - GAP / 2:g} {middle:g}h{BLOCK + GAP}", "#f6f8fa", 3)
        drawing.box(x, top, BLOCK, BLOCK_HEIGHT, "#f6f8fa", stroke="#9aa5b1", stroke_dasharray="4 3")
        over = f"M{x - GAP / 2:g} {middle:g}V{top - 3:g}q0 -8 8 -8h{BLOCK + GAP - 16}q8 0 8 8V{middle:g}"
        drawing.line(over, MUTED, 2)
    else:
        drawing.box(x, top, BLOCK, BLOCK_HEIGHT, fill, stroke=stroke, stroke_width=1.4)
        draw_snowflake(drawing, x + BLOCK - 10, top + 10)
    for line, word in enumerate(words):
        drawing.text(
            x + BLOCK / 2, middle - 3 + 15 * line, word, fill=MUTED if state == "bypassed" else INK, anchor="middle"
        )


def draw_snowflake(drawing: Drawing, x: float, y: float) -> None:
    """The sign of frozen weights."""
    drawing.line(f"M{x:g} {y - 5:g}v10M{x - 4.3:g} {y - 2.5:g}l8.6 5M{x - 4.3:g} {y + 2.5:g}l8.6 -5", "#3f6fb0", 1.2)


def draw_chip(
    drawing: Drawing, x: float, y: float, state: str, detail: str, branch: bool = False, words: str = ""
) -> None:
    """A LoRA, or what stands in for one, in its state; a `branch` ties it to the block above."""
    label, fill, ink, stroke = CHIPS[state]
    height = 36 if detail else 22
    if branch:
        drawing.line(f"M{x + BLOCK / 2:g} {y - 10:g}v10", stroke, 2)
    drawing.box(x, y, BLOCK, height, fill, stroke=stroke, stroke_width=1.6)
    drawing.text(x + BLOCK / 2, y + 16, words or label, fill=ink, bold=True, anchor="middle")
    if detail:
        drawing.text(x + BLOCK / 2, y + 30, detail, 11, ink, anchor="middle")


# Rows ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One pass: `strips` go in under `words`, `result` and its `fate` come out, or the strip `video`.

    `source` is the method, the stage and the pass of motion_lora/methods/table.py that a training row shows. `tokens`
    is the state of the learned tokens in the caption. `linked` ties the row to the next: both see the same noise.
    """

    title: str
    note: str
    strips: tuple[Strip, ...]
    words: tuple[str, ...]
    level: Level
    result: tuple[str, ...] = ()
    fate: tuple[tuple[str, str], ...] = ()
    video: Strip | None = None
    source: tuple[str, int, int] | None = None
    tokens: str = ""
    linked: bool = False
    extra: Callable[[Drawing, float], None] | None = None

    height = ROW

    def draw(self, drawing: Drawing, y: float) -> None:
        """The row with its top at y."""
        draw_title(drawing, y, self.title, self.note)
        top = y + LEVEL_TOP
        size = FRAME if len(self.strips) == 1 else 18
        for number, strip in enumerate(self.strips):
            shift = -FRAME / 2 if len(self.strips) == 1 else -42 + 22 * number
            draw_strip(drawing, MARGIN, top + CENTRE + shift, strip, size)
        below = top + CENTRE + (FRAME / 2 if len(self.strips) == 1 else 24) + 18
        for number, words in enumerate(self.words):
            drawing.text(MARGIN, below + 15 * number, words, fill=MUTED)
        if self.tokens:
            draw_chip(drawing, MARGIN, top + 97, self.tokens, "", words=_TOKENS[self.tokens])
        drawing.arrow(MARGIN + STRIP + 2, top + CENTRE, LEVEL_LEFT - 2)
        draw_level(drawing, top, self.level)
        if self.result or self.video:
            drawing.arrow(LEVEL_LEFT + LEVEL_WIDTH + 1, top + CENTRE, RIGHT - 3)
        if self.video:
            draw_strip(drawing, RIGHT, top + CENTRE - FRAME / 2, self.video)
        else:
            self._draw_result(drawing, top)
        if self.linked:
            first, second = top + CENTRE, top + CENTRE + ROW
            drawing.line(f"M{MARGIN - 3} {first:g}h-7V{second:g}h7", TRAINED, 1.6, stroke_dasharray="4 3")
        if self.extra:
            self.extra(drawing, top)

    def _draw_result(self, drawing: Drawing, top: float) -> None:
        for number, words in enumerate(self.result):
            drawing.text(RIGHT, top + 40 + 17 * number, words, 13 if number == 0 else 12, bold=number == 0)
        for number, (state, words) in enumerate(self.fate):
            draw_fate(drawing, top + LEVEL_HEIGHT - 24 * (len(self.fate) - number), state, words)


_TOKENS = {"trains": "tokens train", "holds": "tokens held"}
_FATES = {
    "kept": (USED, "#ffffff", USED),
    "held": ("#fff1e6", INK, TRAINED),
    "dropped": ("#eceff2", MUTED, "#9aa5b1"),
}


def draw_fate(drawing: Drawing, y: float, state: str, words: str, x: float = RIGHT, width: float = STRIP) -> None:
    """What becomes of what was trained or made."""
    fill, ink, stroke = _FATES[state]
    drawing.box(x, y, width, 21, fill, 10, stroke=stroke)
    drawing.text(x + width / 2, y + 15, words, fill=ink, anchor="middle")


def draw_title(drawing: Drawing, y: float, title: str, note: str) -> None:
    """A rule, the row's name and what it is about."""
    drawing.line(f"M{MARGIN} {y:g}H{WIDTH - MARGIN}", RULE, 1)
    drawing.text(MARGIN, y + 22, f"**{title}**  {note}", 13)


@dataclass(frozen=True)
class Panel:
    """A row that is not a pass: whatever `paint` draws below the title."""

    title: str
    note: str
    height: int
    paint: Callable[[Drawing, float], None]

    def draw(self, drawing: Drawing, y: float) -> None:
        """The panel with its top at y."""
        draw_title(drawing, y, self.title, self.note)
        self.paint(drawing, y + LEVEL_TOP)


@dataclass(frozen=True)
class Picture:
    """A method's picture; `title` is also its alt text in docs/METHODS.md."""

    heading: str
    source: str
    title: str
    description: str
    rows: Sequence[Row | Panel]

    def svg(self) -> str:
        """The file, ASCII."""
        drawing = Drawing()
        height = HEADING + sum(row.height for row in self.rows) + 66
        drawing.box(0.5, 0.5, WIDTH - 1, height - 1, "#ffffff", 10, stroke=RULE)
        drawing.text(MARGIN, 32, self.heading, 17, bold=True)
        drawing.text(WIDTH - MARGIN, 32, self.source, fill=MUTED, anchor="end")
        y = HEADING
        for row in self.rows:
            row.draw(drawing, y)
            y += row.height
        draw_legend(drawing, y)
        opened = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" aria-labelledby="title desc" font-family="Helvetica, Arial, sans-serif">'
        )
        said = f'<title id="title">{escape(self.title)}</title>', f'<desc id="desc">{escape(self.description)}</desc>'
        text = "\n".join((opened, *said, *drawing.parts, "</svg>", ""))
        return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def draw_legend(drawing: Drawing, y: float) -> None:
    """What the signs mean, the same under every picture."""
    drawing.line(f"M{MARGIN} {y}H{WIDTH - MARGIN}", RULE, 1)
    first, second = y + 26, y + 48
    for x, kind, words in ((20, "spatial", "inside a frame"), (138, "temporal", "across frames")):
        fill, stroke = KINDS[kind]
        drawing.box(x, first - 11, 18, 14, fill, 3, stroke=stroke, stroke_width=1.4)
        drawing.text(x + 24, first, words, fill=MUTED)
    draw_snowflake(drawing, 268, first - 4)
    drawing.text(280, first, "base weights, always frozen", fill=MUTED)
    drawing.box(468, first - 11, 18, 14, "#ffffff", 3, stroke="#9aa5b1", stroke_dasharray="4 3")
    drawing.text(492, first, "bypassed", fill=MUTED)
    for x, state, words in ((574, "trains", "trains"), (642, "holds", "active, frozen"), (760, "uses", "in use")):
        _, fill, _, stroke = CHIPS[state]
        drawing.box(x, first - 11, 18, 14, fill, 3, stroke=stroke, stroke_width=1.6)
        drawing.text(x + 24, first, words, fill=MUTED)
    note = "\u03b5 noise, \u03b5_{\u03b8} the network's estimate of it.  Q K V Out: projections of an attention.  "
    drawing.text(MARGIN, second, note + "FF: feed-forward.  self, cross: self- and cross-attention.", fill=MUTED)
