"""Names to files and back: every folder that nodes read or write. Nodes and routes take names, never paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths

from ...motion_lora.core.disk import free_path, path_inside
from ...motion_lora.core.errors import ClipError, LoRAFileError, ModelError
from ...motion_lora.jobs import CLIP_MODEL
from ...motion_lora.media.video import VIDEO_SUFFIXES
from ...motion_lora.playground.model import EXAMPLES

OWN = "motion_lora"
ABSORBERS = "motion_lora_absorbers"
METRICS = "motion_lora_metrics"
CHECKPOINTS, MOTION_MODULES, MOTION_LORAS = "checkpoints", "animatediff_models", "animatediff_motion_lora"
# Where ComfyUI's users keep CLIP models; what is no whole one in transformers' layout is not listed.
_CLIP_VISION = "clip_vision"
_WEIGHTS = {".safetensors", ".pth"}
# Within ComfyUI's loras folders, ours have a subfolder of their own, so that image LoRAs stay out of the lists.
SUBFOLDER = "motion"
_SUFFIX = ".safetensors"
# What other tools write LoRAs to; a name says nothing of the content, which the importer looks at.
_FOREIGN = {_SUFFIX, ".pt", ".pth", ".bin", ".ckpt"}
NONE_FOUND = "(none found)"
# What comes with the pack is listed under this name, after what is the user's own, and never copied anywhere.
SHIPPED = "examples"
_SHIPPED_MOTIONS = f"{SHIPPED}/motion/"


def register() -> None:
    """Make our folders known to ComfyUI; called once, at load. extra_model_paths.yaml can add to them."""
    _add(OWN, Path(folder_paths.models_dir) / OWN, _FOREIGN)
    _add(ABSORBERS, Path(folder_paths.models_dir) / ABSORBERS, {_SUFFIX})
    _add(ABSORBERS, absorber_folder(), {_SUFFIX})
    _add(METRICS, Path(folder_paths.models_dir) / METRICS, _WEIGHTS)
    _share(MOTION_MODULES, Path(folder_paths.models_dir) / MOTION_MODULES)
    # What Convert LoRA writes there in AnimateDiff's form, AnimateDiff-Evolved lists among its motion LoRAs.
    _share(MOTION_LORAS, lora_folder() / "animatediff")


def _add(name: str, path: Path, suffixes: set[str]) -> None:
    folder_paths.add_model_folder_path(name, str(path))
    paths, _ = folder_paths.folder_names_and_paths[name]
    # A new name lists every file; only these are ours to offer.
    folder_paths.folder_names_and_paths[name] = (paths, suffixes)


def _share(name: str, path: Path) -> None:
    """A folder of a category that another pack has too, whichever of the two is loaded first."""
    folder_paths.add_model_folder_path(name, str(path))
    folder_paths.folder_names_and_paths[name][1].update(_FOREIGN)


def lora_folder() -> Path:
    """Where finished LoRAs are written: ComfyUI lists it among its loras."""
    return Path(folder_paths.get_output_directory()) / "loras"


def absorber_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / ABSORBERS


def job_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / OWN / "jobs"


def speeds_file() -> Path:
    """How long steps of trainings took on this machine."""
    return Path(folder_paths.get_user_directory()) / OWN / "speeds.json"


def diffusers_folders() -> list[Path]:
    return [Path(path) for path in folder_paths.get_folder_paths("diffusers")]


def lora_names() -> list[str]:
    """Motion LoRAs: the subfolder of the loras folders, and our own folder under its name; safetensors only.

    The examples of motions come last.
    """
    shared = [name for name in _listed("loras") if name.startswith(f"{SUBFOLDER}/")]
    own = sorted(name for name in {*shared, *_own_names()} if name.endswith(_SUFFIX))
    return own + [name for name in _shipped({_SUFFIX}) if name.startswith(_SHIPPED_MOTIONS) and name not in own]


def all_lora_names() -> list[str]:
    """Every LoRA that ComfyUI knows, and ours, of any kind of file; then the examples."""
    own = sorted({*_listed("loras"), *_own_names()})
    return own + [name for name in _shipped({_SUFFIX}) if name not in own]


def video_names() -> list[str]:
    """Videos in ComfyUI's input folder, then the examples."""
    try:
        here = sorted(path.name for path in _input_folder().iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    except OSError:
        here = []
    return here + _shipped(set(VIDEO_SUFFIXES), "clips/")


def video_path(name: str) -> Path:
    """The file of a listed video. Raises ClipError for a name that is not listed."""
    if name not in video_names():
        raise ClipError(f"there is no video {name!r}: put it into {_shown(str(_input_folder()))}, then press R")
    return _shipped_path(name) or _input_folder() / name


def _input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def _shipped(suffixes: set[str], below: str = "") -> list[str]:
    """Names of the examples, of all or of those in one of their folders."""
    found = (path for path in (EXAMPLES / below).rglob("*") if path.suffix in suffixes)
    return sorted(f"{SHIPPED}/{path.relative_to(EXAMPLES).as_posix()}" for path in found)


def _shipped_path(name: str) -> Path | None:
    """The file of an example; None for any other name."""
    path = EXAMPLES / name.removeprefix(f"{SHIPPED}/")
    return path if name in _shipped({path.suffix}) else None


def _own_names() -> list[str]:
    return [f"{OWN}/{name}" for name in _listed(OWN)]


def absorber_names() -> list[str]:
    return _listed(ABSORBERS)


def lora_path(name: str) -> Path:
    """The file of a listed LoRA. Raises LoRAFileError for a name that is not listed.

    A loras folder may have a subfolder with the name of our own folder; where both hold the file, ours is meant. An
    example is meant only where the user has no file of that name.
    """
    if name not in _listed("loras") and (example := _shipped_path(name)) is not None:
        return example
    own = name.removeprefix(f"{OWN}/")
    if own != name and (own in _listed(OWN) or name not in _listed("loras")):
        return _find(OWN, own)
    return _find("loras", name)


def absorber_path(name: str) -> Path:
    """The file of a listed absorber. Raises LoRAFileError for a name that is not listed."""
    return _find(ABSORBERS, name)


def new_file(folder: Path, name: str, extension: str = ".safetensors") -> Path:
    """A file in `folder` that does not exist yet: `name`, or with a number. Raises OutputError for a way out of it."""
    return free_path(path_inside(folder, name, extension))


def listed_name(path: Path) -> str:
    """The name under which a file below `lora_folder` is listed."""
    return path.relative_to(lora_folder()).as_posix()


def network_names() -> list[str]:
    """Folders below models/diffusers with an image or video network of diffusers' layout, by their path."""
    return sorted(_networks())


def network_path(name: str) -> Path:
    """The folder of a listed network. Raises ModelError for a name that is not listed."""
    networks = _networks()
    if name not in networks:
        places = ", ".join(_shown(str(root)) for root in diffusers_folders())
        raise ModelError(f"there is no model {name!r}: put its diffusers folder into {places}, then press R")
    return networks[name]


def _networks() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in diffusers_folders():
        for path in subfolders(root):
            if (path / "unet" / "config.json").is_file():
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def checkpoint_names() -> list[str]:
    """Checkpoints in one file, then image networks of diffusers' layout."""
    images = [name for name, path in _networks().items() if _class_in(path / "unet") == "UNet2DConditionModel"]
    return [*(_listed(CHECKPOINTS) if CHECKPOINTS in folder_paths.folder_names_and_paths else []), *sorted(images)]


def checkpoint_path(name: str) -> Path:
    """The file or folder of a listed checkpoint. Raises ModelError for a name that is not listed."""
    networks = _networks()
    return networks[name] if name in networks else _model_file(CHECKPOINTS, name)


def motion_module_names() -> list[str]:
    """AnimateDiff's files, then diffusers' folders of a MotionAdapter."""
    return [*_listed(MOTION_MODULES), *sorted(_adapters())]


def motion_module_path(name: str) -> Path:
    """The file or folder of a listed motion module. Raises ModelError for a name that is not listed."""
    adapters = _adapters()
    return adapters[name] if name in adapters else _model_file(MOTION_MODULES, name)


def clip_words() -> Path | None:
    """The folder with CLIP's words that ComfyUI has for its own text encoder."""
    folder = Path(folder_paths.base_path) / "comfy" / "sd1_tokenizer"
    return folder if folder.is_dir() else None


def _adapters() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in diffusers_folders():
        for path in subfolders(root):
            if _class_in(path) == "MotionAdapter":
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _class_in(folder: Path) -> str:
    """The class that a config in diffusers' layout names; empty where there is none."""
    return str(_json_in(folder / "config.json").get("_class_name", ""))


def _model_file(category: str, name: str) -> Path:
    try:
        return _find(category, name)
    except LoRAFileError as error:
        raise ModelError(str(error)) from error


def clip_model_names() -> list[str]:
    """Folders with a whole CLIP in transformers' layout, below models/motion_lora_metrics and models/clip_vision."""
    return sorted(_clip_models())


def lpips_names() -> list[str]:
    """Weights of a backbone for LPIPS: the files that lie in no CLIP's folder."""
    return [name for name in _listed(METRICS) if "/" not in name]


def metric_path(kind: str, name: str) -> Path:
    """The folder of a listed "clip_model", or the file of listed "lpips_weights".

    Raises ModelError or LoRAFileError for a name that is not listed.
    """
    if kind != CLIP_MODEL:
        return _find(METRICS, name)
    models = _clip_models()
    if name not in models:
        places = ", ".join(_shown(path) for path in folder_paths.get_folder_paths(METRICS))
        raise ModelError(f"there is no CLIP model {name!r}: put its folder into {places}, then press R")
    return models[name]


def _clip_models() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in map(Path, (*folder_paths.get_folder_paths(METRICS), *folder_paths.get_folder_paths(_CLIP_VISION))):
        for path in subfolders(root):
            if _is_clip(path / "config.json"):
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _is_clip(config: Path) -> bool:
    return _json_in(config).get("model_type") == "clip"


def _json_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def choices(names: list[str]) -> list[str]:
    """Options of a combo, which must not be empty."""
    return names or [NONE_FOUND]


def listed(category: str) -> list[str]:
    """Files of one of ComfyUI's own categories, by name."""
    return _listed(category)


def find(category: str, name: str) -> Path:
    """The file of that name in a category. Raises LoRAFileError where it is gone."""
    return _find(category, name)


def _listed(category: str) -> list[str]:
    """Names with forward slashes, whatever the system writes."""
    return sorted(name.replace(os.sep, "/") for name in folder_paths.get_filename_list(category))


def _find(category: str, name: str) -> Path:
    for listed in folder_paths.get_filename_list(category):
        if listed.replace(os.sep, "/") == name:
            return Path(folder_paths.get_full_path_or_raise(category, listed))
    places = ", ".join(_shown(path) for path in folder_paths.get_folder_paths(category))
    raise LoRAFileError(
        f"there is no file {name!r}: put it into {places}, then press R in ComfyUI to refresh its lists"
    )


def _shown(path: str) -> str:
    """A folder as the user knows it: below ComfyUI's own folder where it is."""
    base = Path(folder_paths.base_path)
    return Path(path).relative_to(base).as_posix() if Path(path).is_relative_to(base) else path


def subfolders(root: Path, depth: int = 2) -> Iterator[Path]:
    """Folders below `root` down to `depth`, in order; a folder that cannot be read is passed over."""
    try:
        here = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in here:
        yield path
        if depth > 1:
            yield from subfolders(path, depth - 1)
