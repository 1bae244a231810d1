"""Builds the shipped workflows in a real front end and saves them as it saves them, with a thumbnail each.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python tests/build_workflows.py [name ...]

Widgets are set by name here, so that a new widget of a node does not shift the others.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_host import ROOT, Browser, RealComfyUI

FOLDER = ROOT / "workflows"
PLAYGROUND = "playground (built-in)"
LORA = "motion/my_motion.safetensors"
_NAMESPACE = uuid.UUID("6f0c1b60-5f0e-4a2b-9c65-0a3d4c5b6e7f")


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


def note(key: str, pos: tuple[int, int], size: tuple[int, int], text: str) -> Node:
    """A note in the graph, in Markdown."""
    return Node(key, "MarkdownNote", pos, {"": text.strip()}, size=size, title="Read me")


def base(pos: tuple[int, int], model: str = PLAYGROUND) -> Node:
    return Node("base", "MotionLoRA_LoadT2VModel", pos, {"model": model})


def sample(key: str, pos: tuple[int, int], prompt: str, stack: str = "", title: str = "", **widgets: Any) -> Node:
    links = {"base_model": ("base", "base_model"), **({"stack": (stack, "stack")} if stack else {})}
    return Node(key, "MotionLoRA_SampleVideo", pos, {"prompt": prompt, "seed": 7, **widgets}, links, (400, 1000), title)


def stack(key: str, pos: tuple[int, int], lora: str, before: str = "", strength: float = 1.0) -> Node:
    links = {"motion_lora": (lora, "motion_lora"), **({"stack": (before, "stack")} if before else {})}
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


PROMPT = "a blue square circling around over snow"

WORKFLOWS: dict[str, list[Node]] = {
    "01_quickstart_playground": [
        note(
            "note",
            (0, 0),
            (400, 330),
            """
# Quickstart: press Run

Learns the motion of a small rendered clip and puts it into a new video. Nothing is downloaded; on two CPU cores it
takes a few minutes.

1. **Clip**: a red circle circles over sand. The built-in model has never seen circling.
2. **Absorber**: learns what single frames look like, so that the LoRA need not.
3. **Motion LoRA**: learns the motion. Watch it in the node, or in the panel behind the camera symbol on the left.
4. **Videos**: the same prompt and seed without and with the LoRA.

Then change the motion of the clip, the prompt or the strength, and press Run again. What is trained is not trained
twice.
""",
        ),
        base((0, 390)),
        Node("clip", "MotionLoRA_PlaygroundClip", (0, 580), {"motion": "orbit"}, size=(400, 440)),
        Node(
            "absorber",
            "MotionLoRA_TrainAppearanceAbsorber",
            (460, 0),
            {"absorber": "dual", "name": "look of a red circle"},
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 660),
        ),
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (940, 0),
            {"method": "customize-a-video", "name": "orbit"},
            {
                "base_model": ("base", "base_model"),
                "clips": ("clip", "clips"),
                "appearance_absorber": ("absorber", "appearance_absorber"),
            },
            (420, 760),
        ),
        stack("stack", (940, 810), "train"),
        sample("plain", (1420, 0), PROMPT, title="Sample Video: base model"),
        sample("moved", (1420, 680), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside(
            (1880, 0), "plain", "moved", ("clip", "frames"), left_label="base model", right_label="with motion LoRA"
        ),
        save("save", (2340, 480), "beside", "video/motion_lora_quickstart"),
    ],
    "02_customize_a_video": [
        note(
            "note",
            (0, 0),
            (420, 400),
            """
# Customize-A-Video on your own clip

1. Put ModelScope (`text-to-video-ms-1.7b`) or ZeroScope (`zeroscope_v2_576w`) in diffusers' layout into
   `models/diffusers`, or allow the download once in **Load T2V Model**.
2. Choose your clip in **Load Video**: two seconds of one clear motion.
3. Describe it in **Reference Clip**: the caption with its motion, the appearance caption without, and the words for the
   look that stand in both.
4. Press Run. The node shows the frames that are trained; training takes minutes on a GPU.

