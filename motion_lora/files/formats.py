"""The table of LoRA formats: a format is one module of this package and one row here.

Loading, `motion-lora convert`, the node *Convert LoRA* and docs/FORMAT.md read this table. A row names its functions
as `module:function`, so that reading the table, as every start of ComfyUI does, imports neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..core.lora import LoRA
    from .source import Source


@dataclass(frozen=True, eq=False)
class ImportReport:
    """What was read. `matched` of `total` UNet layers have their place; without a network nothing was there to match.

    `format` is a name of `FORMATS`. `text_encoder` is the text part, if it was asked
    for. `clips` holds all LoRAs of an N-clip spatial file, of which `lora` is one. `notes` are for the user's eyes.
    """

    lora: LoRA
    format: str
    matched: int
    total: int
    notes: tuple[str, ...] = ()
    text_encoder: LoRA | None = None
    clips: tuple[LoRA, ...] = ()

    @property
    def text(self) -> str:
        """One line: "128 of 128 layers matched (kohya); ..."."""
        return "; ".join([f"{self.matched} of {self.total} layers matched ({self.format})", *self.notes])


@dataclass(frozen=True, eq=False)
class ReadFor:
    """What a file is read for: the network, the text encoder for its text part, the place in an N-clip list."""

    unet: nn.Module | None = None
    text_encoder: nn.Module | None = None
    list_index: int = 0


@dataclass(frozen=True)
class Format:
    """One format.

    `recognise(source) -> bool` looks at keys, shapes and metadata only. `read(source, read_for) -> ImportReport` raises
    LoRAFileError. `write(path, lora, *, dtype, metadata, overwrite) -> Path` proves what it wrote by reading it back
    (`writers.write_proved`); empty for a format that is only read. `extension` is that of written files.
    """

    name: str
    help: str
    recognised_by: str
    recognise: str
    read: str
    write: str = ""
    extension: str = ".safetensors"

    def recognises(self, source: Source) -> bool:
        """Whether the file is of this format, by its content."""
        return bool(_function(self.recognise)(source))

    def reader(self) -> Callable[[Source, ReadFor], ImportReport]:
        """The function that reads it."""
        return _function(self.read)

    def writer(self) -> Callable[..., Path]:
        """The function that writes it. Raises SettingsError for a format that is only read."""
        if not self.write:
            raise SettingsError(f"the LoRA format {self.name!r} is read and not written: {_use()}")
        return _function(self.write)


# In the order in which they are tried: the first that recognises a file reads it.
_ROWS = (
    Format(
        "motion-lora",
        "this project's own",
        "its metadata (`motion_lora.format_version`)",
        "source:is_own_source",
        "reader:read_own",
        "own:save_lora",
    ),
    Format(
        "list",
        "lists without names, of MotionDirector and Separate Motion from Appearance",
        "a list of tensors `[up, down, ...]` in a torch file",
        "lists:recognise",
        "reader:read_positional",
    ),
    Format(
        "kohya",
        "lora_unet_* keys with alpha, as kohya's trainer",
        "`lora_unet_<module with _>.lora_down.weight`",
        "names:is_kohya",
        "reader:read_named",
        "writers:export_kohya",
    ),
    Format(
        "comfyui",
        "for video transformers (Wan): what ComfyUI's own Load LoRA applies",
        "`diffusion_model.<module>.lora_A.weight`",
        "names:is_comfyui",
        "reader:read_comfyui",
        "writers:export_comfyui",
    ),
    Format(
        "peft",
        "what diffusers and PEFT read",
        "`<module>.lora_A.weight`",
        "names:is_peft",
        "reader:read_named",
        "writers:export_peft",
    ),
    Format(
        "animatediff",
        "AnimateDiff's own motion LoRAs, for Load AnimateDiff LoRA of AnimateDiff-Evolved",
        "`<place>.temporal_transformer.<block>.processor.to_q_lora.down.weight`",
        "names:is_animatediff",
        "reader:read_native",
        "writers:export_animatediff",
    ),
    Format(
        "diffusers",
        "diffusers before PEFT, attention only; its motion LoRAs for a MotionAdapter",
        "`<module>.lora.down.weight`, `<module>.processor.to_q_lora.down.weight`, `<module>.lora_down.weight`",
        "names:is_diffusers",
        "reader:read_named",
        "writers:export_diffusers",
    ),
    Format(
        "loralib",
        "loralib's keys, as Stable LoRA wrote them for ModelScope in 2023",
        "`<module>.lora_A`, without `.weight`",
        "names:is_loralib",
        "reader:read_named",
    ),
)
FORMATS: dict[str, Format] = {row.name: row for row in _ROWS}


def written() -> dict[str, Format]:
    """The formats that can be written, the own one first."""
    return {name: row for name, row in FORMATS.items() if row.write}


def format_named(name: str) -> Format:
    """A format that can be written, by name. Raises SettingsError for any other name."""
    if name not in FORMATS:
        raise SettingsError(f"unknown LoRA format {name!r}: {_use()}")
    row = FORMATS[name]
    row.writer()
    return row


def words() -> str:
    """The written formats for help texts: "kohya: lora_unet_* keys ...; peft: ..."."""
    return "; ".join(f"{name}: {row.help}" for name, row in written().items())


def recognised(source: Source) -> Format | None:
    """The format of an opened file, or None."""
    return next((row for row in FORMATS.values() if row.recognises(source)), None)


def _use() -> str:
    return f"use one of {', '.join(written())}"


def _function(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f".{module}", __package__), name)
    return function
