"""Reads a playground clip back without a network: background, colour, shape, fill, and where the object is.

Analysis by synthesis. Each background of the world is fitted to each frame with a brightness tint, robustly, because
the object covers part of it. What the best backdrop does not explain is the object; its colour is that of the bright
part of the strongest blob, and its shape, fill, centre and radius are those of the template that, painted in this
colour over this backdrop, leaves the least squared error. All templates of all frames are tried in two matrix
products, so a clip takes tens of milliseconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ClipError
from . import world

ATTRIBUTES = ("background", "colour", "shape", "fill")

# Below this share of explained energy around the object nothing in a frame counts as the object.
FOUND_EXPLAINED = 0.35
# Squared colour distance at which a pixel counts as foreign to a background, whatever its distance beyond.
_FOREIGN = 0.25
_SALIENT = (0.12, 0.27)
# An object has at least the smallest template's area at this squared colour distance from the backdrop.
_FAINTEST = 0.12
_RADIUS_STEP = 1.08
_RADII = tuple(0.09 * _RADIUS_STEP**i for i in range(15))
# Less than the world's: a decoder washes stripes out, and half of this is where striped begins.
_STRIPE_DEPTH = 0.4
# The rule of `classify_motion`.
MIN_FOUND = 0.6
STILL_REACH = 0.05
MIN_TRAVEL = 0.15
MIN_STRAIGHTNESS = 0.8
AXIS_RATIO = 2.0


@dataclass(frozen=True, eq=False)
class Reading:
    """What the probe saw. Positions and sizes are in canvas sides, x to the right, y downwards.

    `centroids` (f, 2) is the point that `world.trajectory` gives, NaN in frames where no object was found;
    `sizes` (f,) the radius of the circle of the object's area; `explained` (f,) the share of what is foreign to the
    backdrop that the object explains. `confidence` is, per attribute, the share of frames that voted for its value.
    """

    background: str
    colour: str
    shape: str
    fill: str
    confidence: Mapping[str, float]
    frame_values: Mapping[str, tuple[str, ...]]
    centroids: Tensor
    sizes: Tensor
    found: Tensor
    explained: Tensor
    tint: Tensor


def read_clip(frames: Tensor) -> Reading:
    """Frames (f, h, w, 3) in [0, 1], square -> Reading. Raises ClipError for other shapes.

    Where no frame shows an object, colour, shape and fill are the empty string with confidence 0.
    """
    frames = _checked(frames)
    errors, tints = _background_errors(frames)
    background = world.BACKGROUNDS[int(errors.sum(dim=0).argmin())]
    foreign = frames - _backdrop(frames, background)
    place = _strongest_blob(foreign)
    colours = _bright_colour(frames, foreign, place)
    fit = _fit_templates(frames, foreign, colours, place)
    names = {
        "background": [world.BACKGROUNDS[i] for i in errors.argmin(dim=1).tolist()],
        "colour": [tuple(world.COLOURS)[i] for i in _palette_distance(colours).argmin(dim=1).tolist()],
        "shape": [world.SHAPES[i] for i in fit.shape_errors.argmin(dim=1).tolist()],
        "fill": [world.FILLS[i] for i in fit.fill_errors.argmin(dim=1).tolist()],
    }
    values = {"background": background, **_votes(fit, colours)}
    everywhere = torch.ones_like(fit.found)
    return Reading(
        **values,
        confidence={k: _agreement(names[k], values[k], everywhere if k == "background" else fit.found) for k in names},
        frame_values={key: tuple(value) for key, value in names.items()},
        centroids=torch.where(fit.found[:, None], fit.centres, torch.nan),
        sizes=torch.where(fit.found, fit.sizes, torch.nan),
        found=fit.found,
        explained=fit.explained,
        tint=tints[:, world.BACKGROUNDS.index(background)],
    )


def path_of(reading: Reading) -> Tensor | None:
    """Centroids (f, 2) with frames that lack the object filled in linearly; None where under 60 % of frames have it."""
    present = reading.found.nonzero()[:, 0]
    if len(present) < max(2, MIN_FOUND * len(reading.found)):
        return None
    frames = torch.arange(len(reading.found))
    right = torch.searchsorted(present, frames).clamp(1, len(present) - 1)
    left = right - 1
    start, end = reading.centroids[present[left]], reading.centroids[present[right]]
    share = ((frames - present[left]) / (present[right] - present[left])).clamp(0, 1)[:, None]
    return start * (1 - share) + end * share


def classify_motion(reading: Reading) -> str | None:
    """Which known motion the object performs, by a fixed rule on its path; None for anything else.

    still: the path never leaves a circle of 0.05 canvas sides around its mean. left, right, up, down: the distance
    between the ends is at least 0.15 canvas sides and 80 % of the path's length, and one axis at least twice the other.
    """
    path = path_of(reading)
    return None if path is None else classify_path(path)


def classify_path(path: Tensor) -> str | None:
    """The rule of `classify_motion` on a path (f, 2)."""
    if float((path - path.mean(dim=0)).norm(dim=-1).max()) < STILL_REACH:
        return "still"
    dx, dy = (path[-1] - path[0]).tolist()
    travelled = math.hypot(dx, dy)
    if travelled < max(MIN_TRAVEL, MIN_STRAIGHTNESS * float(path.diff(dim=0).norm(dim=-1).sum())):
        return None
    if abs(dx) >= AXIS_RATIO * abs(dy):
        return "right" if dx > 0 else "left"
    if abs(dy) >= AXIS_RATIO * abs(dx):
        return "down" if dy > 0 else "up"
    return None


def _checked(frames: Tensor) -> Tensor:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[1] != frames.shape[2] or not len(frames):
        raise ClipError(f"The probe reads square clips (f, h, h, 3), not {tuple(frames.shape)}.")
    return frames.detach().to("cpu", torch.float32)


def _agreement(names: Sequence[str], value: str, counted: Tensor) -> float:
    seen = Counter(name for name, counts in zip(names, counted.tolist(), strict=True) if counts)
    return seen[value] / max(seen.total(), 1)


def _votes(fit: _Fit, colours: Tensor) -> dict[str, str]:
    """What most frames with an object say; one that is unsure splits its vote."""
    if not bool(fit.found.any()):
        return {"colour": "", "shape": "", "fill": ""}
    scale = 0.03 * fit.shape_errors.amin(dim=1, keepdim=True).abs()
    return {
        "colour": _elect(tuple(world.COLOURS), (_palette_distance(colours) / 0.03)[fit.found]),
        "shape": _elect(world.SHAPES, (fit.shape_errors / scale)[fit.found]),
        "fill": _elect(world.FILLS, (fit.fill_errors / scale)[fit.found]),
    }


def _elect(options: Sequence[str], errors: Tensor) -> str:
    """Errors (f, options) in units of what counts as unsure."""
    return options[int((-errors).softmax(dim=1).sum(dim=0).argmax())]


# Background ---------------------------------------------------------------------------------------------------------


def _background_errors(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Truncated squared error (f, backgrounds) and fitted tint (f, backgrounds), at half size: blur matters less."""
    small = F.avg_pool2d(frames.movedim(-1, 1), 2).movedim(1, -1).flatten(1, 2)[:, None]
    templates = torch.stack([_small_background(name, frames.shape[1]) for name in world.BACKGROUNDS])
    weight = torch.ones(small.shape[0], len(templates), small.shape[2])
    error, tint = weight, weight[..., 0]
    for _ in range(4):
        tint = (weight * (small * templates).sum(-1)).sum(-1) / (weight * templates.square().sum(-1)).sum(-1)
        tint = tint.clamp(0.7, 1.3)
        error = (small - (tint[..., None, None] * templates).clamp(0, 1)).square().sum(-1)
        # Geman-McClure: what is far from the background (the object) stops pulling at the tint.
        weight = (1 + error / 0.02).square().reciprocal()
    return error.clamp(max=_FOREIGN).mean(dim=-1), tint


