"""From a file's numbers to sRGB: ffmpeg's filters for matrix, range, transfer curve, primaries, fields and alpha.

A video says how it is meant, or is silent; a reader that does not listen gets a dull or shifted picture. HDR is brought
to SDR at reference white (203 cd/m2, ITU-R BT.2408): what was graded below it keeps its colours, lights above it clip.
"""

from __future__ import annotations

import numpy as np

from ..core.errors import ClipError
from .probe import Facts

HDR_CURVES = ("smpte2084", "arib-std-b67")
_WIDE = ("bt2020", "smpte431", "smpte432", "jedec-p22")
_SWSCALE = ("", "gbr", "bt709", "bt470bg", "smpte170m", "fcc", "smpte240m", "bt2020nc")
_ZIMG = ("ycgco", "bt2020c", "ictcp")
_REFERENCE_WHITE = 203
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int"


def filters(facts: Facts, name: str) -> list[str]:
    """Filters that bring the frames to 8-bit RGB (RGBA, premultiplied, where they have alpha) with square pixels.

    Raises ClipError for colours that cannot be read right.
    """
    steps = _to_rgb(facts, name)
    if facts.has_alpha:
        # Hidden colours below what is transparent must not bleed into what is seen.
        steps += [_scale(facts, square=False), "format=gbrap", "premultiply=inplace=1"]
        return [*steps, _scale(facts, square=True), "setsar=1", "format=rgba"]
    return [*steps, _scale(facts, square=True), "setsar=1", "format=rgb24"]


def deinterlacer(facts: Facts) -> list[str]:
    """One frame per frame; it looks at the neighbours, so it stands before any selection."""
    return ["bwdif=mode=send_frame:deint=interlaced"] if facts.interlaced else []


def on_white(picture: np.ndarray) -> np.ndarray:
    """RGB uint8 (h, w, 3) of premultiplied RGBA (h, w, 4), laid on white; RGB is left alone."""
    if picture.shape[2] == 3:
        return picture
    behind = 255 - picture[..., 3:].astype(np.int16)
    return (picture[..., :3] + behind).clip(0, 255).astype(np.uint8)


def alpha_decoder(facts: Facts) -> list[str]:
    """Options for the input: VP8 and VP9 keep alpha in a second stream that ffmpeg's own decoders do not read."""
    decoders = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
    return ["-c:v", decoders[facts.codec]] if facts.has_alpha_beside and facts.codec in decoders else []


def _to_rgb(facts: Facts, name: str) -> list[str]:
    _, matrix, primaries, transfer = facts.colour
    if facts.dolby == 5:
        raise ClipError(
            f"{name} is Dolby Vision profile 5, whose colours only licensed players read: convert it to SDR."
        )
    if matrix not in (*_SWSCALE, *_ZIMG):
        raise ClipError(f"{name} stores its colours by the matrix {matrix}, which is not known: convert it to bt709.")
    hdr = transfer in HDR_CURVES
    if not hdr and primaries not in _WIDE and matrix not in _ZIMG:
        return []
    said = {
        "colorspace": matrix or ("bt2020nc" if hdr or primaries == "bt2020" else "bt709"),
        "color_primaries": primaries or ("bt2020" if hdr else "bt709"),
        # Cameras' SDR curves differ less than displays; both ends use the same, so that only the gamut changes.
        "color_trc": transfer if hdr else "iec61966-2-1",
    }
    tags = "setparams=" + ":".join(f"{key}={value}" for key, value in said.items())
    linear = f"zscale=t=linear:npl={_REFERENCE_WHITE}"
    return [tags, linear, "format=gbrpf32le", "zscale=p=bt709:t=iec61966-2-1:m=gbr:r=pc", "format=gbrp"]


def _scale(facts: Facts, *, square: bool) -> str:
    size = "w='max(1,round(iw*sar))':h=ih:" if square else ""
    return f"scale={size}flags={_SCALE_FLAGS}{_matrix(facts)}"


def _matrix(facts: Facts) -> str:
    """Of files that do not say: large ones are BT.709, as every player takes them; ffmpeg would take BT.601."""
    width, height = facts.size
    large = max(width, height) >= 1280 or min(width, height) > 576
    is_yuv = any(format.startswith(("yuv", "nv", "p0")) for format in facts.formats)
    return ":in_color_matrix=bt709" if is_yuv and large and not facts.colour[1] else ""
