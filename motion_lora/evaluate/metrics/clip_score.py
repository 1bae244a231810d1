"""CLIP metrics: how well frames show the prompt, and how alike neighbouring frames are to CLIP.

text alignment               mean over frames of 100 max(cos(image, text), 0): CLIPScore (Hessel et al. 2021) with
                             the weight 100 that Customize-A-Video's table uses; higher is better
CLIP temporal consistency    mean over neighbouring frames of 100 cos(image, image), as MotionDirector reports it;
                             higher is better, and not to be compared with the LPIPS form
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...base.text import token_ids, tokenize
from ...core.errors import ModelError
from .optional import check_frames

# The normalisation that CLIP was trained with, where a folder does not say.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class ClipScorer:
    """A CLIP model from a folder on disk. Scores of different models cannot be compared: `name` says which it is."""

    model: Any
    tokenizer: Any
    name: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> ClipScorer:
        """Load a transformers folder such as a download of openai/clip-vit-base-patch32, safetensors only.

        Raises ModelError for a folder that is none, or holds its weights only as a pickle.
        """
        from transformers import CLIPModel, CLIPTokenizer

        from ...base.placement import pick_device

        folder = Path(folder).expanduser()
        check_clip_folder(folder)
        target = pick_device(device)
        try:
            with torch.inference_mode(False):
                model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
                tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{folder} cannot be loaded as a CLIP model: {str(error).splitlines()[0]}") from error
        model.eval().requires_grad_(False).to(target)
        mean, std = _normalisation(folder)
        vision: Any = model.config.vision_config
        size = int(vision.image_size)
        return cls(model, tokenizer, folder.name, size, mean, std, target)

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Frames (f, h, w, 3) in [0, 1] -> unit vectors (f, d) on CPU: CLIP's own resize, centre crop and scaling."""
        pixels = self._pixels(frames)
        with torch.no_grad():
            parts = [_vectors(self.model.get_image_features(pixel_values=p)) for p in pixels.split(_CHUNK)]
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit vectors (n, d) on CPU; words beyond CLIP's length are not read."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        lengths = torch.tensor([min(len(token_ids(self.tokenizer, text)), limit) for text in texts])
        ids = tokenize(self.tokenizer, texts, int(lengths.max()))
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.no_grad():
            vectors = _vectors(
                self.model.get_text_features(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
            )
        return F.normalize(vectors.float().cpu(), dim=-1)

    def _pixels(self, frames: Tensor) -> Tensor:
        images = check_frames(frames, 1, "CLIP").movedim(-1, 1)
        short = min(images.shape[2:])
        size = [self.size * side // short for side in images.shape[2:]]  # CLIP's own resize rounds down
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((side - self.size) // 2 for side in size)
        images = images[:, :, top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        pixels: Tensor = ((images - mean.to(images)) / std.to(images)).to(self.device)
        return pixels


def text_alignment(frames: Tensor, prompt: str, scorer: ClipScorer) -> float:
    """CLIPScore of frames (f, h, w, 3) against a prompt, 0 to 100; the module defines it."""
    cosines = scorer.embed_frames(frames) @ scorer.embed_texts([prompt])[0]
    return 100 * float(cosines.clamp(min=0).mean())


def clip_temporal_consistency(frames: Tensor, scorer: ClipScorer) -> float:
    """100 times the mean CLIP cosine of neighbouring frames (f, h, w, 3); the module defines it."""
    vectors = scorer.embed_frames(check_frames(frames, 2, "CLIP temporal consistency"))
    return 100 * float((vectors[:-1] * vectors[1:]).sum(dim=-1).mean())


def _vectors(output: Any) -> Tensor:
    """transformers 5 wraps the projected features in an output object, transformers 4 returns them."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vectors


def check_clip_folder(folder: Path) -> None:
    """Raise ModelError for a folder that `ClipScorer.load` cannot read; reads nothing but its config."""
    advice = "fetch openai/clip-vit-base-patch32 or another CLIP, with its .safetensors, and name its folder."
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; {advice}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no CLIP model (no config.json); {advice}")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no .safetensors, and pickled weights are never read; {advice}")
    kind = _json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise ModelError(f"{folder} holds a model of type {kind!r}, not 'clip'; {advice}")


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    values = _json(path) if path.is_file() else {}
    return tuple(values.get("image_mean", _MEAN)), tuple(values.get("image_std", _STD))


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return content
