"""Builds the shipped workflows in a real front end and saves them as it saves them, with a thumbnail each.

    COMFYUI_DIR=... COMFYUI_PYTHON=... ADE_DIR=... python tools/build_workflows.py [name ...]

ADE_DIR is a checkout of AnimateDiff-Evolved, whose nodes are in 17_animatediff_evolved.

Widgets are set by name here, so that a new widget of a node does not shift the others.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from real_host import ROOT, Browser, RealComfyUI

FOLDER = ROOT / "workflows"
PLAYGROUND = "playground (built-in)"
# What comes with the pack (tools/make_examples.py).
ORBIT, BOUNCE = "examples/motion/orbit.safetensors", "examples/motion/bounce.safetensors"
LOOK, FRIENDS = "examples/look/striped_cyan_cross.safetensors", "examples/friends/swing.safetensors"
CLIP = "examples/clips/orbit.mp4"
# Text is drawn however small it is, so that a thumbnail can be read.
_SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.01,
}
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


def animatediff(pos: tuple[int, int]) -> Node:
    """Load T2V Model, where both files are still to be chosen."""
    # Set to what they are, they are unfolded.
    files = {"checkpoint": "none", "motion_module": "none"}
    return Node("base", "MotionLoRA_LoadT2VModel", pos, {"model": "checkpoint + motion module (AnimateDiff)", **files})


def sd_clip(key: str, pos: tuple[int, int]) -> Node:
    """The example clip in a size that Stable Diffusion 1.5 can take."""
    widgets = {
        "caption": "a red circle circling around over sand",
        "appearance_caption": "a red circle over sand",
        "absorb_words": "red circle, sand",
        "num_frames": 16,
        "width": 256,
        "height": 256,
    }
    return Node(key, "MotionLoRA_ReferenceClip", pos, widgets, {"video": ("video", "video")}, (420, 560))


def evolved(pos: tuple[int, int]) -> list[Node]:
    """The nodes of ComfyUI and of AnimateDiff-Evolved that make a video with a motion LoRA; they are muted."""
    x, y = pos
    nodes = [
        Node("sd", "CheckpointLoaderSimple", (x, y), size=(400, 100)),
        Node("module", "ADE_LoadAnimateDiffModel", (x, y + 160), size=(400, 80)),
        Node("motion", "ADE_AnimateDiffLoRALoader", (x, y + 300), {"strength": 1.0}, size=(400, 100)),
        Node(
            "apply",
            "ADE_ApplyAnimateDiffModelSimple",
            (x, y + 460),
            {},
            {"motion_model": ("module", "MOTION_MODEL"), "motion_lora": ("motion", "MOTION_LORA")},
            (400, 140),
        ),
        Node(
            "use",
            "ADE_UseEvolvedSampling",
            (x, y + 660),
            {},
            {"model": ("sd", "MODEL"), "m_models": ("apply", "M_MODELS")},
            (400, 120),
        ),
        Node("positive", "CLIPTextEncode", (x + 460, y), {"text": SD_PROMPT}, {"clip": ("sd", "CLIP")}, (400, 140)),
        Node("negative", "CLIPTextEncode", (x + 460, y + 200), {"text": ""}, {"clip": ("sd", "CLIP")}, (400, 120)),
        Node(
            "latents",
            "EmptyLatentImage",
            (x + 460, y + 380),
            {"width": 512, "height": 512, "batch_size": 16},
            size=(400, 110),
        ),
        Node(
            "ksampler",
            "KSampler",
            (x + 920, y),
            {"seed": 7, "steps": 25, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            {
                "model": ("use", "MODEL"),
                "positive": ("positive", "CONDITIONING"),
                "negative": ("negative", "CONDITIONING"),
                "latent_image": ("latents", "LATENT"),
            },
            (360, 400),
        ),
        Node("frames", "VAEDecode", (x + 920, y + 460), {}, {"samples": ("ksampler", "LATENT"), "vae": ("sd", "VAE")}),
        Node("video_of", "CreateVideo", (x + 920, y + 580), {"fps": 8.0}, {"images": ("frames", "IMAGE")}, (360, 80)),
        Node(
            "save",
            "SaveVideo",
            (x + 1340, y),
            {"filename_prefix": "video/motion_lora_evolved"},
            {"video": ("video_of", "VIDEO")},
            (420, 460),
        ),
    ]
    return [replace(node, mode=MUTED) for node in nodes]


_ANIMATEDIFF = """
# A motion LoRA for AnimateDiff

