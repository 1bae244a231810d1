"""Pre-training of the playground: python -m tools.pretrain_playground.pretrain --work DIR [--output DIR].

Five stages, each resumable from a checkpoint in the work folder and skipped once it is done, as real text-to-video
models are made of parts trained one after the other:

    vae      the autoencoder, on single frames; object pixels weigh more, or small objects lose their colour
    text     the text encoder, which learns to tell apart every word of the world (in place of CLIP's pre-training)
    image    the spatial layers, on single frames with every temporal layer bypassed
    motion   all layers, on clips under so much noise that only the words say what moves where
    video    all layers, on clips and single frames in turn, the latter with the temporal layers bypassed

Every batch is drawn from a generator seeded by stage and step, so that a resumed run sees the batches that an
uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from motion_lora.backbones.bypass import temporal_bypass, temporal_layers
from motion_lora.backbones.faster import use_fast_layers
from motion_lora.playground import world
from motion_lora.playground.model import PLAYGROUND_FOLDER

from .architecture import (
    SCHEDULER_CONFIG,
    TEXT_WIDTH,
    FrozenParts,
    build_text_encoder,
    build_unet,
    build_vae,
    to_pixels,
    tokenize,
    write_model,
    write_tokenizer,
)
from .optimise import StagePlan, run_stage
from .pool import POOL_SIZE, Pool, build_pool, coverage_of, object_weight, random_scenes

logger = logging.getLogger(__name__)

AnyModule = TypeVar("AnyModule", bound=nn.Module)

OBJECT_WEIGHT = 8.0
KL_WEIGHT = 1e-6
IMAGE_SHARE = 0.15
# How often a caption says nothing of the colour, and of the background: then the model is free, and a LoRA can leak.
UNNAMED = 0.15
LAST_QUARTER = 0.75

PLANS: dict[str, StagePlan] = {
    "vae": StagePlan(
        "vae", seed=0, steps=1300, batch_size=32, learning_rate=2e-3, warmup=50, cooldown=0.4, ema_decay=0.99
    ),
    "text": StagePlan("text", seed=1, steps=500, batch_size=64, learning_rate=1e-3, warmup=50, ema_decay=0.99),
    "image": StagePlan("image", seed=2, steps=2000, batch_size=64, learning_rate=1e-3, cooldown=0.1),
    "motion": StagePlan("motion", seed=3, steps=1000, batch_size=8, learning_rate=8e-4, cooldown=0.1),
    "video": StagePlan(
        "video", seed=4, steps=3000, batch_size=8, learning_rate=8e-4, cooldown=0.4, drop=0.65, last_drop=0.15
    ),
}

# Stages that a finished model can take once more: gently, and for a short while.
AGAIN: dict[str, StagePlan] = {
    "motion": replace(PLANS["motion"], steps=200, learning_rate=2e-4, warmup=20, cooldown=0.6, ema_decay=0.98),
    "video": replace(PLANS["video"], steps=4500, cooldown=0.6, drop=0.65, last_drop=0.15),
}


def random_frames(generator: torch.Generator, count: int) -> tuple[list[world.Scene], Tensor, Tensor]:
    """Scenes, one frame of each (n, 3, h, w) in [-1, 1] at a random time, and its object coverage (n, 1, h, w)."""
    scenes = random_scenes(generator, count)
    times = torch.randint(world.NUM_FRAMES, (count,), generator=generator)
    centres = torch.stack([world.trajectory(scene)[t] for scene, t in zip(scenes, times.tolist(), strict=True)])
    frames = world.render_frames(scenes, centres)
    return scenes, to_pixels(frames), coverage_of(scenes, centres)


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


def scene_captions(
    generator: torch.Generator, scenes: Sequence[world.Scene], motion: bool, unnamed: float = 0.0
) -> list[str]:
    """Full captions, or captions of single frames, which name the motion in half of the cases.

    Colour and background are each left out with probability `unnamed`.
    """
    keep = torch.rand(len(scenes), generator=generator) < 0.5
    silent = (torch.rand(len(scenes), 2, generator=generator) < unnamed).tolist()
    captions = []
    for i, scene in enumerate(scenes):
        left_out = [name for name, out in zip(("colour", "background"), silent[i], strict=True) if out]
        say = world.caption if motion or keep[i] else world.appearance_caption
        captions.append(say(scene, left_out))
    return captions


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


@dataclass(frozen=True)
class Emphasis:
    """Which timesteps are drawn: `share` of them from `low` (0 clean, 1 pure noise) upwards, the others from all.

    What the words decide, colour and motion, is settled while the object cannot yet be seen through the noise. Drawn
    evenly, those steps are too few: the words for opposite directions were not told apart after 2,250 steps, and were
    after 250 steps of `ONLY_WORDS`.
    """

    low: float
    share: float


BALANCED = Emphasis(low=0.75, share=0.5)
ONLY_WORDS = Emphasis(low=0.85, share=1.0)


class Diffusion:
    """The forward process: noise, and the target that the network learns (Salimans and Ho 2022 for v)."""

    def __init__(self) -> None:
        steps = SCHEDULER_CONFIG["num_train_timesteps"]
        start, end = SCHEDULER_CONFIG["beta_start"] ** 0.5, SCHEDULER_CONFIG["beta_end"] ** 0.5
        betas = torch.linspace(start, end, steps, dtype=torch.float64).square()
        alphas = torch.cumprod(1 - betas, dim=0)
        self.signal = alphas.sqrt().float()
        self.noise = (1 - alphas).sqrt().float()

    def corrupt(self, latents: Tensor, generator: torch.Generator, emphasis: Emphasis) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps (b,), and the v target, all shaped like latents (b, c, f, h, w)."""
        batch = latents.shape[0]
        low = torch.where(torch.rand(batch, generator=generator) < emphasis.share, emphasis.low, 0.0)
        place = low + (1 - low) * torch.rand(batch, generator=generator)
        timesteps = (place * len(self.signal)).long().clamp(max=len(self.signal) - 1)
        noise = torch.randn(latents.shape, generator=generator)
        signal, sigma = (table[timesteps].view(batch, 1, 1, 1, 1) for table in (self.signal, self.noise))
        return signal * latents + sigma * noise, timesteps, signal * noise - sigma * latents