Little memory? Switch gradient_checkpointing on in the training node, or make the clip smaller.
""",
        ),
        base((0, 460), "text-to-video-ms-1.7b"),
        Node("video", "LoadVideo", (0, 650), {}, size=(420, 300)),
        Node(
            "clip",
            "MotionLoRA_ReferenceClip",
            (480, 0),
            {
                "caption": "a man is skateboarding on a street",
                "appearance_caption": "a man on a street",
                "absorb_words": "man, street",
            },
            {"video": ("video", "VIDEO")},
            (420, 560),
        ),
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (960, 0),
            {"method": "customize-a-video", "name": "skateboarding"},
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 780),
        ),
        Node("plot", "PreviewImage", (960, 830), {}, {"images": ("train", "loss_plot")}, (420, 300)),
        stack("stack", (1440, 0), "train"),
        sample("moved", (1440, 190), "a panda is skateboarding on a beach", "stack", num_frames=16),
        save("save", (1900, 0), "moved", "video/motion_lora"),
    ],
    "03_sample_shared_lora": [
        note(
            "note",
            (0, 0),
            (400, 260),
            """
# Use a motion LoRA

1. Put the file into `models/loras/motion` (or `models/motion_lora`) and press R.
2. Choose it in **Load Motion LoRA**, and in **Load T2V Model** a base of the kind it was trained on. Its caption
   says in which words to prompt.
3. Press Run: the same seed with the base model alone and with the LoRA.
""",
        ),
        base((0, 320), "text-to-video-ms-1.7b"),
        Node("lora", "MotionLoRA_LoadMotionLoRA", (0, 510), {"lora_name": LORA}),
        Node("caption", "PreviewAny", (0, 660), {}, {"source": ("lora", "caption")}, (400, 160)),
        stack("stack", (460, 0), "lora"),
        sample("plain", (460, 190), "a panda is skateboarding on a beach", title="Sample Video: base model"),
        sample("moved", (920, 190), "a panda is skateboarding on a beach", "stack", "Sample Video: with motion LoRA"),
        beside((1380, 0), "plain", "moved"),
        save("save", (1380, 480), "beside", "video/motion_lora_compare"),
    ],
    "04_stack_motions_and_look": [
        note(
            "note",
            (0, 0),
            (400, 320),
            """
# Two motions and a look on one stack

A stack is a list of LoRAs with strengths; the order changes nothing.

1. Choose two motion LoRAs and turn their strengths. Below 0 turns a motion round.
2. **Appearance LoRA** takes an image LoRA that fits the base (Stable Diffusion 2.1 for ModelScope and ZeroScope). To do
   without, bypass the node (Ctrl+B).
3. **Appearance Highway** keeps the motion LoRAs out of the skip connections: switch it, press Run and compare.
""",
        ),
        base((0, 380), "text-to-video-ms-1.7b"),
        Node("first", "MotionLoRA_LoadMotionLoRA", (0, 570), {"lora_name": LORA}),
        Node("second", "MotionLoRA_LoadMotionLoRA", (0, 720), {"lora_name": LORA}),
        stack("one", (460, 0), "first", strength=0.8),
        stack("two", (460, 190), "second", "one", strength=0.5),
        Node(
            "look",
            "MotionLoRA_AppearanceLoRA",
            (460, 380),
            {"lora_name": LORA, "strength": 0.7},
            {"base_model": ("base", "base_model"), "stack": ("two", "stack")},
        ),
        Node("highway", "MotionLoRA_AppearanceHighway", (460, 600), {}, {"stack": ("look", "stack")}),
        sample("moved", (920, 0), "a panda is skateboarding on a beach", "highway"),
        save("save", (1380, 0), "moved", "video/motion_lora_stack"),
    ],
    "05_train_in_background": [
        note(
            "note",
            (0, 0),
            (400, 380),
            """
# Train in the background

Press Run: the training starts and the queue is free at once. Go on working; the panel behind the camera symbol on the
left shows loss, speed and previews, and has the buttons to pause, resume, stop and save, and cancel.

* When it is done, this workflow is queued again by itself and the video is made. Switch **continue_when_done** off to
  do that yourself.
