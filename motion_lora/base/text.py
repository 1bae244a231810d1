"""Prompts as token numbers.

A tokenizer is shared by everything that runs on one base, and those of transformers 5 keep padding and truncation on
the shared object: one thread's cut would be the next one's. So it is only ever asked for all tokens of a text, behind
a lock, and what is read of them is cut and padded here.
"""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)

# How other programs write that a word counts more or less.
_WEIGHT = re.compile(r"\([^()]+:\s*[0-9]*\.?[0-9]+\s*\)")
# T5 has relative positions and no end; the models that read it were trained with so many.
_WITHOUT_POSITIONS = 512

# One for all: a text takes microseconds, and two replicas may hold one tokenizer without knowing of each other.
_lock = threading.Lock()


def max_tokens(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> int:
    """Tokens that the text encoder reads, its start and end tokens included."""
    # A tokenizer whose config names no length reports a huge one.
    positions = getattr(text_encoder.config, "max_position_embeddings", _WITHOUT_POSITIONS)
    return min(int(tokenizer.model_max_length), int(positions))


def token_ids(tokenizer: CLIPTokenizer, text: str, *, special: bool = True) -> list[int]:
    """All token numbers of a text, however many, with or without the start and end tokens."""
    with _lock:
        ids = tokenizer(text, add_special_tokens=special, padding=False, truncation=False, verbose=False)["input_ids"]
    return [int(number) for number in ids]


def copied(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """A tokenizer of one's own, for new words; nobody may be reading with the first one meanwhile."""
    with _lock:
        return copy.deepcopy(tokenizer)


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Token numbers (b, length) on CPU, padded; what is longer is cut, with a warning in the log (see `remarks`)."""
    return torch.tensor([_of_length(tokenizer, prompt, length) for prompt in prompts], dtype=torch.long)


def remarks(tokenizer: CLIPTokenizer, prompt: str, length: int) -> list[str]:
    """What of a prompt is read otherwise than its writer may think, each in a sentence."""
    count = len(token_ids(tokenizer, prompt))
    said = []
    if count > length:
        said.append(f"The prompt {prompt!r} has {count} tokens; the last {count - length} are not read.")
    if weight := _WEIGHT.search(prompt):
        said.append(f"{weight[0]} in the prompt is read as plain text: weights in brackets are not known here.")
    return said


def _of_length(tokenizer: CLIPTokenizer, prompt: str, length: int) -> list[int]:
    ids = token_ids(tokenizer, prompt)
    for remark in remarks(tokenizer, prompt, length):
        logger.warning("%s", remark)
    if len(ids) > length:
        return [*ids[: length - 1], ids[-1]]  # the end token stays: the encoder looks for it
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ids[-1]
    return ids + [int(padding)] * (length - len(ids))
