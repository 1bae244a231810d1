"""The names of the network classes that are known, for those who list folders and must not wait for diffusers."""

from __future__ import annotations

# A test holds them against `registry.BACKBONES`.
NETWORK_CLASSES = ("UNet3DConditionModel", "UNetMotionModel", "WanTransformer3DModel")


def is_video_network(config_text: str) -> bool:
    """Whether the text of a network's `config.json` names a class that is known."""
    return any(f'"{name}"' in config_text for name in NETWORK_CLASSES)
