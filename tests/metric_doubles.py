"""Doubles of the networks that CLIP and LPIPS metrics ask: their answers are known, so is what has to come out."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from tiny import MAX_TOKENS, tiny_tokenizer
from torch import Tensor, nn

from motion_lora.evaluate.metrics import ClipScorer

# Layers of torchvision's AlexNet by their numbers: (out, in, side) of the kernels.
ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def clip_double(see: Callable[[Tensor], Tensor], text: Tensor, size: int = 32) -> ClipScorer:
    """A scorer whose image vectors are `see` of the pixels (n, 3, size, size) in [0, 1], whose text is one vector."""
    model = SimpleNamespace(
        config=SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=MAX_TOKENS)),
        get_image_features=lambda pixel_values: see(pixel_values),
        get_text_features=lambda input_ids, attention_mask: text.expand(len(input_ids), -1),
    )
    return ClipScorer(model, tiny_tokenizer(), "double", size, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))


def turned(pixels: Tensor) -> Tensor:
    """Vectors at an angle: 0 for black, a half turn for white; their length is no unit's."""
    angle = torch.pi * pixels.mean(dim=(1, 2, 3))
    return 3 * torch.stack([angle.cos(), angle.sin()], dim=-1)


def colours_and_sharpness(pixels: Tensor) -> Tensor:
    """Vectors of what a coarse grid shows: the colours, around grey, and how much neighbouring pixels differ."""
    colours = F.adaptive_avg_pool2d(pixels - 0.5, 4)
    edges = F.adaptive_avg_pool2d(pixels.diff(dim=-1).abs(), 4)
    return torch.cat([colours.flatten(1), edges.flatten(1)], dim=-1)


class LpipsDouble(nn.Module):
    """Stands in for `lpips.LPIPS` over AlexNet: its layers under their names, and the mean difference as distance."""

    def __init__(self, net: str = "alex", pnet_rand: bool = False, verbose: bool = True) -> None:
        super().__init__()
        assert net == "alex" and pnet_rand and not verbose, "weights would be downloaded, or lines printed"
        self.net = nn.Module()
        for i, (layer, (out, into, side)) in enumerate(ALEXNET.items(), start=1):
            part = nn.Sequential()
            part.add_module(str(layer), nn.Conv2d(into, out, side))
            self.net.add_module(f"slice{i}", part)
        self.seen: list[tuple[float, float]] = []

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Images (n, 3, h, w), which the package wants in [-1, 1] -> (n, 1, 1, 1): mean difference, in [0, 1]."""
        assert first.shape == second.shape and first.shape[1] == 3
        self.seen += [(float(images.min()), float(images.max())) for images in (first, second)]
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True) / 2


def lpips_module() -> ModuleType:
    """What `import lpips` finds."""
    module = ModuleType("lpips")
    module.LPIPS = LpipsDouble
    return module
