"""The nodes that the shipped workflows are put together from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

PLAYGROUND = "playground (built-in)"
# What comes with the pack (tools/make_examples.py).
ORBIT, BOUNCE = "examples/motion/orbit.safetensors", "examples/motion/bounce.safetensors"
LOOK, FRIENDS = "examples/look/striped_cyan_cross.safetensors", "examples/friends/swing.safetensors"
CLIP = "examples/clips/orbit.mp4"
PROMPT = "a blue square circling around over snow"
MUTED = 2


@dataclass
class Node:
    """One node: type, place, widgets by name; `links` are input name -> (key of a node, name of its output)."""

    key: str
    type: str
    pos: tuple[int, int]
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, str]] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    title: str = ""
    mode: int = 0


def note(key: str, pos: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    """A note in the graph, in Markdown."""
    return Node(key, "MarkdownNote", pos, {"": text.strip()}, size=size, title="Read me")


def base(pos: tuple[int, int], model: str = PLAYGROUND) -> Node:
    return Node("base", "MotionLoRA_LoadT2VModel", pos, {"model": model})


def sample(key: str, pos: tuple[int, int], prompt: str, stack: str = "", title: str = "", **widgets: Any) -> Node:
    links = {"base_model": ("base", "base_model"), **({"stack": (stack, "stack")} if stack else {})}
    return Node(key, "MotionLoRA_SampleVideo", pos, {"prompt": prompt, "seed": 7, **widgets}, links, (400, 600), title)


def stack(
    key: str, pos: tuple[int, int], lora: str, before: str = "", strength: float = 1.0, schedule: str = ""
) -> Node:
    links = {"motion_lora": (lora, "motion_lora"), **({"stack": (before, "stack")} if before else {})}
    links |= {"schedule": (schedule, "schedule")} if schedule else {}
    return Node(key, "MotionLoRA_MotionLoRAStack", pos, {"strength": strength}, links)


def save(key: str, pos: tuple[int, int], source: str, prefix: str) -> Node:
    return Node(key, "SaveVideo", pos, {"filename_prefix": prefix}, {"video": (source, "video")}, (420, 460))


def beside(
    pos: tuple[int, int], left: str, right: str, reference: tuple[str, str] | None = None, **widgets: Any
) -> Node:
    links = {"left": (left, "images"), "right": (right, "images")}
    if reference:
        links["reference"] = reference
    return Node("beside", "MotionLoRA_SideBySide", pos, widgets, links, (400, 420))


def clip(key: str, pos: tuple[int, int], title: str = "", **widgets: Any) -> Node:
    return Node(key, "MotionLoRA_PlaygroundClip", pos, widgets, size=(400, 440), title=title)


def train(
    key: str, pos: tuple[int, int], method: str, clips: str, name: str, *, absorber: str = "", title: str = ""
) -> Node:
    links = {"base_model": ("base", "base_model"), "clips": (clips, "clips")}
    if absorber:
        links["appearance_absorber"] = (absorber, "appearance_absorber")
    widgets = {"method": method, "name": name}
    return Node(key, "MotionLoRA_TrainMotionLoRA", pos, widgets, links, (420, 620), title)


def combine(key: str, pos: tuple[int, int], first: str, second: str) -> Node:
    links = {"clips_1": (first, "clips"), "clips_2": (second, "clips")}
    return Node(key, "MotionLoRA_CombineClips", pos, {}, links)


def with_links(node: Node, **links: tuple[str, str]) -> Node:
    return replace(node, links={**node.links, **links})
