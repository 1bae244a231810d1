"""Several LoRAs in one video, and which of them is best."""

from __future__ import annotations

from .parts import (
    BOUNCE,
    FRIENDS,
    LOOK,
    ORBIT,
    PROMPT,
    Node,
    base,
    clip,
    note,
    sample,
    save,
    stack,
)

MIXING: dict[str, list[Node]] = {
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
        Node("highway", "MotionLoRA_AppearanceHighway", (460, 840), {}, {"stack": ("look", "stack")}),
        sample("moved", (920, 0), "a striped cyan cross circling around over sand", "highway"),
        save("save", (1380, 0), "moved", "video/motion_lora_stack"),
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
}
