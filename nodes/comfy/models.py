"""Base models by name: which there are, loading one, and finding the name of one again after a restart."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...motion_lora.backbones.classes import is_video_network
from ...motion_lora.core.errors import ModelError
from . import folders, memory, server

if TYPE_CHECKING:
    from torch import Tensor

    from ...motion_lora.base.pipeline import VideoPipeline

PLAYGROUND = "playground (built-in)"
# Bases that are offered even when they are not there, by the folder they would have, with their name on the hub.
KNOWN: Mapping[str, str] = {
    "text-to-video-ms-1.7b": "ali-vilab/text-to-video-ms-1.7b",
    "zeroscope_v2_576w": "cerspense/zeroscope_v2_576w",
}

COMPOSED = "checkpoint + motion module (AnimateDiff)"
NONE = "none"
_PLUS = " + "
WAN_NETWORKS, WAN_VAES = "diffusion_models", "vae"
_WAN_RECIPE = ("network", "vae", "dtype", "flow_shift", "partner")

_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[str, ...], VideoPipeline] = weakref.WeakValueDictionary()
_recipes: weakref.WeakKeyDictionary[VideoPipeline, dict[str, str]] = weakref.WeakKeyDictionary()
# Of a base on ComfyUI's device, its copies on others.
_copies: weakref.WeakKeyDictionary[VideoPipeline, weakref.WeakValueDictionary[str, VideoPipeline]]
_copies = weakref.WeakKeyDictionary()


def names() -> list[str]:
    """The playground, every folder that holds a text-to-video model, the known bases that are still missing, and the
    one that is put together.
    """
    found = list(_folders())
    return [PLAYGROUND, *found, *(name for name in KNOWN if name not in found), COMPOSED]


def composed_name(checkpoint: str, motion_module: str) -> str:
    """The name of a base that is put together. Raises ModelError where one of the two is not chosen."""
    for name, chosen, folder in (
        ("checkpoint", checkpoint, "models/checkpoints"),
        ("motion_module", motion_module, "models/animatediff_models"),
    ):
        if chosen == NONE:
            raise ModelError(f"`{name}` is none: choose one; files in {folder} are listed after R")
    return f"{checkpoint}{_PLUS}{motion_module}"


def load(name: str, dtype: str = "auto", download: bool = False) -> VideoPipeline:
    """The base of that name on ComfyUI's device; one that is in memory already is shared, because bases are immutable.

    Raises ModelError when it is not there, with the way to get it.
    """
    pipeline = _shared(name, dtype, download, server.make_room)
    # From now on ComfyUI may unload it.
    with memory.at_work(pipeline):
        return pipeline


def load_wan(
    network: str,
    vae: str,
    dtype: str,
    flow_shift: float,
    texts: Mapping[str, Tensor],
    partner: str = NONE,
    *,
    stays: bool = True,
) -> VideoPipeline:
    """Wan from ComfyUI's files, with texts that its CLIP has encoded; what is in memory already is shared."""
    key = (network, vae, dtype, f"{flow_shift:g}", partner)
    with _loading:
        base = _loaded.get(key)
        if base is None:
            base = _read_wan(network, vae, dtype, flow_shift, partner, stays)
        made = base.with_texts(texts)
        _loaded[key] = made
        _recipes[made] = dict(zip(_WAN_RECIPE, key, strict=True))
    if stays:
        with memory.at_work(made):
            return made
    return made


def _read_wan(network: str, vae: str, dtype: str, flow_shift: float, partner: str, stays: bool) -> VideoPipeline:
    from ...motion_lora.base.pipeline import VideoPipeline

    place, encoder = folders.find(WAN_NETWORKS, network), folders.find(WAN_VAES, vae)
    if stays:
        server.make_room(place.stat().st_size)
    else:
        server.make_room_between_prompts()
    base = VideoPipeline.from_files(
        place,
        encoder,
        {},
        flow_shift=flow_shift,
        partner=None if partner == NONE else folders.find(WAN_NETWORKS, partner),
        device=str(server.device()),
        dtype=dtype,
    )
    if not stays:
        base.send_away()
    return base


def in_memory(name: str, dtype: str) -> VideoPipeline | None:
    """The base of that name if a node holds it already; nothing is loaded."""
    return _loaded.get((name, dtype))


def recipe_of(pipeline: VideoPipeline) -> dict[str, str]:
    """By what `load_again` finds it; empty for one that came from elsewhere."""
    return dict(_recipes.get(pipeline, {}))


def load_again(recipe: Mapping[str, str]) -> VideoPipeline:
    """The base of a job that was left behind. Raises ModelError when it is not there any more."""
    if set(_WAN_RECIPE) <= set(recipe):
        network, vae, dtype, flow_shift, partner = (recipe[entry] for entry in _WAN_RECIPE)
        # Its texts are the job's.
        return load_wan(network, vae, dtype, float(flow_shift), {}, partner, stays=False)
    if "name" not in recipe:
        raise ModelError("this job does not say how its base model was loaded: run its workflow to go on with it")
    # ComfyUI does not know of it until a prompt uses it: on the device it is for the job alone.
    ask = lambda size: server.make_room_between_prompts()  # noqa: E731
    pipeline = _shared(recipe["name"], recipe.get("dtype", "auto"), False, ask, stays=False)
    # A card may have been taken out in the meantime.
    return on_device(pipeline, recipe["device"]) if recipe.get("device") in server.devices() else pipeline


