"""A zoo of media files, made by ffmpeg and Pillow, and whether each is read right or refused with its reason.

    python tools/media_zoo.py out/zoo       makes the files, reads each, prints what is wrong; exit status 1 then

Every animal shows one known picture: the colour FIELD, and over it a white square that steps from left to right, one
step a frame, so that colours, sizes and times can all be checked.
"""

from __future__ import annotations

import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

from motion_lora.core.errors import ClipError, MotionLoRAError
from motion_lora.media.ffmpeg import run_ffmpeg
from motion_lora.media.read import read_frames

WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 16, 8
FIELD, SQUARE = (200, 60, 40), 16
STEP = (WIDTH - SQUARE) // (FRAMES - 1)
_RGB = ("-c:v", "ffv1", "-pix_fmt", "gbrp")
_LOG = logging.getLogger("media_zoo")


@dataclass(frozen=True)
class Animal:
    """One file: how it is made, and what reading it must give.

    `make` writes to a path, from the lossless film `master`. `refused` is part of the reason it must be refused with;
    else `size` (width, height), `frames`, the field's colour within `tolerance` levels, and the square where it should
    be at its time (`moves`). `settings` go to `read_frames`, `says` must stand in a warning.
    """

    name: str
    make: Callable[[Path, Path], None]
    refused: str = ""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    frames: int = FRAMES
    tolerance: int = 8
    colour: tuple[int, int, int] = FIELD
    moves: bool = True
    at: tuple[float, float] = (0.95, 0.9)
    settings: dict[str, Any] = field(default_factory=dict)
    says: str = ""


