"""The playground's world: one textured shape moving over one textured background, rendered anti-aliased.

A `Scene` is a value: what is drawn, where it starts and how it moves. Rendering is a pure function of it, so a
reference clip, a pre-training batch and a test all draw the same picture from the same scene. Positions are in
units of the canvas side, x to the right and y downwards; time runs from 0 at the first frame to 1 at the last.

The looks are made so that they can leak: every background has its own texture and a tint that no caption names,
objects may be striped, and colours of objects and backgrounds stay apart so that a probe can tell them from each
other without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CANVAS = 64
NUM_FRAMES = 8
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.08, 0.10),
    "orange": (1.00, 0.52, 0.02),
    "yellow": (1.00, 0.92, 0.10),
    "green": (0.05, 0.60, 0.16),
    "cyan": (0.05, 0.80, 0.88),
    "blue": (0.10, 0.22, 0.90),
    "purple": (0.50, 0.10, 0.62),
    "pink": (1.00, 0.45, 0.75),
}
BACKGROUNDS = ("sand", "night", "snow", "brick", "meadow")
FILLS = ("plain", "striped")

KNOWN_MOTIONS: dict[str, str] = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "still": "standing still",
}
HELD_OUT_MOTIONS: dict[str, str] = {
    "orbit": "circling around",
    "bounce": "bouncing",
    "zigzag": "zigzagging",
    "spiral": "spiralling",
    "diagonal": "moving diagonally",
    "swing": "swinging",
    "eight": "looping",
    "shake": "shaking",
}
MOTIONS: dict[str, str] = {**KNOWN_MOTIONS, **HELD_OUT_MOTIONS}

# Pre-training shows it under captions without motion words, as most videos of real text-to-video models are captioned.
# `phase` picks the path. A network that has only seen straight lines has no curve in it that a LoRA could bring out.
WANDER = "wander"
_WANDER_CYCLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)

_STRIPE_DARKENING = 0.6

# Two tones per background: the ground and its texture.
_BACKGROUND_TONES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "sand": ((0.84, 0.76, 0.60), (0.70, 0.61, 0.45)),
    "night": ((0.06, 0.07, 0.16), (0.42, 0.44, 0.52)),
    "snow": ((0.94, 0.95, 0.97), (0.80, 0.84, 0.90)),
    "brick": ((0.52, 0.36, 0.30), (0.72, 0.66, 0.62)),
    "meadow": ((0.62, 0.70, 0.56), (0.48, 0.57, 0.42)),
}


@dataclass(frozen=True)
class Scene:
    """What determines a clip. `centre` is the middle of the path, `scale` half its extent, in canvas sides."""

    shape: str
    colour: str
    background: str
    motion: str
    fill: str = "plain"
    radius: float = 0.16
    centre: tuple[float, float] = (0.5, 0.5)
    scale: float = 0.2
    phase: float = 0.0
    tint: float = 1.0

    def __post_init__(self) -> None:
        for field, legal in (
            ("shape", SHAPES),
            ("colour", tuple(COLOURS)),
            ("background", BACKGROUNDS),
            ("motion", (*MOTIONS, WANDER)),
            ("fill", FILLS),
        ):
            value = getattr(self, field)
            if value not in legal:
                raise ValueError(f"The playground has no {field} {value!r}; it has: {', '.join(legal)}.")
        if not 0.05 <= self.radius <= 0.4:
            raise ValueError(f"radius is {self.radius}; the playground draws radii from 0.05 to 0.4 of the canvas.")
        if not 0 <= self.scale <= 0.5:
            raise ValueError(f"scale is {self.scale}; the playground draws paths of up to 0.5 of the canvas, from 0.")
        if not 0 <= self.phase <= 1:
            raise ValueError(f"phase is {self.phase}; it is the part of a motion at which it starts, from 0 to 1.")


def _direction(angle: float) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    dx, dy = math.cos(angle), math.sin(angle)

    def path(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
        del phase
        s = 2 * t - 1
        return s * dx, s * dy

    return path


def _circle(turns: float, spiral: bool = False) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    def path(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * (turns * t + phase)
        reach = 0.25 + 0.75 * t if spiral else torch.ones_like(t)
        return reach * torch.cos(angle), reach * torch.sin(angle)

    return path


def _bounce(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    """Two full hops in place: a ball that falls, hits the floor and rises."""
    height = torch.abs(torch.cos(2 * math.pi * t + math.pi * phase))
    return torch.zeros_like(t), 1 - 2 * height


def _zigzag(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    saw = 2 * torch.abs(2 * ((2 * t + phase) % 1) - 1) - 1
    return 2 * t - 1, 0.7 * saw


def _swing(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    angle = 1.0 * torch.cos(2 * math.pi * (t + phase))
    return torch.sin(angle) / math.sin(1.0), torch.cos(angle) - 0.77


def _eight(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * (t + phase)
    return torch.sin(angle), torch.sin(2 * angle) * 0.7


def _shake(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    return 0.6 * torch.sin(2 * math.pi * (3.0 * t + phase)), torch.zeros_like(t)


def _still(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    del phase
    return torch.zeros_like(t), torch.zeros_like(t)


def _wander(t: Tensor, phase: float) -> tuple[Tensor, Tensor]:
    """A random smooth path, a sum of waves and a drift that fills [-1, 1] in one direction; `phase` is its seed."""
    generator = torch.Generator().manual_seed(round(phase * 2**31))
    cycles = torch.tensor(_WANDER_CYCLES, dtype=t.dtype)
    steepness, drift_share = 2 * torch.rand(2, generator=generator, dtype=t.dtype)
    heights = torch.randn(2, len(cycles), generator=generator, dtype=t.dtype) / cycles**steepness
    phases = torch.rand(2, len(cycles), generator=generator, dtype=t.dtype)
    waves = torch.sin(2 * math.pi * (cycles * t[:, None, None] + phases)) * heights
    drift = drift_share * torch.randn(2, generator=generator, dtype=t.dtype) * (t[:, None] - 0.5)
    path = waves.sum(dim=-1) + drift
    middle = (path.amax(dim=0) + path.amin(dim=0)) / 2
    path = (path - middle) / (path - middle).abs().max()
    return path[:, 0], path[:, 1]


_PATHS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    "left": _direction(math.pi),
    "right": _direction(0.0),
    "up": _direction(-math.pi / 2),
    "down": _direction(math.pi / 2),
    "still": _still,
    "orbit": _circle(1.0),
    "bounce": _bounce,
    "zigzag": _zigzag,
    "spiral": _circle(1.25, spiral=True),
    "diagonal": _direction(math.pi / 4),
    "swing": _swing,
    "eight": _eight,
    "shake": _shake,
    WANDER: _wander,
}


def trajectory(scene: Scene, num_frames: int = NUM_FRAMES) -> Tensor:
    """Centre of the object in every frame: (f, 2) as x, y in canvas sides."""
    t = torch.linspace(0, 1, num_frames, dtype=torch.float64)
    x, y = _PATHS[scene.motion](t, scene.phase)
    path = torch.stack([x, y], dim=-1).float() * scene.scale
    return path + torch.tensor(scene.centre)


def caption(scene: Scene, unnamed: Collection[str] = ()) -> str:
    """Full caption: appearance, motion, background; wandering has no words.

    What is `unnamed`, of "colour" and "background", is left out, as real captions leave most of a picture out.
    """
    if scene.motion == WANDER:
        return appearance_caption(scene, unnamed)
    return f"{_object_words(scene, unnamed)} {MOTIONS[scene.motion]}{_place_words(scene, unnamed)}"


def appearance_caption(scene: Scene, unnamed: Collection[str] = ()) -> str:
    """What a single frame shows: no motion words."""
    return f"{_object_words(scene, unnamed)}{_place_words(scene, unnamed)}"


def appearance_words(scene: Scene, unnamed: Collection[str] = ()) -> str:
    """The nouns and adjectives of the caption that an appearance absorber should soak up."""
    return _object_words(scene, unnamed).removeprefix("a ")


def _object_words(scene: Scene, unnamed: Collection[str] = ()) -> str:
    fill = "striped " if scene.fill == "striped" else ""
    colour = "" if "colour" in unnamed else f"{scene.colour} "
    return f"a {fill}{colour}{scene.shape}"


def _place_words(scene: Scene, unnamed: Collection[str]) -> str:
    return "" if "background" in unnamed else f" over {scene.background}"


def sample_scene(
    generator: torch.Generator,
    motions: Sequence[str] = tuple(KNOWN_MOTIONS),
    **fixed: str | float | tuple[float, float],
) -> Scene:
    """A random scene whose whole path stays on the canvas; `fixed` pins any field of `Scene`."""

    draws = iter(torch.rand(12, generator=generator, dtype=torch.float64).tolist())

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(draws)

    def pick(options: Sequence[str]) -> str:
        return options[int(next(draws) * len(options))]

    values: dict[str, str | float | tuple[float, float]] = {
        "shape": pick(SHAPES),
        "colour": pick(tuple(COLOURS)),
        "background": pick(BACKGROUNDS),
        "motion": pick(motions),
        "fill": "striped" if uniform(0, 1) < 0.25 else "plain",
        "radius": uniform(0.15, 0.21),
        "scale": uniform(0.18, 0.26),
        "phase": uniform(0, 1),
        "tint": uniform(0.88, 1.1),
    }
    values.update(fixed)
    scene = Scene(**values)  # type: ignore[arg-type]
    if "centre" in fixed:
        return scene
    low, high = _room(scene)
    x, y = (uniform(a, b) if b > a else (a + b) / 2 for a, b in zip(low, high, strict=True))
    return replace(scene, centre=(x, y))


def _room(scene: Scene) -> tuple[list[float], list[float]]:
    """Lowest and highest centre with which the object never touches the border."""
    path = trajectory(replace(scene, centre=(0.0, 0.0)))
    margin = scene.radius + 0.02
    low = [margin - float(path[:, i].min()) for i in range(2)]
    high = [1 - margin - float(path[:, i].max()) for i in range(2)]
    return low, high


def render(scene: Scene, num_frames: int = NUM_FRAMES, size: int = CANVAS) -> Tensor:
    """Frames (f, h, w, 3), float32 in [0, 1]."""
    return render_frames([scene] * num_frames, trajectory(scene, num_frames), size)


def render_frames(scenes: Sequence[Scene], centres: Tensor, size: int = CANVAS) -> Tensor:
    """One frame per scene with its object at the given centre: centres (n, 2) -> (n, h, w, 3) in [0, 1]."""
    radius = torch.tensor([scene.radius for scene in scenes])
    paint = torch.tensor([COLOURS[scene.colour] for scene in scenes])[:, None, None, :].expand(-1, size, size, 3)
    striped = torch.tensor([float(scene.fill == "striped") for scene in scenes])[:, None, None]
    stripe = (_stripes(centres, radius, size) * striped)[..., None]
    paint = paint * (1 - _STRIPE_DARKENING * stripe)
    backdrop = torch.stack([background(scene.background, size) for scene in scenes])
    tint = torch.tensor([scene.tint for scene in scenes])[:, None, None, None]
    cover = coverage(scenes, centres, size)[..., None]
    return ((backdrop * tint).clamp(0, 1) * (1 - cover) + paint * cover).clamp(0, 1)


def coverage(scenes: Sequence[Scene], centres: Tensor, size: int = CANVAS) -> Tensor:
    """How much of each pixel the object of each scene covers: (n, h, w) in [0, 1]."""
    radius = torch.tensor([scene.radius for scene in scenes])
    covered = torch.empty(len(scenes), size, size)
    for shape in sorted({scene.shape for scene in scenes}):
        index = torch.tensor([i for i, scene in enumerate(scenes) if scene.shape == shape])
        covered[index] = object_mask(shape, centres[index], radius[index], size)
    return covered


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _stripes(centres: Tensor, radius: Tensor, size: int) -> Tensor:
    """Dark horizontal bands that travel with the object: two per object."""
    _, y = _grid(size)
    v = (y[None] - centres[:, 1, None, None]) / radius[:, None, None]
    edge = 1.5 / (size * radius[:, None, None])
    distance = 0.17 - torch.minimum((v - 0.42).abs(), (v + 0.42).abs())
    return (distance / edge + 0.5).clamp(0, 1)


def object_mask(shape: str, centres: Tensor, radius: Tensor, size: int = CANVAS) -> Tensor:
    """Anti-aliased coverage (n, h, w) of a shape: signed distance in pixels, clamped over one pixel.

    `radius` is that of the circle of about the same visual weight, so that all shapes have similar areas.
    """
    x, y = _grid(size)
    u = x[None] - centres[:, 0, None, None]
    v = y[None] - centres[:, 1, None, None]
    r = radius[:, None, None]
    distance = _distance(shape, u / r, v / r) * r
    return (0.5 - distance * size).clamp(0, 1)


def _distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance to the outline in radii, negative inside."""
    if shape == "circle":
        return torch.hypot(u, v) - 0.95
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.84
    if shape == "triangle":
        slope = math.sqrt(5) / 2
        return torch.maximum(v - 0.8, (u.abs() * 2 - v - 1.05) / (2 * slope))
    if shape == "cross":
        long, short = 1.0, 0.36
        horizontal = torch.maximum(u.abs() - long, v.abs() - short)
        vertical = torch.maximum(u.abs() - short, v.abs() - long)
        return torch.minimum(horizontal, vertical)
    return (torch.hypot(u, v) - 0.76).abs() - 0.25


