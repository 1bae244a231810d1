"""The playground's networks, its tokenizer, and the folder that holds them, in the layout of ModelScope's release."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from motion_lora.playground import world

MAX_TOKENS = 24
TEXT_WIDTH = 64

# Stable Diffusion's schedule but for its end: with 0.012 an 8 x 8 latent still shows where the object is at the last
# step, so the words that say how it moves go unheeded in training and are missed in sampling.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    # Sampling starts at the last, noisiest timestep, as training does (Lin et al. 2023, section 3.3).
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def to_pixels(frames: Tensor) -> Tensor:
    """Frames (n, h, w, 3) in [0, 1] -> (n, 3, h, w) in [-1, 1]."""
    return frames.movedim(-1, 1) * 2 - 1


def build_vae() -> AutoencoderKL:
    """The autoencoder, untrained: pixels (n, 3, 64, 64) to latents (n, 4, 8, 8)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=world.CANVAS,
    )


def build_unet() -> UNet3DConditionModel:
    """The video network, untrained: two levels, both with spatial and temporal attention."""
    return UNet3DConditionModel(
        sample_size=world.CANVAS // 8,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=16,
        norm_num_groups=8,
    )


def vocabulary() -> list[str]:
    """Every word that the world's captions can hold, held-out motions included, in a fixed order."""
    words: list[str] = ["a", "over", "striped", *world.SHAPES, *world.COLOURS, *world.BACKGROUNDS]
    for phrase in world.MOTIONS.values():
        words += phrase.split()
    return list(dict.fromkeys(words))


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of the world's words: characters, the merges that build each word, one token per word.

    Words outside the vocabulary fall back to characters, as CLIP falls back to byte pairs.
    """
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = characters + [f"{character}</w>" for character in characters]
    merges: list[tuple[str, str]] = []
    for word in vocabulary():
        pieces = _merge([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            tokens.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def _merge(pieces: list[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: apply the merges in their order, those of earlier words included."""
    for first, second in merges:
        index = 0
        while index < len(pieces) - 1:
            if pieces[index] == first and pieces[index + 1] == second:
                pieces = [*pieces[:index], first + second, *pieces[index + 2 :]]
            index += 1
    return pieces


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, untrained, for the tokens of `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids (b, MAX_TOKENS), padded and cut to length."""
    batch = tokenizer(list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = batch["input_ids"]
    return ids


@dataclass
class FrozenParts:
    """What stages 3 and 4 take from the first two, in inference only."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    scale: float
    drop_caption: float = 0.1

    @torch.no_grad()
    def text(self, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
        keep = torch.rand(len(prompts), generator=generator) >= self.drop_caption
        said = [prompt if keep[i] else "" for i, prompt in enumerate(prompts)]
        return self.encoder(tokenize(self.tokenizer, said)).last_hidden_state

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) in [-1, 1] -> scaled latents (n, c, h / 8, w / 8)."""
        return self.vae.encode(pixels).latent_dist.mode() * self.scale


def write_model(output: Path, parts: FrozenParts, unet: UNet3DConditionModel) -> None:
    """The finished model as a diffusers folder of fp16 safetensors, in the layout of ModelScope's release."""
    parts.vae.register_to_config(scaling_factor=parts.scale)
    modules: dict[str, Any] = {"vae": parts.vae, "unet": unet, "text_encoder": parts.encoder}
    for name, module in modules.items():
        module.half().save_pretrained(str(output / name), safe_serialization=True)
        _forget_source(output / name / "config.json")
    write_tokenizer(output / "tokenizer")
    scheduler = output / "scheduler"
    scheduler.mkdir(parents=True, exist_ok=True)
    (scheduler / "scheduler_config.json").write_text(json.dumps(SCHEDULER_CONFIG, indent=2), encoding="utf-8")
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    about = {"name": "playground", "num_frames": world.NUM_FRAMES, "fps": world.FPS}
    (output / "motion_lora.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    (output / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _forget_source(config: Path) -> None:
    """Where a part was loaded from is a folder of this machine, and nobody else's business."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