**Needs** two files that do not come with this pack, and a GPU: a Stable Diffusion 1.5 checkpoint (`models/checkpoints`)
and a motion module, `mm_sd_v15_v2` or `v3_sd15_mm` (`models/animatediff_models`). Nothing is downloaded.

1. Choose both in **Load T2V Model**, then press Run: it learns the motion of the example clip.
2. For your own clip copy two seconds of one clear motion into ComfyUI's `input` folder, press R, choose it in **Load
   Clip**, and describe it in **Reference Clip**: the caption with its motion, the appearance caption without. 512 x 512
   learns finer motion and takes four times the memory.
3. More than 16 frames: raise num_frames in **Sample Video**; its windows of 16 overlap.

Workflow 17 takes the LoRA to AnimateDiff-Evolved.
"""
_EVOLVED = """
# Train here, use in AnimateDiff-Evolved

**Needs** [AnimateDiff-Evolved](https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved) (without it, its three grey
nodes are shown as missing, and the left half works all the same), a GPU, a Stable Diffusion 1.5 checkpoint
(`models/checkpoints`) and a motion module, `mm_sd_v15_v2` or `v3_sd15_mm` (`models/animatediff_models`).

1. Choose both in **Load T2V Model**, then press Run: it learns the motion of the example clip, and **Convert LoRA**
   writes it in AnimateDiff's own form to `output/loras/animatediff`.
2. Press R. Select the muted nodes on the right and press Ctrl+M. Choose the same checkpoint and module there, and the
   LoRA in *Load AnimateDiff LoRA*. Press Run again.

A LoRA belongs to modules of its kind: one of v2 has layers in the middle block that v3 lacks, and they are passed over.
"""
MUTED = 2
SD_PROMPT = "a blue balloon circling around over snow"
NEEDS: dict[str, tuple[str, ...]] = {
    "16_animatediff": ("Stable Diffusion 1.5 checkpoint", "motion module"),
    "17_animatediff_evolved": ("AnimateDiff-Evolved", "Stable Diffusion 1.5 checkpoint", "motion module"),
}
"""What a workflow needs that no new user has; all others run at one press. Its note says so."""
PROMPT = "a blue square circling around over snow"
EDITED = "a blue circle moving right over snow"

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
3. **Motion LoRA**: learns the motion, with the absorber held. Watch it in the node, or in the panel behind the camera
   symbol on the left.
4. **Videos**: the same prompt and seed without and with the LoRA.

Then change the motion of the clip, the prompt or the strength, and press Run again. What is trained is not trained
twice. With more time: `method` *auto* and `steps` 0 carry a motion best on this model.
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
            (420, 620),
        ),
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (940, 0),
            {"method": "customize-a-video", "steps": 300, "name": "orbit"},
            {
                "base_model": ("base", "base_model"),
                "clips": ("clip", "clips"),
                "appearance_absorber": ("absorber", "appearance_absorber"),
            },
            (420, 620),
        ),
        stack("stack", (940, 680), "train"),
        sample("plain", (1420, 0), PROMPT, title="Sample Video: base model"),
        sample("moved", (1880, 0), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside(
            (2340, 0), "plain", "moved", ("clip", "frames"), left_label="base model", right_label="with motion LoRA"
        ),
        save("save", (2340, 560), "beside", "video/motion_lora_quickstart"),
    ],
    "02_customize_a_video": [
        note(
            "note",
            (0, 0),
            (420, 470),
            """
# Customize-A-Video on a video file

Press Run: it learns the motion of the example clip on the built-in model. Nothing is downloaded.

With your own clip and a real model:

1. **Load T2V Model**: set `model` to *text-to-video-ms-1.7b* (ModelScope) or *zeroscope_v2_576w*, and `download` to
   *allowed*, or put its diffusers folder into `models/diffusers`. These two widgets are all that the model needs.
2. Copy two seconds of one clear motion into ComfyUI's `input` folder, press R, choose it in **Load Clip**.
3. Describe it in **Reference Clip**: the caption with its motion, the appearance caption without, and the words for the
   look that stand in both. Set 16 frames at 256 x 256 there.

