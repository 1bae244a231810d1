"""Textual inversion and the appearance absorber: what holds a clip's look while its motion is learned.

Placeholder tokens stand in a caption where the words for the look stood; their rows of the embedding table are
learned, and nothing else of the text encoder (Customize-A-Video section 4.1, Eq. 4). They live on a copy of tokenizer
and text encoder, so the base never learns a new word.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken

from .errors import ClipError, LoRAFileError, SettingsError
from .lora import SPATIAL, LoRA, layer_of
from .pipeline import VideoPipeline

_SMALL_WORDS = frozenset(("a", "an", "the", "and", "or", "of", "on", "over", "in", "at", "with", "under", "by", "is"))


@dataclass(frozen=True, eq=False)
class PlaceholderTokens:
    """Learned tokens: their names and their rows (n, dim) of the text encoder's embedding table, float32.

    `words` says for each token which clip it was made for, by the clip's `absorb_words`; clips of different looks that
    are trained together have tokens of their own. Empty: the tokens stand for any clip's words.
    """

    names: tuple[str, ...]
    rows: Tensor
    words: tuple[str, ...] = ()

    def names_for(self, absorb_words: str) -> tuple[str, ...]:
        """The tokens that stand for these words: those made for them, or all where none was."""
        own = tuple(name for name, words in zip(self.names, self.words, strict=False) if words == absorb_words)
        return own or self.names

    def fingerprint(self) -> str:
        """SHA-256 over names, words and row bytes."""
        digest = hashlib.sha256(repr((self.names, self.words, tuple(self.rows.shape))).encode())
        digest.update(self.rows.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Absorber:
    """What holds the look of the clips in the second stage, frozen, and is then thrown away.

    `spatial` is a LoRA on spatial layers, `tokens` learned tokens; both together are the paper's dual absorber. A
    third-party absorber is a `spatial` LoRA from anywhere that fits, or `weights`: spatial weights of a network that
    was fine-tuned on the look, by parameter name (see `spatial_weights`), read from the file or folder `source`.
    """

    spatial: LoRA | None = None
    tokens: PlaceholderTokens | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    source: str = ""

    def fingerprint(self) -> str:
        """SHA-256 over everything that has an effect."""
        digest = hashlib.sha256()
        for part in (self.spatial, self.tokens):
            digest.update((part.fingerprint() if part else "none").encode())
        for name in sorted(self.weights):
            raw = self.weights[name].detach().cpu().float().contiguous()
            digest.update(f"{name}{tuple(raw.shape)}".encode() + raw.numpy().tobytes())
        return digest.hexdigest()


def split_phrases(absorb_words: str) -> tuple[str, ...]:
    """The phrases of a comma-separated list: "red circle, sand" -> ("red circle", "sand")."""
    return tuple(phrase for part in absorb_words.split(",") if (phrase := " ".join(part.split())))


def shared_phrases(caption: str, appearance_caption: str, limit: int) -> str:
    """The phrases that both captions hold, longest first at most `limit`, comma-separated in the caption's order.

    What to absorb when nobody said: "a red car races over sand" and "a red car over sand" give "red car, sand".
    """
    words, others = (re.findall(r"[\w'-]+|[^\w\s]", text.lower()) for text in (caption, appearance_caption))
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    runs = [run for block in blocks for run in _unpunctuated(words[block.a : block.a + block.size])]
    phrases = [phrase for run in runs if (phrase := _without_small_words(run))]
    chosen = sorted(phrases, key=lambda phrase: len(phrase.split()), reverse=True)[:limit]
    return ", ".join(phrase for phrase in phrases if phrase in chosen)


def missing_phrases(caption: str, absorb_words: str) -> tuple[str, ...]:
    """The phrases that do not stand in the caption, whole words and any case."""
    return tuple(phrase for phrase in split_phrases(absorb_words) if not _pattern(phrase).search(caption))


def substitute(caption: str, names: Sequence[str], absorb_words: str) -> str:
    """The caption with tokens where the words stood: each phrase gets its even share of `names`, in order.

    ("a red circle over sand", ("<1>", "<2>"), "red circle") -> "a <1> <2> over sand". Raises ClipError when a phrase
    is not in the caption or there are fewer tokens than phrases.
    """
    phrases = split_phrases(absorb_words)
    if absent := missing_phrases(caption, absorb_words):
        words = ", ".join(absent)
        raise ClipError(f"The words to absorb {words!r} are not in the caption {caption!r}; use words of it.")
    shares = [" ".join(share) for share in _shares(names, phrases)]
    # All at once and longest first, so that no phrase is looked for in another one's tokens.
    order = sorted(range(len(phrases)), key=lambda index: len(phrases[index]), reverse=True)
    pattern = "|".join(f"(?P<p{index}>{_pattern(phrases[index]).pattern})" for index in order)
    return re.sub(pattern, lambda found: shares[int(str(found.lastgroup)[1:])], caption, flags=re.IGNORECASE)


def initial_tokens(pipeline: VideoPipeline, absorb_words: Sequence[str], num_tokens: int) -> PlaceholderTokens:
    """`num_tokens` new tokens for each distinct entry of `absorb_words`, their rows set from the words themselves.

    Each row is the embedding of its share of the phrase's own tokens, so training starts at the words' meaning
    (Customize-A-Video section 4.1: initialised from short words that describe the appearance).
    """
    names: list[str] = []
    words: list[str] = []
    rows: list[Tensor] = []
    for entry in dict.fromkeys(absorb_words):
        own = [f"<look-{len(names) + index + 1}>" for index in range(num_tokens)]
        phrases = split_phrases(entry)
        for phrase, share in zip(phrases, _shares(own, phrases), strict=True):
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
    count = len(pipeline.tokenizer(prompt)["input_ids"])
    if count > pipeline.max_tokens:
        raise ClipError(
            f"The caption {prompt!r} has {count} tokens and {pipeline.identity.name} reads {pipeline.max_tokens}; "
            "shorten it or use fewer tokens."
        )


def spatial_weights(tuned: Mapping[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """The weights of a fine-tuned image or video network that fit the spatial layers of `unet`, by parameter name.

    For `Absorber.weights`: a network tuned on a subject, as by DreamBooth, used in place of a trained absorber
    (Customize-A-Video section 5). An image network of Stable Diffusion 2.1's layout has these names. Raises
    LoRAFileError when nothing fits or a spatial weight has another shape.
    """
    known = {name: p.shape for name, p in unet.named_parameters() if layer_of(name) == SPATIAL}
    found = {name: weight for name, weight in tuned.items() if name in known}
    wrong = [name for name, weight in found.items() if weight.shape != known[name]]
    if wrong or not found:
        what = f"{wrong[0]} has another shape" if wrong else "none of its weights has a name of this base"
        raise LoRAFileError(f"The fine-tuned network does not fit: {what}; use one of the base's own layout.")
    return found


@torch.no_grad()
def install_weights(unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a replica other weights for some parameters; the storage shared with the base is left alone."""
    for name, weight in weights.items():
        module, _, leaf = name.rpartition(".")
        owner = unet.get_submodule(module)
        former = getattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(weight.to(former.device, former.dtype, copy=True), requires_grad=False))


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


