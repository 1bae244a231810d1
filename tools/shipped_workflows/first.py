"""The first workflows: train on a clip, use what is trained, and train while other work goes on."""

from __future__ import annotations

from .parts import (
    CLIP,
    ORBIT,
    PROMPT,
    Node,
    base,
    beside,
    clip,
    note,
    sample,
    save,
    stack,
    train,
)

FIRST: dict[str, list[Node]] = {
    "01_quickstart_playground": [
        note(
            "note",
            (0, 0),
            (400, 330),
            """
# Quickstart: press Run

Learns the motion of a small rendered clip and puts it into a new video. Nothing is downloaded; on two CPU cores it
takes two to three minutes.

1. **Clip**: a red circle circles over sand. The built-in model has never seen circling.
2. **Motion LoRA**: learns the motion. Method *auto* is Many Looks here: the clip is redrawn under other captions, and
   what all copies share is learned. Watch it in the node, or in the panel behind the camera symbol on the left.
3. **Videos**: the same prompt and seed without and with the LoRA.

Then change the motion of the clip, the prompt or the strength, and press Run again. What is trained is not trained
twice. The papers' own ways are methods too: workflows 02, 06 and 09.
""",
        ),
        base((0, 390)),
        clip("clip", (0, 580), motion="orbit"),
        train("train", (460, 0), "auto", "clip", "orbit"),
        stack("stack", (460, 680), "train"),
        sample("plain", (940, 0), PROMPT, title="Sample Video: base model"),
        sample("moved", (1400, 0), PROMPT, "stack", "Sample Video: with motion LoRA"),
        beside(
            (1860, 0), "plain", "moved", ("clip", "frames"), left_label="base model", right_label="with motion LoRA"
        ),
        save("save", (1860, 560), "beside", "video/motion_lora_quickstart"),
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
}