The training node says beforehand how long it will take and whether it fits into memory. Too much? Make the clip
smaller, or unfold the node (*Show Advanced*) and switch gradient_checkpointing on.
""",
        ),
        base((0, 530)),
        Node("video", "MotionLoRA_LoadClip", (0, 720), {"file": CLIP}, size=(420, 80)),
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
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (960, 0),
            {"method": "customize-a-video", "name": "my motion"},
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 620),
        ),
        Node("plot", "PreviewImage", (960, 680), {}, {"images": ("train", "loss_plot")}, (420, 300)),
        stack("stack", (1440, 0), "train"),
        sample("moved", (1440, 280), PROMPT, "stack"),
        save("save", (1900, 0), "moved", "video/motion_lora"),
    ],
    "03_sample_shared_lora": [
        note(
            "note",
            (0, 0),
            (400, 290),
            """
# Use a motion LoRA

Press Run: the same seed with the base model alone and with an example LoRA, which comes with this pack.

With another file: put it into `models/loras/motion` (or `models/motion_lora`), press R, choose it in **Load Motion
LoRA**, and in **Load T2V Model** a base of the kind it was trained on. Its caption says in which words to prompt.
""",
        ),
        base((0, 350)),
        Node("lora", "MotionLoRA_LoadMotionLoRA", (0, 540), {"lora_name": ORBIT}),
        Node("caption", "PreviewAny", (0, 690), {}, {"source": ("lora", "caption")}, (400, 160)),
        stack("stack", (460, 0), "lora"),
        sample("plain", (460, 280), PROMPT, title="Sample Video: base model"),
        sample("moved", (920, 280), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside((1380, 0), "plain", "moved"),
        save("save", (1380, 480), "beside", "video/motion_lora_compare"),
    ],
    "04_stack_motions_and_look": [
        note(
            "note",
            (0, 0),
            (400, 360),
            """
# Two motions and a look on one stack

Press Run. A stack is a list of LoRAs with strengths; the order changes nothing. All three come with this pack.

1. Turn the strengths of the two motions, or choose others. Below 0 turns a motion round.
2. **Appearance LoRA** takes an image LoRA that fits the base (Stable Diffusion 2.1 for ModelScope and ZeroScope). To do
   without, bypass the node (Ctrl+B).
3. **Appearance Highway** keeps the motion LoRAs out of the skip connections: switch it, press Run and compare.
""",
        ),
        base((0, 420)),
        Node("first", "MotionLoRA_LoadMotionLoRA", (0, 610), {"lora_name": ORBIT}),
        Node("second", "MotionLoRA_LoadMotionLoRA", (0, 760), {"lora_name": BOUNCE}),
        stack("one", (460, 0), "first", strength=0.8),
        stack("two", (460, 270), "second", "one", strength=0.5),
        Node(
            "look",
            "MotionLoRA_AppearanceLoRA",
            (460, 540),
            {"lora_name": LOOK, "strength": 0.7},
            {"base_model": ("base", "base_model"), "stack": ("two", "stack")},
        ),
        Node("highway", "MotionLoRA_AppearanceHighway", (460, 770), {}, {"stack": ("look", "stack")}),
        sample("moved", (920, 0), "a striped cyan cross circling around over sand", "highway"),
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
  do that yourself; it is among the folded inputs (*Show Advanced*).
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
                "method": "auto",
                "name": "bounce",
                "run": "background",
                "preview_prompt": "a yellow ring bouncing over night",
            },
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 620),
        ),
        stack("stack", (460, 680), "train"),
        sample("moved", (940, 0), "a yellow ring bouncing over night", "stack"),
        save("save", (1400, 0), "moved", "video/motion_lora_background"),
    ],
    "06_motiondirector": [
        note(
            "note",
            (0, 0),
            (400, 360),
            """
# MotionDirector on one clip

Press Run. Nothing is downloaded; on two CPU cores it takes a few minutes.

No absorber is trained first. In every step a spatial LoRA learns the look from one random frame and the motion LoRA
learns from the whole clip with the look held, so the two divide the clip between them. Only the motion LoRA is used.

