"""The appearance absorber as a value: what holds a clip's look while its motion is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .lora import LoRA


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
