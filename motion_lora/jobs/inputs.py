"""What a training job starts from, in memory and on disk: clips, captions, absorber."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..base.pipeline import VideoPipeline
from ..core.absorber import Absorber
from ..core.clip import Clip
from ..core.disk import write_atomically
from ..core.errors import LoRAFileError, TrainingError
from ..files.absorber_file import load_absorber, save_absorber
from ..files.absorbers import load_any_absorber
from ..files.container import read_header, read_tensors, serialize

_CLIPS, _WORDS, _ABSORBER = "clips.safetensors", "clips.json", "absorber.safetensors"
_NETWORK = "absorber_network.json"
_TEXTS, _PROMPTS = "texts.safetensors", "prompts"
# Metadata of the clips' file: their fingerprints.
_MARKS = "fingerprints"

# Every field of a Clip but its frames.
_CLIP_WORDS = ("fps", "caption", "appearance_caption", "absorb_words", "source")


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """What a training job holds in memory."""

    pipeline: VideoPipeline
    clips: tuple[Clip, ...]
    absorber: Absorber | None = None


# Clips on disk --------------------------------------------------------------------------------------------------------
def keep_clips(folder: Path, clips: Sequence[Clip]) -> None:
    """Write clips so that `kept_clips` gives the same frames to the bit. Raises OutputError."""
    tensors = {f"frames_{index}": clip.frames for index, clip in enumerate(clips)}
    words = [{name: getattr(clip, name) for name in _CLIP_WORDS} for clip in clips]
    marks = [clip.fingerprint() for clip in clips]
    write_atomically(folder / _CLIPS, serialize(tensors, {_MARKS: json.dumps(marks)}))
    write_atomically(folder / _WORDS, json.dumps(words).encode())


def kept_clips(folder: Path) -> tuple[Clip, ...]:
    """The clips again. Raises TrainingError where they are damaged."""
    try:
        words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
        with torch.inference_mode(False):
            header = read_header(folder / _CLIPS)
            tensors = read_tensors(folder / _CLIPS, header, own=True)
        clips = tuple(Clip(frames=tensors[f"frames_{index}"], **entry) for index, entry in enumerate(words))
        # Jobs of before there were marks have none.
        if _MARKS in header.metadata and json.loads(header.metadata[_MARKS]) != [clip.fingerprint() for clip in clips]:
            raise ValueError("they are not what was written")
        return clips
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"the clips of this job are damaged ({error}): delete it and run its workflow again"
        ) from error


# Texts on disk --------------------------------------------------------------------------------------------------------
def keep_texts(folder: Path, base: VideoPipeline) -> None:
    """Write the embeddings that came to a base from outside, for `with_kept_texts`; nothing of another base."""
    if base.texts is not None:
        tensors = {f"text_{index}": tensor.cpu().contiguous() for index, tensor in enumerate(base.texts.values())}
        write_atomically(folder / _TEXTS, serialize(tensors, {_PROMPTS: json.dumps(list(base.texts))}))


def with_kept_texts(folder: Path, base: VideoPipeline) -> VideoPipeline:
    """The base with the embeddings that were kept, or as it is. Raises TrainingError where they are damaged."""
    if not (folder / _TEXTS).exists():
        return base
    try:
        header = read_header(folder / _TEXTS)
        tensors = read_tensors(folder / _TEXTS, header, own=True)
        prompts = json.loads(header.metadata[_PROMPTS])
        return base.with_texts({prompt: tensors[f"text_{index}"] for index, prompt in enumerate(prompts)})
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"the texts of this job are damaged ({error}): delete it and run its workflow again"
        ) from error


# Absorbers on disk ----------------------------------------------------------------------------------------------------
def keep_absorber(folder: Path, absorber: Absorber) -> None:
    """Write an absorber so that `kept_absorber` gives the same again.

    Of a fine-tuned network's weights, gigabytes that lie on this machine already, only the place and the fingerprint
    are written. Raises LoRAFileError for weights that came from no file, OutputError.
    """
    if absorber.weights:
        if not absorber.source:
            raise LoRAFileError(
                "An absorber of whole weights that came from no file cannot be kept with a job; save the network as a "
                "diffusers folder and load it from there, or call train directly."
            )
        whole = replace(absorber, spatial=None, tokens=None)
        reference = {"source": absorber.source, "fingerprint": whole.fingerprint()}
        write_atomically(folder / _NETWORK, json.dumps(reference).encode())
    if absorber.spatial is not None or absorber.tokens is not None:
        save_absorber(folder / _ABSORBER, replace(absorber, weights={}))


def kept_absorber(folder: Path, base: VideoPipeline) -> Absorber | None:
    """The absorber again, or None where there was none. Raises TrainingError where its network is gone or changed."""
    saved = load_absorber(folder / _ABSORBER) if (folder / _ABSORBER).exists() else None
    if not (folder / _NETWORK).exists():
        return saved
    try:
        reference = json.loads((folder / _NETWORK).read_text(encoding="utf-8"))
        network = load_any_absorber(reference["source"], base.unet).absorber
        name, same = Path(reference["source"]).name, network.fingerprint() == reference["fingerprint"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the fine-tuned network of this job cannot be read: {error}") from error
    if not same:
        raise TrainingError(f"the fine-tuned network {name} is not the one this job began with: run its workflow again")
    return network if saved is None else replace(saved, weights=network.weights, source=network.source)
