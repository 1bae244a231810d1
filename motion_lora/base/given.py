"""Text embeddings that were made elsewhere, such as by ComfyUI's own CLIP: a base without a text encoder of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..backbones.base import Text
from ..core.errors import ClipError, SettingsError

GivenTexts = Mapping[str, Tensor]
"""Embeddings (tokens, dim) or (1, tokens, dim) by the prompt that they are of."""


def check_given(texts: GivenTexts, prompts: Sequence[str]) -> None:
    """Raise ClipError for a prompt that there is no embedding of."""
    missing = [prompt for prompt in prompts if prompt not in texts]
    if missing:
        there = ", ".join(repr(prompt) for prompt in texts)
        raise ClipError(
            f"There is no embedding of {missing[0]!r}: this base has no text encoder, only what was given to it, "
            f"{there}. Encode the prompt too, or take a base with a text encoder."
        )


def text_of(texts: GivenTexts, prompts: Sequence[str], device: torch.device) -> Text:
    """What the network takes of the prompts, on the device; shorter ones end in zeros. Raises ClipError for others."""
    check_given(texts, prompts)
    found = [texts[prompt].detach().reshape(-1, texts[prompt].shape[-1]).to(device, copy=True) for prompt in prompts]
    length = max(len(one) for one in found)
    filled = [pad(one, (0, 0, 0, length - len(one))) for one in found]
    return Text({"encoder_hidden_states": torch.stack(filled)})


def given_hash(texts: GivenTexts, prompts: Sequence[str], flow_shift: float) -> str:
    """SHA-256 of the embeddings of these prompts and of a shift: what decides a training beside weights and clips."""
    digest = hashlib.sha256(f"{flow_shift:g}".encode())
    for prompt in sorted(set(prompts)):
        digest.update(prompt.encode() + b"\0")
        if prompt in texts:
            digest.update(texts[prompt].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_encoder(texts: GivenTexts | None, name: str, what: str) -> None:
    """Raise SettingsError where `what` needs a text encoder and the base called `name` has only given `texts`."""
    if texts is not None:
        raise SettingsError(
            f"{what} need the text encoder itself, and {name} has embeddings that came from outside: "
            "take an absorber without learned tokens ('joint', 'spatial' or 'none')."
        )
