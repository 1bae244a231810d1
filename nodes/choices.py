"""What node widgets offer, as plain values.

The library's own tables sit in modules that import diffusers and transformers, which takes seconds that every start of
ComfyUI would pay for. So the nodes repeat the names here, and a test holds them against the tables.
"""

from __future__ import annotations

DTYPES = ("auto", "fp32", "fp16", "bf16")
SCHEDULERS = ("ddim", "dpmpp-2m-karras", "euler", "euler-ancestral", "unipc")
HIGHWAY_PRESETS = ("code", "all")
MAX_HIGHWAY_SCALE = 4.0
TEMPORAL_TARGETS = ("temporal-attention", "temporal-all", "tap-k", "tap-k-out", "tap-qk")

# Highest legal value of the training settings that widgets set; 0 in a widget stands for the method's default.
COUNTS = {
    "steps": 1_000_000,
    "absorber_steps": 1_000_000,
    "token_steps": 1_000_000,
    "rank": 1024,
    "absorber_rank": 1024,
    "num_tokens": 6,
}
AMOUNTS = {
    "alpha": 1024.0,
    "learning_rate": 1.0,
    "absorber_learning_rate": 1.0,
    "token_learning_rate": 1.0,
}
