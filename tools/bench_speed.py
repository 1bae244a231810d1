"""What the fast layers bring: the playground's step and sample with diffusers' layers and with ours, in turns.

    python tools/bench_speed.py                 a table: CPU seconds of one thread, medians, floor by matrix product
    python tools/bench_speed.py --rounds 20

Seconds are CPU time of this process on one thread, the two kinds in turns, so that other work weighs on both alike. The
floor is the counted arithmetic at the machine's matrix-product rate, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.faster import use_fast_layers
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.playground.model import load_playground

FRAMES, SIDE, BATCH, RANK = 8, 8, 8, 32
Work = Callable[[], None]


def pretraining_step(base: VideoPipeline, fast: bool) -> Work:
    """Forward and backward pass of all weights, a batch of eight clips."""
    unet = base.replica().unet.eval().requires_grad_(True)
    use_fast_layers(unet, fast)
    latents, steps = torch.randn(BATCH, 4, FRAMES, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))
    text = base.read_prompts(["a red circle circling over sand"]).expand(BATCH)

    def work() -> None:
        unet.zero_grad(set_to_none=True)
        base.backbone.predict(unet, latents, steps, text).square().mean().backward()

    return work


def lora_step(base: VideoPipeline, fast: bool) -> Work:
    """Forward and backward pass of a LoRA of all temporal layers, one clip."""
    unet = base.replica().unet.eval().requires_grad_(False)
    use_fast_layers(unet, fast)
    modules = target_modules(base.unet, "temporal-difference")
    add_adapter(unet, "new", modules, rank=RANK, alpha=1.0, zero_sum=True, seed=0)
    adapter = Adapter(unet, "new")
    adapter.set_trainable(True)
    latents, steps = torch.randn(1, 4, FRAMES, SIDE, SIDE), torch.tensor([500])
    text = base.read_prompts(["a red circle circling over sand"])

    def work() -> None:
        for parameter in adapter.parameters.values():
            parameter.grad = None
        base.backbone.predict(unet, latents, steps, text).square().mean().backward()

    return work


def sampling_step(base: VideoPipeline, fast: bool) -> Work:
    """One denoising step of eight videos with guidance: a batch of sixteen."""
    unet = base.replica().unet.eval().requires_grad_(False)
    use_fast_layers(unet, fast)
    latents, step = torch.randn(2 * BATCH, 4, FRAMES, SIDE, SIDE), torch.tensor(500)
    text = base.read_prompts(["a red circle circling over sand"]).expand(2 * BATCH)

    def work() -> None:
        with torch.no_grad():
            base.backbone.predict(unet, latents, step, text)

    return work


WORKS = {
    f"pre-training step, batch {BATCH}": pretraining_step,
    f"LoRA step, temporal-difference, rank {RANK}": lora_step,
    f"sampling step, {BATCH} videos": sampling_step,
}


def medians(works: Sequence[Work], rounds: int) -> list[float]:
    """Median CPU seconds of each, in turns, after two of each to warm up."""
    found: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 2):
        for work, seconds in zip(works, found, strict=True):
            began = time.process_time()
            work()
            if number >= 2:
                seconds.append(time.process_time() - began)
    return [statistics.median(seconds) for seconds in found]


def matrix_rate(side: int = 1024) -> float:
    """FLOP per CPU second of a square product, the best of ten."""
    one = torch.randn(side, side)

    def product() -> float:
        began = time.process_time()
        torch.mm(one, one)
        return 2 * side**3 / (time.process_time() - began)

    return max(product() for _ in range(10))


def flops_of(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, rate = load_playground("cpu"), matrix_rate()
    sys.stdout.write(f"matrix product: {rate / 1e9:.0f} GFLOP/s on one thread, torch {torch.__version__}\n\n")
    sys.stdout.write(
        "| work | diffusers' layers | fast layers | times | floor | of the floor |\n|---|---|---|---|---|---|\n"
    )
    for name, make in WORKS.items():
        works = [make(base, False), make(base, True)]
        floor = flops_of(works[1]) / rate
        stock, fast = medians(works, rounds)
        cells = (name, f"{stock * 1e3:.0f} ms", f"{fast * 1e3:.0f} ms", f"{stock / fast:.2f}", f"{floor * 1e3:.0f} ms",
                 f"{floor / fast:.0%}")  # fmt: skip
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
