"""A tiny Wan for the playground's world: python -m tools.pretrain_playground.wan --work DIR --output DIR.

Stages as in `pretrain`, resumable in the same way; the text encoder is the playground's own, taken as it is:

    wan-vae     the causal autoencoder, on single frames, taught by the playground's own: the same latents
    wan-image   the transformer, on single frames as clips of one frame
    wan-motion  on clips under so much noise that only the words say what moves where
    wan-video   on clips and single frames in turn

The transformer learns on the teacher's latents, so that the two can be trained beside each other (--only). The
autoencoder has the layout of Wan's, but for the time: it does not shorten a clip, whose nine frames are nine
latents. Its kernels see nothing of the frames before, so that it can be trained on single frames; two clips of a second
in three latents could not be drawn well by so small a decoder. What is measured with it are layers, not codecs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from motion_lora.playground import world
from motion_lora.playground.model import PLAYGROUND_FOLDER

from .architecture import TEXT_WIDTH, to_pixels, tokenize, write_tokenizer
from .optimise import StagePlan, run_stage
from .pool import Pool, coverage_of, object_weight, random_scenes, wandering_scenes
from .pretrain import OBJECT_WEIGHT, UNNAMED, scene_captions, weighted_loss

logger = logging.getLogger(__name__)

NUM_FRAMES = 9
CHANNELS = 4
POOL_SIZE = 2048
# Of the latents' deviation, so that the decoder bears what a transformer gets wrong.
LATENT_NOISE = 0.05
IMAGE_SHARE = 0.15
DROP_CAPTION = 0.1
_CLIPS_AT_ONCE = 16

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}

PLANS: dict[str, StagePlan] = {
    "vae": StagePlan(
        "wan-vae", seed=0, steps=4000, batch_size=16, learning_rate=2e-3, warmup=50, cooldown=0.5, ema_decay=0.99
    ),
    "image": StagePlan("wan-image", seed=2, steps=2500, batch_size=64, learning_rate=1e-3, cooldown=0.1),
    "motion": StagePlan("wan-motion", seed=3, steps=1500, batch_size=8, learning_rate=8e-4, cooldown=0.1),
    "video": StagePlan("wan-video", seed=4, steps=7000, batch_size=8, learning_rate=8e-4, cooldown=0.4),
}


def build_vae() -> AutoencoderKLWan:
    """The autoencoder, untrained: (n, 3, f, 64, 64) to latents (n, 4, f, 8, 8); kernels see no frame but their own."""
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, False],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=1,
        scale_factor_spatial=8,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d):
                module.weight[:, :, :-1] = 0
    return vae


def build_transformer() -> WanTransformer3DModel:
    """The network, untrained: nine frames are 144 tokens."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
        rope_max_seq_len=64,
    )


@contextmanager
def as_image_vae(vae: AutoencoderKLWan) -> Iterator[None]:
    """Inside the context its convolutions run in two dimensions: the same numbers for a third of the work."""
    convolutions = [module for module in vae.modules() if isinstance(module, WanCausalConv3d)]
    try:
        for module in convolutions:
            module.forward = _flat(module)  # type: ignore[method-assign]
        yield
    finally:
        for module in convolutions:
            del module.forward


