"""How the cost grows: a training step by frames and by clips, a sampling step by stacked LoRAs; a table and a plot.

    python tools/scaling.py                    prints the table, writes out/scaling.png

CPU seconds of one thread on a network of the playground's layout; medians, all sizes of a row in turns. The last column
is the slope beside a straight line through the ends: 1 is linear.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from bench_speed import medians
from stacked_loras import lora, network

from motion_lora.adapters.apply import applied
from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.faster import use_fast_layers
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.media.plots import Line, plot_lines
from motion_lora.media.write import write_png

SIDE, RANK = 8, 4


def training_by(frames: Sequence[int], clips: int = 1) -> list[float]:
    """Seconds of a step of the temporal LoRA over `clips` clips of so many frames each."""
    stock = network()
    unet = network()
    use_fast_layers(unet)
    add_adapter(unet, "new", target_modules(stock, "temporal-attention"), rank=RANK, alpha=1.0, seed=0)
    adapter = Adapter(unet, "new")
    adapter.set_trainable(True)
    text, step = torch.randn(1, 16, 64), torch.tensor([500])

    def work(count: int) -> None:
        for _ in range(clips):
            loss = unet(torch.randn(1, 4, count, SIDE, SIDE), step, text).sample.square().mean()
            torch.autograd.grad(loss, list(adapter.parameters.values()))

    return medians([lambda count=count: work(count) for count in frames], 5)


def sampling_by(stacked: Sequence[int]) -> list[float]:
    """Seconds of a denoising step under so many LoRAs."""
    entries = [StackEntry(lora(network(), seed), 0.1) for seed in range(max(stacked))]
    inputs = (torch.randn(2, 4, 8, SIDE, SIDE), 500, torch.randn(2, 16, 64))
    with ExitStack() as contexts:
        unets = []
        for count in stacked:
            unets.append(unet := network())
            use_fast_layers(unet)
            contexts.enter_context(applied(unet, AdapterStack(tuple(entries[:count])), 8))
        with torch.no_grad():
            return medians([lambda unet=unet: unet(*inputs) for unet in unets], 5)


def bend(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The middle beside the straight line through the ends: 1 is on it, more is bent upwards at the end."""
    middle = len(sizes) // 2
    share = (sizes[middle] - sizes[0]) / (sizes[-1] - sizes[0])
    return (seconds[0] + share * (seconds[-1] - seconds[0])) / seconds[middle]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out") / "scaling.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    frames, clips, stacked = (4, 8, 12, 16), (1, 2, 3, 4), (1, 4, 7, 10)
    rows = {
        "frames": (frames, training_by(frames)),
        "clips": (clips, [training_by((8,), count)[0] for count in clips]),
        "stacked LoRAs": (stacked, sampling_by(stacked)),
    }
    sys.stdout.write("| by | sizes | ms | line / middle |\n|---|---|---|---|\n")
    for name, (sizes, seconds) in rows.items():
        times = ", ".join(f"{1000 * one:.0f}" for one in seconds)
        sys.stdout.write(f"| {name} | {', '.join(map(str, sizes))} | {times} | {bend(sizes, seconds):.2f} |\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [Line(name, sizes, [one / seconds[0] for one in seconds]) for name, (sizes, seconds) in rows.items()]
    picture = plot_lines(lines, title="cost by size", x_label="size", y_label="times the first", log_y=False)
    write_png(options.output, picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
