"""motion-lora playground: the built-in world; `render` draws a reference clip as a video file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SettingsError
from .bases import add_json_flag, wants_json
from .console import write, write_json

if TYPE_CHECKING:
    from ...playground.world import Scene

_EXAMPLES = """\
examples:
  motion-lora playground render --motion orbit --output orbit.mp4
  motion-lora playground render --motion zigzag --shape ring --colour pink --background night --output zigzag.mp4
  motion-lora playground render --motion bounce --seed 3 --num-frames 16 --size 128 --output bounce.gif --json
"""
# The smallest picture still shows the smallest object; the largest clip takes some 2 GB to draw.
_RANGES = {"num_frames": (1, 128), "size": (16, 512), "fps": (0.1, 240), "seed": (0, 2**63 - 1)}
_PINNED = ("shape", "colour", "background", "fill", "phase", "radius", "scale")


def add(commands: Any) -> None:
    """Add the parsers of this command."""
    parser = commands.add_parser("playground", help="the built-in world: render a reference clip", description=__doc__)
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    render: argparse.ArgumentParser = actions.add_parser(
        "render",
        help="draw a clip of a moving shape",
        description="Draw a clip of a moving shape as mp4 or gif. What is not given is drawn from the seed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    render.add_argument("--output", type=Path, required=True, metavar="FILE", help="video to write: .mp4 or .gif")
    render.add_argument("--motion", required=True, metavar="NAME", help="what the shape does, for example orbit")
    for name in ("shape", "colour", "background", "fill"):
        render.add_argument(f"--{name}", metavar="NAME", help=f"{name} of the scene")
    render.add_argument("--phase", type=float, metavar="X", help="where in a periodic motion it starts, 0 to 1")
    render.add_argument("--radius", type=float, metavar="X", help="size of the object in canvas sides, 0.05 to 0.4")
    render.add_argument("--scale", type=float, metavar="X", help="half extent of the path in canvas sides, 0 to 0.5")
    render.add_argument("--seed", type=int, default=0, metavar="N", help="draws whatever is not given (default: 0)")
    render.add_argument("--num-frames", type=int, metavar="N", help="default: what the built-in model was trained on")
    render.add_argument("--size", type=int, metavar="N", help="height and width (default: the built-in model's)")
    render.add_argument("--fps", type=float, metavar="X", help="frames per second (default: the built-in model's)")
    add_json_flag(render)
    render.set_defaults(run=run_render)


def run_render(options: argparse.Namespace) -> int:
    """Draw the scene and write the file."""
    from ...playground import world
    from .results import check_video_output, write_frames

    num_frames = world.NUM_FRAMES if options.num_frames is None else options.num_frames
    size = world.CANVAS if options.size is None else options.size
    fps = float(world.FPS if options.fps is None else options.fps)
    given = {"num_frames": num_frames, "size": size, "fps": fps, "seed": options.seed}
    for name, (low, high) in _RANGES.items():
        if not low <= given[name] <= high:
            raise SettingsError(f"{name} is {given[name]:g}; it must be from {low:g} to {high:g}.")
    scene = scene_of(options)
    check_video_output(options.output)
    written = write_frames(options.output, world.render(scene, num_frames, size), fps)
    facts = {
        "file": str(written),
        "caption": world.caption(scene),
        "appearance_caption": world.appearance_caption(scene),
        "absorb_words": world.appearance_words(scene),
        "num_frames": num_frames,
        "size": size,
        "fps": fps,
    }
    if wants_json(options):
        write_json(facts)
    else:
        write(f"{facts['file']}: {num_frames} frames of {size} x {size} at {fps:g} fps")
        write(f'  --caption "{facts["caption"]}" --appearance-caption "{facts["appearance_caption"]}"')
    return 0


def scene_of(options: argparse.Namespace) -> Scene:
    """The scene that the flags ask for; raises SettingsError for a word that the world does not know."""
    import torch

    from ...playground import world

    pinned = {name: getattr(options, name) for name in _PINNED if getattr(options, name) is not None}
    if options.motion not in world.MOTIONS:
        raise SettingsError(f"The playground has no motion {options.motion!r}; it has: {', '.join(world.MOTIONS)}.")
    try:
        return world.sample_scene(torch.Generator().manual_seed(options.seed), (options.motion,), **pinned)
    except ValueError as error:
        raise SettingsError(str(error)) from error
