"""Other ways to make a video than Sample Video alone: from a clip, through KSampler, longer than the base."""

from __future__ import annotations

from .parts import (
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
    with_links,
)

EDITED = "a blue circle moving right over snow"

SAMPLING: dict[str, list[Node]] = {
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
}
