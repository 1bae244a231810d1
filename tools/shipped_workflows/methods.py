"""One workflow for each way to keep the look of a clip out of its motion."""

from __future__ import annotations

from .parts import (
    PROMPT,
    Node,
    base,
    beside,
    clip,
    combine,
    note,
    sample,
    save,
    stack,
    train,
)

METHODS: dict[str, list[Node]] = {
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
}
