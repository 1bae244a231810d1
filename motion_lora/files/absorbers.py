"""Third-party absorbers: anything that holds a look and fits, used frozen while a motion is learned.

Customize-A-Video section 5: in place of the absorber that is trained first, a LoRA of the subject from anywhere, or the
spatial weights of an image or video network that was fine-tuned on it, as by DreamBooth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.weights import spatial_shapes, spatial_weights
from ..backbones.lora import part
from ..core.absorber import Absorber
from ..core.errors import LoRAFileError
from ..core.lora import SPATIAL, LoRA
from ..core.stack import title_of
from .absorber_file import load_absorber
from .container import Header, read_header, read_tensors
from .own import ABSORBER_KIND, KIND_KEY, is_own
from .reader import load_any
from .source import FOLDER_FILES

WEIGHTS = "diffusion_pytorch_model"
# Of several variants in one folder the most exact is read; the base's dtype decides in the end.
_VARIANTS = ("", ".fp32", ".bf16", ".fp16")


@dataclass(frozen=True, eq=False)
class AbsorberReport:
    """An absorber and what to know about how it was read."""

    absorber: Absorber
    notes: tuple[str, ...] = ()


def load_any_absorber(path: str | Path, unet: nn.Module, *, strength: float = 1.0) -> AbsorberReport:
    """An absorber from whatever `path` is: a trained absorber, a LoRA of any known format, or a fine-tuned network.

    A network is a model folder of diffusers, its unet/, or a safetensors file with diffusers' names; its spatial
    weights are read in the dtype of `unet`. Of a LoRA the spatial layers are used, with `strength` over its own scale.
    Raises LoRAFileError for what does not fit `unet`, changes only temporal layers, or is the base itself.
    """
    path = Path(path).expanduser()
    files = network_files(path)
    if files:
        if strength != 1.0:
            raise LoRAFileError(f"{path.name} is a whole network, which has no strength; leave it at 1.")
        return _from_network(path, files, unet)
    if path.is_file() and _is_trained_absorber(path):
        absorber = load_absorber(path)
        spatial = scaled(absorber.spatial, strength) if absorber.spatial is not None else None
        return AbsorberReport(replace(absorber, spatial=spatial))
    report = load_any(path, unet)
    absorber, notes = absorber_from_lora(report.lora, path.name, strength)
    return AbsorberReport(absorber, (*report.notes, *notes))


def absorber_from_lora(lora: LoRA, name: str = "", strength: float = 1.0) -> tuple[Absorber, tuple[str, ...]]:
    """The spatial layers of a LoRA as an absorber, with notes. Raises LoRAFileError when it has none."""
    name = name or title_of(lora.metadata)
    spatial = part(lora, SPATIAL)
    if not len(spatial):
        raise LoRAFileError(f"{name} changes temporal layers only: it holds a motion, and an absorber holds a look.")
    left_out = len(lora) - len(spatial)
    notes = (f"{left_out} temporal layers of {name} are left out",) if left_out else ()
    about = {"modelspec.title": name}
    look = LoRA(scaled(spatial, strength).layers, about, backbone=lora.backbone)
    return Absorber(look, metadata=about), notes


def scaled(lora: LoRA, strength: float) -> LoRA:
    """The same LoRA at another strength."""
    if strength == 1.0:
        return lora
    layers = {name: replace(layer, scale=layer.scale * strength) for name, layer in lora.layers.items()}
    return replace(lora, layers=layers)


def network_files(path: Path) -> list[Path]:
    """The weight files of a network: those of a model folder or its unet/, or the file itself; none for a LoRA."""
    if path.is_dir():
        if any((path / name).is_file() for name in FOLDER_FILES):
            return []
        folder = path / "unet" if (path / "unet").is_dir() else path
        return _in_folder(folder)
    if path.suffix == ".safetensors" and path.is_file():
        keys = set(read_header(path).tensors)
        if any(key.startswith("model.diffusion_model.") for key in keys):
            raise LoRAFileError(
                f"{path.name} is a checkpoint in Stability's layout: convert it to a diffusers folder and use that."
            )
        return [path] if "conv_in.weight" in keys else []
    return []


def _in_folder(folder: Path) -> list[Path]:
    """The safetensors, whole or in shards, of the best variant that is there."""
    files = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
    there = {_variant_of(path) for path in files}
    for variant in (*_VARIANTS, *sorted(there)):
        if variant in there:
            return [path for path in files if _variant_of(path) == variant]
    raise LoRAFileError(
        f"{folder} holds no {WEIGHTS}.safetensors: name a diffusers model folder or its unet/ (weights as safetensors)."
    )


def _variant_of(path: Path) -> str:
    """ "" of x.safetensors, ".fp16" of x.fp16.safetensors and of x.fp16-00001-of-00002.safetensors."""
    ending = path.name.removeprefix(WEIGHTS).removesuffix(".safetensors")
    return re.sub(r"-\d+-of-\d+", "", ending)


def _from_network(path: Path, files: Iterable[Path], unet: nn.Module) -> AbsorberReport:
    wanted = set(spatial_shapes(unet))
    headers = {file: read_header(file) for file in files}
    _require_shapes(path, headers, unet)
    found: dict[str, Tensor] = {}
    for file, header in headers.items():
        for name in sorted(wanted & set(header.tensors)):
            # One by one, so that a network of many gigabytes is never in memory twice.
            found[name] = read_tensors(file, header, [name])[name].to(next(unet.parameters()).dtype)
    weights = spatial_weights(found, unet)
    base = dict(unet.named_parameters())
    if all(torch.equal(weight, base[name].detach().cpu()) for name, weight in weights.items()):
        raise LoRAFileError(f"{path.name} has the base's own spatial weights: it absorbs nothing; use a tuned network.")
    notes = (f"{len(weights)} of {len(wanted)} spatial weights are those of {path.name}",)
    return AbsorberReport(Absorber(weights=weights, source=str(path.resolve()), metadata={}), notes)


def _require_shapes(path: Path, headers: dict[Path, Header], unet: nn.Module) -> None:
    """By the headers alone, before gigabytes are read. Raises LoRAFileError."""
    known = spatial_shapes(unet)
    shapes = {name: shape for header in headers.values() for name, shape in header.shapes.items()}
    for name, shape in shapes.items():
        if name in known and known[name] != shape:
            raise LoRAFileError(
                f"{path.name} is a network of another size: its {name} is {shape}, this base has {known[name]}."
            )
    if missing := known.keys() - shapes.keys():
        raise LoRAFileError(
            f"{path.name} lacks {len(missing)} of the base's {len(known)} spatial weights, {min(missing)} the first: "
            "it is a network of another layout."
        )


def _is_trained_absorber(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    header = read_header(path)
    return is_own(header) and header.metadata.get(KIND_KEY) == ABSORBER_KIND