def on_device(pipeline: VideoPipeline, device: str) -> VideoPipeline:
    """The base itself where it is there already, or its copy on another device, the same one for all who ask."""
    if device == str(pipeline.device):
        return pipeline
    with _loading:
        copies = _copies.setdefault(pipeline, weakref.WeakValueDictionary())
        copy = copies.get(device)
        if copy is None:
            copies[device] = copy = pipeline.copied_to(device)
            if recipe := recipe_of(pipeline):
                _recipes[copy] = {**recipe, "device": device}
        return copy


def _shared(
    name: str, dtype: str, download: bool, make_room: Callable[[int], None], *, stays: bool = True
) -> VideoPipeline:
    with _loading:
        pipeline = _loaded.get((name, dtype))
        if pipeline is None:
            pipeline = _load(name, dtype, download, make_room)
            if not stays:
                pipeline.send_away()
            _loaded[(name, dtype)] = pipeline
            _recipes[pipeline] = {"name": name, "dtype": dtype}
        return pipeline


def _load(name: str, dtype: str, download: bool, make_room: Callable[[int], None]) -> VideoPipeline:
    from ...motion_lora.base.loading import lacks_weights
    from ...motion_lora.base.pipeline import VideoPipeline
    from ...motion_lora.playground.model import load_playground

    device = str(server.device())
    if name == PLAYGROUND:
        return load_playground(device=device, dtype="fp32" if dtype == "auto" else dtype)
    folder = _folders().get(name)
    if folder is None and _PLUS in name:
        return _load_composed(name, device, dtype, make_room)
    # A download that was cut off leaves a folder behind; asking again fetches only what is missing.
    if name in KNOWN and (folder is None or lacks_weights(folder)):
        if not download:
            raise ModelError(_how_to_get(name))
        folder = _fetch(name, folder)
    if folder is None:
        raise ModelError(_how_to_get(name))
    make_room(_size_of_weights(folder))
    return VideoPipeline.load(folder, device=device, dtype=dtype)


def _load_composed(name: str, device: str, dtype: str, make_room: Callable[[int], None]) -> VideoPipeline:
    from ...motion_lora.base.pipeline import VideoPipeline

    # A name of a file may have the sign too: the right place is where both are listed.
    places = [part for part in range(len(name)) if name.startswith(_PLUS, part)]
    pairs = [(name[:place], name[place + len(_PLUS) :]) for place in places]
    listed = folders.checkpoint_names(), folders.motion_module_names()
    pair = max(pairs, key=lambda pair: (pair[0] in listed[0]) + (pair[1] in listed[1]))
    checkpoint, module = folders.checkpoint_path(pair[0]), folders.motion_module_path(pair[1])
    make_room(sum(_size_of_weights(path) for path in (checkpoint, module)))
    return VideoPipeline.load(
        checkpoint, motion_module=module, tokenizer=folders.clip_words(), device=device, dtype=dtype
    )


def _folders() -> dict[str, Path]:
    """Folders with a video network below every diffusers folder, by their path within it."""
    found: dict[str, Path] = {}
    for root in folders.diffusers_folders():
        for path in folders.subfolders(root):
            if _is_video_model(path):
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _is_video_model(folder: Path) -> bool:
    configs = [folder / part / "config.json" for part in ("unet", "transformer")]
    try:
        texts = [config.read_text(encoding="utf-8", errors="replace") for config in configs if config.is_file()]
    except OSError:
        return False
    return any(is_video_network(text) for text in texts)


def _place_for(name: str) -> Path:
    return folders.diffusers_folders()[0] / name


def _how_to_get(name: str) -> str:
    if name not in KNOWN:
        return f"there is no base model {name!r}: put its diffusers folder into {_place_for(name).parent}, then press R"
    return (
        f"{name} is not on this machine, or not all of it: switch `download` on to get {KNOWN[name]} (several GB), "
        f"or put its diffusers folder at {_place_for(name)}"
    )


def _size_of_weights(folder: Path) -> int:
    """In bytes, of a file or a folder; of pickles only where a part has nothing else."""
    if folder.is_file():
        return folder.stat().st_size
    total = 0
    for part in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        safe = list(part.glob("*.safetensors"))
        total += sum(path.stat().st_size for path in safe or part.glob("*.bin"))
    return total


def _fetch(name: str, folder: Path | None = None) -> Path:
    """Download a known base, because the user switched that on; weights as safetensors where the hub has them."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    target = folder or _place_for(name)
    try:
        wanted = _wanted_files(HfApi().list_repo_files(KNOWN[name]))
        snapshot_download(KNOWN[name], allow_patterns=wanted, local_dir=target)
    except (*_errors_of(HfHubHTTPError), LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{KNOWN[name]} could not be downloaded ({type(error).__name__}: {reason}): check the connection and the "
            f"space in {target.parent}, run it again, which goes on where it stopped, or put its diffusers folder at "
            f"{target}"
        ) from error
    return target


def _errors_of(kind: type[Exception]) -> tuple[type[Exception], ...]:
    """A library's error with all that it is made of: those of the HTTP library that it happens to use."""
    return tuple(one for one in kind.__mro__ if issubclass(one, Exception) and one is not Exception)


def _wanted_files(listed: list[str]) -> list[str]:
    """The five parts, of each the smallest safe weights: fp16 safetensors first, pickles only if nothing else."""
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    wanted = [name for name in listed if name == "model_index.json"]
    for part in parts:
        files = [name for name in listed if name.startswith(f"{part}/")]
        weights = [
            [name for name in files if name.endswith(".safetensors") and ".fp16" in name],
            [name for name in files if name.endswith(".safetensors")],
            [name for name in files if name.endswith(".bin")],
        ]
        wanted += next((kind for kind in weights if kind), [])
        wanted += [name for name in files if name.endswith((".json", ".txt", ".model"))]
    return wanted
