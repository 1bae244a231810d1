"""The built-in model: its name, its folder, how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline


PLAYGROUND_NAME = "playground"
PLAYGROUND_FOLDER = Path(__file__).parent / "weights"
# LoRAs and clips that the workflows use (tools/make_examples.py). Not beside the workflows: ComfyUI would take a folder
# `examples` of a pack for its templates and then find none of those in `workflows`.
EXAMPLES = Path(__file__).parent / "examples"


def load_playground(device: str = "auto", dtype: str = "fp32") -> VideoPipeline:
    """The built-in model; it needs no network and no download.

    Raises ModelError where the weights were left out of the installation.
    """
    from ..base.pipeline import VideoPipeline

    return VideoPipeline.load(PLAYGROUND_FOLDER, device=device, dtype=dtype)


def is_playground(pipeline: VideoPipeline) -> bool:
    """Whether a base draws the playground's world, so that the probe can read its videos."""
    return pipeline.identity.name.startswith(PLAYGROUND_NAME)
