"""What a file is: by its first bytes where they tell, else by its name. A name alone is often wrong."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".m2v", ".vob", ".wmv"),
    *(".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".divx", ".dv", ".rm", ".rmvb", ".y4m", ".mjpeg", ".ivf"),
)
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".jxl", ".jp2"),
)
# Always a clip by their names; of the other images the content decides.
_CLIP_SUFFIXES = (*VIDEO_SUFFIXES, ".gif", ".apng")
_MAY_MOVE = (".png", ".webp", ".avif")
# Formats whose further pictures are a film. A phone's MPO or a HEIC holds others beside its one picture.
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")
_RAW_SUFFIXES = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".pef", ".raf", ".srw")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JUNK = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "@eadir", "__macosx", "$recycle.bin")
PIL_ERRORS = (OSError, EOFError, SyntaxError, ValueError, IndexError, KeyError, TypeError, Image.DecompressionBombError)


def is_junk(path: Path) -> bool:
    """Whether a file is one that systems and file managers leave behind, or hidden: nobody means it as a clip."""
    return path.name.startswith(".") or path.name.lower() in _JUNK


def is_raw_photo(path: Path) -> bool:
    """Whether a file is a camera's raw picture by its name; inside lies a small preview that readers take for it."""
    return path.suffix.lower() in _RAW_SUFFIXES


def is_image_file(path: Path) -> bool:
    """Whether a path is a picture, still or animated, and not a video: by its content, or else by its name."""
    if not path.is_file():
        return False
    start = _start(path)
    if _is_picture(start):
        return True
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_film(start)


def is_image_folder(path: Path) -> bool:
    """Whether a path is a folder with images in it."""
    return path.is_dir() and not is_junk(path) and bool(images_of(path))


def images_of(folder: Path) -> list[Path]:
    """The pictures of a folder by their names, unsorted."""
    return [child for child in folder.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES and not is_junk(child)]


def is_clip_file(path: Path) -> bool:
    """Whether a file of a folder is a clip by itself: a video by its name, or an animated picture."""
    if is_junk(path) or not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in _CLIP_SUFFIXES or (suffix in _MAY_MOVE and is_animated(path))


def is_animated(path: Path) -> bool:
    """Whether a picture's file holds a film: more pictures than one, in a format that gives them times."""
    try:
        with Image.open(path) as image:
            return image.format in ANIMATED_FORMATS and int(getattr(image, "n_frames", 1)) > 1
    except PIL_ERRORS:
        return False


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""


def _is_picture(start: bytes) -> bool:
    known = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cJXL ")
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(known) or webp or (start[4:8] == b"ftyp" and start[8:12] in _IMAGE_BRANDS)


def _is_film(start: bytes) -> bool:
    """Containers that are never a picture, whatever the file's name says."""
    avi = start[:4] == b"RIFF" and start[8:12] == b"AVI "
    return avi or start[4:8] == b"ftyp" or start.startswith((b"\x1a\x45\xdf\xa3", b"FLV", b"OggS"))
