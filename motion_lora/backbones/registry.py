"""Which kinds of network are known, and what the others are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel

from ..core.errors import ModelError

_OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "UNet2DConditionModel": "an image network (Stable Diffusion); it has no temporal layers to learn a motion with",
        "UNet2DModel": "an unconditional image network",
        "UNetMotionModel": "an AnimateDiff network; its motion modules are other layers than ModelScope's",
        "MotionAdapter": "an AnimateDiff motion adapter; its motion modules are other layers than ModelScope's",
        "UNetSpatioTemporalConditionModel": "a Stable Video Diffusion network; it takes an image, not a text",
        "I2VGenXLUNet": "an I2VGen-XL network; it takes an image beside the text",
    }
)

SUPPORTED = "UNet3DConditionModel (ModelScope text-to-video-ms-1.7b, ZeroScope, or the built-in playground)"


def check_kind(class_name: str, where: str) -> None:
    """Raise ModelError unless `class_name` is the supported network; says what it is instead."""
    if class_name == UNet3DConditionModel.__name__:
        return
    kind = _OTHER_KINDS.get(class_name, "not a network that is known here")
    raise ModelError(f"{where} is a {class_name}: {kind}. Choose a model with a {SUPPORTED}.")
