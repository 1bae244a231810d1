"""The settings of training and sampling as options: name, type and help of each field of the library's dataclasses.

Written out, and not derived, so that `--help` needs no torch; `tests/test_cli.py` compares it with the dataclasses.
Where no default is named, it is the method's (and on the built-in model its own, where its size needs another).
"""

from __future__ import annotations

from ...methods.table import ABSORBERS
from .options import Option

TRAIN_OPTIONS = (
    Option("method", str, "training method, as motion-lora methods lists them (default: auto, the base's own)"),
    Option(
        "absorber",
        str,
        "what holds the look: dual, spatial, textual-inversion, none, or a file as for --load-absorber",
        names=tuple(ABSORBERS),
    ),
    Option("targets", str, "target preset of the temporal LoRA (motion-lora targets lists them)"),
    Option("spatial_targets", str, "target preset of a method's spatial LoRA"),
    Option("debiased_loss", bool, "MotionDirector's appearance-debiased loss, with any method"),
    Option("debias_beta", float, "beta of that loss (default: 1)"),
    Option("spatial_path_probability", float, "share of steps with the spatial half of a dual path (default: 0.8)"),
    Option("highway", str, "train with the appearance highway: none (default), code or all"),
    Option("highway_scale", float, "scale of the highway in training (default: 1.1)"),
    Option(
        "looks",
        str,
        "captions of other looks, with {motion} where its words belong: the motion is learned in these too",
        many=True,
        metavar="CAPTION",
    ),
    Option("look_strength", float, "how much of a frame is redrawn for a look (default: 0.45)"),
    Option("look_guidance_scale", float, "how strictly to its caption (default: 9)"),
    Option("look_similarity", float, "leave out copies whose motion is less like the clip's (default: 0.6)"),
    Option("steps", int, "steps of the motion stage"),
    Option("rank", int, "rank of the temporal LoRA"),
    Option("alpha", float, "multiplies the LoRA's product directly (default: 1)"),
    Option("learning_rate", float, "learning rate of the temporal LoRA"),
    Option("spatial_rank", int, "rank of a method's spatial LoRA (default: rank)"),
    Option("spatial_alpha", float, "alpha of a method's spatial LoRA (default: alpha)"),
    Option("spatial_learning_rate", float, "its learning rate (default: learning-rate)"),
    Option("timestep_low", float, "train from this part of the noise schedule, 0 is clean (default: 0)"),
    Option("timestep_high", float, "... up to this part, 1 is pure noise (default: 1)"),
    Option("absorber_steps", int, "steps of the spatial-LoRA absorber"),
    Option("absorber_rank", int, "its rank (default: 1)"),
    Option("absorber_alpha", float, "its alpha (default: 0.5)"),
    Option("absorber_learning_rate", float, "its learning rate"),
    Option("token_steps", int, "steps of the textual-inversion absorber"),
    Option("token_learning_rate", float, "its learning rate"),
    Option("num_tokens", int, "its placeholder tokens, 1 to 6 (default: 4)"),
    Option("patch_crop", bool, "random crops of the frames in the absorber stages"),
    Option("frames_per_step", int, "frames in a step of the absorber stages"),
    Option("lr_scheduler", str, "constant (default) or cosine"),
    Option("warmup_steps", int, "steps over which the learning rate rises (default: 0)"),
    Option("weight_decay", float, "AdamW's weight decay"),
    Option("max_grad_norm", float, "gradients are clipped to this norm (default: 1)"),
    Option("gradient_accumulation", int, "passes per optimizer step (default: 1)"),
    Option("dropout", float, "dropout on the LoRA's output"),
    Option("horizontal_flip", float, "probability that a clip is mirrored (default: 0, except for images)"),
    Option("min_snr_gamma", float, "Min-SNR loss weighting with this gamma (default: off)"),
    Option("offset_noise", float, "extra noise per channel and frame (default: 0)"),
    Option("seed", int, "of everything random (default: 0)"),
    Option("gradient_checkpointing", bool, "a third more time for a fraction of the memory (default: off)"),
    Option("compile", bool, "torch.compile (default: off)"),
    Option("offload_encoders", bool, "text encoder and VAE wait in main memory meanwhile (default: on)"),
    Option("deterministic", bool, "only repeatable kernels: the same seed gives the same file (default: on)"),
    Option("checkpoint_every", int, "steps between checkpoints (default: 50)"),
    Option("report_every", int, "steps between readings of the loss (default: 1)"),
)

# `prompt` and `seed` may be given several times; every prompt is sampled with every seed.
SAMPLE_OPTIONS = (
    Option("prompt", str, "what to show; may be given several times (required)", many=True),
    Option("negative_prompt", str, "what to stay away from"),
    Option("num_frames", int, "frames (default: the base model's)"),
    Option("height", int, "height in pixels (default: the base model's)"),
    Option("width", int, "width in pixels (default: the base model's)"),
    Option("num_inference_steps", int, "denoising steps (default: 30)"),
    Option("guidance_scale", float, "classifier-free guidance (default: 9)"),
    Option("scheduler", str, "ddim (default), dpmpp-2m-karras, euler, euler-ancestral or unipc"),
    Option("seed", int, "seed of a video; may be given several times (default: 0)", many=True),
    Option("fps", float, "frames per second of the file (default: the base model's)"),
)