Try: the method *customize-a-video* in the same node, with the same seed; or an **Invert Clip** at the noise input of
Sample Video, with a prior of 0.3.
""",
        ),
        base((0, 420)),
        clip("clip", (0, 610), motion="orbit"),
        train("train", (460, 0), "motiondirector", "clip", "orbit by MotionDirector"),
        stack("stack", (460, 680), "train"),
        sample("plain", (940, 0), PROMPT, title="Sample Video: base model"),
        sample("moved", (1400, 0), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside((1860, 0), "plain", "moved", ("clip", "frames"), left_label="base model", right_label="MotionDirector"),
        save("save", (1860, 560), "beside", "video/motion_lora_motiondirector"),
    ],
    "07_motiondirector_several_clips": [
        note(
            "note",
            (0, 0),
            (400, 320),
            """
# MotionDirector on several clips

Press Run. Three clips share a motion and nothing else: what they have in common is what is left for the motion LoRA.

Each clip has its own caption and a spatial LoRA of its own, one motion LoRA learns from all of them in turn.

With your own videos: one **Reference Clip** each, and **Combine Clips** for as many as there are. Give the training
more steps, because each clip gets its share of them.
""",
        ),
        base((0, 380)),
        clip("one", (460, 0), motion="bounce"),
        clip("two", (460, 500), motion="bounce", shape="square", colour="green", background="night", seed=1),
        clip("three", (460, 1000), motion="bounce", shape="ring", colour="yellow", background="brick", seed=2),
        combine("pair", (920, 0), "one", "two"),
        combine("all", (920, 140), "pair", "three"),
        train("train", (920, 280), "motiondirector", "all", "bounce of three"),
        stack("stack", (920, 960), "train"),
        sample("plain", (1400, 0), "a blue cross bouncing over snow", title="Sample Video: base model"),
        sample("moved", (1860, 0), "a blue cross bouncing over snow", "stack", "Sample Video: with motion LoRA"),
        beside((2320, 0), "plain", "moved", ("one", "frames"), left_label="base model", right_label="with motion LoRA"),
        save("save", (2320, 560), "beside", "video/motion_lora_several_clips"),
    ],
    "08_image_path_and_mixing": [
        note(
            "note",
            (0, 0),
            (400, 360),
            """
# The look of pictures with the motion of a clip

Press Run. Two LoRAs are trained, one for each half, and meet on one stack.

1. **Look**: pictures of a striped cyan cross, in no order (*motiondirector-image*; only spatial layers learn). With
   your own: connect Load Image, one picture is enough.
2. **Motion**: a red circle that circles around (*motiondirector*; only temporal layers are kept).
3. Turn both strengths. A little less of the look leaves the motion more room.
""",
        ),
        base((0, 420)),
        clip("photos", (0, 610), "Pictures of the look", shape="cross", colour="cyan", fill="striped", motion="still"),
        Node(
            "pictures",
            "MotionLoRA_ReferenceClip",
            (460, 0),
            {"caption": "a striped cyan cross over sand", "num_frames": 0, "width": 64, "height": 64},
            {"images": ("photos", "frames")},
            (400, 560),
        ),
        clip("clip", (460, 620), "Clip of the motion", motion="orbit"),
        train("look", (920, 0), "motiondirector-image", "pictures", "striped cyan cross", title="Train the look"),
        train("motion", (920, 680), "motiondirector", "clip", "orbit by MotionDirector", title="Train the motion"),
        stack("one", (1400, 0), "look", strength=0.8),
        stack("two", (1400, 240), "motion", "one"),
        sample("plain", (1860, 0), "a striped cyan cross circling around over sand", "one", "Sample Video: look alone"),
        sample(
            "moved", (2320, 0), "a striped cyan cross circling around over sand", "two", "Sample Video: look and motion"
        ),
        beside((2780, 0), "plain", "moved", ("clip", "frames"), left_label="look", right_label="look and motion"),
        save("save", (2780, 560), "beside", "video/motion_lora_mixed"),
    ],
    "09_tap_and_highway": [
        note(
            "note",
            (0, 0),
            (400, 400),
            """
# Separate Motion from Appearance

Press Run. Three ways to keep the clip's look out of new videos, one after the other:

1. **Purification (TAP)**: the method trains few projections of the temporal attention. `targets` changes which:
   *tap-qk* leaves Value alone, as the paper's abstract says, *tap-k-out* is its code.
2. **Phased integration**: **Strength Schedule** lets the motion LoRA act only while there is much noise, in the first
   part of the steps.
3. **Appearance Highway**: skip connections go round the temporal attention. No training; switch it off and on.

