"""LoRA files of other tools: read by content, written with a proof, told apart from what they only look like.

`load_any` reads every supported format, `load_any_absorber` also what only holds a look; `convert`, `export_kohya` and
`export_peft` write; `inspect` and `verify` report.
"""

from __future__ import annotations

from .absorbers import AbsorberReport, absorber_from_lora, load_any_absorber
from .embeddings import load_textual_inversion
from .inspection import inspect, verify
from .reader import ImportReport, load_any
from .writers import FORMATS, convert, export_kohya, export_peft

__all__ = [
    "FORMATS",
    "AbsorberReport",
    "ImportReport",
    "absorber_from_lora",
    "convert",
    "export_kohya",
    "export_peft",
    "inspect",
    "load_any",
    "load_any_absorber",
    "load_textual_inversion",
    "verify",
]
