"""What a step of a real network takes, counted without its weights and without a card.

    python tools/count_memory.py --config modelscope --side 384 --budget 8
    python tools/count_memory.py --config animatediff --side 512 --budget 10
    python tools/count_memory.py --config wan --frames 17 --side 480 --width 832 --targets joint-qk --budget 16

The network is made of fake tensors, in 16 bit, with a LoRA of rank 32 on its temporal layers; as much is saved as the
budget asks for (`motion_lora/training/memory.py`). Text encoder and VAE wait in main memory, as they do on a card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.base import Text
from motion_lora.backbones.motion_unet import ANIMATEDIFF_CONFIG
from motion_lora.backbones.registry import of_class, of_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.backbones.wan import WAN_1_3B_CONFIG, WAN_14B_CONFIG
from motion_lora.training.memory import GB, CountedStep, choose_savings

CONFIGS = {
    "modelscope": MODELSCOPE_UNET_CONFIG,
    "animatediff": ANIMATEDIFF_CONFIG,
    "wan": WAN_1_3B_CONFIG,
    "wan-14b": WAN_14B_CONFIG,
}
_FRAMES_OF_A_LATENT, _WAN_WORDS = 4, 512


def inputs(config: dict[str, Any], frames: int, height: int, width: int) -> tuple[Tensor, Text]:
    """Latents and text of one clip, of the sizes that the network has."""
    width_of_text = config.get("cross_attention_dim", config.get("text_dim"))
    words = 77 if "cross_attention_dim" in config else _WAN_WORDS
    latent_frames = frames if words == 77 else (frames - 1) // _FRAMES_OF_A_LATENT + 1
    latents = torch.empty(1, config["in_channels"], latent_frames, height // 8, width // 8, dtype=torch.bfloat16)
    return latents, Text({"encoder_hidden_states": torch.empty(1, words, width_of_text).bfloat16()})


def count(
    config: dict[str, Any], frames: int, side: int, rank: int, targets: str, budget: float, width: int = 0
) -> str:
    """One line: what it takes, and how many layers are computed twice. Raises SettingsError over the budget."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        kind: Any = of_class(config["_class_name"], "The config").network_class
        # A fake parameter takes no other dtype afterwards.
        torch.set_default_dtype(torch.bfloat16)
        try:
            network = kind.from_config(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        add_adapter(network, "new", target_modules(network, targets), rank=rank, alpha=1.0, seed=0)
        Adapter(network, "new").set_trainable(True)
        backbone = of_network(network)

        def work(images: int | None) -> None:
            noisy, text = inputs(config, frames, side, width or side)
            predicted = backbone.predict(network, noisy, torch.zeros(1, dtype=torch.int64), text)
            predicted.float().square().mean().backward()

        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        savings, memory = choose_savings(CountedStep(network, trained, work, has_bus=True), int(budget * GB))
        return f"{memory}; {savings} (of {len(backbone.checkpointed(network))} layers)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="modelscope")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=0, help="pixels, where it is not the side")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--targets", default="temporal-all")
    parser.add_argument("--budget", type=float, default=1000.0, help="GB")
    said = parser.parse_args(arguments)
    line = count(dict(CONFIGS[said.config]), said.frames, said.side, said.rank, said.targets, said.budget, said.width)
    size = f"{said.frames} x {said.side} x {said.width or said.side}"
    sys.stdout.write(f"{said.config} {size}, rank {said.rank}, bf16: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
