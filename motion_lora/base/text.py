"""Prompts as token numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)


def max_tokens(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> int:
    """Tokens that the text encoder reads, its start and end tokens included."""
    # A tokenizer whose config names no length reports a huge one.
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Token numbers (b, length) on CPU, padded; what is longer is cut, with a warning in the log."""
    _warn_truncated(tokenizer, prompts, length)
    batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = batch["input_ids"]
    return ids


def _warn_truncated(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int) -> None:
    for prompt in prompts:
        count = len(tokenizer(prompt)["input_ids"])
        if count > length:
            logger.warning("The prompt %r has %d tokens; the last %d are not read.", prompt, count, count - length)
