"""Nodes that make reference clips: from images or a video, from the playground's world, and several together."""

from __future__ import annotations

import io as io_module
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..motion_lora.core.errors import ClipError
from ..motion_lora.media.sheets import contact_sheet
from ..motion_lora.playground import world
from .comfy import folders, server
from .comfy.sockets import CATEGORY, MAX_SEED, Clips, InputImpl, io
from .widgets import previews

if TYPE_CHECKING:
    from ..motion_lora.core.clip import Clip

_SHEET_COLUMNS = 8
_OUTPUTS_TOOLTIP = "For Train Motion LoRA and Train Appearance Absorber."


def _outputs() -> list[Any]:
    return [
        Clips.Output("clips", display_name="clips", tooltip=_OUTPUTS_TOOLTIP),
        io.Image.Output("frames", display_name="frames", tooltip="The frames that will be trained."),
        io.String.Output("caption", display_name="caption", tooltip="What is seen and what moves."),
        io.String.Output(
            "appearance_caption", display_name="appearance_caption", tooltip="The same without its motion."
        ),
    ]


class LoadClip(io.ComfyNode):
    """A video file: the user's own, or an example."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_LoadClip",
            display_name="Load Clip",
            category=f"{CATEGORY}/clips",
            description="Opens a video of ComfyUI's input folder, or one of the examples that come with this pack. "
            "ComfyUI's own Load Video does the same for the input folder alone.",
            search_aliases=["load video", "example clip", "open video"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.choices(folders.video_names()),
                    tooltip="Videos in ComfyUI's input folder, then the examples. Press R after adding one.",
                )
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="For a Reference Clip.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return previews.file_mark(folders.video_path, file)

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return previews.is_listed(folders.video_path, file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(InputImpl.VideoFromFile(str(folders.video_path(file))))


class ReferenceClip(io.ComfyNode):
    """A clip whose motion is to be learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_ReferenceClip",
            display_name="Reference Clip",
            category=f"{CATEGORY}/clips",
            description="Makes a reference clip of a video or of images: takes frames at the asked rate, resizes "
            "and crops them, and shows exactly the frames that will be trained.",
            search_aliases=["training video", "load clip", "video dataset"],
            inputs=[
                io.Video.Input("video", optional=True, tooltip="From Load Clip or Load Video. Connect this or images."),
                io.Image.Input("images", optional=True, tooltip="Frames in order. Connect this or a video."),
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="",
                    tooltip="What is seen and what moves: a man is skateboarding on a street.",
                ),
                io.String.Input(
                    "appearance_caption",
                    multiline=True,
                    default="",
                    tooltip="The same without its motion: a man on a street. For the appearance absorber.",
                ),
                io.String.Input(
                    "absorb_words",
                    default="",
                    tooltip="Words of both captions that say what it looks like, which the absorber's tokens stand in "
                    "for: man, street.",
                ),
                io.Int.Input(
                    "num_frames",
                    "num_frames (0: all)",
                    default=16,
                    min=0,
                    max=1024,
                    tooltip="Frames to train on. 0: all there are.",
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.1,
                    max=240.0,
                    step=0.5,
                    tooltip="Frames per second to take. The clip keeps its speed: a lower rate covers more time.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    advanced=True,
                    tooltip="Second at which it starts.",
                ),
                io.Int.Input("width", default=256, min=16, max=4096, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=256, min=16, max=4096, step=8, tooltip="Height in pixels."),
                io.Float.Input(
                    "images_fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Only for images: the rate at which they were taken. 0: they are the frames to train "
                    "on, as they are. A video knows its own rate.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls, images_fps: float, video: Any = None, images: torch.Tensor | None = None, **cut: Any
    ) -> io.NodeOutput:
        if (video is None) == (images is None):
            raise ClipError("a reference clip needs either a video or images: connect one of the two")
        cut["num_frames"] = cut["num_frames"] or None
        with server.ordinary_tensors():
            clip = _from_images(images, images_fps, cut) if images is not None else _from_video(video, cut)
        return _clip_output(clip, cls)


class PlaygroundClip(io.ComfyNode):
    """A clip of the playground's world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_PlaygroundClip",
            display_name="Playground Clip",
            category=f"{CATEGORY}/clips",
            description="Renders a small clip of a moving shape, with its captions: a first reference that needs no "
            "file. The built-in model has never seen the motions from orbit on.",
            search_aliases=["example clip", "test clip", "quickstart"],
            inputs=[
                io.Combo.Input("shape", options=list(world.SHAPES), default="circle", tooltip="What moves."),
                io.Combo.Input("colour", options=list(world.COLOURS), default="red", tooltip="Its colour."),
                io.Combo.Input("fill", options=list(world.FILLS), default="plain", tooltip="Its texture."),
                io.Combo.Input(
                    "background", options=list(world.BACKGROUNDS), default="sand", tooltip="What is behind."
                ),
                io.Combo.Input(
                    "motion",
                    options=[*world.HELD_OUT_MOTIONS, *world.KNOWN_MOTIONS],
                    default="orbit",
                    tooltip="How it moves. left, right, up, down and still are known to the built-in model, the "
                    "others are new.",
                ),
                io.Int.Input("num_frames", default=world.NUM_FRAMES, min=2, max=64, tooltip="Frames."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=False,
                    tooltip="Place, size and phase of the motion.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, num_frames: int, seed: int, motion: str, **looks: str) -> io.NodeOutput:
        from ..motion_lora.media.read import clip_from_frames

        with server.ordinary_tensors():
            scene = world.sample_scene(torch.Generator().manual_seed(seed), motion=motion, **looks)
            clip = clip_from_frames(
                world.render(scene, num_frames),
                world.FPS,
                caption=world.caption(scene),
                appearance_caption=world.appearance_caption(scene),
                absorb_words=world.appearance_words(scene),
                num_frames=num_frames,
                fps=world.FPS,
                height=world.CANVAS,
                width=world.CANVAS,
            )
        return _clip_output(clip, cls)


class CombineClips(io.ComfyNode):
    """Several clips of one motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MotionLoRA_CombineClips",
            display_name="Combine Clips",
            category=f"{CATEGORY}/clips",
            description="Puts clips of the same motion together, each with its own captions. Chain it for more.",
            search_aliases=["clip list", "merge clips", "dataset"],
            inputs=[
                Clips.Input("clips_1", tooltip="One or several clips."),
                Clips.Input("clips_2", tooltip="One or several clips, which come after the first."),
            ],
            outputs=[Clips.Output("clips", display_name="clips", tooltip=_OUTPUTS_TOOLTIP)],
        )

    @classmethod
    def execute(cls, clips_1: tuple[Clip, ...], clips_2: tuple[Clip, ...]) -> io.NodeOutput:
        return io.NodeOutput((*clips_1, *clips_2))


