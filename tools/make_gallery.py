"""Presses Run on every shipped workflow, as shipped, and keeps what it makes as moving thumbnails.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python tools/make_gallery.py [name ...]

Writes docs/images/workflows/<name>.webp, and workflows/<name>.jpg, a frame of it, which ComfyUI's template browser
shows; prints the seconds of each. The base directory is empty, as a new user's is.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from build_workflows import FOLDER, WORKFLOWS
from PIL import Image
from real_host import ROOT, Browser, RealComfyUI, run_to_end, saved_videos, shipped

from motion_lora.media.read import read_frames
from motion_lora.media.write import to_bytes

IMAGES = ROOT / "docs" / "images" / "workflows"
WIDTH = 480
THUMBNAIL = (960, 540)
PATIENCE = 1800


def moving(name: str, video: Path) -> Image.Image:
    """Write the video as a small WebP; its frame of one third, where the motions have come apart."""
    frames, fps = read_frames(video)
    pictures = [Image.fromarray(picture) for picture in to_bytes(frames)]
    height = round(pictures[0].height * WIDTH / pictures[0].width)
    small = [picture.resize((WIDTH, height), Image.Resampling.LANCZOS) for picture in pictures]
    IMAGES.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"save_all": True, "append_images": small[1:], "duration": round(1000 / fps), "loop": 0}
    small[0].save(IMAGES / f"{name}.webp", quality=70, method=6, **options)
    return pictures[len(pictures) // 3]


def thumbnail(name: str, picture: Image.Image) -> None:
    """The frame in the middle of a wide picture, on the colour of its corner."""
    sheet = Image.new("RGB", THUMBNAIL, picture.getpixel((0, 0)))
    scale = min(THUMBNAIL[0] / picture.width, THUMBNAIL[1] / picture.height)
    fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    sheet.paste(fitted, ((sheet.width - fitted.width) // 2, (sheet.height - fitted.height) // 2))
    sheet.save(FOLDER / f"{name}.jpg", quality=88)


def main(names: list[str]) -> int:
    """Those named, or all; 1 where one did not end in a video."""
    from playwright.sync_api import sync_playwright

    failed = 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RealComfyUI(Path(folder))
        server.start()
        browser = Browser(playwright, server, Path(folder)).open()
        try:
            for name in names or list(WORKFLOWS):
                began = time.monotonic()
                browser.load(shipped(name), name)
                record = run_to_end(browser, server, PATIENCE)
                videos = saved_videos(record)
                if record["status"]["status_str"] != "success" or not videos:
                    failed += 1
                    sys.stdout.write(f"{name}: {record['status']}\n")
                    continue
                seconds = time.monotonic() - began
                thumbnail(name, moving(name, server.download(videos[-1], Path(folder) / "made" / name)))
                sys.stdout.write(f"{name}: {seconds:.0f} s\n")
                sys.stdout.flush()
        finally:
            browser.close()
            server.stop()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