@lru_cache(maxsize=16)
def _small_background(name: str, size: int) -> Tensor:
    return F.avg_pool2d(world.background(name, size).movedim(-1, 0), 2).movedim(0, -1).flatten(0, 1)


def _backdrop(frames: Tensor, name: str) -> Tensor:
    """The background as it would look behind the object: (f, h, w, 3), each colour channel with its own tint.

    Sharp and softened textures are both tried, because decoders soften.
    """
    templates = [_soften(world.background(name, frames.shape[1]), softness) for softness in (0.0, 0.7, 1.4)]
    gain = _channel_gain(frames, templates[1])
    drawn = [(gain * template).clamp(0, 1) for template in templates]
    errors = [float((frames - option).square().sum(-1).clamp(max=_FOREIGN).mean()) for option in drawn]
    return drawn[errors.index(min(errors))]


def _channel_gain(frames: Tensor, template: Tensor) -> Tensor:
    """Robust least-squares tint of each channel: (f, 1, 1, 3)."""
    squares, products = template.square(), frames * template
    weight = torch.ones(*frames.shape[:3], 1)
    gain = torch.ones(len(frames), 1, 1, 3)
    for _ in range(3):
        gain = (weight * products).sum(dim=(1, 2), keepdim=True) / (weight * squares).sum(dim=(1, 2), keepdim=True)
        gain = gain.clamp(0.7, 1.3)
        error = (frames - (gain * template).clamp(0, 1)).square().sum(-1, keepdim=True)
        weight = (1 + error / 0.02).square().reciprocal()
    return gain