def weighted_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * (predicted - target).square()).sum() / (weight.sum() * predicted.shape[1])


def frame_loss(
    unet: UNet3DConditionModel, parts: FrozenParts, diffusion: Diffusion, generator: torch.Generator, batch_size: int
) -> Tensor:
    """Denoising loss of single frames with the temporal layers bypassed."""
    scenes, pixels, coverage = random_frames(generator, batch_size)
    latents = parts.encode(pixels)[:, :, None]
    noisy, timesteps, target = diffusion.corrupt(latents, generator, BALANCED)
    text = parts.text(scene_captions(generator, scenes, motion=False, unnamed=UNNAMED), generator)
    with temporal_bypass(unet):
        predicted = unet(noisy, timesteps, text).sample
    return weighted_loss(predicted, target, object_weight(coverage)[:, :, None])


def clip_loss(
    unet: UNet3DConditionModel,
    parts: FrozenParts,
    pool: Pool,
    diffusion: Diffusion,
    generator: torch.Generator,
    batch_size: int,
    emphasis: Emphasis,
) -> Tensor:
    """Denoising loss of clips, all layers at work."""
    scenes, latents, weight = pool.draw(generator, batch_size)
    noisy, timesteps, target = diffusion.corrupt(latents, generator, emphasis)
    text = parts.text(scene_captions(generator, scenes, motion=True, unnamed=UNNAMED), generator)
    return weighted_loss(unet(noisy, timesteps, text).sample, target, weight)


def pooled_frame_loss(
    unet: UNet3DConditionModel,
    parts: FrozenParts,
    pool: Pool,
    diffusion: Diffusion,
    generator: torch.Generator,
    batch_size: int,
) -> Tensor:
    """`frame_loss` on single frames of the pool's clips."""
    drawn = torch.randint(len(pool.scenes), (batch_size,), generator=generator)
    frames = torch.randint(world.NUM_FRAMES, (batch_size,), generator=generator)
    noisy, timesteps, target = diffusion.corrupt(pool.latents[drawn, :, frames][:, :, None], generator, BALANCED)
    scenes = [pool.scenes[i] for i in drawn.tolist()]
    text = parts.text(scene_captions(generator, scenes, motion=False, unnamed=UNNAMED), generator)
    with temporal_bypass(unet):
        predicted = unet(noisy, timesteps, text).sample
    return weighted_loss(predicted, target, pool.weight[drawn, :, frames][:, :, None])