def _unpunctuated(words: Sequence[str]) -> list[list[str]]:
    """The words as runs without punctuation: a comma separates phrases."""
    groups = itertools.groupby(words, key=lambda word: bool(re.match(r"[\w'-]", word)))
    return [list(group) for is_word, group in groups if is_word]


def _without_small_words(run: Sequence[str]) -> str:
    """The run without articles and prepositions at its ends."""
    kept = [index for index, word in enumerate(run) if word not in _SMALL_WORDS]
    return " ".join(run[kept[0] : kept[-1] + 1]) if kept else ""


def _pattern(phrase: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def _shares(names: Sequence[str], phrases: Sequence[str]) -> list[Sequence[str]]:
    if not phrases:
        raise ClipError("There are no words to absorb; name words of the caption that describe the look.")
    if len(names) < len(phrases):
        raise ClipError(
            f"There are {len(names)} tokens for the {len(phrases)} phrases {', '.join(phrases)!r}; "
            "use at least one token per phrase."
        )
    bounds = [round(index * len(names) / len(phrases)) for index in range(len(phrases) + 1)]
    return [names[start:end] for start, end in itertools.pairwise(bounds)]


def _embeddings(pipeline: VideoPipeline, phrase: str) -> Tensor:
    """The rows (m, dim) of the phrase's own tokens, float32 on the CPU."""
    ids = pipeline.tokenizer(phrase, add_special_tokens=False)["input_ids"]
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