def _soften(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (h, w, 3)."""
    if sigma == 0:
        return picture
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    taps = taps / taps.sum()
    padded = F.pad(picture.movedim(-1, 0)[None], (reach,) * 4, mode="replicate")[0][:, None]
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0].movedim(0, -1)


# Object -------------------------------------------------------------------------------------------------------------


def _saliency(foreign: Tensor) -> Tensor:
    """How clearly each pixel is not backdrop: (f, h, w) in [0, 1]."""
    low, high = _SALIENT
    return ((foreign.square().sum(-1).sqrt() - low) / (high - low)).clamp(0, 1)


def _strongest_blob(foreign: Tensor) -> Tensor:
    """Pixel position (f, 2) as x, y of the blob of about an object's size with the most foreign pixels."""
    salient = _saliency(foreign)
    size = salient.shape[-1]
    reach = round(0.16 * size)
    blurred = salient[:, None]
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, (1, 2 * reach + 1), stride=1, padding=(0, reach))
        blurred = F.avg_pool2d(blurred, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    peak = blurred.flatten(1).argmax(dim=1)
    place = torch.stack([peak % size, peak // size], dim=-1).float()
    axis = torch.arange(size, dtype=torch.float32)
    for _ in range(2):
        near = salient * _box(place, axis, 0.24 * size)
        total = near.sum(dim=(1, 2)).clamp(min=1e-6)
        x, y = (near.sum(dim=1) * axis).sum(1) / total, (near.sum(dim=2) * axis).sum(1) / total
        place = torch.where((total > 1)[:, None], torch.stack([x, y], dim=-1), place)
    return place


def _box(place: Tensor, axis: Tensor, reach: float) -> Tensor:
    inside = (axis - place[..., None]).abs() <= reach
    return (inside[:, 1, :, None] & inside[:, 0, None, :]).float()


def _bright_colour(frames: Tensor, foreign: Tensor, place: Tensor) -> Tensor:
    """Mean colour (f, 3) of the brighter half of the blob's inside: stripes darken the other half.

    The rim is left out where anything else is left: on a bright background a softened rim is brighter than the object.
    """
    size = frames.shape[1]
    salient = _saliency(foreign) * _box(place, torch.arange(size, dtype=torch.float32), 0.24 * size)
    inside = -F.max_pool2d(-salient[:, None], 3, stride=1, padding=1)[:, 0]
    enough = (inside > 0.95).sum(dim=(1, 2)) >= 12
    core = (torch.where(enough[:, None, None], inside, salient) > 0.95).flatten(1)
    pixels = frames.flatten(1, 2)
    value = pixels.amax(dim=-1).masked_fill(~core, -1)
    order = value.argsort(dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    bright = (rank < (core.sum(dim=1, keepdim=True) / 2).clamp(min=1)).float()
    return torch.einsum("fp,fpc->fc", bright, pixels) / bright.sum(1, keepdim=True)


def _palette_distance(colours: Tensor) -> Tensor:
    """Squared distance (f, colours) to the world's palette."""
    palette = torch.tensor(list(world.COLOURS.values()))
    return (colours[:, None] - palette).square().sum(-1)


# Templates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    shape_errors: Tensor  # (f, shapes) least error over everything else
    fill_errors: Tensor  # (f, fills)
    centres: Tensor
    sizes: Tensor
    found: Tensor
    explained: Tensor


@dataclass(frozen=True, eq=False)
class _Bank:
    """Templates of every shape, fill and radius in a square window: features (shapes * fills * radii, 5 * p)."""

    features: Tensor
    sizes: Tensor  # (shapes * fills * radii,) radius of the circle of the same area, in pixels
    window: int


@lru_cache(maxsize=4)
def _bank(size: int) -> _Bank:
    reach = math.ceil(max(_RADII) * 1.05 * size) + 1
    window = 2 * reach + 1
    radii = torch.tensor(_RADII) * size / window
    middle = torch.full((len(_RADII), 2), 0.5)
    features, sizes = [], []
    for shape in world.SHAPES:
        mask = world.object_mask(shape, middle, radii, window)
        for fill in world.FILLS:
            band = world._stripes(middle, radii, window) * float(fill == "striped")
            terms = (mask, mask**2, mask * band, mask**2 * band, (mask * band) ** 2)
            features.append(torch.cat([term.flatten(1) for term in terms], dim=1))
            sizes.append((mask.sum(dim=(1, 2)) / math.pi).sqrt())
    return _Bank(torch.cat(features), torch.cat(sizes), window)


def _weights(foreign: Tensor, frames: Tensor, colours: Tensor) -> Tensor:
    """Maps (f, 5, h, w) whose products with the bank's features are the squared error of painting a template.

    With m the coverage, s the bands, d the bands' depth, D = frame - backdrop, c the colour and E = c - backdrop, the
    painted difference is m E - d m s c, and |D - m E + d m s c|^2 less the constant |D|^2 is linear in the features
    m, m^2, ms, m^2 s, m^2 s^2.
    """
    paint = colours[:, None, None]
    towards = paint - (frames - foreign)
    depth = _STRIPE_DEPTH
    return torch.stack(
        [
            -2 * (foreign * towards).sum(-1),
            towards.square().sum(-1),
            2 * depth * (foreign * paint).sum(-1),
            -2 * depth * (towards * paint).sum(-1),
            depth**2 * paint.square().sum(-1).expand(foreign.shape[:3]),
        ],
        dim=1,
    )


def _windows(maps: Tensor, corner: Tensor, reach: int, window: int) -> Tensor:
    """Windows (f, k, 5 * p) around corner (f, 2) shifted by up to `reach` whole pixels, rows first; zero outside."""
    side = window + 2 * reach
    padded = F.pad(maps, (side,) * 4)
    start = (corner - window // 2 - reach + side).clamp(0, padded.shape[-1] - side)
    region = torch.stack([m[:, y : y + side, x : x + side] for m, (x, y) in zip(padded, start.tolist(), strict=True)])
    cut = region.unfold(2, window, 1).unfold(3, window, 1)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _fit_templates(frames: Tensor, foreign: Tensor, colours: Tensor, place: Tensor) -> _Fit:
    """From coarse to fine: half the size over a wide range, then whole pixels, then every template around the best."""
    size = frames.shape[1]
    bank = _bank(size)
    looks = bank.features.unflatten(0, (len(world.SHAPES), len(world.FILLS), len(_RADII)))
    maps = _weights(foreign, frames, colours)
    corner = 2 * _search(F.avg_pool2d(maps, 2), (place / 2).round().long(), _bank(size // 2), 4)
    corner = _search(maps, corner, bank, 1)
    errors = (_windows(maps, corner, 1, bank.window) @ bank.features.T).unflatten(2, looks.shape[:3])
    explained, found = _explained(errors, foreign, corner)
    shape, fill = _clip_look(errors[found] if bool(found.any()) else errors)
    corner = corner + _shifts(1)[errors[:, :, shape, fill].amin(dim=2).argmin(dim=1)]
    surface = (_windows(maps, corner, 1, bank.window) @ looks[shape, fill].T).unflatten(1, (3, 3))
    offset, sizes = _refine(surface, bank.sizes.view(looks.shape[:3])[shape, fill])
    return _Fit(
        shape_errors=errors.amin(dim=(1, 3, 4)),
        fill_errors=errors.amin(dim=(1, 2, 4)),
        # Pixel i covers [i, i + 1) on the canvas: its middle is at i + 0.5.
        centres=(corner + offset + 0.5) / size,
        sizes=sizes / size,
        found=found,
        explained=explained,
    )


def _search(maps: Tensor, corner: Tensor, bank: _Bank, reach: int) -> Tensor:
    """The pixels (f, 2) within `reach` of `corner` where any template of every second radius fits best."""
    features = bank.features[1::2]
    errors = _windows(maps, corner, reach, bank.window) @ features.T
    return corner + _shifts(reach)[errors.amin(dim=2).argmin(dim=1)]


def _shifts(reach: int) -> Tensor:
    """All shifts (k, 2) as x, y, in the order of `_windows`."""
    axis = torch.arange(-reach, reach + 1)
    return torch.cartesian_prod(axis, axis).flip(1)


def _explained(errors: Tensor, foreign: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Share (f,) of the foreign energy around the object that the best template explains; whether that is enough."""
    size = foreign.shape[1]
    near = _box(corner.float(), torch.arange(size, dtype=torch.float32), 0.3 * size)
    energy = (foreign.square().sum(-1) * near).sum(dim=(1, 2))
    explained = (-errors.flatten(1).amin(dim=1) / energy.clamp(min=1e-6)).clamp(-1, 1)
    least = _FAINTEST * math.pi * (_RADII[0] * size) ** 2
    return explained, (explained > FOUND_EXPLAINED) & (energy > least)


def _clip_look(errors: Tensor) -> tuple[int, int]:
    """Shape and fill that fit all frames best together."""
    best = int(errors.amin(dim=(1, 4)).sum(dim=0).argmin())
    return best // len(world.FILLS), best % len(world.FILLS)


def _refine(surface: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Least error of (f, 3, 3, radii), by parabolas: offset (f, 2) from the middle and size (f,), in pixels."""
    count, rows, columns, radii = surface.shape
    index = surface.flatten(1).argmin(dim=1)
    every, radius = torch.arange(count), index % radii
    row, column = index // radii // columns, index // radii % columns
    x = column + _parabola(surface[every, row, :, radius], column) - columns // 2
    y = row + _parabola(surface[every, :, column, radius], row) - rows // 2
    between = _parabola(surface[every, row, column], radius)
    return torch.stack([x, y], dim=-1), sizes[radius] * _RADIUS_STEP**between


def _parabola(values: Tensor, index: Tensor) -> Tensor:
    """Sub-step position of the minimum around `index` (n,) in `values` (n, k); 0 at the border."""
    inner = index.clamp(1, values.shape[1] - 2)
    left, middle, right = (values.gather(1, (inner + i)[:, None])[:, 0] for i in (-1, 0, 1))
    curve = (left - 2 * middle + right).clamp(min=1e-9)
    offset = (0.5 * (left - right) / curve).clamp(-0.5, 0.5)
    return torch.where(inner == index, offset, torch.zeros_like(offset))
