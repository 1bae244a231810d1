"""Fonts for labels in any script: Pillow's own for what it holds, else one of the system's, else nothing is drawn."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# By how much they hold; the first that has all characters of a text is taken.
_NAMES = (
    *("DejaVuSans", "NotoSans-Regular", "LiberationSans-Regular", "segoeui", "arial", "Arial Unicode", "Helvetica"),
    *("NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "wqy-microhei", "DroidSansFallbackFull", "msyh", "YuGothM"),
    *("meiryo", "malgun", "simsun", "PingFang", "Hiragino Sans GB", "AppleSDGothicNeo", "NotoSansArabic-Regular"),
    *("NotoSansHebrew-Regular", "NotoSansDevanagari-Regular", "NotoSansThai-Regular", "nirmala", "tahoma", "leelawui"),
)
_MISSING = "\uffff"


def font(size: int, text: str = "") -> Font:
    """A font in which the whole text can be drawn, or the one that holds most of it; Pillow's own for plain English."""
    own = ImageFont.load_default(size)
    letters = frozenset(text) - {" "}
    if text.isascii() or not isinstance(own, ImageFont.FreeTypeFont):
        return own
    faces = [own, *(face for path in _system_fonts() if (face := _opened(path, size)))]
    return max(faces, key=lambda face: _held(face, letters))


def drawable(text: str) -> str:
    """A text without the characters that no font here can draw, which would come out as boxes or question marks."""
    text = " ".join(text.split())
    if text.isascii():
        return text
    face = font(16, text)
    return " ".join("".join(letter for letter in text if letter == " " or _has(face, letter)).split())


def _held(face: Font, letters: frozenset[str]) -> int:
    return sum(_has(face, letter) for letter in letters)


@functools.lru_cache(maxsize=4096)
def _has(face: Font, letter: str) -> bool:
    """Whether a font has its own picture of a character, and not the one that stands for all that are missing."""
    if letter.isascii():
        return letter.isprintable()
    return _picture(face, letter) != _picture(face, _MISSING)


def _picture(face: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(path), size)
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """Those of the known names that are installed, in the order of the names."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for place, _, files in os.walk(folder):
            for name in files:
                stem, ending = os.path.splitext(name)  # noqa: PTH122
                if ending.lower() in (".ttf", ".ttc", ".otf"):
                    found.setdefault(stem.lower(), Path(place) / name)
    return tuple(found[name.lower()] for name in _NAMES if name.lower() in found)


def _folders() -> Iterator[Path]:
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".local/share/fonts")