* Closed ComfyUI meanwhile? Open it again and press Resume in the panel, or Run: it goes on from its last checkpoint.
* **pause_while_generating** gives a small GPU back while other workflows run.
""",
        ),
        base((0, 440)),
        Node("clip", "MotionLoRA_PlaygroundClip", (0, 630), {"motion": "bounce", "colour": "green"}, size=(400, 440)),
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (460, 0),
            {
                "method": "customize-a-video",
                "name": "bounce",
                "run": "background",
                "preview_prompt": "a yellow ring bouncing over night",
                "preview_every": 100,
            },
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 780),
        ),
        stack("stack", (460, 830), "train"),
        sample("moved", (940, 0), "a yellow ring bouncing over night", "stack"),
        save("save", (1400, 0), "moved", "video/motion_lora_background"),
    ],
}

_BUILD = """async (nodes) => {
  app.graph.clear()
  const made = {}
  for (const wanted of nodes) {
    const node = LiteGraph.createNode(wanted.type)
    app.graph.add(node)
    node.pos = wanted.pos
    if (wanted.size) node.setSize(wanted.size)
    if (wanted.title) node.title = wanted.title
    for (const [name, value] of Object.entries(wanted.widgets)) {
      const widget = name ? node.widgets.find((one) => one.name === name) : node.widgets[0]
      if (!widget) throw new Error(`${wanted.type} has no widget ${name}`)
      widget.value = value
    }
    const control = node.widgets?.find((one) => one.name === 'control_after_generate')
    if (control) control.value = 'fixed'
    made[wanted.key] = node
  }
  for (const wanted of nodes) for (const [input, [key, output]] of Object.entries(wanted.links)) {
    const [from, to] = [made[key], made[wanted.key]]
    const [slot, target] = [from.findOutputSlot(output), to.findInputSlot(input)]
    if (slot < 0 || target < 0) throw new Error(`no link ${key}.${output} -> ${wanted.key}.${input}`)
    from.connect(slot, to, target)
  }
  await new Promise((done) => setTimeout(done, 300))
  return JSON.stringify(app.graph.serialize())
}"""


def normalised(name: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one build to the next."""
    saved["id"] = str(uuid.uuid5(_NAMESPACE, name))
    saved["revision"] = 0
    saved["extra"] = {"ds": {"scale": 0.6, "offset": [120, 120]}}
    saved.pop("floatingLinks", None)
    for node in saved["nodes"]:
        node["pos"] = [round(value) for value in node["pos"]]
        node["size"] = [round(value) for value in node["size"]]
        if node["type"].startswith("Preview"):
            # What these show is no setting.
            node.pop("widgets_values", None)
        for key in ("cnr_id", "ver", "aux_id"):
            node["properties"].pop(key, None)
        if node["type"].startswith("MotionLoRA_"):
            node["properties"]["cnr_id"] = "motion-lora"
        elif node["type"] not in ("MarkdownNote",):
            node["properties"]["cnr_id"] = "comfy-core"
    return saved


def thumbnail(browser: Browser) -> bytes:
    """The graph as the user sees it, 16:9, as JPEG."""
    from PIL import Image

    browser.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    browser.page.wait_for_timeout(1500)
    shot = Image.open(io.BytesIO(browser.page.screenshot())).convert("RGB")
    # Without the bars at the left and at the top.
    shot = shot.crop((80, 45, shot.width, 45 + round((shot.width - 80) * 9 / 16)))
    stream = io.BytesIO()
    shot.resize((960, 540), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def main(names: list[str]) -> int:
    """Build those named, or all."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RealComfyUI(Path(folder), settings={"Comfy.Minimap.Visible": False})
        # A combo without options would be saved as "undefined".
        (Path(folder) / "input" / "my_clip.mp4").write_bytes(b"")
        server.start()
        browser = Browser(playwright, server, Path(folder)).open()
        browser.page.set_viewport_size({"width": 1920, "height": 1080})
        try:
            for name in names or list(WORKFLOWS):
                nodes = [vars(node) for node in WORKFLOWS[name]]
                saved = normalised(name, json.loads(browser.page.evaluate(_BUILD, nodes)))
                (FOLDER / f"{name}.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8", newline="\n")
                (FOLDER / f"{name}.jpg").write_bytes(thumbnail(browser))
                sys.stdout.write(f"{name}: {len(saved['nodes'])} nodes, {len(saved['links'])} links\n")
        finally:
            browser.close()
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
