"""The playground: a tiny world and a tiny text-to-video model of it, in the layout of the real ones.

It runs through the same code as they do. It is the base that users start on without a download, and the instrument on
which claims are measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline import VideoPipeline

PLAYGROUND_NAME = "playground"
PLAYGROUND_FOLDER = Path(__file__).parent / "weights"


def load_playground(device: str = "auto", dtype: str = "fp32") -> VideoPipeline:
    """The built-in model; it needs no network and no download.

    Raises ModelError where the weights were left out of the installation.
    """
    from ..pipeline import VideoPipeline

    return VideoPipeline.load(PLAYGROUND_FOLDER, device=device, dtype=dtype)