_BACKGROUND_CACHE: dict[tuple[str, int], Tensor] = {}


def background(name: str, size: int = CANVAS) -> Tensor:
    """The untinted background, (h, w, 3) in [0, 1]. Drawn once per name and size; treat it as read-only."""
    key = (name, size)
    if key not in _BACKGROUND_CACHE:
        base, mark = (torch.tensor(tone) for tone in _BACKGROUND_TONES[name])
        texture = _texture(name, size)[..., None]
        _BACKGROUND_CACHE[key] = base * (1 - texture) + mark * texture
    return _BACKGROUND_CACHE[key]


def _texture(name: str, size: int) -> Tensor:
    """How much of the second tone shows, (h, w) in [0, 1]; drawn at four times the size and averaged."""
    over = 4
    x, y = _grid(size * over)
    if name == "sand":
        fine = (torch.sin(2 * math.pi * (y * 4 + 0.06 * torch.sin(2 * math.pi * x * 2))) > 0.3).float()
    elif name == "night":
        gx, gy = (x * 4) % 1 - 0.5, (y * 4 + 0.5 * torch.floor(x * 4)) % 1 - 0.5
        fine = (torch.hypot(gx, gy) < 0.18).float()
    elif name == "snow":
        fine = y
    elif name == "brick":
        row = torch.floor(y * 4)
        fine = (((y * 4) % 1 < 0.16) | (((x * 2 + 0.5 * (row % 2)) % 1) < 0.08)).float()
    else:
        fine = (((x * 4) % 1) < 0.5).float()
    return fine.view(size, over, size, over).mean(dim=(1, 3))