def _flat(module: WanCausalConv3d) -> Any:
    side = module._padding[0]

    def forward(x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        images = x.transpose(1, 2).flatten(0, 1)
        out = F.conv2d(images, module.weight[:, :, -1], module.bias, module.stride[1:], side)
        return out.unflatten(0, (x.shape[0], -1)).transpose(1, 2)

    return forward


@dataclass
class WanParts:
    """What the transformer's stages take: the teacher of the autoencoder with its statistics, the text encoder."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def text(self, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
        keep = torch.rand(len(prompts), generator=generator) >= DROP_CAPTION
        said = [prompt if keep[i] else "" for i, prompt in enumerate(prompts)]
        return self.encoder(tokenize(self.tokenizer, said)).last_hidden_state

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) in [-1, 1] -> normalised latents (n, c, h / 8, w / 8)."""
        return (self.vae.encode(pixels).latent_dist.mode() - self.mean) / self.std


def random_frames(generator: torch.Generator, count: int) -> tuple[list[world.Scene], Tensor, Tensor]:
    """Scenes, one frame of each (n, 3, h, w) in [-1, 1] at a random time, and its object coverage (n, 1, h, w)."""
    scenes = random_scenes(generator, count)
    times = torch.randint(NUM_FRAMES, (count,), generator=generator)
    paths = [world.trajectory(scene, NUM_FRAMES)[t] for scene, t in zip(scenes, times.tolist(), strict=True)]
    centres = torch.stack(paths)
    return scenes, to_pixels(world.render_frames(scenes, centres)), coverage_of(scenes, centres)


def load_teacher() -> AutoencoderKL:
    """The playground's own autoencoder."""
    teacher = AutoencoderKL.from_pretrained(str(PLAYGROUND_FOLDER / "vae"), torch_dtype=torch.float32)
    return teacher.eval().requires_grad_(False)


def vae_loss(vae: AutoencoderKLWan, teacher: AutoencoderKL, generator: torch.Generator, batch_size: int) -> Tensor:
    """Encoder: squared distance from the teacher's latents. Decoder: weighted L1 + L2 to the frame, from them."""
    _, pixels, coverage = random_frames(generator, batch_size)
    with torch.no_grad():
        known = teacher.encode(pixels).latent_dist.mode()
    posterior = vae.encode(pixels[:, :, None]).latent_dist
    distance = (posterior.mean[:, :, 0] - known).square().mean() / known.var()
    noise = torch.randn(known.shape, generator=generator)
    restored = vae.decode((known + LATENT_NOISE * known.std() * noise)[:, :, None]).sample[:, :, 0]
    weight = 1 + OBJECT_WEIGHT * F.max_pool2d(coverage, 5, stride=1, padding=2)
    error = restored - pixels
    # What the encoder says of its own certainty is used by nobody; it is only kept from running away.
    return distance + (weight * (error.abs() + 2 * error.square())).mean() + 1e-4 * posterior.logvar.square().mean()


def run_vae(work: Path, plan: StagePlan) -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae, teacher = build_vae().train(), load_teacher()
    with as_image_vae(vae):
        run_stage(plan, {"vae": vae}, lambda generator, _: vae_loss(vae, teacher, generator, plan.batch_size), work)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def make_parts() -> WanParts:
    """The frozen parts, the latents' statistics from 256 frames."""
    fp32: dict[str, Any] = {"torch_dtype": torch.float32}
    encoder = CLIPTextModel.from_pretrained(str(PLAYGROUND_FOLDER / "text_encoder"), **fp32)
    tokenizer = CLIPTokenizer.from_pretrained(str(PLAYGROUND_FOLDER / "tokenizer"))
    parts = WanParts(
        load_teacher(),
        tokenizer,
        encoder.eval().requires_grad_(False),
        torch.zeros(1, CHANNELS, 1, 1),
        torch.ones(1, CHANNELS, 1, 1),
    )
    _, pixels, _ = random_frames(torch.Generator().manual_seed(7), 256)
    latents = parts.encode(pixels)
    return replace(parts, mean=latents.mean(dim=(0, 2, 3), keepdim=True), std=latents.std(dim=(0, 2, 3), keepdim=True))


def build_pool(work: Path, parts: WanParts, size: int) -> Pool:
    """Encode `size` clips of known motions and as many that wander, or read what a run left in `work`."""
    scenes = [
        *random_scenes(torch.Generator().manual_seed(11), size),
        *wandering_scenes(torch.Generator().manual_seed(12), size),
    ]
    path = work / f"wan-pool-{size}.safetensors"
    if not path.exists():
        chunks = [scenes[i : i + _CLIPS_AT_ONCE] for i in range(0, len(scenes), _CLIPS_AT_ONCE)]
        latents, weights = zip(*(_encode_scenes(parts, chunk) for chunk in chunks), strict=True)
        temporary = path.with_suffix(".tmp")
        stacked = {"latents": torch.cat(latents), "weight": torch.cat(weights)}
        save_file({name: t.half().contiguous() for name, t in stacked.items()}, str(temporary))
        os.replace(temporary, path)
    stored = load_file(str(path))
    return Pool(tuple(scenes), stored["latents"].float(), stored["weight"].float())


def _encode_scenes(parts: WanParts, scenes: Sequence[world.Scene]) -> tuple[Tensor, Tensor]:
    """Latents (n, c, f, h, w) and loss weights (n, 1, f, h, w) of n clips."""
    centres = torch.cat([world.trajectory(scene, NUM_FRAMES) for scene in scenes])
    drawn = [scene for scene in scenes for _ in range(NUM_FRAMES)]
    latents = parts.encode(to_pixels(world.render_frames(drawn, centres)))
    weight = object_weight(coverage_of(drawn, centres))
    return tuple(t.unflatten(0, (len(scenes), NUM_FRAMES)).transpose(1, 2) for t in (latents, weight))  # type: ignore


def corrupt(latents: Tensor, generator: torch.Generator, shift: float, low: float) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps (b,) and the velocity: sigma shifted towards noise, not below `low`."""
    even = torch.rand(latents.shape[0], generator=generator)
    sigma = low + (1 - low) * shift * even / (1 + (shift - 1) * even)
    noise = torch.randn(latents.shape, generator=generator)
    share = sigma.view(-1, 1, 1, 1, 1)
    return (1 - share) * latents + share * noise, 1000 * sigma, noise - latents


def frame_loss(network: Any, parts: WanParts, pool: Pool, generator: torch.Generator, batch_size: int) -> Tensor:
    """Flow matching on single frames of the pool's clips, each a clip of one frame."""
    drawn = torch.randint(len(pool.scenes), (batch_size,), generator=generator)
    frames = torch.randint(NUM_FRAMES, (batch_size,), generator=generator)
    noisy, timesteps, target = corrupt(pool.latents[drawn, :, frames][:, :, None], generator, 3.0, 0.0)
    scenes = [pool.scenes[i] for i in drawn.tolist()]
    text = parts.text(scene_captions(generator, scenes, motion=False, unnamed=UNNAMED), generator)
    predicted = network(noisy, timesteps, text, return_dict=False)[0]
    return weighted_loss(predicted, target, pool.weight[drawn, :, frames][:, :, None])


def clip_loss(
    network: Any, parts: WanParts, pool: Pool, generator: torch.Generator, batch_size: int, low: float
) -> Tensor:
    """Flow matching on clips."""
    scenes, latents, weight = pool.draw(generator, batch_size)
    noisy, timesteps, target = corrupt(latents, generator, 3.0, low)
    text = parts.text(scene_captions(generator, scenes, motion=True, unnamed=UNNAMED), generator)
    return weighted_loss(network(noisy, timesteps, text, return_dict=False)[0], target, weight)


def run_transformer(work: Path, parts: WanParts, plans: dict[str, StagePlan]) -> WanTransformer3DModel:
    torch.manual_seed(2)
    network = build_transformer()
    pool = build_pool(work, parts, POOL_SIZE)
    modules = {"transformer": network}
    image, motion, video = plans["image"], plans["motion"], plans["video"]
    run_stage(image, modules, lambda g, _: frame_loss(network, parts, pool, g, image.batch_size), work)
    run_stage(motion, modules, lambda g, _: clip_loss(network, parts, pool, g, motion.batch_size, 0.8), work)

    def joint(generator: torch.Generator, done: float) -> Tensor:
        if float(torch.rand((), generator=generator)) < IMAGE_SHARE:
            return frame_loss(network, parts, pool, generator, video.batch_size * NUM_FRAMES)
        return clip_loss(network, parts, pool, generator, video.batch_size, 0.0)

    run_stage(video, modules, joint, work)
    return network.eval().requires_grad_(False)


def write_model(output: Path, parts: WanParts, vae: AutoencoderKLWan, network: WanTransformer3DModel) -> None:
    """The finished model as a diffusers folder of fp16 safetensors, in the layout of Wan's release."""
    vae.register_to_config(latents_mean=parts.mean.flatten().tolist(), latents_std=parts.std.flatten().tolist())
    modules: dict[str, Any] = {"vae": vae, "transformer": network, "text_encoder": parts.encoder}
    for name, module in modules.items():
        module.half().save_pretrained(str(output / name), safe_serialization=True)
        config = output / name / "config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tokenizer(output / "tokenizer")
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (output / "scheduler").mkdir(parents=True, exist_ok=True)
    (output / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(SCHEDULER_CONFIG, indent=2), encoding="utf-8"
    )
    about = {"name": "playground-wan", "num_frames": NUM_FRAMES, "fps": world.FPS}
    (output / "motion_lora.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    (output / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _averaged(checkpoint: Path, key: str, module: Any) -> Any:
    prefix = f"average.{key}."
    tensors = load_file(str(checkpoint))
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(found, strict=False)
    return module.eval().requires_grad_(False)


def export(work: Path, output: Path) -> None:
    """Write the model folder from the averaged weights of the newest checkpoints, while training may go on."""
    vae = _averaged(work / "wan-vae.safetensors", "vae", build_vae())
    newest = next(p for name in ("video", "motion", "image") if (p := work / f"wan-{name}.safetensors").exists())
    write_model(output, make_parts(), vae, _averaged(newest, "transformer", build_transformer()))


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_playground.wan", description="Pre-train a tiny Wan."
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints and logs; a run resumes from it"
    )
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    for name, plan in PLANS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=plan.steps, help="default: %(default)s")
    parser.add_argument("--export", action="store_true", help="write the model from the checkpoints, and stop")
    parser.add_argument("--only", choices=("vae", "transformer"), help="train this one alone, and write nothing")
    options = parser.parse_args(arguments)
    if options.export:
        export(options.work, options.output)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    plans = {name: replace(plan, steps=getattr(options, f"{name}_steps")) for name, plan in PLANS.items()}
    if options.only != "transformer":
        run_vae(options.work, plans["vae"])
    if options.only != "vae":
        run_transformer(options.work, make_parts(), plans)
    if options.only is None:
        export(options.work, options.output)


if __name__ == "__main__":
    main()