# The loop -----------------------------------------------------------------------------------------------------------


def run_vae(work: Path, plan: StagePlan) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = build_vae().train()
    run_stage(plan, {"vae": vae}, lambda generator, _: vae_loss(vae, generator, plan.batch_size), work)
    return vae.eval().requires_grad_(False)


def run_text(work: Path, plan: StagePlan) -> tuple[CLIPTokenizer, CLIPTextModel]:
    torch.manual_seed(1)
    tokenizer = write_tokenizer(work / "tokenizer")
    encoder = build_text_encoder(tokenizer).train()
    probes = WordProbes(len(tokenizer))
    modules: dict[str, nn.Module] = {"encoder": encoder, "probes": probes}
    run_stage(plan, modules, lambda g, _: text_loss(encoder, probes, tokenizer, g, plan.batch_size), work)
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL) -> float:
    """One over the standard deviation of the latents of 256 frames, as for every latent diffusion model."""
    _, pixels, _ = random_frames(torch.Generator().manual_seed(7), 256)
    return 1.0 / float(vae.encode(pixels).latent_dist.mode().std())


def run_unet(
    work: Path, parts: FrozenParts, image: StagePlan, motion: StagePlan, video: StagePlan
) -> UNet3DConditionModel:
    torch.manual_seed(2)
    diffusion = Diffusion()
    unet = build_unet()
    # Dropout of the temporal convolutions serves no purpose on endless data.
    unet.eval()
    use_fast_layers(unet)
    temporal = [p for _, layer in temporal_layers(unet) for p in layer.parameters()]
    for p in temporal:
        p.requires_grad_(False)
    run_stage(image, {"unet": unet}, lambda g, _: frame_loss(unet, parts, diffusion, g, image.batch_size), work)

    pool = build_pool(work, parts, POOL_SIZE)
    train_motion(work, parts, unet, pool, motion)
    return train_video(work, parts, unet, pool, video)


def train_motion(
    work: Path, parts: FrozenParts, unet: UNet3DConditionModel, pool: Pool, motion: StagePlan
) -> UNet3DConditionModel:
    """Stage 4: very noisy clips only, all layers."""
    diffusion = Diffusion()
    unet.requires_grad_(True)
    run_stage(
        motion,
        {"unet": unet},
        lambda g, _: clip_loss(unet, parts, pool, diffusion, g, motion.batch_size, ONLY_WORDS),
        work,
    )
    return unet.requires_grad_(False)


