"""LPIPS metrics (Zhang et al. 2018), by the `lpips` package over a backbone from the user's disk.

    LPIPS temporal consistency   mean LPIPS of neighbouring frames; lower is better (Customize-A-Video, Table 1)
    LPIPS diversity              mean LPIPS of frames at the same time in different videos of one prompt, over all
                                 pairs of videos; higher is better (Customize-A-Video, Table 1)

The paper does not say which backbone; AlexNet is the package's default, and figures of different backbones cannot be
compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...core.errors import ClipError, ModelError, SettingsError
from .optional import check_frames, require

BACKBONES: Mapping[str, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
_CHUNK = 16
# Of smaller frames AlexNet's poolings leave nothing.
SMALLEST_SIDE = 32


@dataclass(frozen=True, eq=False)
class Perceptual:
    """LPIPS with one backbone: "alex", "vgg" or "squeeze"."""

    network: Any
    backbone: str
    device: torch.device

    @classmethod
    def load(cls, weights: str | Path | None = None, *, backbone: str = "alex", device: str = "auto") -> Perceptual:
        """Load LPIPS over torchvision's ImageNet weights (.pth or .safetensors); nothing is downloaded.

        Without `weights` torch's own cache is looked through. Raises SettingsError where the package is missing or
        the backbone unknown, ModelError where the weights are missing or another network's.
        """
        from ...base.placement import pick_device

        path = check_lpips_weights(weights, backbone)
        lpips = require("lpips", "lpips", "LPIPS")
        target = pick_device(device)
        with torch.inference_mode(False):
            network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
            _fill(network.net, _read(path), path)
        return cls(network.eval().requires_grad_(False).to(target), backbone, target)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS of frames (n, h, w, 3) with others of the same shape, in [0, 1] each: (n,) on CPU."""
        if first.shape != second.shape:
            raise ClipError(f"LPIPS compares equal shapes, not {tuple(first.shape)} with {tuple(second.shape)}.")
        if min(first.shape[1:3]) < SMALLEST_SIDE:
            raise ClipError(f"LPIPS needs sides of {SMALLEST_SIDE} pixels or more, and one is {min(first.shape[1:3])}.")
        parts = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
        with torch.no_grad():
            return torch.cat([self.network(self._images(a), self._images(b)).flatten().cpu() for a, b in parts])

    def _images(self, frames: Tensor) -> Tensor:
        return frames.to(self.device, torch.float32).movedim(-1, 1) * 2 - 1


def lpips_temporal_consistency(frames: Tensor, perceptual: Perceptual) -> float:
    """Mean LPIPS of neighbouring frames (f, h, w, 3); lower is better."""
    frames = check_frames(frames, 2, "LPIPS temporal consistency")
    return float(perceptual.distance(frames[:-1], frames[1:]).mean())


def lpips_diversity(videos: Sequence[Tensor], perceptual: Perceptual) -> float:
    """Mean LPIPS of frames at the same time, over all pairs of videos (f, h, w, 3) of one prompt; higher is better."""
    if len(videos) < 2:
        raise SettingsError(f"Diversity compares videos of one prompt, and there is {len(videos)}; give two or more.")
    pairs = [perceptual.distance(a, b).mean() for a, b in itertools.combinations(videos, 2)]
    return float(torch.stack(pairs).mean())


def check_lpips_weights(weights: str | Path | None, backbone: str) -> Path:
    """The file that `Perceptual.load` would read; raises SettingsError or ModelError where there is none."""
    if backbone not in BACKBONES:
        raise SettingsError(f"backbone is {backbone!r}; it must be one of: {', '.join(BACKBONES)}.")
    path = _cached(backbone) if weights is None else Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(
            f"{path} is not a file; fetch torchvision's ImageNet weights of {BACKBONES[backbone]} and name the file."
        )
    return path


def backbone_of(weights: str | Path) -> str:
    """The backbone that a weights file is named after, as torchvision names them; "alex" for any other name."""
    name = Path(weights).name.lower()
    return next((backbone for backbone, network in BACKBONES.items() if name.startswith(network)), "alex")


def _cached(backbone: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(f"{BACKBONES[backbone]}-*.pth"))
    if not found:
        raise ModelError(
            f"LPIPS needs torchvision's ImageNet weights of {BACKBONES[backbone]}: put the file "
            f"{BACKBONES[backbone]}-*.pth into {folder}, or name where it is."
        )
    return found[0]


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only keeps a pickle from running code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as network weights: {str(error).splitlines()[0]}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds no weights by name, but {type(content).__name__}.")
    return content


def _fill(network: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy torchvision's `features.<n>.*` into lpips' slices, which keep the layers' numbers."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            key = f"features.{name.split('.', 1)[1]}"
            value = weights.get(key)
            if value is None or value.shape != parameter.shape:
                raise ModelError(f"{path} is not this backbone's: it lacks {key} of shape {tuple(parameter.shape)}.")
            parameter.copy_(value)
