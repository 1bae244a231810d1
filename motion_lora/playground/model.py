"""The built-in model: its name, its folder, how it is loaded."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline
    from ..core.identity import BaseIdentity


PLAYGROUND_NAME = "playground"
# That of a large model burns the colours of the small one.
GUIDANCE_SCALE = 2.5
PLAYGROUND_FOLDER = Path(__file__).parent / "weights"
# LoRAs and clips that the workflows use (tools/make_examples.py). Not beside the workflows: ComfyUI would take a folder
# `examples` of a pack for its templates and then find none of those in `workflows`.
EXAMPLES = Path(__file__).parent / "examples"


def load_playground(device: str = "auto", dtype: str = "fp32") -> VideoPipeline:
    """The built-in model; it needs no network and no download.

    Raises ModelError where the weights were left out of the installation.
    """
    from ..base.pipeline import VideoPipeline

    base = VideoPipeline.load(PLAYGROUND_FOLDER, device=device, dtype=dtype)
    return replace(base, default_guidance_scale=GUIDANCE_SCALE)


def is_playground(pipeline: VideoPipeline) -> bool:
    """Whether a base draws the playground's world, so that the probe can read its videos."""
    return is_playground_identity(pipeline.identity)


def is_playground_identity(identity: BaseIdentity) -> bool:
    """Whether these are the shipped weights, in any dtype. A name says nothing: others may be called the same."""
    return bool(identity.weights_hash) and identity.weights_hash == playground_hash()


@cache
def playground_hash() -> str:
    """The weights hash of the shipped network, as in `BaseIdentity`; "" where it was left out of the installation."""
    from safetensors.torch import load_file

    from ..base.identity import weights_hash

    path = PLAYGROUND_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    return weights_hash(load_file(str(path)).items()) if path.is_file() else ""
