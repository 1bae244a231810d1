"""What nodes share that read or write LoRA files which ComfyUI lists."""

from __future__ import annotations

from typing import Any

import torch

from ..comfy import folders
from ..comfy.sockets import io
from . import previews

PRECISIONS = {"as trained": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class FromLoRAFile(io.ComfyNode):
    """A node with the widget `lora_name`: run again when the file changes, refused at once when it is gone."""

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = "", **unused: Any) -> str:
        return previews.file_mark(folders.lora_path, lora_name)

    @classmethod
    def validate_inputs(cls, lora_name: str) -> bool | str:
        return previews.is_listed(folders.lora_path, lora_name)


def filename(default: str) -> io.String.Input:
    """Where a LoRA is written."""
    return io.String.Input(
        "filename",
        default=default,
        tooltip="Below output/loras; subfolders are fine. An existing file is never replaced, the new one gets a "
        "number.",
    )


def precision() -> io.Combo.Input:
    """How its numbers are written."""
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="as trained",
        tooltip="fp16 and bf16 halve the file and round the numbers.",
    )


def written_name() -> io.String.Output:
    """Under which name it is listed."""
    return io.String.Output(
        "lora_name", display_name="lora_name", tooltip="The name under which loaders list the file."
    )
