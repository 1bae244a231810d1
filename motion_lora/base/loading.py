"""Reading a diffusers folder: which parts it must have, which weight files are taken, and what can be wrong with it.

Everything that can be told from the small JSON files is checked before a weight is read, so that a wrong folder costs
a second and one clear line. Only safetensors are read; see `pickles` for
models that have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..backbones.classes import NETWORK_CLASSES
from ..backbones.registry import of_class, of_keys, supported
from ..core.errors import ModelError
from .pickles import with_safetensors

PREDICTION_TYPES = ("epsilon", "v_prediction")

# Part -> the file that shows it is there; of the tokenizer either layout will do.
_PART_FILES: Mapping[str, tuple[str, ...]] = {
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": ("vocab.json", "tokenizer.json"),
    "scheduler": ("scheduler_config.json",),
}
_WEIGHT_NAMES: Mapping[str, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_READ_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a base model, on CPU in the asked dtype, frozen and in evaluation mode.

    Of two networks, each for a part of the noise, `unet` is the `expert` that is asked for, `partner` the other one.
    """

    unet: nn.Module
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: Mapping[str, Any]
    about: Mapping[str, Any]
    expert: str = ""
    partner: Any = None


def read_folder(folder: Path, dtype: torch.dtype, variant: str | None) -> Parts:
    """Check and read a diffusers folder; raises ModelError that names what is wrong and the way out.

    `variant` picks weight files such as `*.fp16.safetensors`; None takes the plain files, or the only variant there is.
    """
    configs, about = check_folder(folder), read_about(folder)
    files = {part: weights_of(folder / part, name, dtype, variant) for part, name in _WEIGHT_NAMES.items()}
    backbone = of_class(_class_of(folder), str(folder))
    return Parts(
        unet=read_diffusers(backbone.network_class, folder / "unet", dtype, files["unet"]),
        vae=read_diffusers(backbone.vae_class, folder / "vae", dtype, files["vae"]),
        text_encoder=read_text_encoder(folder / "text_encoder", dtype, files["text_encoder"]),
        tokenizer=read_tokenizer(folder / "tokenizer"),
        scheduler_config=configs["scheduler"],
        about=about,
    )


def read_unet_weights(place: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The tensors of a video UNet by name, on the CPU, without building it: of a model folder, its unet folder or file.

    A file is read as it is; a folder is checked to hold a video network. Raises ModelError.
    """
    if not place.exists():
        raise ModelError(f"There is nothing at {place}. Name a model folder, its unet folder, or a safetensors file.")
    paths = [place]
    if not place.is_file():
        folder = place / "unet" if (place / "unet").is_dir() else place
        of_class(str(read_json(folder / "config.json").get("_class_name")), str(folder))
        stem = _WEIGHT_NAMES["unet"]
        paths = weights_of(folder, stem, torch.float32, variant)
    return read_weights(paths)


def check_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts' configs, once everything that they can tell has been checked. Raises ModelError."""
    _check_is_model(folder)
    _check_kind_of_unet(folder)
    missing = [part for part in _PART_FILES if not _has_part(folder, part)]
    if missing:
        needed = ", ".join(f"{part}/{_PART_FILES[part][0]}" for part in missing)
        raise ModelError(f"The model folder {folder} lacks {needed}. Download the missing part of the model again.")
    configs = {part: read_json(folder / part / files[0]) for part, files in _PART_FILES.items() if part != "tokenizer"}
    _check_fit(folder, configs)
    return configs


def lacks_weights(folder: Path) -> bool:
    """Whether a part of a model folder, or the weights of one, are not there: as after a download that was cut off."""
    parts = all(_has_part(folder, part) for part in _PART_FILES)
    return not parts or not all(_has_weights(folder / part) for part in _WEIGHT_NAMES)


def _has_weights(folder: Path) -> bool:
    """Whether there is a file of weights, or all of its shards; an empty one is as good as none."""
    names = [path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin") and path.stat().st_size]
    whole = [name for name in names if not _SHARD.search(name)]
    shards = {(_SHARD.sub("", name), _SHARD.findall(name)[0]) for name in names if _SHARD.search(name)}
    promised = {(name, int(shard[-5:])) for name, shard in shards}
    return bool(whole) or any(sum(name == one for one, _ in shards) == count for name, count in promised)


def weights_of(folder: Path, stem: str, dtype: torch.dtype, variant: str | None) -> list[Path]:
    """The weight files of one part, as safetensors; pickles are written anew once."""
    place = with_safetensors(folder, stem, dtype)
    return _weight_files(place, stem, pick_variant(place, stem, dtype, variant))


def pick_variant(folder: Path, stem: str, dtype: torch.dtype, variant: str | None) -> str:
    """Which variant of the weight files in `folder` to read, "" for the plain ones. Raises ModelError."""
    found = _variants(folder, stem)
    if not found:
        raise ModelError(_no_safetensors(folder, stem))
    if variant is not None:
        if variant not in found:
            raise ModelError(f"{folder} has no weights of variant {variant!r}; it has: {_list_variants(found)}.")
        return variant
    preferred = ("fp16", "") if dtype == torch.float16 else ("", "fp16")
    choices: tuple[str, ...] = found if len(found) == 1 else preferred
    for choice in choices:
        if choice in found:
            return choice
    raise ModelError(f"{folder} has weights of several variants ({_list_variants(found)}). Name one with `variant`.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ModelError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Download the file again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object. Download the file again.")
    return content


def _has_part(folder: Path, part: str) -> bool:
    return any((folder / part / file).is_file() for file in _PART_FILES[part])


def _check_is_model(folder: Path) -> None:
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file. Choose a diffusers folder, one with unet/, vae/ and text_encoder/ in it; for a "
            "Stable Diffusion 1.5 checkpoint name an AnimateDiff motion module beside it (`motion_module`)."
        )
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}. Give the path of a downloaded diffusers model.")
    if (folder / "unet").is_dir() or (folder / "model_index.json").is_file():
        return
    inside = [path.name for path in sorted(folder.iterdir()) if (path / "unet").is_dir()]
    hint = f"Choose a folder in it: {', '.join(inside)}." if inside else f"Choose a folder of a {supported()}."
    raise ModelError(f"{folder} holds no diffusers model: it has neither unet/ nor model_index.json. {hint}")


