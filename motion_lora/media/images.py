"""Pictures as frames: one image, a folder of them, the pages of a TIFF, or an animation with its own times."""

from __future__ import annotations

import importlib
import io
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..core.errors import ClipError
from .kinds import ANIMATED_FORMATS, IMAGE_SUFFIXES, PIL_ERRORS, images_of, is_image_file, is_junk, is_raw_photo
from .timing import Request, Timeline, pick

logger = logging.getLogger(__name__)

Fit = Callable[[np.ndarray], Tensor]

_FALLBACK_FPS = 25.0
# Browsers play what is faster, or says nothing, at ten pictures a second.
_SHORTEST_MS, _UNSAID_MS = 10, 100
_HDR_CURVES = (16, 18)  # PQ and HLG in ITU-T H.273


def read_images(path: Path, request: Request, images_fps: float | None, fit: Fit) -> tuple[Tensor, float]:
    """Frames (f, h, w, 3) in [0, 1] and their rate, of an image, an animation, or a folder in natural order.

    A folder's images were taken at `images_fps`; without it they are the frames themselves. `fit` brings a picture,
    uint8 (h, w, 3), to its size as a frame. Raises ClipError.
    """
    request.check(path.name)
    if images_fps is not None and not (math.isfinite(images_fps) and images_fps > 0):
        raise ClipError(f"{path.name}: images_fps is {images_fps}; it must be above 0.")
    if path.is_file():
        with _opened(path) as image:
            pages = int(getattr(image, "n_frames", 1))
            if pages > 1 and image.format in ANIMATED_FORMATS:
                return _read_animation(path, image, request, fit)
            if pages > 1 and image.format == "TIFF":
                places = [(f"page {page + 1} of {path.name}", path, page) for page in range(pages)]
                return _read_stills(path, places, request, images_fps, fit)
    files = [path] if path.is_file() else sorted(images_of(path), key=_natural)
    if path.is_dir():
        _name_left_out(path)
    return _read_stills(path, [(file.name, file, 0) for file in files], request, images_fps, fit)


def _read_stills(
    path: Path, places: Sequence[tuple[str, Path, int]], request: Request, images_fps: float | None, fit: Fit
) -> tuple[Tensor, float]:
    if not places:
        raise ClipError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    rate = images_fps or request.fps or _FALLBACK_FPS
    skipped = round(request.start * rate)
    if skipped >= len(places):
        raise ClipError(
            f"{path.name} has {len(places)} images, {len(places) / rate:.2f} s; start is {request.start:g} s."
        )
    indices, fps = pick(
        Timeline.regular(len(places) - skipped, rate), replace(request, fps=request.fps or rate), path.name
    )
    frames: dict[int, Tensor] = {}
    first = ""
    for i in sorted(set(indices)):
        name, file, page = places[skipped + i]
        picture = _still(file, page, alone=path.is_file())
        first = first or _size(picture)
        if _size(picture) != first:
            raise ClipError(
                f"{path.name}: {name} is {_size(picture)} and the first image {first}; "
                "the images of a clip need one size."
            )
        frames[i] = fit(picture)
    return torch.stack([frames[i] for i in indices]), fps


def _still(path: Path, page: int, *, alone: bool) -> np.ndarray:
    with _opened(path) as image:
        if not alone and image.format in ANIMATED_FORMATS and int(getattr(image, "n_frames", 1)) > 1:
            raise ClipError(
                f"{path.name} in {path.parent.name} is a film of {getattr(image, 'n_frames', 1)} pictures: "
                "make it a clip of its own, outside of the folder of images."
            )
        if page:
            image.seek(page)
        # TIFF turns itself on loading in some versions; transposing afterwards then finds nothing to do.
        return _rgb(ImageOps.exif_transpose(image), path.name)