Left the LoRA alone, right with schedule and highway, same seed.
""",
        ),
        base((0, 460)),
        clip("clip", (0, 650), motion="orbit"),
        train("train", (460, 0), "separate-motion-appearance", "clip", "orbit by TAP"),
        stack("plain_stack", (940, 0), "train"),
        Node("schedule", "MotionLoRA_StrengthSchedule", (940, 260), {"end": 0.7}, size=(400, 420)),
        stack("stack", (940, 740), "train", schedule="schedule"),
        Node("highway", "MotionLoRA_AppearanceHighway", (940, 1000), {}, {"stack": ("stack", "stack")}),
        sample("tap", (1400, 0), PROMPT, "plain_stack", "Sample Video: TAP"),
        sample("both", (1860, 0), PROMPT, "highway", "Sample Video: TAP, phased, highway"),
        beside((2320, 0), "tap", "both", ("clip", "frames"), left_label="TAP", right_label="TAP, phased, AH"),
        save("save", (2320, 560), "beside", "video/motion_lora_tap_and_highway"),
    ],
    "10_edit_by_inversion": [
        note(
            "note",
            (0, 0),
            (400, 420),
            """
# Edit a clip

Press Run. Nothing is trained, and nothing is downloaded. Two ways to change what is in a clip and keep how it moves:

1. **Invert Clip** finds the noise that the base would have made the clip from, under the clip's own caption. Sampling
   from that noise with a changed prompt keeps the layout. `noise_prior` 1 keeps most of it; at 0.3 it only inspires.
   Use as many *ddim* steps as the inversion.
2. **Video to video**: the clip's frames at `source`; `edit_strength` is how much of the denoising is done anew.

With guidance 1 and the clip's own caption the first way gives the clip back: try it.
""",
        ),
        base((0, 480)),
        clip("clip", (0, 670), motion="right"),
        Node(
            "invert",
            "MotionLoRA_InvertClip",
            (460, 0),
            {},
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips"), "prompt": ("clip", "caption")},
            (400, 260),
        ),
        with_links(
            sample(
                "inverted",
                (920, 0),
                EDITED,
                title="Sample Video: from the clip's noise",
                num_inference_steps=50,
                noise_prior=1.0,
            ),
            noise=("invert", "noise"),
        ),
        with_links(
            sample("edited", (1380, 0), EDITED, title="Sample Video: video to video", num_inference_steps=50),
            source=("clip", "frames"),
        ),
        beside((1840, 0), "inverted", "edited", ("clip", "frames"), left_label="inversion", right_label="source"),
        save("save", (1840, 560), "beside", "video/motion_lora_edit"),
    ],
    "11_third_party_absorber": [
        note(
            "note",
            (0, 0),
            (400, 400),
            """
# An absorber that somebody else made

Press Run. What holds the clip's look while the motion is learned need not be trained on the clip: any LoRA of its
subject does.

1. Pictures of a red circle, none of them from the clip, make a LoRA of that look. It stands in for one that you
   downloaded: choose a file in **Absorber from LoRA** instead and remove the two nodes before it.
2. **Preview Absorber** shows whether it knows the subject.
3. The motion is learned with the look held, then used without it.

For a model that was tuned on the subject (DreamBooth) there is **Absorber from Model**.
""",
        ),
        base((0, 460)),
        clip("photos", (0, 650), "Pictures of the subject", motion="still", seed=5),
        clip("clip", (0, 1150), "Clip of the motion", motion="orbit"),
        train("look", (460, 0), "motiondirector-image", "photos", "look of a red circle", title="A LoRA of the look"),
        Node(
            "absorber",
            "MotionLoRA_AbsorberFromLoRA",
            (460, 680),
            {},
            {"base_model": ("base", "base_model"), "lora": ("look", "motion_lora")},
            (420, 160),
        ),
        Node(
            "preview",
            "MotionLoRA_PreviewAbsorber",
            (460, 980),
            {"prompt": "a red circle over sand"},
            {"base_model": ("base", "base_model"), "appearance_absorber": ("absorber", "appearance_absorber")},
            (420, 320),
        ),
        Node("shown", "PreviewImage", (940, 980), {}, {"images": ("preview", "images")}, (420, 320)),
        train("train", (940, 0), "customize-a-video", "clip", "orbit, look held", absorber="absorber"),
        stack("stack", (940, 680), "train"),
        sample("plain", (1420, 0), PROMPT, title="Sample Video: base model"),
        sample("moved", (1880, 0), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside(
            (2340, 0), "plain", "moved", ("clip", "frames"), left_label="base model", right_label="with motion LoRA"
        ),
        save("save", (2340, 560), "beside", "video/motion_lora_third_party"),
    ],
    "12_inspect_and_stack": [
        note(
            "note",
            (0, 0),
            (420, 420),
            """