def _check_kind_of_unet(folder: Path) -> None:
    """Before missing parts are listed: what else it is explains more than what it lacks."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    known = (folder / "unet" / "config.json").is_file() and _class_of(folder) in NETWORK_CLASSES
    if not known and ((folder / "motion_adapter").is_dir() or "motion_adapter" in index):
        of_class("MotionAdapter", f"{folder / 'motion_adapter'}")
    if "transformer" in index or (folder / "transformer").is_dir():
        raise ModelError(
            f"{folder} is a diffusion transformer, not a {supported()}. Choose a model with a unet/ of that kind."
        )
    if (folder / "unet" / "config.json").is_file():
        of_class(_class_of(folder), f"{folder / 'unet'}")


def _class_of(folder: Path) -> str:
    return str(read_json(folder / "unet" / "config.json").get("_class_name", "network of unknown class"))


def _check_fit(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Do the parts belong together? Raises ModelError."""
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    needed = of_class(str(unet.get("_class_name")), str(folder)).vae_class.__name__
    vae_class = vae.get("_class_name", needed)
    if vae_class != needed:
        raise ModelError(f"{folder / 'vae'} is a {vae_class}; the network needs the image autoencoder {needed}.")
    if "clip" not in str(text.get("model_type", "clip")):
        raise ModelError(
            f"{folder / 'text_encoder'} is a {text['model_type']} model; the network needs a CLIPTextModel."
        )
    width, wanted = int(text.get("hidden_size", 512)), int(unet.get("cross_attention_dim", 1024))
    if width != wanted:
        raise ModelError(
            f"{folder}: the text encoder gives vectors of {width}, the UNet takes {wanted}"
            f"{_known_width(width)}. Use the text encoder that came with the UNet."
        )
    channels, taken = int(vae.get("latent_channels", 4)), int(unet.get("in_channels", 4))
    if channels != taken:
        raise ModelError(
            f"{folder}: the VAE gives {channels} channels, the UNet takes {taken}. Use the VAE of the UNet's model."
        )
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ModelError(f"{folder}: prediction_type is {prediction!r}; supported are: {', '.join(PREDICTION_TYPES)}.")


def _known_width(width: int) -> str:
    families = {768: " (768 is Stable Diffusion 1.5's size)", 1024: " (1024 is Stable Diffusion 2.1's size)"}
    return families.get(width, "")


def _variants(folder: Path, stem: str) -> tuple[str, ...]:
    """The variants that have safetensors in `folder`, sharded or not; "" stands for plain files."""
    names = {_SHARD.sub("", path.name) for path in folder.glob(f"{stem}*.safetensors")}
    pattern = re.compile(rf"{re.escape(stem)}(?:\.([^.]+))?\.safetensors")
    return tuple(sorted({match[1] or "" for name in names if (match := pattern.fullmatch(name))}))


def _weight_files(folder: Path, stem: str, variant: str) -> list[Path]:
    """The file of that variant, or else its shards."""
    name = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    whole = folder / name
    if whole.is_file():
        return [whole]
    return sorted(path for path in folder.glob(f"{stem}*.safetensors") if _SHARD.sub("", path.name) == name)


def _list_variants(variants: Sequence[str]) -> str:
    return ", ".join(repr(variant) if variant else "none (plain files)" for variant in variants)


def _no_safetensors(folder: Path, stem: str) -> str:
    return f"{folder} has no weights ({stem}.safetensors). Download the file again."


# Neither library's own loader is used: while it builds a network, diffusers' (through accelerate) changes what every
# module of the process is built of, so a model that another thread loads meanwhile, as in ComfyUI, has no weights.