def _read_animation(path: Path, image: Image.Image, request: Request, fit: Fit) -> tuple[Tensor, float]:
    # A PNG may show another picture where animations are not known; that one is not part of the film.
    first = 1 if image.info.get("default_image") else 0
    starts, clock = [], 0.0
    for place in range(first, int(getattr(image, "n_frames", 1))):
        image.seek(place)
        image.load()
        shown = float(image.info.get("duration") or 0)
        starts.append(clock)
        clock += (shown if shown > _SHORTEST_MS else _UNSAID_MS) / 1000
    if request.start >= clock:
        raise ClipError(f"{path.name} is {clock:.2f} s long and has no frame after {request.start:g} s: start earlier.")
    kept = [i for i, start in enumerate(starts) if start >= request.start - 1e-3] or [len(starts) - 1]
    ends = [*starts[1:], clock]
    times = [starts[i] - starts[kept[0]] for i in kept]
    timeline = Timeline(tuple(times), ends[-1] - starts[-1], len(kept) / (clock - starts[kept[0]]))
    indices, fps = pick(timeline, request, path.name)
    frames: dict[int, Tensor] = {}
    for i in sorted(set(indices)):
        image.seek(first + kept[i])
        frames[i] = fit(_rgb(image.copy(), path.name))
    return torch.stack([frames[i] for i in indices]), fps


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, open. Raises ClipError, one line, for what is none, damaged, or cannot be read right."""
    where = f"{path.name} in {path.parent.name}" if path.parent.name else path.name
    try:
        if path.stat().st_size == 0:
            raise ClipError(f"{path.name} is empty (0 bytes): fetch or record it again.")
        if is_raw_photo(path):
            raise ClipError(f"{where} is a camera's raw picture: develop it to PNG or JPEG.")
        _require_sdr(path, where)
        _know_heif(path)
        with Image.open(path) as image:
            yield image
    except ClipError:
        raise
    except PIL_ERRORS as error:
        raise ClipError(f"{where} is not an image that can be read: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    if path.suffix.lower() in (".heic", ".heif", ".avif", ".jxl"):
        way_out = "install pillow-heif, or convert it" if path.suffix.lower() in (".heic", ".heif") else "convert it"
        return f"this Pillow does not know {path.suffix.lower()}; {way_out} to PNG or JPEG."
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _know_heif(path: Path) -> None:
    """Pillow reads HEIC once pillow-heif has told it how; who has it installed wants that."""
    if path.suffix.lower() in (".heic", ".heif"):
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except (ImportError, AttributeError, OSError) as error:
            logger.debug("pillow-heif is not at hand: %s", error)


def _require_sdr(path: Path, where: str) -> None:
    """Pictures in PQ or HLG would be read dull; both formats that carry them say so near their start."""
    with path.open("rb") as file:
        start = file.read(4096)
    curve = 0
    if start.startswith(b"\x89PNG") and (at := start.find(b"cICP")) > 0:
        curve = start[at + 5]
    elif start[4:8] == b"ftyp" and (at := start.find(b"colrnclx")) > 0:
        curve = int.from_bytes(start[at + 10 : at + 12], "big")
    if curve in _HDR_CURVES:
        raise ClipError(f"{where} is an HDR picture ({'PQ' if curve == 16 else 'HLG'}): save it as SDR (sRGB).")


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    """uint8 sRGB (h, w, 3): sixteen bits scaled and not clipped, profiles followed, transparent parts on white."""
    if image.mode.startswith(("I", "F")):
        return _from_deep(np.asarray(image), name)
    image = _in_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _from_deep(values: np.ndarray, name: str) -> np.ndarray:
    """One channel of 16 or 32 bits or floats in [0, 1] -> uint8 (h, w, 3)."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ClipError(f"{name} holds floats from {values.min():g} to {values.max():g}; they must be in [0, 1].")
        grey = values * 255
    else:
        grey = values.astype(np.float64) / 257
        if grey.min() < 0 or grey.max() > 255:
            raise ClipError(f"{name} holds numbers beyond 16 bits: save it with 8 or 16 bits.")
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Phones' pictures are Display P3 and printers' CMYK; what is sRGB already stays as it is, bit for bit."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "RGBA"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("a colour profile could not be followed, the numbers are taken for sRGB: %s", error)
        return image


def _name_left_out(folder: Path) -> None:
    others = sorted(
        child.name
        for child in folder.iterdir()
        if not is_junk(child) and child.suffix.lower() not in IMAGE_SUFFIXES and not is_image_file(child)
    )
    if others:
        logger.warning("%s: left out, as they are no images: %s", folder.name, ", ".join(others[:10]))


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
