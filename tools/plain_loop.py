"""A LoRA trained as anybody would with diffusers and PEFT alone: the loop that ours is measured against.

Not one line of this library takes part but the list of target modules: stock layers, PEFT's own LoRA, autocast, AdamW.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from full_size import peak_memory, reset_peak_memory, synchronize
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional


def plain_steps(
    network: nn.Module, modules: Sequence[str], latents: Tensor, text: Tensor, *, rank: int, steps: int,
    dtype: torch.dtype, gradient_checkpointing: bool,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of the fastest step, and peak memory in GiB; `network` is copied, latents (1, c, f, h, w)."""
    device = latents.device
    unet: Any = copy.deepcopy(network)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules)), unet)
    if gradient_checkpointing and getattr(unet, "_supports_gradient_checkpointing", False):
        unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimiser, schedule = torch.optim.AdamW(trained, lr=5e-4), DDPMScheduler()
    embeddings = text.repeat_interleave(latents.shape[2], 0) if "Motion" in type(unet).__name__ else text
    reset_peak_memory(device)
    fastest = float("inf")
    for _ in range(steps):
        synchronize(device)
        began = time.perf_counter()
        noise = torch.randn_like(latents)
        timestep = torch.randint(0, 1000, (1,), device=device)
        noisy = schedule.add_noise(latents, noise, timestep)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            predicted = unet(noisy, timestep, embeddings).sample
        functional.mse_loss(predicted.float(), noise.float()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest, peak_memory(device)
