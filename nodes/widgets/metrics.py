"""What nodes share that measure: which CLIP and LPIPS, by the names that ComfyUI lists."""

from __future__ import annotations

from pathlib import Path

from ...motion_lora.jobs import CLIP_MODEL, LPIPS_WEIGHTS
from ..comfy import folders
from ..comfy.sockets import io

NONE = "none"


def model_inputs() -> list[io.Input]:
    """Two optional widgets, which stand last wherever they were added to a node."""
    return [
        io.Combo.Input(
            CLIP_MODEL,
            options=[NONE, *folders.clip_model_names()],
            default=NONE,
            optional=True,
            advanced=True,
            tooltip="A CLIP model for text alignment (and consistency, without LPIPS). Put a folder in transformers' "
            "layout, such as a download of openai/clip-vit-base-patch32 with safetensors, into "
            "models/motion_lora_metrics or models/clip_vision and press R. The playground needs none.",
        ),
        io.Combo.Input(
            LPIPS_WEIGHTS,
            options=[NONE, *folders.lpips_names()],
            default=NONE,
            optional=True,
            advanced=True,
            tooltip="Weights for consistency by LPIPS. Put torchvision's file alexnet-*.pth, vgg16-*.pth or "
            "squeezenet1_1-*.pth into models/motion_lora_metrics and press R; the package lpips is needed too. The "
            "playground needs none.",
        ),
    ]


def named(clip_model: str = NONE, lpips_weights: str = NONE) -> dict[str, str]:
    """Those that were chosen, by their kind."""
    chosen = {CLIP_MODEL: clip_model, LPIPS_WEIGHTS: lpips_weights}
    return {kind: name for kind, name in chosen.items() if name not in ("", NONE)}


def files_of(names: dict[str, str]) -> dict[str, Path]:
    """Where the chosen ones lie; raises ModelError or LoRAFileError for a name that is not listed."""
    return {kind: folders.metric_path(kind, name) for kind, name in names.items()}


def check(names: dict[str, str]) -> None:
    """Raise for what cannot be loaded, before anything is sampled or trained."""
    from ...motion_lora.evaluate.metrics import check_metric_models

    found = files_of(names)
    check_metric_models(found.get(CLIP_MODEL), found.get(LPIPS_WEIGHTS))
