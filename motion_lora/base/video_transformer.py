"""Bases whose network is a transformer over the whole clip: diffusers folders with transformer/, and single files.

A single file holds the network alone, in its own spelling, as ComfyUI has them in models/diffusion_models; the
autoencoder is another file, and the text comes as embeddings that ComfyUI's CLIP made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from ..backbones import wan_files
from ..backbones.base import Backbone
from ..backbones.registry import named, of_class, supported
from ..core.errors import ModelError
from ..core.process import BOTH, HIGH_NOISE, LOW_NOISE
from .loading import (
    Parts,
    built,
    read_about,
    read_diffusers,
    read_json,
    read_text_encoder,
    read_tokenizer,
    read_weights,
    weights_of,
)

_FOLDER_OF = {HIGH_NOISE: "transformer", LOW_NOISE: "transformer_2"}
_WEIGHTS = "diffusion_pytorch_model"
_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError)
# Of releases whose files hold no schedule; 5 is the shift of the 14B and 5B models at 720p, 3 that of 480p.
_SCHEDULE: Mapping[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}


def is_transformer_folder(folder: Path) -> bool:
    """Whether a diffusers folder holds a transformer where others have a U-Net."""
    return (folder / "transformer" / "config.json").is_file()


def read_transformer_folder(folder: Path, dtype: torch.dtype, variant: str | None, expert: str = "high") -> Parts:
    """Check and read a diffusers folder; raises ModelError that names what is wrong and the way out.

    `expert` is which of the two networks of Wan 2.2 A14B is taken, where there are two; "both": that of high noise,
    with the other one as its partner.
    """
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    two = (folder / _FOLDER_OF["low"] / "config.json").is_file()
    if expert != HIGH_NOISE and not two:
        raise ModelError(f"{folder} has one network, and expert is {expert!r}: that is for Wan 2.2 A14B; leave it out.")
    chosen = HIGH_NOISE if expert == BOTH else expert
    place = folder / _FOLDER_OF[chosen]
    config = read_json(place / "config.json")
    backbone = of_class(str(config.get("_class_name")), str(place))
    if fault := backbone.config_fault(config):
        raise ModelError(f"{place} is {fault}. Choose a model with a {supported()}.")
    _check_parts(folder, backbone, config)
    about = dict(read_about(folder))
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    if two:
        about["name"] = f"{about.get('name', folder.name)} ({chosen} noise)"
        schedule = {**schedule, **_part_of(chosen, float(index.get("boundary_ratio", wan_files.HIGH_NOISE_FROM)))}
    vae = backbone.vae_class

    def network(place: Path) -> nn.Module:
        read: nn.Module = read_diffusers(
            backbone.network_class, place, dtype, weights_of(place, _WEIGHTS, dtype, variant)
        )
        return read

    return Parts(
        unet=network(place),
        partner=network(folder / _FOLDER_OF[LOW_NOISE]) if expert == BOTH else None,
        expert=chosen if two else "",
        vae=read_diffusers(vae, folder / "vae", dtype, weights_of(folder / "vae", _WEIGHTS, dtype, variant)),
        text_encoder=_text_encoder(folder / "text_encoder", dtype, variant),
        tokenizer=_tokenizer(folder / "tokenizer"),
        scheduler_config=schedule,
        about=about,
    )


def read_files(
    network: Path, vae: Path, dtype: torch.dtype, flow_shift: float = 3.0, partner: Path | None = None
) -> Parts:
    """A network and an autoencoder from ComfyUI's files, without a text encoder. Raises ModelError.

    Weights in fp8 become bf16. `flow_shift` is not in such files: 3 for 480p, 5 for 720p in Wan's own settings.
    `partner` is the file of the other expert of Wan 2.2 A14B; names tell them apart.
    """
    wan, expert = named("wan"), wan_files.expert_of(network.stem)
    if partner is not None and {expert, wan_files.expert_of(partner.stem)} != {HIGH_NOISE, LOW_NOISE}:
        raise ModelError(
            f"{network.name} and {partner.name} are not the two experts of one model: their names must say high_noise "
            "and low_noise. Leave the second one out for a model of one network."
        )
    stored = read_weights([vae])
    encoder = built(
        wan.vae_class, wan_files.vae_config(stored, str(vae)), wan_files.vae_weights(stored, str(vae)), vae, dtype
    )
    part = _part_of(expert, wan_files.HIGH_NOISE_FROM) if expert else {}
    return Parts(
        unet=_read_network(network, dtype),
        partner=None if partner is None else _read_network(partner, dtype),
        expert=expert,
        vae=encoder,
        text_encoder=None,
        tokenizer=None,
        scheduler_config={**_SCHEDULE, "flow_shift": flow_shift, **part},
        about={"name": network.stem, "num_frames": 81, "fps": 16.0},
    )


def _read_network(path: Path, dtype: torch.dtype) -> Any:
    config = wan_files.network_config(_shapes(path), str(path))
    tensors = wan_files.network_weights(read_weights([path]), str(path))
    return built(named("wan").network_class, config, tensors, path, dtype)


def _part_of(expert: str, boundary: float) -> dict[str, Any]:
    """Entries of the schedule: the noise that this expert is there for."""
    return (
        {"sigma_low": boundary, "sigma_high": 1.0} if expert == "high" else {"sigma_low": 0.0, "sigma_high": boundary}
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except _ERRORS as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}). Download the file again.") from error


def _check_parts(folder: Path, backbone: Backbone, network: Mapping[str, Any]) -> None:
    needed = {part: folder / part / "config.json" for part in ("vae", "text_encoder")}
    needed["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    missing = [str(path.relative_to(folder)) for path in needed.values() if not path.is_file()]
    if missing:
        raise ModelError(f"The model folder {folder} lacks {', '.join(missing)}. Download the missing part again.")
    vae, text = read_json(needed["vae"]), read_json(needed["text_encoder"])
    if vae.get("_class_name") != (wanted := backbone.vae_class.__name__):
        raise ModelError(f"{folder / 'vae'} is a {vae.get('_class_name')}; the network needs a {wanted}.")
    kind = str(text.get("model_type"))
    if not any(known in kind for known in backbone.text_models):
        raise ModelError(f"{folder / 'text_encoder'} is a {kind} model; the network needs a UMT5 encoder.")
    width, channels = text.get("d_model", text.get("hidden_size")), vae.get("z_dim")
    if width != network["text_dim"]:
        raise ModelError(
            f"{folder}: the text encoder gives vectors of {width}, the network takes {network['text_dim']}. Use the "
            "text encoder that came with it."
        )
    if channels != network["in_channels"]:
        raise ModelError(
            f"{folder}: the VAE gives {channels} channels, the network takes {network['in_channels']}. Use its own VAE."
        )


def _text_encoder(folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    files = weights_of(folder, "model", dtype, variant)
    if "t5" not in str(read_json(folder / "config.json").get("model_type")):
        return read_text_encoder(folder, dtype, files)
    return read_t5(folder, dtype, files)


def read_t5(folder: Path, dtype: torch.dtype, files: Sequence[Path]) -> nn.Module:
    """UMT5's encoder from a folder's config and weight files, frozen; in bf16 where fp16 is asked for, which overflows.

    Raises ModelError.
    """
    try:
        config = UMT5Config.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            encoder: nn.Module = UMT5EncoderModel(config)
    except _ERRORS as error:
        raise ModelError(
            f"{folder} cannot be loaded ({error}). If the files are damaged, download them again."
        ) from error
    stored = read_weights(files)
    table = stored.get("shared.weight", stored.get("encoder.embed_tokens.weight"))
    kept = torch.bfloat16 if dtype == torch.float16 else dtype
    wanted = {name: table if name in _TIED else stored.get(name) for name in encoder.state_dict()}
    if lost := [name for name, tensor in wanted.items() if tensor is None]:
        raise ModelError(f"The weights in {folder} lack {lost[0]}. Download the files again.")
    filled: dict[str, Tensor] = {name: t.to(kept, copy=True) for name, t in wanted.items() if t is not None}
    encoder.load_state_dict(filled, assign=True)
    return encoder.eval().requires_grad_(False)


_TIED = ("shared.weight", "encoder.embed_tokens.weight")


def _tokenizer(folder: Path) -> Any:
    if (folder / "vocab.json").is_file():
        return read_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except _ERRORS as error:
        raise ModelError(
            f"{folder} cannot be loaded ({error}). If the files are damaged, download them again."
        ) from error