# A friend's LoRA under your own

1. Press Run with the examples, one of them in kohya's format. A file that you downloaded goes into `models/loras` (any
   format: kohya, PEFT, diffusers, MotionDirector): press R, choose it in **Inspect LoRA** and in **Load LoRA**.
2. **Inspect LoRA** shows what it holds and whether it fits the base; **Load LoRA** says how many layers
   matched. A file for another model is refused with the reason.
3. Your motion acts in the first half of the sampling steps, where motion is decided; the friend's comes in later, and
   weaker. Turn **end**, **start** and the strengths.

To share the mix as one file: **Merge LoRAs**, then **Convert LoRA**.
""",
        ),
        base((0, 480)),
        Node("own", "MotionLoRA_LoadMotionLoRA", (0, 680), {"lora_name": ORBIT}, title="Load Motion LoRA: yours"),
        Node(
            "inspect",
            "MotionLoRA_InspectLoRA",
            (480, 0),
            {"lora_name": FRIENDS},
            {"base_model": ("base", "base_model")},
            (440, 480),
            "Inspect LoRA: your friend's",
        ),
        Node(
            "friend",
            "MotionLoRA_LoadAnyLoRA",
            (480, 540),
            {"lora_name": FRIENDS},
            {"base_model": ("base", "base_model")},
            (440, 280),
            "Load LoRA: your friend's",
        ),
        Node("report", "PreviewAny", (0, 840), {}, {"source": ("friend", "report")}, (420, 160)),
        Node(
            "early",
            "MotionLoRA_StrengthSchedule",
            (980, 0),
            {"end": 0.5},
            size=(400, 440),
            title="Strength Schedule: early",
        ),
        stack("one", (1440, 0), "own", schedule="early"),
        Node(
            "late",
            "MotionLoRA_StrengthSchedule",
            (980, 500),
            {"start": 0.3, "curve": "cosine-in"},
            size=(400, 440),
            title="Strength Schedule: late",
        ),
        stack("two", (1440, 300), "friend", "one", 0.6, schedule="late"),
        sample("moved", (1900, 0), PROMPT, "two"),
        save("save", (1440, 600), "moved", "video/motion_lora_friends"),
    ],
    "13_compare_and_choose": [
        note(
            "note",
            (0, 0),
            (420, 460),
            """
# Choose a checkpoint, compare strengths

Press Run. Nothing is downloaded; on two CPU cores it takes some minutes.

1. **Train Motion LoRA** stops every 100 steps (`validate_every`), samples six small videos and scores them. The panel
   behind the camera symbol on the left draws the curves: motion fidelity, leakage of the clip's look, text alignment.
   The dotted line is the best checkpoint.
2. `keep` *best* hands that one on; the last stays beside it in the job's folder, with the curve as CSV and PNG. With
   your own clip, write `validate_prompts`: its motion, other looks.
3. **Compare LoRAs** samples two prompts with the base model, the LoRA at strength 0.5 and at 1.0, all from the same
   noise, and writes the scores into the table.

Take the strength at which the motion is there and the look is not.
""",
        ),
        base((0, 520)),
        clip("clip", (0, 710), motion="orbit"),
        Node(
            "train",
            "MotionLoRA_TrainMotionLoRA",
            (480, 0),
            {"method": "customize-a-video", "steps": 400, "name": "orbit, best of 400 steps", "validate_every": 100},
            {"base_model": ("base", "base_model"), "clips": ("clip", "clips")},
            (420, 940),
        ),
        stack("half", (960, 0), "train", strength=0.5),
        stack("full", (960, 260), "train"),
        Node(
            "compare",
            "MotionLoRA_CompareLoRAs",
            (1440, 0),
            {
                "prompts": f"{PROMPT}\na green triangle circling around over night",
                "seed": 7,
                "num_inference_steps": 20,
                "label_1": "strength 0.5",
                "label_2": "strength 1.0",
            },
            {
                "base_model": ("base", "base_model"),
                "stack_1": ("half", "stack"),
                "stack_2": ("full", "stack"),
                "reference": ("clip", "clips"),
            },
            (440, 720),
        ),
        Node("table", "PreviewAny", (960, 520), {}, {"source": ("compare", "table")}, (420, 300)),
        save("save", (1940, 0), "compare", "video/motion_lora_compare_and_choose"),
    ],
    "14_ksampler": [
        note(
            "note",
            (0, 0),
            (420, 420),
            """
