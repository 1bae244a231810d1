"""A reference clip as a value: frames with what is said about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ClipError


@dataclass(frozen=True, eq=False)
class Clip:
    """A reference clip: frames (f, h, w, 3), float32 in [0, 1], at `fps`, with what is said about them.

    `caption` tells all, `appearance_caption` only what a single frame shows; `absorb_words` are phrases of both,
    separated by commas, that an absorber's tokens stand in for. `source` names the file for messages. Raises ClipError
    for frames of another shape or type, or an fps that is not above 0.
    """

    frames: Tensor
    fps: float
    caption: str
    appearance_caption: str
    absorb_words: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        shape = tuple(self.frames.shape)
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or self.frames.dtype != torch.float32:
            raise ClipError(
                f"A clip's frames must be float32 (f, h, w, 3), at least one, not {self.frames.dtype} {shape}."
            )
        if not self.fps > 0:
            raise ClipError(f"A clip's fps is {self.fps}; it must be above 0.")

    @property
    def num_frames(self) -> int:
        return int(self.frames.shape[0])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    def fingerprint(self) -> str:
        """SHA-256 over frames, fps and captions: what training sees. The source's name does not count."""
        digest = hashlib.sha256()
        words = (self.caption, self.appearance_caption, self.absorb_words)
        for text in (str(tuple(self.frames.shape)), repr(float(self.fps)), *words):
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(self.frames.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()
