"""Learned tokens on a base: they stand in a caption where the words for the look stood.

Their rows of the embedding table are learned, and nothing else of the text encoder (Customize-A-Video section 4.1,
Eq. 4). They live on a copy of tokenizer and text encoder, so the base never learns a new word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken

from ..core.absorber import PlaceholderTokens
from ..core.errors import ClipError, LoRAFileError, SettingsError
from ..core.phrases import even_shares, split_phrases
from .given import require_encoder
from .pipeline import VideoPipeline
from .text import token_ids


def initial_tokens(pipeline: VideoPipeline, absorb_words: Sequence[str], num_tokens: int) -> PlaceholderTokens:
    """`num_tokens` new tokens for each distinct entry of `absorb_words`, their rows set from the words themselves.

    Each row is the embedding of its share of the phrase's own tokens, so training starts at the words' meaning
    (Customize-A-Video section 4.1: initialised from short words that describe the appearance).
    """
    require_encoder(pipeline.texts, pipeline.identity.name, "learned tokens")
    names: list[str] = []
    words: list[str] = []
    rows: list[Tensor] = []
    for entry in dict.fromkeys(absorb_words):
        own = [f"<look-{len(names) + index + 1}>" for index in range(num_tokens)]
        phrases = split_phrases(entry)
        for phrase, share in zip(phrases, even_shares(own, phrases), strict=True):
            rows.append(_spread(_embeddings(pipeline, phrase), len(share)))
        names += own
        words += [entry] * num_tokens
    return PlaceholderTokens(tuple(names), torch.cat(rows), tuple(words))


def with_tokens(pipeline: VideoPipeline, tokens: PlaceholderTokens) -> tuple[VideoPipeline, nn.Parameter]:
    """A pipeline that knows `tokens`, on copies of tokenizer and text encoder, and the parameter of the rows (n, dim).

    The rows are fp32, frozen until somebody asks for gradients. Raises LoRAFileError when the rows' width is another
    text encoder's, SettingsError when a name is a word of the tokenizer already.
    """
    check_tokens(pipeline, tokens)
    replica = pipeline.replica(unet=False, text_encoder=True)
    replica.tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in tokens.names])
    ids: Any = replica.tokenizer.convert_tokens_to_ids(list(tokens.names))
    table = replica.text_encoder.get_input_embeddings()
    rows = nn.Parameter(tokens.rows.to(pipeline.device, torch.float32, copy=True), requires_grad=False)
    _replace_child(replica.text_encoder, table, _ExtendedTable(table, rows, ids[0]))
    return replica, rows


def check_tokens(pipeline: VideoPipeline, tokens: PlaceholderTokens) -> None:
    """Raise LoRAFileError or SettingsError unless the tokens fit the pipeline's text encoder."""
    require_encoder(pipeline.texts, pipeline.identity.name, "learned tokens")
    width = _table(pipeline).shape[1]
    if tokens.rows.ndim != 2 or tuple(tokens.rows.shape) != (len(tokens.names), width):
        raise LoRAFileError(
            f"The learned tokens have rows {tuple(tokens.rows.shape)}, where {pipeline.identity.name} needs "
            f"{(len(tokens.names), width)}: they were made for another text encoder."
        )
    known = pipeline.tokenizer.get_vocab()
    if taken := [name for name in tokens.names if name in known]:
        raise SettingsError(f"{', '.join(taken)} are words of {pipeline.identity.name} already; rename the tokens.")


def check_length(pipeline: VideoPipeline, prompt: str) -> None:
    """Raise ClipError when the text encoder would cut the prompt; `pipeline` knows the tokens that stand in it."""
    if pipeline.texts is not None:
        return
    count = len(token_ids(pipeline.tokenizer, prompt))
    if count > pipeline.max_tokens:
        raise ClipError(
            f"The caption {prompt!r} has {count} tokens and {pipeline.identity.name} reads {pipeline.max_tokens}; "
            "shorten it or use fewer tokens."
        )


class _ExtendedTable(nn.Module):
    """The frozen embedding table with new rows behind it, so that only these can ever receive a gradient."""

    def __init__(self, table: nn.Module, rows: nn.Parameter, first: int) -> None:
        super().__init__()
        self.table = table
        self.rows = rows
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (b, n) -> embeddings (b, n, dim)."""
        known: Tensor = self.table(ids.clamp(max=self.first - 1))
        learned = self.rows.to(known.dtype)[(ids - self.first).clamp(min=0)]
        return torch.where((ids >= self.first)[..., None], learned, known)


def _replace_child(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """By identity, because transformers 4 and 5 keep the table at different places."""
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


def _embeddings(pipeline: VideoPipeline, phrase: str) -> Tensor:
    """The rows (m, dim) of the phrase's own tokens, float32 on the CPU."""
    ids = token_ids(pipeline.tokenizer, phrase, special=False)
    if not ids:
        raise ClipError(f"The words to absorb {phrase!r} are no words to {pipeline.identity.name}; use others.")
    table = _table(pipeline)
    return table[torch.tensor(ids, device=table.device)].float().cpu()


def _table(pipeline: VideoPipeline) -> Tensor:
    weight = pipeline.text_encoder.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _spread(rows: Tensor, count: int) -> Tensor:
    """(m, dim) -> (count, dim): each new row is the mean of the part of the old ones that it covers."""
    step = len(rows) / count
    parts = []
    for index in range(count):
        start = math.floor(index * step)
        parts.append(rows[start : max(start + 1, math.ceil((index + 1) * step))].mean(dim=0))
    return torch.stack(parts)