# KSampler too

Press Run. **For KSampler** turns a base with its stack into ComfyUI's MODEL, CLIP and VAE: samplers, schedulers,
guiders, latent tools, previews and Cancel work as with any model, and the stack acts in every step.

* Left **Sample Video**, for comparison.
* Middle **SamplerCustom** on **Base Sigmas**: the same seed, steps and guidance give the same video.
* Right **KSampler** with one of ComfyUI's own schedulers: other steps, so a slightly other video.

Size, frames and batch are set in For KSampler, whose latents are (b, c, f, h, w). Words in brackets have no weights.
""",
        ),
        base((0, 480)),
        Node("lora", "MotionLoRA_LoadMotionLoRA", (0, 670), {"lora_name": ORBIT}),
        stack("stack", (480, 0), "lora"),
        Node(
            "bridge",
            "MotionLoRA_ForKSampler",
            (480, 280),
            {},
            {"base_model": ("base", "base_model"), "stack": ("stack", "stack")},
            (400, 220),
        ),
        Node("positive", "CLIPTextEncode", (480, 560), {"text": PROMPT}, {"clip": ("bridge", "clip")}, (400, 140)),
        Node("negative", "CLIPTextEncode", (480, 760), {"text": ""}, {"clip": ("bridge", "clip")}, (400, 120)),
        sample("own", (940, 0), PROMPT, "stack", scheduler="euler", num_inference_steps=20),
        Node("euler", "KSamplerSelect", (1400, 0), {"sampler_name": "euler"}, size=(360, 60)),
        Node(
            "sigmas",
            "MotionLoRA_BaseSigmas",
            (1400, 120),
            {"scheduler": "euler", "num_inference_steps": 20},
            {"base_model": ("base", "base_model")},
            (360, 100),
        ),
        Node(
            "custom",
            "SamplerCustom",
            (1400, 280),
            {"add_noise": True, "noise_seed": 7, "cfg": 2.5},
            {
                "model": ("bridge", "model"),
                "positive": ("positive", "CONDITIONING"),
                "negative": ("negative", "CONDITIONING"),
                "sampler": ("euler", "SAMPLER"),
                "sigmas": ("sigmas", "sigmas"),
                "latent_image": ("bridge", "latents"),
            },
            (360, 400),
        ),
        Node(
            "ksampler",
            "KSampler",
            (1400, 740),
            {"seed": 7, "steps": 20, "cfg": 2.5, "sampler_name": "dpmpp_2m", "scheduler": "normal", "denoise": 1.0},
            {
                "model": ("bridge", "model"),
                "positive": ("positive", "CONDITIONING"),
                "negative": ("negative", "CONDITIONING"),
                "latent_image": ("bridge", "latents"),
            },
            (360, 400),
        ),
        Node(
            "custom_frames",
            "VAEDecode",
            (1820, 0),
            {},
            {"samples": ("custom", "output"), "vae": ("bridge", "vae")},
            (240, 60),
        ),
        Node(
            "frames",
            "VAEDecode",
            (1820, 120),
            {},
            {"samples": ("ksampler", "LATENT"), "vae": ("bridge", "vae")},
            (240, 60),
        ),
        Node(
            "beside",
            "MotionLoRA_SideBySide",
            (1820, 240),
            {"left_label": "SamplerCustom", "right_label": "KSampler"},
            {
                "left": ("custom_frames", "IMAGE"),
                "right": ("frames", "IMAGE"),
                "reference": ("own", "images"),
            },
            (400, 420),
        ),
        save("save", (2280, 0), "beside", "video/motion_lora_ksampler"),
    ],
    "15_long_video": [
        note(
            "note",
            (0, 0),
            (400, 330),
            """
# A long video that loops

Press Run. The built-in model was made for 8 frames; this video has 32.

