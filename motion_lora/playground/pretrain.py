"""Pre-training of the playground: python -m motion_lora.playground.pretrain --work DIR [--output DIR].

Four stages, each resumable from a checkpoint in the work folder and skipped once it is done, as real text-to-video
models are made of parts trained one after the other:

    vae      the autoencoder, on single frames; object pixels weigh more, or small objects lose their colour
    text     the text encoder, which learns to tell apart every word of the world (in place of CLIP's pre-training)
    image    the spatial layers, on single frames with every temporal layer bypassed
    video    all layers, on clips and single frames in turn, the latter with the temporal layers bypassed

Every batch is rendered on the fly from a generator seeded by stage and step, so that a resumed run sees the
batches that an uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..axes import unfold_frames
from ..bypass import temporal_bypass, temporal_layers
from . import world

logger = logging.getLogger(__name__)

AnyModule = TypeVar("AnyModule", bound=nn.Module)

MAX_TOKENS = 24
TEXT_WIDTH = 64
OBJECT_WEIGHT = 8.0
KL_WEIGHT = 1e-6
LATENT_OBJECT_WEIGHT = 2.0
PREDICTION_TYPE = "v_prediction"
DROP_CAPTION = 0.1
IMAGE_SHARE = 0.25
POOL_SIZE = 4096
HIGH_NOISE = 0.75
HIGH_NOISE_SHARE = 0.5

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
    "prediction_type": PREDICTION_TYPE,
}


@dataclass(frozen=True)
class StagePlan:
    """How long and how fast one stage trains; the learning rate warms up, stays, and falls to zero in the last quarter."""

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    cooldown: float = 0.25
    ema_decay: float = 0.999


PLANS: dict[str, StagePlan] = {
    "vae": StagePlan("vae", steps=1300, batch_size=32, learning_rate=2e-3, warmup=50, cooldown=0.4, ema_decay=0.99),
    "text": StagePlan("text", steps=500, batch_size=64, learning_rate=1e-3, warmup=50, ema_decay=0.99),
    "image": StagePlan("image", steps=4000, batch_size=64, learning_rate=1e-3, cooldown=0.1),
    "video": StagePlan("video", steps=6000, batch_size=8, learning_rate=8e-4, cooldown=0.3),
}


def learning_rate_factor(plan: StagePlan, step: int) -> float:
    """Linear warm-up, constant, linear fall to 2 % of the rate."""
    fall = int(plan.steps * plan.cooldown)
    rise = min(1.0, (step + 1) / max(plan.warmup, 1))
    left = (plan.steps - step) / max(fall, 1)
    return rise * min(1.0, max(left, 0.02))


def build_vae() -> AutoencoderKL:
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


def random_scenes(generator: torch.Generator, count: int) -> list[world.Scene]:
    return [world.sample_scene(generator) for _ in range(count)]


def random_frames(generator: torch.Generator, count: int) -> tuple[list[world.Scene], Tensor, Tensor]:
    """Scenes, one frame of each (n, 3, h, w) in [-1, 1] at a random time, and its object coverage (n, 1, h, w)."""
    scenes = random_scenes(generator, count)
    times = torch.randint(world.NUM_FRAMES, (count,), generator=generator)
    centres = torch.stack([world.trajectory(scene)[t] for scene, t in zip(scenes, times.tolist(), strict=True)])
    frames = world.render_frames(scenes, centres)
    return scenes, to_pixels(frames), coverage_of(scenes, centres)


def coverage_of(scenes: Sequence[world.Scene], centres: Tensor) -> Tensor:
    """How much of each pixel the object covers: (n, 1, h, w) in [0, 1]."""
    return world.coverage(scenes, centres)[:, None]


def to_pixels(frames: Tensor) -> Tensor:
    return frames.movedim(-1, 1) * 2 - 1


# Stage 1 ------------------------------------------------------------------------------------------------------------


def vae_loss(vae: AutoencoderKL, generator: torch.Generator, batch_size: int) -> Tensor:
    """Weighted L1 + L2 reconstruction and a small KL term; the weight covers the object and a rim around it."""
    _, pixels, coverage = random_frames(generator, batch_size)
    posterior = vae.encode(pixels).latent_dist
    restored = vae.decode(posterior.sample(generator)).sample
    weight = 1 + OBJECT_WEIGHT * F.max_pool2d(coverage, 5, stride=1, padding=2)
    error = restored - pixels
    reconstruction = (weight * (error.abs() + 2 * error.square())).mean()
    return reconstruction + KL_WEIGHT * posterior.kl().mean()


# Stage 2 ------------------------------------------------------------------------------------------------------------


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
    """Byte-pair encoding: apply the merges in their order. What an earlier word's merges leave of a later word shows here."""
    for first, second in merges:
        index = 0
        while index < len(pieces) - 1:
            if pieces[index] == first and pieces[index + 1] == second:
                pieces = [*pieces[:index], first + second, *pieces[index + 2 :]]
            index += 1
    return pieces


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
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


