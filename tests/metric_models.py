"""A tiny CLIP as a folder and a distance in LPIPS' place: what the tests of scores are measured with."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_tokenizer
from transformers import CLIPConfig, CLIPModel

from motion_lora.evaluate.metrics import Perceptual


def write_clip_model(folder: Path) -> Path:
    """A CLIP with random weights in transformers' layout: its scores mean nothing, all that holds for any holds."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flat_lpips() -> Perceptual:
    """A distance in LPIPS' place that needs no weights: the mean absolute difference."""
    return Perceptual(lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)), "alex", torch.device("cpu"))
