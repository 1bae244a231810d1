"""What node widgets offer, as plain values.

The library's own tables sit in modules that import diffusers and transformers, which takes seconds that every start of
ComfyUI would pay for. So the nodes repeat the names here, and a test holds them against the tables.
"""

from __future__ import annotations

DTYPES = ("auto", "fp32", "fp16", "bf16")
SCHEDULERS = ("ddim", "dpmpp-2m-karras", "euler", "euler-ancestral", "unipc")
HIGHWAY_PRESETS = ("code", "all")
MAX_HIGHWAY_SCALE = 4.0
LORA_FORMATS = ("motion-lora", "kohya", "peft")
TEMPORAL_TARGETS = (
    "temporal-attention", "temporal-all", "temporal-conv", "temporal-full", "tap-k", "tap-k-out", "tap-qk",
)  # fmt: skip
SPATIAL_TARGETS = ("spatial-attention", "spatial-self-ff", "spatial-conv", "spatial-full")
LR_SCHEDULERS = ("constant", "cosine")

# Highest legal value of the training settings that widgets set; 0 in a widget stands for the method's default.
COUNTS = {
    "steps": 1_000_000,
    "absorber_steps": 1_000_000,
    "token_steps": 1_000_000,
    "rank": 1024,
    "absorber_rank": 1024,
    "num_tokens": 6,
    "spatial_rank": 1024,
    "frames_per_step": 1024,
    "warmup_steps": 1_000_000,
    "gradient_accumulation": 1024,
}
AMOUNTS = {
    "alpha": 1024.0,
    "learning_rate": 1.0,
    "absorber_learning_rate": 1.0,
    "token_learning_rate": 1.0,
    "spatial_alpha": 1024.0,
    "spatial_learning_rate": 1.0,
    "absorber_alpha": 1024.0,
    "min_snr_gamma": 1000.0,
}
# Of these 0 is a legal value; -1 in a widget stands for the method's default.
SHARES = {
    "debias_beta": 10.0,
    "spatial_path_probability": 1.0,
    "look_strength": 1.0,
    "look_guidance_scale": 100.0,
    "timestep_low": 0.999,
    "timestep_high": 1.0,
    "offset_noise": 1.0,
    "dropout": 0.9,
    "horizontal_flip": 1.0,
    "weight_decay": 1.0,
}