def read_diffusers(kind: Any, folder: Path, dtype: torch.dtype, files: Sequence[Path]) -> Any:
    """A network of diffusers' class `kind` from a folder's config and weight files. Raises ModelError."""
    config = read_json(folder / "config.json")
    stored = read_weights(files)
    _check_class(kind, folder, stored)
    return built(kind, config, stored, folder, dtype)


def built(kind: Any, config: Mapping[str, Any], stored: Mapping[str, Tensor], place: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers' class `kind` from its config's entries and its tensors. Raises ModelError."""
    try:
        with torch.device("meta"):
            module = kind.from_config(dict(config))
    except _READ_ERRORS as error:
        raise ModelError(_unreadable(place, error)) from error
    stored = dict(stored)
    for name in module.state_dict().keys() - stored.keys():
        if (old := _old_name(name)) in stored:
            stored[name] = stored.pop(old)
    return _filled(module, place, stored, dtype)


def _check_class(kind: Any, folder: Path, stored: Mapping[str, Tensor]) -> None:
    """Raise ModelError where the weights are those of another video network than the config says."""
    found = of_keys(stored)
    if found.recognises_keys(stored) and found.network_class is not kind and kind.__name__ in NETWORK_CLASSES:
        raise ModelError(
            f"{folder} says that it is a {kind.__name__}, its weights are those of a {found.network_class.__name__} "
            f"({found.models}). Correct `_class_name` in {folder / 'config.json'}, or download the files again."
        )


def read_text_encoder(folder: Path, dtype: torch.dtype, files: Sequence[Path]) -> CLIPTextModel:
    """The text encoder of a model folder. Raises ModelError."""
    try:
        config = CLIPTextConfig.from_pretrained(str(folder), local_files_only=True)
    except _READ_ERRORS as error:
        raise ModelError(_unreadable(folder, error)) from error
    return text_encoder_of(config, read_weights(files), folder, dtype)


def text_encoder_of(
    config: CLIPTextConfig, stored: Mapping[str, Tensor], folder: Path, dtype: torch.dtype
) -> CLIPTextModel:
    """transformers 4 keeps the tensors below `text_model.`, 5 does not, and 4 cannot read what 5 has written."""
    try:
        with torch.device("meta"):
            encoder = CLIPTextModel(config)
    except _READ_ERRORS as error:
        raise ModelError(_unreadable(folder, error)) from error
    found = {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}
    state = {n: found[s] for n in encoder.state_dict() if (s := n.removeprefix("text_model.")) in found}
    _filled(encoder, folder, state, dtype)
    # The only tensor that is in no file; on the meta device it has no values.
    embeddings = next(module for module in encoder.modules() if hasattr(module, "position_ids"))
    embeddings.position_ids = torch.arange(config.max_position_embeddings).expand((1, -1))
    return encoder


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files by name. Raises ModelError."""
    stored: dict[str, Tensor] = {}
    for path in files:
        try:
            stored.update(load_file(str(path)))
        except _READ_ERRORS as error:
            raise ModelError(_unreadable(path, error)) from error
    return stored


def _old_name(name: str) -> str:
    """What a tensor of an autoencoder's attention was called before diffusers 0.18."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _filled(module: nn.Module, folder: Path, stored: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A network from the meta device with the tensors of its files, frozen and in evaluation mode.

    Modules that diffusers keeps in fp32 whatever the network runs in stay so here too.
    """
    wanted = module.state_dict()
    _check_complete(folder, wanted.keys() - stored.keys())
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            shapes = f"{tuple(stored[name].shape)} in the weights and {tuple(tensor.shape)} by config.json"
            raise ModelError(f"{folder} does not fit together: {name} is {shapes}. Download the files again.")
    # Copied, for what safetensors gives is the file itself, which may be replaced while the model is in use.
    exact = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    kept = {name: torch.float32 if set(exact).intersection(name.split(".")) else dtype for name in wanted}
    module.load_state_dict({name: stored[name].to(kept[name], copy=True) for name in wanted}, assign=True)
    return module.eval().requires_grad_(False)


def _check_complete(folder: Path, missing: Iterable[str]) -> None:
    """Raise ModelError if tensors of the network were not in the files of `folder`."""
    names = sorted(missing)
    if names:
        raise ModelError(
            f"The weights in {folder} lack {len(names)} of the network's tensors, {names[0]} the first. "
            "Download the files again."
        )


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in a folder. Raises ModelError."""
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        return tokenizer
    except _READ_ERRORS as error:
        raise ModelError(_unreadable(folder, error)) from error


def _unreadable(folder: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{folder} cannot be loaded ({reason[:300]}). If the files are damaged, download them again."


def read_about(folder: Path) -> dict[str, Any]:
    """Optional `motion_lora.json` beside the parts: its "name", "num_frames", "fps", "guidance_scale"."""
    path = folder / "motion_lora.json"
    about = read_json(path) if path.is_file() else {}
    for key, kind in (("name", str), ("num_frames", int), ("fps", (int, float)), ("guidance_scale", (int, float))):
        if key in about and (not isinstance(about[key], kind) or about[key] in (0, "")):
            raise ModelError(f"{path}: {key} is {about[key]!r}. Correct the entry or remove it.")
    return about