class WordProbes(nn.Module):
    """Linear read-outs of the text encoder's states: what was said, from the last token, and the word at each place."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict(
            {name: nn.Linear(TEXT_WIDTH, len(options)) for name, options in ATTRIBUTES.items()}
        )
        self.words = nn.Linear(TEXT_WIDTH, vocab_size)


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "background": world.BACKGROUNDS,
    "fill": world.FILLS,
    "motion": ("", *world.KNOWN_MOTIONS),
}


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    batch = tokenizer(list(prompts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = batch["input_ids"]
    return ids


def scene_captions(generator: torch.Generator, scenes: Sequence[world.Scene], motion: bool) -> list[str]:
    """Full captions, or captions of single frames, which name the motion in half of the cases."""
    keep = torch.rand(len(scenes), generator=generator) < 0.5
    return [
        world.caption(scene) if motion or keep[i] else world.appearance_caption(scene) for i, scene in enumerate(scenes)
    ]


def text_loss(
    encoder: CLIPTextModel, probes: WordProbes, tokenizer: CLIPTokenizer, generator: torch.Generator, batch_size: int
) -> Tensor:
    """Cross-entropy of every attribute from the end-of-text state, and of each token from its own state."""
    scenes = random_scenes(generator, batch_size)
    captions = scene_captions(generator, scenes, motion=False)
    ids = tokenize(tokenizer, captions)
    states = encoder(ids).last_hidden_state
    end = ids.eq(tokenizer.eos_token_id).int().argmax(dim=1)
    pooled = states[torch.arange(batch_size), end]
    loss = F.cross_entropy(probes.words(states).flatten(0, 1), ids.flatten())
    for name, options in ATTRIBUTES.items():
        said = [_said(scene, text, name) for scene, text in zip(scenes, captions, strict=True)]
        loss = loss + F.cross_entropy(probes.attributes[name](pooled), torch.tensor([options.index(s) for s in said]))
    return loss


def _said(scene: world.Scene, text: str, attribute: str) -> str:
    if attribute == "motion" and world.MOTIONS[scene.motion] not in text:
        return ""
    return str(getattr(scene, attribute))


# Stages 3 and 4 -----------------------------------------------------------------------------------------------------


class Diffusion:
    """The forward process: noise, and the target that the network learns (Salimans and Ho 2022 for v)."""

    def __init__(self) -> None:
        steps = SCHEDULER_CONFIG["num_train_timesteps"]
        start, end = SCHEDULER_CONFIG["beta_start"] ** 0.5, SCHEDULER_CONFIG["beta_end"] ** 0.5
        betas = torch.linspace(start, end, steps, dtype=torch.float64).square()
        alphas = torch.cumprod(1 - betas, dim=0)
        self.signal = alphas.sqrt().float()
        self.noise = (1 - alphas).sqrt().float()

    def corrupt(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps (b,), and the v target, all shaped like latents (b, c, f, h, w)."""
        batch = latents.shape[0]
        # What the words decide, colour and motion, is settled while the object cannot yet be seen through the noise:
        # above three quarters of the steps here. Drawn evenly, those steps are too few for the words to be heeded.
        low = torch.where(torch.rand(batch, generator=generator) < HIGH_NOISE_SHARE, HIGH_NOISE, 0.0)
        place = low + (1 - low) * torch.rand(batch, generator=generator)
        timesteps = (place * len(self.signal)).long().clamp(max=len(self.signal) - 1)
        noise = torch.randn(latents.shape, generator=generator)
        signal, sigma = (table[timesteps].view(batch, 1, 1, 1, 1) for table in (self.signal, self.noise))
        return signal * latents + sigma * noise, timesteps, signal * noise - sigma * latents


