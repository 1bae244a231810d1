"""Workflows that need files which no new user has; their notes say which."""

from __future__ import annotations

from dataclasses import replace

from .parts import (
    CLIP,
    MUTED,
    Node,
    note,
    sample,
    save,
    stack,
    train,
)


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


def wan(pos: tuple[int, int]) -> list[Node]:
    """Wan as a base, from the files that ComfyUI's own workflows use, with the clip's captions as its texts."""
    x, y = pos
    links = {"caption": ("clip", "caption"), "appearance": ("clip", "appearance_caption"), "nothing": None}
    nodes = [
        Node("text", "CLIPLoader", (x, y), {"clip_name": WAN_TEXT, "type": "wan"}, size=(400, 110)),
        *(_encoded(key, (x, y + 170 + 180 * place), text) for place, (key, text) in enumerate(links.items())),
        Node(
            "base",
            "MotionLoRA_LoadWanModel",
            (x + 460, y),
            {"network": WAN_NETWORK, "vae": WAN_VAE},
            {
                "clips": ("clip", "clips"),
                "caption": ("caption", "CONDITIONING"),
                "appearance_caption": ("appearance", "CONDITIONING"),
                "empty_prompt": ("nothing", "CONDITIONING"),
            },
            (400, 240),
        ),
    ]
    return nodes


def _encoded(key: str, pos: tuple[int, int], text: tuple[str, str] | None) -> Node:
    links = {"clip": ("text", "CLIP"), **({"text": text} if text else {})}
    return Node(key, "CLIPTextEncode", pos, {} if text else {"text": ""}, links, (400, 120), f"Text: {key}")


def wan_native(pos: tuple[int, int]) -> list[Node]:
    """ComfyUI's own text-to-video with Wan 2.1 and the LoRA in it; muted."""
    x, y = pos
    nodes = [
        Node("unet", "UNETLoader", (x, y), {"unet_name": WAN_NETWORK}, size=(400, 90)),
        Node(
            "lora",
            "LoraLoaderModelOnly",
            (x, y + 150),
            {"lora_name": WAN_LORA, "strength_model": 1.0},
            {"model": ("unet", "MODEL")},
            (400, 90),
        ),
        Node("shift", "ModelSamplingSD3", (x, y + 300), {"shift": 8.0}, {"model": ("lora", "MODEL")}, (400, 70)),
        Node("positive", "CLIPTextEncode", (x + 460, y), {"text": SD_PROMPT}, {"clip": ("text", "CLIP")}, (400, 140)),
        Node(
            "negative",
            "CLIPTextEncode",
            (x + 460, y + 200),
            {"text": "static, blurred, overexposed, subtitles, worst quality"},
            {"clip": ("text", "CLIP")},
            (400, 120),
        ),
        Node(
            "latents",
            "EmptyHunyuanLatentVideo",
            (x + 460, y + 380),
            {"width": 480, "height": 480, "length": 33, "batch_size": 1},
            size=(400, 140),
        ),
        Node(
            "ksampler",
            "KSampler",
            (x + 920, y),
            {"seed": 7, "steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0},
            {
                "model": ("shift", "MODEL"),
                "positive": ("positive", "CONDITIONING"),
                "negative": ("negative", "CONDITIONING"),
                "latent_image": ("latents", "LATENT"),
            },
            (360, 400),
        ),
        Node("vae", "VAELoader", (x + 920, y + 460), {"vae_name": WAN_VAE}, size=(360, 60)),
        Node("frames", "VAEDecode", (x + 920, y + 580), {}, {"samples": ("ksampler", "LATENT"), "vae": ("vae", "VAE")}),
        Node("video_of", "CreateVideo", (x + 920, y + 700), {"fps": 16.0}, {"images": ("frames", "IMAGE")}, (360, 80)),
        save("save", (x + 1340, y), "video_of", "video/motion_lora_wan"),
    ]
    nodes[-1] = replace(nodes[-1], links={"video": ("video_of", "VIDEO")})
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
SD_PROMPT = "a blue balloon circling around over snow"
_WAN = """
# A motion LoRA for Wan, used by ComfyUI's own nodes

**Needs** a GPU and the three files of ComfyUI's own Wan 2.1 workflow, which do not come with this pack:
`wan2.1_t2v_1.3B_fp16.safetensors` (`models/diffusion_models`), `umt5_xxl_fp8_e4m3fn_scaled.safetensors`
(`models/text_encoders`) and `wan_2.1_vae.safetensors` (`models/vae`). Nothing is downloaded.

1. Press Run: it learns the motion of the example clip, and **Convert LoRA** writes it as *Load LoRA* reads it, to
   `output/loras/wan`. Your own clip: write its captions into **Reference Clip**; it has 4 n + 1 frames (13, 17, 33).
2. Press R. Select the muted nodes on the right and press Ctrl+M. Press Run again: what is trained is not trained twice.

Wan 14B takes the same way. Of Wan 2.2 A14B each of the two networks needs a LoRA of its own.
"""
WAN_NETWORK, WAN_VAE = "wan2.1_t2v_1.3B_fp16.safetensors", "wan_2.1_vae.safetensors"
WAN_TEXT, WAN_LORA = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan/my_motion.safetensors"
NEEDS: dict[str, tuple[str, ...]] = {
    "16_animatediff": ("Stable Diffusion 1.5 checkpoint", "motion module"),
    "17_animatediff_evolved": ("AnimateDiff-Evolved", "Stable Diffusion 1.5 checkpoint", "motion module"),
    "18_wan_native": (WAN_NETWORK, WAN_TEXT, WAN_VAE),
}
"""What a workflow needs that no new user has; all others run at one press. Its note says so."""

REAL_MODELS: dict[str, list[Node]] = {
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
    "18_wan_native": [
        note("note", (0, 0), (420, 520), _WAN),
        Node("video", "MotionLoRA_LoadClip", (0, 580), {"file": CLIP}, size=(420, 80)),
        replace(sd_clip("clip", (480, 0)), widgets={**sd_clip("clip", (0, 0)).widgets, "num_frames": 13, "fps": 16.0}),
        *wan((960, 0)),
        train("train", (1880, 0), "joint-customize-a-video", "clip", "wan motion"),
        Node(
            "convert",
            "MotionLoRA_ConvertLoRA",
            (1880, 840),
            {"format": "comfyui", "filename": "wan/my_motion", "precision": "fp16"},
            {"motion_lora": ("train", "motion_lora")},
            (420, 160),
        ),
        *wan_native((2360, 0)),
    ],
}
