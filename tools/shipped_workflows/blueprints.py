"""Subgraph blueprints: nodes that ComfyUI lists as one, which the user can open and change."""

from __future__ import annotations

from dataclasses import dataclass

from .parts import CLIP, PROMPT, Node, base, sample, save, stack, train


@dataclass
class Blueprint:
    """A graph; what is `inside` becomes one node with the links across its border and the `shown` widgets."""

    nodes: list[Node]
    inside: tuple[str, ...]
    shown: tuple[tuple[str, str], ...]
    description: str


BLUEPRINTS: dict[str, Blueprint] = {
    "Motion LoRA from a video": Blueprint(
        [
            base((0, 0)),
            Node("video", "MotionLoRA_LoadClip", (0, 200), {"file": CLIP}, size=(420, 80)),
            Node(
                "clip",
                "MotionLoRA_ReferenceClip",
                (480, 0),
                {
                    "caption": "a red circle circling around over sand",
                    "appearance_caption": "a red circle over sand",
                    "absorb_words": "red circle, sand",
                    "num_frames": 8,
                    "width": 64,
                    "height": 64,
                },
                {"video": ("video", "video")},
                (420, 560),
            ),
            train("train", (960, 0), "customize-a-video", "clip", "my motion"),
            stack("stack", (1440, 0), "train"),
            Node("kept", "MotionLoRA_SaveMotionLoRA", (1440, 400), {}, {"motion_lora": ("train", "motion_lora")}),
            sample("moved", (1900, 0), PROMPT, "stack"),
            save("save", (2360, 0), "moved", "video/motion_lora"),
        ],
        inside=("clip", "train", "stack"),
        shown=(
            ("clip", "caption"),
            ("clip", "appearance_caption"),
            ("clip", "absorb_words"),
            ("clip", "num_frames"),
            ("clip", "width"),
            ("clip", "height"),
            ("train", "steps"),
            ("train", "name"),
            ("train", "run"),
            ("stack", "strength"),
        ),
        description="Customize-A-Video: learns the motion of a video on a base model, and gives the LoRA and a stack "
        "for Sample Video. Describe the video in both captions, with its motion and without.",
    ),
}
"""By the name under which ComfyUI lists it, which is that of its file."""