@dataclass
class FrozenParts:
    """What stages 3 and 4 take from the first two, in inference only."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    scale: float

    @torch.no_grad()
    def text(self, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
        keep = torch.rand(len(prompts), generator=generator) >= DROP_CAPTION
        said = [prompt if keep[i] else "" for i, prompt in enumerate(prompts)]
        return self.encoder(tokenize(self.tokenizer, said)).last_hidden_state

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) in [-1, 1] -> scaled latents (n, c, h / 8, w / 8)."""
        return self.vae.encode(pixels).latent_dist.mode() * self.scale


def object_weight(coverage: Tensor) -> Tensor:
    """Coverage (n, 1, h, w) in pixels -> loss weight per latent cell (n, 1, h / 8, w / 8); objects are small but all that matters."""
    return 1 + LATENT_OBJECT_WEIGHT * F.max_pool2d(coverage, 8)


def weighted_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * (predicted - target).square()).sum() / (weight.sum() * predicted.shape[1])


def frame_loss(
    unet: UNet3DConditionModel, parts: FrozenParts, diffusion: Diffusion, generator: torch.Generator, batch_size: int
) -> Tensor:
    """Denoising loss of single frames with the temporal layers bypassed."""
    scenes, pixels, coverage = random_frames(generator, batch_size)
    latents = parts.encode(pixels)[:, :, None]
    noisy, timesteps, target = diffusion.corrupt(latents, generator)
    text = parts.text(scene_captions(generator, scenes, motion=False), generator)
    with temporal_bypass(unet):
        predicted = unet(noisy, timesteps, text).sample
    return weighted_loss(predicted, target, object_weight(coverage)[:, :, None])


@dataclass(frozen=True)
class Pool:
    """Clips that were rendered and encoded once, because encoding them anew costs a third of a training step.

    latents (n, c, f, h, w) and loss weight (n, 1, f, h, w), both scaled and sized as the UNet sees them.
    """

    scenes: tuple[world.Scene, ...]
    latents: Tensor
    weight: Tensor


def build_pool(work: Path, parts: FrozenParts, size: int) -> Pool:
    """Encode `size` random clips, or read them from the work folder where an earlier run left them."""
    scenes = random_scenes(torch.Generator().manual_seed(11), size)
    path = work / f"pool-{size}.safetensors"
    if not path.exists():
        latents, weights = zip(*(_encode_scene(parts, scene) for scene in scenes), strict=True)
        temporary = path.with_suffix(".tmp")
        save_file({"latents": torch.stack(latents).half(), "weight": torch.stack(weights).half()}, str(temporary))
        os.replace(temporary, path)
    tensors = load_file(str(path))
    return Pool(tuple(scenes), tensors["latents"].float(), tensors["weight"].float())


def _encode_scene(parts: FrozenParts, scene: world.Scene) -> tuple[Tensor, Tensor]:
    centres = world.trajectory(scene)
    drawn = [scene] * world.NUM_FRAMES
    pixels = to_pixels(world.render_frames(drawn, centres))
    weight = object_weight(coverage_of(drawn, centres))
    return unfold_frames(parts.encode(pixels), 1)[0], unfold_frames(weight, 1)[0]


def clip_loss(
    unet: UNet3DConditionModel, parts: FrozenParts, pool: Pool, diffusion: Diffusion, generator: torch.Generator, batch_size: int
) -> Tensor:
    """Denoising loss of clips, all layers at work."""
    drawn = torch.randint(len(pool.scenes), (batch_size,), generator=generator)
    noisy, timesteps, target = diffusion.corrupt(pool.latents[drawn], generator)
    text = parts.text([world.caption(pool.scenes[i]) for i in drawn.tolist()], generator)
    return weighted_loss(unet(noisy, timesteps, text).sample, target, pool.weight[drawn])