def pictures(width: int = WIDTH, height: int = HEIGHT, count: int = FRAMES) -> list[Image.Image]:
    """The film, frame by frame."""
    made = []
    for index in range(count):
        picture = Image.new("RGB", (width, height), FIELD)
        left = index * STEP * width // WIDTH
        picture.paste((255, 255, 255), (left, height // 4, left + SQUARE * width // WIDTH, height // 2))
        made.append(picture)
    return made


def zoo() -> list[Animal]:
    """All animals."""
    return [*_containers(), *_colours(), *_shapes(), *_times(), *_streams(), *_pictures(), *_broken(), *_folders()]


def make_zoo(folder: Path, animals: Sequence[Animal]) -> None:
    """Write the files of all animals into an empty folder."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    master = make_master(folder / "master.mkv")
    for animal in animals:
        animal.make(folder / animal.name, master)


def make_master(path: Path) -> Path:
    """The film without loss, as every other file's source."""
    frames = path.parent / "frames_of_the_master"
    frames.mkdir(parents=True)
    for index, picture in enumerate(pictures()):
        picture.save(frames / f"{index:02}.png")
    ffmpeg("-framerate", str(FPS), "-i", str(frames / "%02d.png"), *_RGB, str(path))
    shutil.rmtree(frames)
    return path


def verdict(path: Path, animal: Animal) -> str:
    """ "" if the animal is read right, or refused with its reason; else what is wrong."""
    heard = _Heard()
    logging.getLogger("motion_lora").addHandler(heard)
    try:
        frames, _ = read_frames(path, **animal.settings)
    except ClipError as error:
        text = str(error)
        if not animal.refused:
            return f"refused: {text}"
        return "" if animal.refused in text and "\n" not in text else f"refused for another reason: {text}"
    finally:
        logging.getLogger("motion_lora").removeHandler(heard)
    if animal.refused:
        return f"read, and should be refused ({animal.refused})"
    if animal.says not in " ".join(heard.lines):
        return f"no warning with {animal.says!r}: {heard.lines}"
    return _wrong(frames, animal)


def _wrong(frames: torch.Tensor, animal: Animal) -> str:
    count, height, width = frames.shape[:3]
    if (width, height) != animal.size:
        return f"{width} x {height}, not {animal.size[0]} x {animal.size[1]}"
    if count != animal.frames:
        return f"{count} frames, not {animal.frames}"
    x, y = (int(animal.at[0] * (width - 1)), int(animal.at[1] * (height - 1)))
    seen = (frames[0, y, x] * 255).round().int().tolist()
    if max(abs(a - b) for a, b in zip(seen, animal.colour, strict=True)) > animal.tolerance:
        return f"colour {seen}, not {animal.colour}"
    places = square_places(frames)
    wanted = [index * STEP for index in range(count)]
    if animal.moves and max(abs(a - b) for a, b in zip(places, wanted, strict=True)) > 3:
        return f"the square is at {places}, not {wanted}"
    return ""


def square_places(frames: torch.Tensor) -> list[int]:
    """The left edge of the square in each frame, in the film's own pixels."""
    height, width = frames.shape[1:3]
    row = frames[:, height * 3 // 8].min(dim=-1).values > 0.6
    return [int(line.float().argmax()) * WIDTH // width for line in row]


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


# How they are made ----------------------------------------------------------------------------------------------------


def ffmpeg(*arguments: str) -> None:
    """Run ffmpeg; raises MotionLoRAError with the end of its log."""
    status, _, log = run_ffmpeg(arguments)
    if status != 0:
        raise MotionLoRAError(f"ffmpeg {' '.join(arguments)}: {log[-600:]}")


def _by(*arguments: str, before: Sequence[str] = ()) -> Callable[[Path, Path], None]:
    """Made by ffmpeg from the master with these output arguments."""
    return lambda path, master: ffmpeg(*before, "-i", str(master), *arguments, str(path))


def _yuv(matrix: str = "bt709", spread: str = "tv", pixels: str = "yuv444p", tag: bool = True) -> tuple[str, ...]:
    """Filters and tags of a film in YUV."""
    said = f"setparams=colorspace={matrix if tag else 'unknown'}:color_primaries={'bt709' if tag else 'unknown'}"
    said += f":color_trc={'bt709' if tag else 'unknown'}"
    convert = f"scale=out_color_matrix={matrix}:out_range={spread}:flags=accurate_rnd+full_chroma_int"
    return ("-vf", f"{convert},format={pixels},{said}")


_X264 = ("-c:v", "libx264", "-crf", "6")


def _containers() -> list[Animal]:
    x264 = (*_yuv(pixels="yuv420p"), *_X264)
    animals = [
        Animal(f"h264.{ending}", _by(*x264)) for ending in ("mp4", "mov", "mkv", "m4v", "ts", "mts", "flv", "3gp")
    ]
    mpeg4 = (*_yuv("smpte170m", pixels="yuv420p"), "-q:v", "2")
    rates = ("-r", "25")
    return [
        *animals,
        Animal("hevc.mp4", _by(*_yuv(pixels="yuv420p"), "-c:v", "libx265", "-crf", "6", "-tag:v", "hvc1")),
        Animal("vp8.webm", _by(*_yuv("smpte170m", pixels="yuv420p"), "-c:v", "libvpx", "-crf", "4", "-b:v", "9M")),
        Animal("vp9.webm", _by(*_yuv(pixels="yuv420p"), "-c:v", "libvpx-vp9", "-crf", "6", "-b:v", "0")),
        Animal("av1.mp4", _by(*_yuv(pixels="yuv420p"), "-c:v", "libsvtav1", "-crf", "8", "-preset", "8")),
        Animal("prores.mov", _by(*_yuv(pixels="yuv422p10le"), "-c:v", "prores_ks")),
        Animal("mjpeg.avi", _by("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj444p"), tolerance=10),
        Animal("xvid.avi", _by(*mpeg4, "-c:v", "mpeg4", "-vtag", "XVID"), tolerance=12),
        Animal("raw.avi", _by("-c:v", "rawvideo", "-pix_fmt", "bgr24")),
        Animal("ffv1.mkv", _by(*_RGB)),
        Animal("wmv2.wmv", _by(*mpeg4, "-c:v", "wmv2"), tolerance=12),
        Animal("theora.ogv", _by(*mpeg4[:-2], "-c:v", "libtheora", "-q:v", "10"), tolerance=12),
        Animal("mpeg2.mpg", _by(*mpeg4, *rates, "-c:v", "mpeg2video"), frames=50, moves=False, tolerance=12),
        Animal("qtrle.mov", _by("-c:v", "qtrle", "-pix_fmt", "rgb24")),
        Animal("y4m.y4m", _by(*_yuv("smpte170m", pixels="yuv444p"))),
        Animal(
            "film.mxf", _by(*_yuv(pixels="yuv422p"), *rates, "-c:v", "mpeg2video", "-q:v", "2"), frames=50, moves=False
        ),
    ]


def _hdr(curve: str) -> tuple[str, ...]:
    start = "format=gbrp,setparams=colorspace=gbr:color_primaries=bt709:color_trc=iec61966-2-1:range=pc"
    linear = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt2020"
    coded = f"zscale=t={curve}:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    tags = ("-color_primaries", "bt2020", "-color_trc", curve, "-colorspace", "bt2020nc")
    return ("-vf", f"{start},{linear},{coded}", "-c:v", "libx265", "-crf", "4", *tags, "-tag:v", "hvc1")


def _wide(primaries: str, matrix: str) -> tuple[str, ...]:
    start = "format=gbrp,setparams=colorspace=gbr:color_primaries=bt709:color_trc=iec61966-2-1:range=pc"
    linear = f"zscale=t=linear,format=gbrpf32le,zscale=p={primaries}"
    coded = f"zscale=t=iec61966-2-1:m={matrix}:r=tv,format=yuv444p10le"
    tags = ("-color_primaries", primaries, "-color_trc", "bt709", "-colorspace", matrix)
    # What is written is a display's curve; it is called bt709, as cameras do.
    return ("-vf", f"{start},{linear},{coded},setparams=color_trc=bt709", *_X264, *tags)


def _colours() -> list[Animal]:
    large = "scale=1280:720:out_color_matrix=bt709:out_range=tv:flags=accurate_rnd"
    untagged_hd = f"{large},format=yuv420p,setparams=colorspace=unknown"
    return [
        Animal("bt601.mp4", _by(*_yuv("smpte170m"), *_X264)),
        Animal("bt709.mp4", _by(*_yuv("bt709"), *_X264)),
        Animal("untagged_sd.mp4", _by(*_yuv("smpte170m", tag=False), *_X264)),
        Animal("untagged_hd.mp4", _by("-vf", untagged_hd, *_X264), size=(1280, 720)),
        Animal("full_range.mp4", _by(*_yuv(spread="pc"), *_X264, "-color_range", "pc")),
        Animal("limited_range.mp4", _by(*_yuv(spread="tv"), *_X264, "-color_range", "tv")),
        Animal("bt2020_sdr.mp4", _by(*_wide("bt2020", "bt2020nc")), tolerance=10),
        Animal("display_p3.mp4", _by(*_wide("smpte432", "bt709")), tolerance=10),
        Animal("hdr_pq.mov", _by(*_hdr("smpte2084")), tolerance=10),
        Animal("hdr_hlg.mov", _by(*_hdr("arib-std-b67")), tolerance=10),
        Animal("ten_bit.mp4", _by(*_yuv(pixels="yuv420p10le"), *_X264)),
        Animal("grey.mp4", _by("-vf", "format=gray", *_X264), colour=(100, 100, 100), tolerance=12),
        Animal("rgb48.mkv", _by("-c:v", "ffv1", "-pix_fmt", "gbrp16le")),
        Animal(
            "alpha_prores.mov",
            _alpha_film("-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"),
            at=(0.95, 0.05),
            colour=(255,) * 3,
        ),
        Animal(
            "alpha_vp9.webm",
            _alpha_film("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-crf", "4", "-b:v", "0"),
            at=(0.95, 0.05),
            colour=(255,) * 3,
        ),
        Animal("alpha_png.mov", _alpha_film("-c:v", "png", "-pix_fmt", "rgba"), at=(0.95, 0.05), colour=(255,) * 3),
        Animal("interlaced.mpg", _interlaced, frames=25, moves=False, tolerance=12),
    ]


def _alpha_film(*arguments: str) -> Callable[[Path, Path], None]:
    """The film whose upper eighth is transparent, over hidden magenta."""

    def make(path: Path, master: Path) -> None:
        edge = HEIGHT // 8
        hide = "format=gbrap,geq=r='if(lt(Y,{0}),255,r(X,Y))':g='if(lt(Y,{0}),0,g(X,Y))':b='if(lt(Y,{0}),255,b(X,Y))'"
        hide += ":a='if(lt(Y,{0}),0,255)'"
        convert = "" if "rgba" in arguments else ",scale=out_color_matrix=smpte170m:out_range=tv"
        ffmpeg("-i", str(master), "-vf", hide.format(edge) + convert, *arguments, str(path))

    return make


def _interlaced(path: Path, master: Path) -> None:
    weave = "fps=50,scale=out_color_matrix=smpte170m,format=yuv422p,tinterlace=mode=interleave_top,fieldorder=tff"
    coded = ("-flags", "+ilme+ildct", "-c:v", "mpeg2video", "-q:v", "2", "-frames:v", "25")
    ffmpeg("-i", str(master), "-vf", weave, *coded, str(path))


def _shapes() -> list[Animal]:
    return [
        Animal("odd_size.mkv", _by("-vf", "crop=95:63:0:0", *_RGB), size=(95, 63)),
        Animal("anamorphic.mkv", _by("-vf", "scale=48:64,setsar=2", *_RGB), moves=False),
        Animal("turned.mp4", _turned("90"), size=(HEIGHT, WIDTH), moves=False, at=(0.05, 0.05)),
        Animal("turned_180.mp4", _turned("180"), moves=False, at=(0.05, 0.05)),
        Animal("tiny.mkv", _by("-vf", "scale=6:4", *_RGB), size=(6, 4), moves=False, tolerance=30),
        Animal(
            "wide_4k.mp4",
            _by(
                "-vf",
                "scale=3840:2160",
                "-frames:v",
                "3",
                "-pix_fmt",
                "yuv420p",
                *_X264,
                "-preset",
                "ultrafast",
                "-colorspace",
                "smpte170m",
            ),
            size=(64, 64),
            frames=3,
            moves=False,
            settings={"height": 64, "width": 64},
            tolerance=14,
        ),
        Animal("changes_size.ts", _joined("96:64", "48:32"), frames=32, moves=False),
        Animal("changes_shape.ts", _joined("96:64", "64:64"), refused="changes its size"),
    ]


def _turned(angle: str) -> Callable[[Path, Path], None]:
    def make(path: Path, master: Path) -> None:
        flat = path.with_name(f"flat_{path.name}")
        ffmpeg("-i", str(master), *_yuv(pixels="yuv420p"), *_X264, str(flat))
        ffmpeg("-display_rotation", angle, "-i", str(flat), "-c", "copy", str(path))
        flat.unlink()

    return make


def _joined(*sides: str) -> Callable[[Path, Path], None]:
    """One file of several sizes, as screen recordings and joined clips have."""

    def make(path: Path, master: Path) -> None:
        joined = b""
        for side in sides:
            part = path.with_name(f"part_{path.name}")
            yuv = f"scale={side}:out_color_matrix=smpte170m,format=yuv420p,setparams=colorspace=smpte170m"
            ffmpeg("-i", str(master), "-vf", yuv, *_X264, str(part))
            joined += part.read_bytes()
            part.unlink()
        path.write_bytes(joined)

    return make


def _times() -> list[Animal]:
    drop = "select='gte(n,8)+not(mod(n,2))'"
    return [
        Animal(
            "variable_rate.mkv",
            _by("-vf", drop, "-fps_mode", "vfr", *_RGB),
            frames=8,
            moves=False,
            settings={"fps": 4.0, "num_frames": 8},
        ),
        Animal("variable_rate_all.mkv", _by("-vf", drop, "-fps_mode", "vfr", *_RGB), frames=12, moves=False),
        Animal("starts_late.mkv", _by("-output_ts_offset", "100", *_RGB)),
        Animal("film_rate.mp4", _by("-r", "24000/1001", *_yuv(pixels="yuv420p"), *_X264), frames=48, moves=False),
        Animal(
            "many_frames.mp4",
            _by(
                "-vf", "setpts=0.02*PTS,fps=400,loop=150:16:0,format=yuv420p", *_X264, "-frames:v", "2400", "-r", "400"
            ),
            frames=2400,
            moves=False,
            tolerance=30,
        ),
        Animal("one_frame.mkv", _by("-frames:v", "1", *_RGB), frames=1),
    ]


def _streams() -> list[Animal]:
    tone = ("-f", "lavfi", "-i", "sine=duration=2")
    return [
        Animal("sound_only.mp4", lambda path, _: ffmpeg(*tone, str(path)), refused="holds no picture"),
        Animal("sound_with_cover.mp3", _cover, refused="cover picture"),
        Animal("film_with_cover.mkv", _film_with_cover),
        Animal("two_films.mkv", _two_films, says="2 streams of pictures"),
        Animal("subtitles.mkv", _subtitled),
        Animal("only_subtitles.mkv", _only_subtitles, refused="holds no picture"),
        Animal(
            "sound_first.mkv",
            lambda path, master: ffmpeg(
                *tone, "-i", str(master), "-map", "0:a", "-map", "1:v", "-c:v", "copy", str(path)
            ),
        ),
    ]


def _cover(path: Path, master: Path) -> None:
    picture = path.with_suffix(".png")
    pictures()[0].save(picture)
    tone = ("-f", "lavfi", "-i", "sine=duration=1", "-i", str(picture))
    ffmpeg(*tone, "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-disposition:v", "attached_pic", str(path))
    picture.unlink()


def _film_with_cover(path: Path, master: Path) -> None:
    cover = path.with_suffix(".jpg")
    Image.new("RGB", (300, 300), (0, 255, 0)).save(cover)
    attach = ("-attach", str(cover), "-metadata:s:t", "mimetype=image/jpeg", "-metadata:s:t", "filename=cover.jpg")
    ffmpeg("-i", str(master), "-c", "copy", *attach, str(path))
    cover.unlink()


def _two_films(path: Path, master: Path) -> None:
    other = ("-f", "lavfi", "-i", f"color=c=blue:size=320x240:rate={FPS}:duration=2")
    ffmpeg("-i", str(master), *other, "-map", "0:v", "-map", "1:v", "-c:v", "ffv1", str(path))


def _subtitled(path: Path, master: Path) -> None:
    words = path.with_suffix(".srt")
    words.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n", encoding="utf-8")
    ffmpeg("-i", str(words), "-i", str(master), "-map", "0", "-map", "1", "-c:v", "copy", str(path))
    words.unlink()


def _only_subtitles(path: Path, master: Path) -> None:
    words = path.with_suffix(".srt")
    words.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n", encoding="utf-8")
    ffmpeg("-i", str(words), "-c:s", "srt", str(path))
    words.unlink()


def _animation(**settings: Any) -> Callable[[Path, Path], None]:
    def make(path: Path, master: Path) -> None:
        first, *rest = pictures()
        first.save(path, save_all=True, append_images=rest, **{"duration": 1000 // FPS, "loop": 0, **settings})

    return make


def _still(convert: Callable[[Image.Image], Image.Image], **settings: Any) -> Callable[[Path, Path], None]:
    return lambda path, _: convert(pictures()[0]).save(path, **settings)


def _with_hole(picture: Image.Image) -> Image.Image:
    """Its upper eighth transparent, over hidden magenta."""
    made = picture.convert("RGBA")
    made.paste((255, 0, 255, 0), (0, 0, picture.width, picture.height // 8))
    return made


def _sixteen(path: Path, master: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 100 * 257, np.uint16)).save(path)


def _icc(path: Path, master: Path) -> None:
    lab = ImageCms.createProfile("sRGB")
    pictures()[0].save(path, icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())


def _hidden_first(path: Path, master: Path) -> None:
    cover, rest = Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0)), pictures()
    cover.save(path, save_all=True, append_images=rest, duration=1000 // FPS, default_image=True)


def _alpha_webp(path: Path, master: Path) -> None:
    first, *rest = [_with_hole(picture) for picture in pictures()]
    first.save(path, save_all=True, append_images=rest, duration=1000 // FPS, lossless=True, exact=True)


def _disguised(kind: str) -> Callable[[Path, Path], None]:
    """A file under another kind's name."""

    def make(path: Path, master: Path) -> None:
        true = path.with_name(f"true_{path.stem}.{kind}")
        _animation(lossless=True)(true, master) if kind == "webp" else _by(*_yuv(pixels="yuv420p"), *_X264)(
            true, master
        )
        true.replace(path)

    return make


def _pictures() -> list[Animal]:
    one: dict[str, Any] = {"frames": 1}
    hole: dict[str, Any] = {"at": (0.95, 0.05), "colour": (255, 255, 255), "frames": 1}
    return [
        Animal("anim.gif", _animation(), tolerance=12),
        Animal("anim.apng", _animation(), settings={}),
        Animal("anim.png", _animation()),
        Animal("anim_hidden_first.png", _hidden_first),
        Animal("anim.webp", _animation(lossless=True)),
        Animal("anim_alpha.webp", _alpha_webp, at=(0.95, 0.05), colour=(255, 255, 255)),
        Animal("anim.avif", _animation(quality=95), tolerance=12),
        Animal("anim_fast.gif", _animation(duration=0), tolerance=12),
        Animal(
            "uneven.webp",
            _animation(lossless=True, duration=[250, *[125] * 14, 125]),
            frames=8,
            moves=False,
            settings={"fps": 4.0, "num_frames": 8},
        ),
        Animal("still.webp", _still(lambda p: p, lossless=True), **one),
        Animal("still.jpg", _still(lambda p: p, quality=95), **one),
        Animal("still.avif", _still(lambda p: p, quality=95), tolerance=10, frames=1),
        Animal("still.bmp", _still(lambda p: p), **one),
        Animal("still.tiff", _still(lambda p: p), **one),
        Animal("pages.tiff", _animation()),
        Animal("palette.png", _still(lambda p: p.quantize(16)), **one),
        Animal("grey.png", _still(lambda p: p.convert("L")), colour=(100, 100, 100), tolerance=12, frames=1),
        Animal("sixteen.png", _sixteen, colour=(100, 100, 100), moves=False, frames=1),
        Animal("sixteen.tiff", _sixteen, colour=(100, 100, 100), moves=False, frames=1),
        Animal("alpha.png", _still(_with_hole), **hole),
        Animal("alpha.webp", _still(_with_hole, lossless=True, exact=True), **hole),
        Animal("cmyk.jpg", _still(lambda p: p.convert("CMYK"), quality=95), tolerance=12, frames=1),
        Animal("profile.png", _icc, **one),
        Animal("exif_turned.jpg", _exif_turned, size=(HEIGHT, WIDTH), moves=False, frames=1, at=(0.05, 0.05)),
        Animal("film_named.jpg", _disguised("mp4")),
        Animal("webp_named.mp4", _disguised("webp")),
        Animal(
            "photo.heic",
            lambda path, _: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)) and None,
            refused="pillow-heif",
        ),
        Animal("photo.dng", _named_raw, refused="camera's raw picture"),
        Animal("hdr.png", _hdr_png, refused="HDR picture (PQ)"),
    ]


def _named_raw(path: Path, master: Path) -> None:
    pictures()[0].save(path, format="TIFF")


def _hdr_png(path: Path, master: Path) -> None:
    pictures()[0].save(path)
    data, chunk = path.read_bytes(), b"cICP" + bytes((9, 16, 0, 1))
    whole = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + whole + data[33:])


def _exif_turned(path: Path, master: Path) -> None:
    about = Image.Exif()
    about[0x0112] = 6
    pictures()[0].save(path, quality=95, exif=about)


def _cut(source: Callable[[Path, Path], None], share: float) -> Callable[[Path, Path], None]:
    def make(path: Path, master: Path) -> None:
        source(path, master)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def _broken() -> list[Animal]:
    x264 = _by(*_yuv(pixels="yuv420p"), *_X264)
    long_name = "n" * 200 + ".mkv"
    return [
        Animal("cut.mp4", _cut(x264, 0.5), refused="cut off"),
        Animal("cut.png", _cut(_still(lambda p: p.effect_spread(20)), 0.5), refused="not an image that can be read"),
        Animal("cut.webp", _cut(_animation(lossless=True), 0.6), refused="not an image that can be read"),
        Animal("empty.mp4", lambda path, _: path.touch(), refused="0 bytes"),
        Animal("empty.png", lambda path, _: path.touch(), refused="0 bytes"),
        Animal("words.mp4", lambda path, _: path.write_text("no film " * 99) and None, refused="not a video"),
        Animal("page.png", lambda path, _: path.write_text("<html>" * 99) and None, refused="not an image"),
        Animal(
            "list.m3u8",
            lambda path, _: path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n") and None,
            refused="list.m3u8",
        ),
        Animal("h\u00e9 \u6620\u753b \U0001f3ac.mkv", _by(*_RGB)),
        Animal("%d 'quoted' : name.mkv", _by(*_RGB)),
        Animal("-leading.mkv", _by(*_RGB)),
        Animal(long_name, _by(*_RGB)),
    ]


def _sequence(extra: Sequence[str] = (), mixed: bool = False, moving: bool = False) -> Callable[[Path, Path], None]:
    def make(path: Path, master: Path) -> None:
        path.mkdir()
        for index, picture in enumerate(pictures()):
            picture.save(path / f"frame{index}.{'jpg' if mixed and index % 2 else 'png'}", quality=95)
        for name in extra:
            (path / name).write_bytes(b"\0junk")
        if moving:
            _animation(lossless=True)(path / "frame3.png", master)

    return make


def _folders() -> list[Animal]:
    return [
        Animal("sequence", _sequence()),
        Animal("sequence_junk", _sequence(("Thumbs.db", ".DS_Store", "._frame0.png", "desktop.ini"))),
        Animal("sequence_mixed", _sequence(("notes.txt", "cut.prproj"), mixed=True), says="cut.prproj, notes.txt"),
        Animal("sequence_moving", _sequence(moving=True), refused="is a film of 16 pictures"),
        Animal("folder_empty", lambda path, _: path.mkdir(), refused="folder without images"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Make the zoo in a folder and read it; 1 if an animal is not as it should be."""
    folder, animals = Path(arguments[0]), zoo()
    make_zoo(folder, animals)
    found = {animal.name: verdict(folder / animal.name, animal) for animal in animals}
    wrong = {name: text for name, text in found.items() if text}
    refused = sum(bool(animal.refused) for animal in animals)
    for name, text in wrong.items():
        sys.stdout.write(f"{name}: {text}\n")
    right = len(animals) - len(wrong)
    sys.stdout.write(f"{right} of {len(animals)} files as they should be ({refused} of them are to be refused)\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
