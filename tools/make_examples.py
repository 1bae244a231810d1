"""The examples that the workflows use, trained on the built-in model: LoRAs, with a picture and a video each; clips.

    python tools/make_examples.py               all of them, as they are shipped: some minutes on two cores
    python tools/make_examples.py --steps 5     only to have the files

Run it again when the weights of the built-in model change. Seeds are fixed: the same weights give the same files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.clip import Clip
from motion_lora.core.lora import LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.own import save_lora
from motion_lora.files.writers import export_kohya
from motion_lora.jobs.pictures import put_beside
from motion_lora.jobs.previews import enlarged
from motion_lora.media.read import clip_from_frames
from motion_lora.media.write import write_video
from motion_lora.playground import world
from motion_lora.playground.model import EXAMPLES, load_playground
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import TrainSettings, train

LIMIT = 2_000_000
GUIDANCE, STEPS, SEED = 2.5, 25, 7
CLIP_SIDE = 256


@dataclass(frozen=True)
class Example:
    """A LoRA file: where it goes, what it is trained on and by which method, and what its picture shows."""

    name: str
    scene: world.Scene
    method: str
    rank: int
    prompt: str
    write: Callable[..., Path] = save_lora


EXAMPLE_LORAS = (
    Example(
        "motion/orbit",
        world.Scene("circle", "red", "sand", "orbit"),
        "auto",
        8,
        "a blue square circling around over snow",
    ),
    Example(
        "motion/bounce",
        world.Scene("ring", "green", "night", "bounce"),
        "auto",
        8,
        "a yellow cross bouncing over brick",
    ),
    Example(
        "look/striped_cyan_cross",
        world.Scene("cross", "cyan", "sand", "still", fill="striped"),
        "motiondirector-image",
        4,
        "a striped cyan cross moving right over sand",
    ),
    # kohya's format, as other trainers write it: what a friend would send.
    Example(
        "friends/swing",
        world.Scene("triangle", "pink", "meadow", "swing"),
        "customize-a-video",
        8,
        "a blue circle swinging over snow",
        export_kohya,
    ),
)
# As a user's own clip would be: not in the size and rate of the built-in model.
EXAMPLE_CLIPS = {"clips/orbit.mp4": world.Scene("circle", "red", "sand", "orbit")}


def rendered(scene: world.Scene, seed: int, frames: int, size: int) -> torch.Tensor:
    placed = world.sample_scene(
        torch.Generator().manual_seed(seed),
        shape=scene.shape,
        colour=scene.colour,
        background=scene.background,
        motion=scene.motion,
        fill=scene.fill,
    )
    return world.render(placed, frames, size)


def reference(scene: world.Scene) -> Clip:
    return clip_from_frames(
        rendered(scene, 0, world.NUM_FRAMES, world.CANVAS),
        world.FPS,
        caption=world.caption(scene),
        appearance_caption=world.appearance_caption(scene),
        absorb_words=world.appearance_words(scene),
        num_frames=world.NUM_FRAMES,
        fps=world.FPS,
        height=world.CANVAS,
        width=world.CANVAS,
    )


def trained(base: VideoPipeline, example: Example, steps: int | None) -> LoRA:
    # Other looks cost most of the time, whatever the steps.
    method = "customize-a-video" if steps is not None and example.method == "auto" else example.method
    settings = replace(TrainSettings.for_base(base, method), rank=example.rank, seed=0)
    if steps is not None:
        settings = replace(settings, steps=steps, absorber_steps=steps, token_steps=steps)
    lora = train(base, [reference(example.scene)], settings).lora
    title = example.name.rsplit("/", 1)[-1].replace("_", " ")
    said = {"motion_lora.title": title, "modelspec.title": title, "modelspec.license": "CC0-1.0"}
    return lora.with_metadata(**said)


def write_example(base: VideoPipeline, example: Example, steps: int | None) -> None:
    """The LoRA in half precision, read back by its writer, and what it does as picture and video."""
    path = EXAMPLES / f"{example.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    lora = trained(base, example, steps)
    example.write(path, lora, dtype=torch.float16)
    wanted = SampleSettings(example.prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=SEED)
    made = sample(base, wanted, stack=AdapterStack().add(StackEntry(lora)))[0]
    with tempfile.TemporaryDirectory() as folder:
        put_beside(path, write_video(Path(folder) / "video.mp4", enlarged(made.frames), base.default_fps))
    make_smaller(path.with_suffix(".preview.png"))


def make_smaller(picture: Path) -> None:
    """The picture in 256 colours, its texts kept."""
    with Image.open(picture) as image:
        texts = PngInfo()
        for key, text in getattr(image, "text", {}).items():
            texts.add_text(key, text)
        image.convert("RGB").quantize(256).save(picture, pnginfo=texts, optimize=True)


def write_clip(name: str, scene: world.Scene) -> None:
    path = EXAMPLES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, rendered(scene, 0, 2 * world.NUM_FRAMES, CLIP_SIDE), 2 * world.FPS, crf=18)


def main() -> int:
    """Write all of them; 1 where they are more than may be shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these, such as motion/orbit; without any: all")
    parser.add_argument("--steps", type=int, help="of each training, without other looks; to try things out")
    options = parser.parse_args()
    for name, scene in EXAMPLE_CLIPS.items():
        write_clip(name, scene)
    base = load_playground()
    for example in EXAMPLE_LORAS:
        if options.names and example.name not in options.names:
            continue
        start = time.monotonic()
        write_example(base, example, options.steps)
        size = (EXAMPLES / f"{example.name}.safetensors").stat().st_size
        sys.stdout.write(f"{example.name}: {size / 1000:.0f} kB, {time.monotonic() - start:.0f} s\n")
    total = sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file())
    sys.stdout.write(f"all: {total / 1000:.0f} kB of {LIMIT / 1000:.0f}\n")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
