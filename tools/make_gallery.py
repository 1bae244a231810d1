"""Presses Run on every shipped workflow and makes what it ends in its moving picture in ComfyUI's template browser.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python tools/make_gallery.py [--few-steps] [name ...]

Writes workflows/<name>.jpg and prints the seconds of each. A pack's pictures have to have that ending; what is inside
is an animated WebP, which browsers tell by its first bytes. The base directory is empty, as a new user's is.
`--few-steps` cuts the trainings short, to try this script and nothing else.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from build_workflows import FOLDER
from PIL import Image
from real_host import FEW, Browser, RealComfyUI, run_to_end, saved_videos, shipped
from shipped_workflows import NEEDS, WORKFLOWS

from motion_lora.media.read import read_frames
from motion_lora.media.write import to_bytes

SIZE = (480, 270)
MOST_BYTES = 400_000
PATIENCE = 1800


def thumbnail(video: Path) -> bytes:
    """The video in the middle of a wide picture, on the colour of its corner, as animated WebP of at most 400 kB."""
    frames, fps = read_frames(video)
    pictures = [_fitted(Image.fromarray(picture)) for picture in to_bytes(frames)]
    for quality in (75, 60, 45, 30):
        stream = io.BytesIO()
        options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": round(1000 / fps)}
        pictures[0].save(stream, "WEBP", quality=quality, method=6, loop=0, **options)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()


def _fitted(picture: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", SIZE, picture.getpixel((0, 0)))
    scale = min(SIZE[0] / picture.width, SIZE[1] / picture.height)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet.paste(small, ((SIZE[0] - small.width) // 2, (SIZE[1] - small.height) // 2))
    return sheet


def main() -> int:
    """Those named, or all that run with nothing more; 1 where one did not end in a video."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="workflows (default: all)")
    parser.add_argument("--few-steps", action="store_true", help="cut the trainings short")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RealComfyUI(Path(folder))
        server.start()
        browser = Browser(playwright, server, Path(folder)).open()
        try:
            for name in options.names or [name for name in WORKFLOWS if name not in NEEDS]:
                failed += not _make(name, browser, server, FEW if options.few_steps else ())
        finally:
            browser.close()
            server.stop()
    return int(failed > 0)


def _make(name: str, browser: Browser, server: RealComfyUI, widgets: Any) -> bool:
    began = time.monotonic()
    browser.load(shipped(name), name)
    for node, widget, value in widgets:
        browser.set_widget(node, widget, value)
    record = run_to_end(browser, server, PATIENCE)
    videos = saved_videos(record)
    made = bool(record["status"]["status_str"] == "success" and videos)
    if made:
        (FOLDER / f"{name}.jpg").write_bytes(thumbnail(server.download(videos[-1], server.base / "made" / name)))
    sys.stdout.write(f"{name}: {time.monotonic() - began:.0f} s\n" if made else f"{name}: {record['status']}\n")
    sys.stdout.flush()
    return made


if __name__ == "__main__":
    sys.exit(main())
