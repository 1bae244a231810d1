"""What stacked LoRAs cost per sampling step: none, ten merged ones, and ten whose strength varies.

    python tools/stacked_loras.py                 a network of the playground's size, 8 x 64 x 64
    python tools/stacked_loras.py --rounds 50

Seconds are CPU time of this process, the cases in turns, so that other work on the machine weighs on all alike; the
median of the rounds is printed, and what it is over none.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

from motion_lora.adapters.apply import AppliedStack, applied
from motion_lora.adapters.targets import target_modules
from motion_lora.core.curves import Schedule
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry

FRAMES, SIDE, WIDTH = 8, 16, 64
COUNT, RANK = 10, 4
WARM_UP = 3


def network() -> UNet3DConditionModel:
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=SIDE,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    )
    return unet.eval().requires_grad_(False)


def lora(unet: nn.Module, seed: int) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in target_modules(unet, "temporal-attention"):
        out, inside = unet.get_submodule(name).weight.shape
        down = torch.randn(RANK, inside, generator=generator)
        layers[name] = LoRALayer(down / RANK, 0.01 * torch.randn(out, RANK, generator=generator))
    return LoRA(layers)


def step(unet: nn.Module, inputs: tuple[Tensor, int, Tensor], work: object, position: float) -> float:
    """CPU seconds of a step at a position of the schedule; moving a strength there belongs to it."""
    start = time.process_time()
    if isinstance(work, AppliedStack):
        work.at(position)
    with torch.no_grad():
        unet(*inputs)
    return time.process_time() - start


def measure(unet: nn.Module, stacks: dict[str, AdapterStack], rounds: int) -> dict[str, float]:
    """Median CPU seconds of a step, classifier-free guidance's batch of two."""
    inputs = (torch.randn(2, 4, FRAMES, SIDE, SIDE), 500, torch.randn(2, 16, WIDTH))
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    for number in range(rounds + WARM_UP):
        for name, stack in stacks.items():
            at_work: AbstractContextManager[object] = applied(unet, stack, FRAMES) if len(stack) else nullcontext()
            with at_work as work:
                found = step(unet, inputs, work, (number + 1) / (rounds + WARM_UP))
            if number >= WARM_UP:
                seconds[name].append(found)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    unet = network()
    loras = [lora(unet, seed) for seed in range(COUNT)]
    fading = Schedule(curve="linear")
    stacks = {
        "none": AdapterStack(),
        f"{COUNT} merged": AdapterStack(tuple(StackEntry(entry, 0.1) for entry in loras)),
        f"{COUNT} varying": AdapterStack(tuple(StackEntry(entry, 0.1, steps=fading) for entry in loras)),
    }
    found = measure(unet, stacks, options.rounds)
    for name, seconds in found.items():
        sys.stdout.write(f"{name:12}{seconds * 1000:8.1f} ms a step  {seconds / found['none'] - 1:+7.1%}\n")


if __name__ == "__main__":
    main()
