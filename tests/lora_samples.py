"""LoRAs with known changes, on the tiny network and on the names of the real one, for the tests of stacks and files."""

from __future__ import annotations

import copy

import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

from motion_lora.backbones.base import Text
from motion_lora.backbones.registry import describe, of_network
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.core.lora import LoRA, LoRALayer


def replica_of(unet: nn.Module) -> nn.Module:
    """Own module objects, the same parameter objects."""
    return copy.deepcopy(unet, {id(parameter): parameter for parameter in unet.parameters()})


def full_size_unet() -> UNet3DConditionModel:
    """ModelScope's network on the meta device: real names and shapes, no memory."""
    with torch.device("meta"):
        return UNet3DConditionModel(sample_size=32)


def modules_like(unet: nn.Module, *endings: str, path: str = "") -> list[str]:
    """Modules with weights whose names end so, of one path if asked, in `named_modules` order."""
    names = [name for name, module in unet.named_modules() if getattr(module, "weight", None) is not None]
    return [name for name in names if name.endswith(endings) and (not path or UNET3D.layer_of(name) == path)]


def random_layer(weight: Tensor, rank: int, seed: int, scale: float = 1.0, std: float = 0.1) -> LoRALayer:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=generator) * std
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * std
    return LoRALayer(down, up, scale)


def random_lora(unet: nn.Module, modules: list[str], rank: int = 2, seed: int = 0, scale: float = 1.0) -> LoRA:
    weights = {name: unet.get_submodule(name).weight for name in modules}
    layers = {n: random_layer(w, rank, seed * 10_000 + i, scale) for i, (n, w) in enumerate(weights.items())}
    return LoRA(layers, {"modelspec.title": f"sample {seed}"})


ATTENTION = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
)


def motion_sample(unet: nn.Module, rank: int = 2, seed: int = 0, scale: float = 1.0) -> LoRA:
    """On every temporal attention, and on two temporal convolutions."""
    convolutions = modules_like(unet, "conv1.2", "conv4.3", path="temporal")[:2]
    return random_lora(unet, modules_like(unet, *ATTENTION, path="temporal") + convolutions, rank, seed, scale)


def appearance_sample(unet: nn.Module, rank: int = 2, seed: int = 0, scale: float = 1.0) -> LoRA:
    """On every spatial attention, a convolution and a time projection (what LoCon files hold)."""
    others = modules_like(unet, "resnets.0.conv1", "resnets.0.time_emb_proj", path="spatial")
    return random_lora(unet, modules_like(unet, *ATTENTION, path="spatial") + others, rank, seed, scale)


def everything_sample(unet: nn.Module, seed: int = 0) -> LoRA:
    motion, appearance = motion_sample(unet, seed=seed), appearance_sample(unet, seed=seed + 1)
    return LoRA({**motion.layers, **appearance.layers})


def run(unet: nn.Module, frames: int = 3, batch: int = 2) -> Tensor:
    """One forward pass on fixed inputs: (b, c, f, h, w)."""
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(batch, 4, frames, 8, 8, generator=generator)
    text = torch.randn(batch, 5, describe(unet).cross_attention_dim, generator=generator)
    with torch.no_grad():
        return predict(unet, latents, 500, text)


def predict(unet: nn.Module, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
    """One call as the backbone makes it; `text` is of the prompts, (b, tokens, width)."""
    said = Text({"encoder_hidden_states": text})
    return of_network(unet).predict(unet, latents, torch.tensor(timestep), said)


def state_bytes(unet: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in unet.state_dict().items()}