def train_video(
    work: Path, parts: FrozenParts, unet: UNet3DConditionModel, pool: Pool, video: StagePlan
) -> UNet3DConditionModel:
    """Stage 5: clips and single frames in turn, all layers."""
    diffusion = Diffusion()
    unet.requires_grad_(True)

    def joint(generator: torch.Generator, done: float) -> Tensor:
        if float(torch.rand((), generator=generator)) < IMAGE_SHARE:
            return pooled_frame_loss(unet, parts, pool, diffusion, generator, video.batch_size * world.NUM_FRAMES // 2)
        drop_temporal_convolutions(unet, video.drop if done < LAST_QUARTER else video.last_drop, generator)
        return clip_loss(unet, parts, pool, diffusion, generator, video.batch_size, BALANCED)

    try:
        run_stage(video, {"unet": unet}, joint, work)
    finally:
        drop_temporal_convolutions(unet, 0.0, torch.Generator())
    return unet.requires_grad_(False)


def drop_temporal_convolutions(unet: UNet3DConditionModel, share: float, generator: torch.Generator) -> None:
    """Leave each temporal convolution out with probability `share` until the next call (Huang et al. 2016).

    Attention over frames has no position in time of its own. Where the convolutions are always there, they carry all
    motion and the attentions none, and a LoRA on the attentions, which is what the papers train, has nothing to bring
    out. They are left out for the whole step, backward pass included.
    """
    for _, layer in temporal_layers(unet):
        if isinstance(layer, TemporalConvLayer):
            layer.__dict__.pop("forward", None)
            if share and float(torch.rand((), generator=generator)) < share:
                layer.forward = _pass_on


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def pretrain(work: Path, output: Path, plans: dict[str, StagePlan]) -> None:
    """Run all stages and write the model folder."""
    work.mkdir(parents=True, exist_ok=True)
    vae = run_vae(work, plans["vae"])
    tokenizer, encoder = run_text(work, plans["text"])
    parts = FrozenParts(vae, tokenizer, encoder, latent_scale(vae))
    unet = run_unet(work, parts, plans["image"], plans["motion"], plans["video"])
    write_model(output, parts, unet)


def go_on(start: Path, work: Path, output: Path, plan: StagePlan) -> None:
    """The motion or the video stage again, from a finished model folder: its parts, its UNet, a fresh optimiser."""
    work.mkdir(parents=True, exist_ok=True)
    parts, unet = _load_model(start)
    pool = build_pool(work, parts, POOL_SIZE)
    stage = {"motion": train_motion, "video": train_video}[plan.name]
    write_model(output, parts, stage(work, parts, unet, pool, plan))


def average(first: Path, second: Path, share: float, output: Path) -> None:
    """A model whose UNet is (1 - share) of the first's and `share` of the second's, where the second went on from it.

    The other parts are the first's. Networks of one training path can be averaged weight by weight, and the average
    is often better than either (Wortsman et al. 2022, Model soups).
    """
    parts, unet = _load_model(first)
    _, other = _load_model(second)
    with torch.no_grad():
        for mine, its in zip(unet.parameters(), other.parameters(), strict=True):
            mine.lerp_(its, share)
    write_model(output, parts, unet)


def _load_model(folder: Path) -> tuple[FrozenParts, UNet3DConditionModel]:
    """The parts, frozen, and the UNet of a model folder, in fp32."""
    fp32: dict[str, Any] = {"torch_dtype": torch.float32}
    vae = AutoencoderKL.from_pretrained(str(folder / "vae"), **fp32).requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(str(folder / "text_encoder"), **fp32).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    parts = FrozenParts(vae.eval(), tokenizer, encoder.eval(), float(vae.config["scaling_factor"]))
    unet = UNet3DConditionModel.from_pretrained(str(folder / "unet"), **fp32).eval()
    use_fast_layers(unet)
    return parts, unet


def export(work: Path, output: Path) -> None:
    """Write the model folder from the averaged weights of the newest checkpoints, while training may go on."""
    vae = _averaged(work / "vae.safetensors", "vae", build_vae())
    tokenizer = write_tokenizer(work / "tokenizer")
    encoder = _averaged(work / "text.safetensors", "encoder", build_text_encoder(tokenizer))
    newest = next(path for name in ("video", "motion", "image") if (path := work / f"{name}.safetensors").exists())
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
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_playground.pretrain", description="Pre-train the playground."
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints and logs; a run resumes from it"
    )
    parser.add_argument("--output", type=Path, default=PLAYGROUND_FOLDER, help="model folder to write")
    for plan in PLANS.values():
        parser.add_argument(f"--{plan.name}-steps", type=int, default=plan.steps, help="default: %(default)s")
    parser.add_argument("--start-from", type=Path, help="model folder whose UNet takes a stage once more")
    parser.add_argument(
        "--again", choices=("motion", "video"), default="video", help="that stage (default: %(default)s)"
    )
    parser.add_argument("--again-steps", type=int, help="of that stage (default: motion 200, video 4500)")
    parser.add_argument(
        "--average-with",
        type=Path,
        help="with --start-from: write the average of the two folders' UNets instead of training",
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the second folder in it (default: %(default)s)")
    parser.add_argument("--export", action="store_true", help="write the model from the checkpoints, and stop")
    parser.add_argument("--only", choices=tuple(PLANS), help="stop after this stage and write no model")
    options = parser.parse_args(arguments)
    if options.average_with is not None and options.start_from is None:
        parser.error("--average-with needs --start-from, the first of the two model folders")
    if not 0 <= options.share <= 1:
        parser.error(f"--share is {options.share:g}; it must be from 0 to 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _parse(arguments)
    plans = {name: replace(plan, steps=getattr(options, f"{name}_steps")) for name, plan in PLANS.items()}
    if options.average_with is not None:
        average(options.start_from, options.average_with, options.share, options.output)
        return
    if options.start_from is not None:
        plan = AGAIN[options.again]
        go_on(options.start_from, options.work, options.output, replace(plan, steps=options.again_steps or plan.steps))
        return
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
