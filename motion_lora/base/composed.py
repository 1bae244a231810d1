"""A base put together from what AnimateDiff's users have: Stable Diffusion 1.5 and a motion module.

The image network comes as a checkpoint in one file, with its VAE and text encoder, or as a diffusers folder; the motion
module as guoyww's file or a diffusers MotionAdapter folder. Nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..backbones import motion_module, stable_diffusion
from ..backbones.registry import named
from ..core.errors import ModelError
from .loading import (
    Parts,
    built,
    read_diffusers,
    read_json,
    read_text_encoder,
    read_tokenizer,
    read_weights,
    text_encoder_of,
    weights_of,
)
from .pickles import read_pickle

_WEIGHTS = "diffusion_pytorch_model"
_TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
# Where Stable Diffusion's words may lie in the cache of the hub's client, by the name of the model.
_CACHED = (
    ("openai/clip-vit-large-patch14", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
)


@dataclass(frozen=True, eq=False)
class _Image:
    """Stable Diffusion 1.5: the image network as config and tensors in diffusers' words, its other parts built."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    vae: Any
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def read_composed(
    image: Path, module: Path, dtype: torch.dtype, variant: str | None = None, tokenizer: str | Path | None = None
) -> Parts:
    """Read both and put them together; raises ModelError that names what is wrong and the way out.

    `image` is a checkpoint file or a diffusers folder of Stable Diffusion 1.5, `module` a file or an adapter's folder.
    """
    module_config, tensors = _module_config(module), _module_tensors(module, dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = motion_module.recognise(str(module), shapes, module_config)
    read = _from_folder if image.is_dir() else _from_checkpoint
    parts = read(image, dtype, variant, tokenizer)
    config = stable_diffusion.joint_config(str(module), parts.config, found)
    weights = {**parts.weights, **motion_module.network_weights(tensors)}
    network = built(named(stable_diffusion.BACKBONE).network_class, config, weights, module, dtype)
    about = {"name": f"{image.stem if image.is_file() else image.name} + {module.stem}", "num_frames": 16, "fps": 8.0}
    return Parts(network, parts.vae, parts.text_encoder, parts.tokenizer, stable_diffusion.SCHEDULE, about)


def find_tokenizer(place: Path, given: str | Path | None = None) -> Path:
    """The folder with CLIP's words for a checkpoint, which holds none: the given one, else `tokenizer` beside it.

    Else what the hub's client has in its cache of CLIP or Stable Diffusion 1.5. Raises ModelError where there is none.
    """
    if given is not None:
        folder = Path(given).expanduser()
        if not _is_tokenizer(folder):
            raise ModelError(f"{folder} holds no tokenizer: it has neither {' nor '.join(_TOKENIZER_FILES)}.")
        return folder
    found = next((folder for folder in (place.parent / "tokenizer", *_cached_folders()) if _is_tokenizer(folder)), None)
    if found is None:
        raise ModelError(
            f"{place} needs CLIP's words, which no checkpoint holds. Name a folder with its vocab.json and merges.txt "
            "as `tokenizer`: comfy/sd1_tokenizer of ComfyUI, or tokenizer/ of any Stable Diffusion 1.5 folder."
        )
    return found


def _cached_folders() -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(name, f"{below}vocab.json") for name, below in _CACHED]
    return [Path(path).parent for path in paths if isinstance(path, str)]


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


# The motion module ---------------------------------------------------------------------------------------------------


def _module_config(place: Path) -> Mapping[str, Any]:
    """Of a MotionAdapter's folder; a file has none."""
    if not place.is_dir():
        return {}
    config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
    if config.get("_class_name") != "MotionAdapter":
        raise ModelError(f"{place} is no motion module: its config.json does not say MotionAdapter. Name the file.")
    return config


def _module_tensors(place: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    if place.is_dir():
        return read_weights(weights_of(place, _WEIGHTS, dtype, None))
    return _file_tensors(place, "motion module")


def _file_tensors(place: Path, what: str) -> dict[str, Tensor]:
    """Of a safetensors file, or of a torch file, of which only tensors are read."""
    if not place.is_file():
        raise ModelError(f"There is no {what} at {place}. Give the path of its file.")
    with place.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and start.startswith((b"PK\x03\x04", b"\x80")):
        return read_pickle(place)
    return read_weights([place])


# The image network ---------------------------------------------------------------------------------------------------


def _from_checkpoint(place: Path, dtype: torch.dtype, variant: str | None, tokenizer: str | Path | None) -> _Image:
    tensors = _file_tensors(place, "checkpoint")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stable_diffusion.check(str(place), shapes)
    try:
        config, vae = stable_diffusion.network_config(shapes), stable_diffusion.autoencoder_config(shapes)
        text = CLIPTextConfig(**stable_diffusion.text_config(shapes))
    except KeyError as error:
        raise ModelError(f"{place} lacks {error.args[0]}: it is no whole Stable Diffusion 1.5 checkpoint.") from error
    encoder = text_encoder_of(text, stable_diffusion.text_weights(tensors), place, dtype)
    return _Image(
        config,
        stable_diffusion.network_weights(tensors),
        built(
            named(stable_diffusion.BACKBONE).vae_class,
            vae,
            stable_diffusion.autoencoder_weights(tensors, vae),
            place,
            dtype,
        ),
        encoder,
        _fitting(read_tokenizer(find_tokenizer(place, tokenizer)), encoder, place),
    )


def _from_folder(place: Path, dtype: torch.dtype, variant: str | None, tokenizer: str | Path | None) -> _Image:
    unet = place / "unet" / "config.json"
    config = read_json(unet) if unet.is_file() else {}
    if config.get("_class_name") != "UNet2DConditionModel":
        said = config.get("_class_name", "no diffusers network")
        raise ModelError(
            f"{place} holds {said}; a motion module goes into Stable Diffusion 1.5's folder or checkpoint."
        )

    def files(part: str, stem: str = _WEIGHTS) -> list[Path]:
        return weights_of(place / part, stem, dtype, variant)

    encoder = read_text_encoder(place / "text_encoder", dtype, files("text_encoder", "model"))
    words = find_tokenizer(place / "checkpoint", tokenizer)
    return _Image(
        config,
        read_weights(files("unet")),
        read_diffusers(named(stable_diffusion.BACKBONE).vae_class, place / "vae", dtype, files("vae")),
        encoder,
        _fitting(read_tokenizer(words), encoder, place),
    )


def _fitting(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, place: Path) -> CLIPTokenizer:
    rows = int(encoder.config.vocab_size)
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} words, the text encoder of {place} knows {rows}. Give CLIP's own."
        )
    return tokenizer
