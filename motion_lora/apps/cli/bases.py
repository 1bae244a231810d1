"""Base models as the command line names them: a folder, `playground`, or a network without weights for counting."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ModelError
from .options import Option

if TYPE_CHECKING:
    from torch import nn

    from ...base.pipeline import VideoPipeline

PLAYGROUND = "playground"
MODELSCOPE = "modelscope"
ANIMATEDIFF = ("animatediff", "animatediff-v2")  # with a v3 module, and with a v2 module
BASE_HELP = (
    "modelscope, animatediff (v3) or animatediff-v2, wan (1.3B), wan-14b or wan-5b, playground, a model folder, or a "
    "network's config.json"
)

BASE_OPTIONS = (
    Option(
        "base",
        str,
        "model folder in diffusers' layout, or playground (default); with --motion-module a Stable Diffusion 1.5 "
        "checkpoint or folder",
        metavar="FOLDER",
        names=(PLAYGROUND, MODELSCOPE),
    ),
    Option("motion_module", Path, "AnimateDiff motion module, v2 or v3: a file, or diffusers' folder", metavar="FILE"),
    Option("tokenizer", Path, "folder with CLIP's words for a checkpoint, if not beside it", metavar="FOLDER"),
    Option("device", str, "auto (default), cpu, or a device name of torch"),
    Option("dtype", str, "how weights are held and computed (default: auto)", choices=("auto", "fp32", "fp16", "bf16")),
    Option("variant", str, "file variant in the folder, such as fp16"),
)


def load_base(values: dict[str, Any]) -> VideoPipeline:
    """The base model that `base`, `device`, `dtype` and `variant` ask for. Raises ModelError or SettingsError."""
    from ...base.pipeline import VideoPipeline
    from ...playground.model import load_playground
    from ...training.parallel import device_name

    base = values.get("base", PLAYGROUND)
    device, dtype = device_name(values.get("device", "auto")), values.get("dtype", "auto")
    if base == PLAYGROUND and "motion_module" in values:
        raise ModelError("A motion module goes into Stable Diffusion 1.5: name its checkpoint or folder with --base.")
    if base == PLAYGROUND:
        return load_playground(device=device, dtype="fp32" if dtype == "auto" else dtype)
    return VideoPipeline.load(
        Path(base).expanduser(),
        motion_module=values.get("motion_module"),
        tokenizer=values.get("tokenizer"),
        device=device,
        dtype=dtype,
        variant=values.get("variant"),
    )


def empty_network(base: str) -> nn.Module:
    """The network of a base on the meta device: no weights are read, so the real one costs nothing.

    `base` is one of the names in `BASE_HELP`, a model folder, or a network's `config.json`.
    Raises ModelError.
    """
    from ...backbones import registry

    if base == MODELSCOPE:
        return registry.empty_network(registry.DEFAULT.reference_config)
    if base in ANIMATEDIFF:
        reference = registry.named(ANIMATEDIFF[0]).reference_config
        return registry.empty_network({**reference, "use_motion_mid_block": base != ANIMATEDIFF[0]})
    sizes = {name: config for backbone in registry.BACKBONES.values() for name, config in backbone.sizes.items()}
    return registry.empty_network(sizes[base] if base in sizes else _read_config(base))


def _read_config(base: str) -> dict[str, Any]:
    from ...base.loading import read_json
    from ...playground.model import PLAYGROUND_FOLDER

    path = PLAYGROUND_FOLDER if base == PLAYGROUND else Path(base).expanduser()
    if path.is_dir():
        parts = [path, path / "unet", path / "transformer"]
        path = next((part for part in parts if (part / "config.json").is_file()), parts[1]) / "config.json"
    if not path.is_file():
        raise ModelError(f"There is no network config at {path}; give a model folder, modelscope or animatediff.")
    if path.suffix != ".json":
        known = " or ".join(ANIMATEDIFF)
        raise ModelError(f"{path} is no network's config.json; of a checkpoint with a motion module name {known}.")
    return read_json(path)


def add_json_flag(parser: ArgumentParser) -> None:
    """The flag of every command whose result a program would read."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def wants_json(options: Namespace) -> bool:
    """Whether --json was given."""
    return bool(options.json)