* **context_frames** in Sample Video: the frames are denoised in windows of so many, which overlap. Where they do, their
  predictions are averaged, so that no seam shows. Take 16 on AnimateDiff and ModelScope.
* **context_overlap**: more is smoother and slower.
* **loop** joins the end to the beginning: repeat the video and look for the place.

The motion LoRA acts in every window.
""",
        ),
        base((0, 390)),
        Node("lora", "MotionLoRA_LoadMotionLoRA", (0, 680), {"lora_name": ORBIT}),
        stack("stack", (460, 0), "lora"),
        sample(
            "long",
            (460, 280),
            PROMPT,
            "stack",
            "Sample Video: 32 frames",
            num_frames=32,
            num_inference_steps=20,
            context_frames=8,
            context_overlap=4,
            loop=True,
        ),
        save("save", (920, 280), "long", "video/motion_lora_loop"),
    ],
    "16_animatediff": [
        note("note", (0, 0), (420, 470), _ANIMATEDIFF),
        animatediff((0, 530)),
        Node("video", "MotionLoRA_LoadClip", (0, 820), {"file": CLIP}, size=(420, 80)),
        sd_clip("clip", (480, 0)),
        train("train", (960, 0), "customize-a-video", "clip", "animatediff motion"),
        stack("stack", (1440, 0), "train"),
        sample(
            "moved",
            (1440, 280),
            SD_PROMPT,
            "stack",
            num_frames=16,
            guidance_scale=7.5,
            num_inference_steps=25,
            context_frames=16,
        ),
        save("save", (1900, 0), "moved", "video/motion_lora_animatediff"),
    ],
    "17_animatediff_evolved": [
        note("note", (0, 0), (420, 560), _EVOLVED),
        animatediff((0, 620)),
        Node("video", "MotionLoRA_LoadClip", (0, 910), {"file": CLIP}, size=(420, 80)),
        sd_clip("clip", (480, 0)),
        train("train", (960, 0), "customize-a-video", "clip", "animatediff motion"),
        Node(
            "convert",
            "MotionLoRA_ConvertLoRA",
            (960, 840),
            {"format": "animatediff", "filename": "animatediff/my_motion", "precision": "fp16"},
            {"motion_lora": ("train", "motion_lora")},
            (420, 160),
        ),
        *evolved((1440, 0)),
    ],
}

_BUILD = """async (nodes) => {
  app.graph.clear()
  const made = {}
  for (const wanted of nodes) {
    const node = LiteGraph.createNode(wanted.type)
    app.graph.add(node)
    node.pos = wanted.pos
    if (wanted.title) node.title = wanted.title
    if (wanted.mode) node.mode = wanted.mode
    for (const [name, value] of Object.entries(wanted.widgets)) {
      const widget = name ? node.widgets.find((one) => one.name === name) : node.widgets[0]
      if (!widget) throw new Error(`${wanted.type} has no widget ${name}`)
      widget.value = value
    }
    // What is set here is worth being seen.
    const folded = (one) => one.advanced || one.options?.advanced
    if (node.widgets?.some((one) => folded(one) && one.name in wanted.widgets)) node.showAdvanced = true
    const control = node.widgets?.find((one) => one.name === 'control_after_generate')
    if (control) control.value = 'fixed'
    const least = node.computeSize()
    const [width, height] = wanted.size ?? [node.size[0], 0]
    node.setSize([Math.max(width, least[0]), Math.max(height, least[1])])
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
        elif node["type"].startswith("ADE_"):
            node["properties"]["cnr_id"] = "comfyui-animatediff-evolved"
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


def with_evolved(server: RealComfyUI) -> None:
    """AnimateDiff-Evolved from ADE_DIR beside the pack, and files of the names that its nodes are to show."""
    if "ADE_DIR" in os.environ:
        place = server.base / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved"
        place.symlink_to(Path(os.environ["ADE_DIR"]).expanduser().resolve(), target_is_directory=True)
    for name in ("checkpoints/sd15.safetensors", "animatediff_models/v3_sd15_mm.ckpt"):
        _touched(server.base / "models" / name)
    _touched(server.base / "output/loras/animatediff/my_motion.safetensors")


def _touched(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def main(names: list[str]) -> int:
    """Build those named, or all."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RealComfyUI(Path(folder), settings=_SETTINGS)
        with_evolved(server)
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
