"""Textual inversions of other tools as placeholder tokens, for use as an appearance absorber.

diffusers   {token: (n, width)}          A1111 .pt   {"string_to_param": {"*": (n, width)}, ...}
A1111 .safetensors   {"emb_params": (n, width)}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..backbones.registry import DEFAULT
from ..core.errors import LoRAFileError
from .refusals import embedding_width, refuse_embedding
from .source import open_source

if TYPE_CHECKING:
    from ..core.absorber import PlaceholderTokens


def load_textual_inversion(path: str | Path, width: int = DEFAULT.text_width) -> PlaceholderTokens:
    """Read a textual inversion for a text encoder of this width: one placeholder token per row.

    Raises LoRAFileError if the file is no textual inversion, or one of another width (768 is Stable Diffusion 1.5).
    """
    from ..core.absorber import PlaceholderTokens  # here: text encoders are not needed to tell what a file is

    source = open_source(path)
    found = None if source.positional else embedding_width(source.shapes)
    if found is None or len(source.shapes) > 1:
        raise LoRAFileError(f"{source.name} is no textual inversion for one text encoder")
    if found != width:
        refuse_embedding(source)
    ((key, rows),) = source.read().items()
    rows = rows.reshape(-1, found).float()
    if not bool(rows.isfinite().all()):
        raise LoRAFileError(f"{source.name} holds numbers that are not finite")
    stem = re.sub(r"\W+", "-", key if key.startswith("<") else source.path.stem).strip("-") or "look"
    return PlaceholderTokens(tuple(f"<{stem}-{place + 1}>" for place in range(len(rows))), rows)