def _from_images(images: torch.Tensor, images_fps: float, cut: dict[str, Any]) -> Clip:
    """A clip of an IMAGE batch, whose rate is not known: without one, its frames are those to train on."""
    from ..motion_lora.media.read import clip_from_frames

    return clip_from_frames(images[..., :3], images_fps or cut["fps"], source="images", **cut)


def _from_video(video: Any, cut: dict[str, Any]) -> Clip:
    """A clip of a VIDEO. From a file only the frames that are wanted are decoded; the whole may not fit in memory."""
    from ..motion_lora.media.read import clip_from_frames, read_clip

    part = _part_of_file(video)
    if part is not None:
        source, first, length = part
        with _on_disk(source) as path:
            return read_clip(path, **{**_within(cut, length), "start": cut["start"] + first})
    if hasattr(video, "as_trimmed"):
        # Half a second more than asked, so that the last frame has a neighbour to be nearest to; 0 is all of it.
        seconds = cut["num_frames"] / cut["fps"] + 0.5 if cut["num_frames"] else 0
        video = video.as_trimmed(cut["start"], seconds)
        if video is None:
            raise ClipError(f"the video ends before second {cut['start']:g}, where the clip should start")
        cut = {**cut, "start": 0.0}
    parts = video.get_components()
    return clip_from_frames(parts.images[..., :3], float(parts.frame_rate), source="video", **cut)


def frames_of(video: Any) -> torch.Tensor:
    """All frames (f, h, w, 3) of a VIDEO, fp32 on the CPU."""
    from ..motion_lora.media.read import read_frames

    part = _part_of_file(video)
    if part is None or part[1:] != (0.0, 0.0):
        frames: torch.Tensor = video.get_components().images[..., :3].float().cpu().clone()
        return frames
    with _on_disk(part[0]) as path:
        return read_frames(path)[0]


@contextmanager
def _on_disk(source: str | io_module.BytesIO) -> Iterator[Path]:
    """The file of a video; what a host holds in memory is written to one for as long as it is read."""
    if isinstance(source, str):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="motion_lora_") as folder:
        path = Path(folder) / "video"
        path.write_bytes(source.getbuffer())
        yield path


def _part_of_file(video: Any) -> tuple[str | io_module.BytesIO, float, float] | None:
    """The file of a VIDEO, its first second and its length (0: to the end), where that is all there is to it.

    A host that trims keeps both in private; where anything else is kept, as a crop, the host has to decode it.
    """
    kept = {name.rpartition("__")[2]: value for name, value in vars(video).items()}
    # Asked for its source, a video of frames would be encoded.
    source = None if "components" in kept else video.get_stream_source()
    in_memory = isinstance(source, io_module.BytesIO) and source is kept.get("file")
    if not isinstance(source, str) and not in_memory:
        return None
    if not hasattr(video, "as_trimmed"):
        return source, 0.0, 0.0
    if set(kept) != {"file", "start_time", "duration"} or kept["start_time"] < 0 or kept["duration"] < 0:
        return None
    return source, float(kept["start_time"]), float(kept["duration"])


def _within(cut: dict[str, Any], length: float) -> dict[str, Any]:
    """The same request within a trimmed length. Raises ClipError where it holds too little."""
    if not length:
        return cut
    available = int((length - cut["start"]) * cut["fps"] + 1e-3)
    if max(1, cut["num_frames"] or 1) > available:
        raise ClipError(
            f"the video is trimmed to {length:g} s, which holds {max(0, available)} frames at {cut['fps']:g} fps from "
            f"{cut['start']:g} s on: ask for fewer frames, or trim it less"
        )
    return {**cut, "num_frames": cut["num_frames"] or available}


def _clip_output(clip: Clip, node: type[io.ComfyNode]) -> io.NodeOutput:
    """A clip with its frames and captions, shown in the node as a contact sheet."""
    rows = [
        (f"{start + 1}", clip.frames[start : start + _SHEET_COLUMNS])
        for start in range(0, clip.num_frames, _SHEET_COLUMNS)
    ]
    sheet = contact_sheet(rows, columns=_SHEET_COLUMNS, tile_side=96)
    return io.NodeOutput(
        (clip,),
        server.to_output(clip.frames),
        clip.caption,
        clip.appearance_caption,
        ui=previews.in_node(previews.picture(sheet), node),
    )