def pooled_frame_loss(
    unet: UNet3DConditionModel, parts: FrozenParts, pool: Pool, diffusion: Diffusion, generator: torch.Generator, batch_size: int
) -> Tensor:
    """`frame_loss` on single frames of the pool's clips."""
    drawn = torch.randint(len(pool.scenes), (batch_size,), generator=generator)
    frames = torch.randint(world.NUM_FRAMES, (batch_size,), generator=generator)
    noisy, timesteps, target = diffusion.corrupt(pool.latents[drawn, :, frames][:, :, None], generator)
    scenes = [pool.scenes[i] for i in drawn.tolist()]
    text = parts.text(scene_captions(generator, scenes, motion=False), generator)
    with temporal_bypass(unet):
        predicted = unet(noisy, timesteps, text).sample
    return weighted_loss(predicted, target, pool.weight[drawn, :, frames][:, :, None])


# The loop -----------------------------------------------------------------------------------------------------------


def run_stage(plan: StagePlan, modules: dict[str, nn.Module], loss: Callable[[torch.Generator], Tensor], work: Path) -> None:
    """Train one stage to its end, from its checkpoint where there is one; leaves the averaged weights in the modules."""
    checkpoint = work / f"{plan.name}.safetensors"
    named = {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=plan.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    start = _restore(checkpoint, named, average, optimizer)
    log = work / f"{plan.name}.log.csv"
    began, recent = time.monotonic(), 0.0
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(plan, step)
        generator = torch.Generator().manual_seed(1_000_003 * list(PLANS).index(plan.name) + step)
        torch.manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        value = loss(generator)
        value.backward()
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
        decay = min(plan.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(named.values()), 1 - decay)
        value = value.detach()
        recent = float(value) if step == start else 0.98 * recent + 0.02 * float(value)
        if (step + 1) % 50 == 0:
            rate = (time.monotonic() - began) / (step + 1 - start)
            logger.info("%s %d/%d loss %.4f %.2f s/step", plan.name, step + 1, plan.steps, recent, rate)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{step + 1},{recent:.6f},{rate:.3f}\n")
        if (step + 1) % 250 == 0 or step + 1 == plan.steps:
            _save(checkpoint, named, average, optimizer, step + 1)
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(average[name])


def _save(path: Path, named: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.AdamW, step: int) -> None:
    tensors: dict[str, Tensor] = {f"weight.{name}": p.detach() for name, p in named.items()}
    tensors |= {f"average.{name}": t for name, t in average.items()}
    for name, p in named.items():
        state = optimizer.state[p]
        tensors[f"m.{name}"], tensors[f"v.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    temporary = path.with_suffix(".tmp")
    save_file({name: t.contiguous() for name, t in tensors.items()}, str(temporary), metadata={"step": str(step)})
    os.replace(temporary, path)


def _restore(path: Path, named: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.AdamW) -> int:
    if not path.exists():
        return 0
    tensors = load_file(str(path))
    with safe_open(str(path), framework="pt") as file:
        step = int(file.metadata()["step"])
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(tensors[f"weight.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"m.{name}"],
                "exp_avg_sq": tensors[f"v.{name}"],
            }
    return step


def run_vae(work: Path, plan: StagePlan) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = build_vae().train()
    run_stage(plan, {"vae": vae}, lambda generator: vae_loss(vae, generator, plan.batch_size), work)
    return vae.eval().requires_grad_(False)


def run_text(work: Path, plan: StagePlan) -> tuple[CLIPTokenizer, CLIPTextModel]:
    torch.manual_seed(1)
    tokenizer = write_tokenizer(work / "tokenizer")
    encoder = build_text_encoder(tokenizer).train()
    probes = WordProbes(len(tokenizer))
    modules: dict[str, nn.Module] = {"encoder": encoder, "probes": probes}
    run_stage(plan, modules, lambda g: text_loss(encoder, probes, tokenizer, g, plan.batch_size), work)
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL) -> float:
    """One over the standard deviation of the latents of 256 frames, as for every latent diffusion model."""
    _, pixels, _ = random_frames(torch.Generator().manual_seed(7), 256)
    return 1.0 / float(vae.encode(pixels).latent_dist.mode().std())


def run_unet(work: Path, parts: FrozenParts, image: StagePlan, video: StagePlan) -> UNet3DConditionModel:
    torch.manual_seed(2)
    diffusion = Diffusion()
    unet = build_unet()
    # Dropout of the temporal convolutions serves no purpose on endless data.
    unet.eval()
    temporal = [p for _, layer in temporal_layers(unet) for p in layer.parameters()]
    for p in temporal:
        p.requires_grad_(False)
    run_stage(image, {"unet": unet}, lambda g: frame_loss(unet, parts, diffusion, g, image.batch_size), work)

    for p in temporal:
        p.requires_grad_(True)

    pool = build_pool(work, parts, POOL_SIZE)

    def joint(generator: torch.Generator) -> Tensor:
        if float(torch.rand((), generator=generator)) < IMAGE_SHARE:
            return pooled_frame_loss(unet, parts, pool, diffusion, generator, video.batch_size * world.NUM_FRAMES // 2)
        return clip_loss(unet, parts, pool, diffusion, generator, video.batch_size)

    run_stage(video, {"unet": unet}, joint, work)
    return unet.requires_grad_(False)


def write_model(output: Path, parts: FrozenParts, unet: UNet3DConditionModel) -> None:
    """The finished model as a diffusers folder of fp16 safetensors, in the layout of ModelScope's release."""
    parts.vae.register_to_config(scaling_factor=parts.scale)
    for name, module in (("vae", parts.vae), ("unet", unet), ("text_encoder", parts.encoder)):
        module.half().save_pretrained(str(output / name), safe_serialization=True)
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


def pretrain(work: Path, output: Path, plans: dict[str, StagePlan]) -> None:
    """Run all stages and write the model folder."""
    work.mkdir(parents=True, exist_ok=True)
    vae = run_vae(work, plans["vae"])
    tokenizer, encoder = run_text(work, plans["text"])
    parts = FrozenParts(vae, tokenizer, encoder, latent_scale(vae))
    unet = run_unet(work, parts, plans["image"], plans["video"])
    write_model(output, parts, unet)


def export(work: Path, output: Path) -> None:
    """Write the model folder from the averaged weights of the newest checkpoints, while training may go on."""
    vae = _averaged(work / "vae.safetensors", "vae", build_vae())
    tokenizer = write_tokenizer(work / "tokenizer")
    encoder = _averaged(work / "text.safetensors", "encoder", build_text_encoder(tokenizer))
    newest = work / "video.safetensors" if (work / "video.safetensors").exists() else work / "image.safetensors"
    unet = _averaged(newest, "unet", build_unet())
    write_model(output, FrozenParts(vae, tokenizer, encoder, latent_scale(vae)), unet)


def _averaged(checkpoint: Path, key: str, module: AnyModule) -> AnyModule:
    prefix = f"average.{key}."
    tensors = load_file(str(checkpoint))
    module.load_state_dict(
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, strict=False
    )
    return module.eval().requires_grad_(False)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m motion_lora.playground.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints and logs; a run resumes from it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "weights", help="model folder to write")
    for plan in PLANS.values():
        parser.add_argument(f"--{plan.name}-steps", type=int, default=plan.steps, help="default: %(default)s")
    parser.add_argument("--export", action="store_true", help="write the model from the checkpoints there are, and stop")
    parser.add_argument("--only", choices=tuple(PLANS), help="stop after this stage and write no model")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parse(arguments)
    plans = {name: replace(plan, steps=getattr(options, f"{name}_steps")) for name, plan in PLANS.items()}
    if options.export:
        export(options.work, options.output)
        return
    if options.only in ("vae", "text"):
        options.work.mkdir(parents=True, exist_ok=True)
        {"vae": run_vae, "text": run_text}[options.only](options.work, plans[options.only])
        return
    pretrain(options.work, options.output, plans)


if __name__ == "__main__":
    main()
