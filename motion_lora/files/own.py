"""LoRA files in the project's own format, version 1: docs/FORMAT.md is its specification.

One safetensors file, tensors named as PEFT names them (`unet.<module>.lora_A.weight` is down, `.lora_B.weight` is up),
everything else in the metadata. Saving reads the file back and compares before it takes the target's name; loading
checks every key before any tensor is read, so a file is applied whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.lora import layers_text
from ..backbones.registry import named
from ..core.disk import write_atomically
from ..core.errors import LoRAFileError
from ..core.lora import DEFAULT_BACKBONE, LoRA, LoRALayer
from ..core.metadata import ACTS_IN_KEY, MODELSPEC_VERSION, OWN, acts_in_entry, acts_in_of, derived_keys, without_paths
from .container import Header, read_header, read_tensors, serialize

FORMAT_VERSION = 1
VERSION_KEY = f"{OWN}format_version"
KIND_KEY = f"{OWN}kind"
SCALE_KEY = f"{OWN}scale"
FINGERPRINT_KEY = f"{OWN}fingerprint"
BACKBONE_KEY = f"{OWN}backbone"
PEFT_KEY = "lora_adapter_metadata"
LORA_KIND, ABSORBER_KIND = "lora", "absorber"
MAX_WORKFLOW_BYTES = 512 * 2**10  # ComfyUI shows headers of up to 1 MiB
_FACTOR = re.compile(r"unet\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_log = logging.getLogger(__name__)

Contents = tuple[dict[str, Tensor], dict[str, str]]
# From version n to n + 1: (tensors, metadata) -> (tensors, metadata). A reader knows all versions up to its own.
MIGRATIONS: dict[int, Callable[[dict[str, Tensor], dict[str, str]], Contents]] = {}


def save_lora(
    path: str | Path, lora: LoRA, *, metadata: bool = True, dtype: torch.dtype | None = None, overwrite: bool = True
) -> Path:
    """Write a LoRA in the own format, whole or not at all, and return the path.

    `lora.metadata` goes in with all absolute paths cut (`build_metadata` makes it); `metadata=False` writes only what
    is needed to read the file. `dtype` stores the factors in another precision (fp16 rounds to 11 bits); by default
    they stay as they are, and loading gives the same bits. Raises LoRAFileError for a LoRA that holds no layers or
    numbers that are not finite, OutputError if the file cannot be written or exists and `overwrite` is off.
    """
    path = Path(path)
    stored = as_stored(lora, dtype)
    tensors = factor_tensors(stored)
    entries = own_entries(stored, LORA_KIND)
    if metadata:
        entries = {**described(path, lora, tensors), **entries}
    return write_checked(path, tensors, entries, lambda part: same_lora(load_lora(part), stored, path.name), overwrite)


def load_lora(path: str | Path) -> LoRA:
    """Read a LoRA of the own format, any version up to this one. Raises LoRAFileError, one line, for anything else."""
    path = Path(path)
    header = read_header(path)
    require_kind(path.name, header, LORA_KIND)
    tensors, metadata = contents(path, header)
    return lora_from(path.name, tensors, metadata)


def lora_from(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoRA:
    """The LoRA of what `contents` gave. Raises LoRAFileError for a damaged entry or damaged layers."""
    acts_in = acts_in_of(metadata)
    if ACTS_IN_KEY in metadata and json.dumps(list(acts_in)) != metadata[ACTS_IN_KEY]:
        raise LoRAFileError(f"{name} does not say in which part of the noise it acts: {ACTS_IN_KEY} is damaged")
    return LoRA(layers_from(name, tensors, metadata), metadata, acts_in, backbone_from(name, metadata))


def is_own(header: Header) -> bool:
    """Whether a safetensors file is of the own format, of any version and kind."""
    return VERSION_KEY in header.metadata


# Parts that imports and exports share ---------------------------------------------------------------------------------
def as_stored(lora: LoRA, dtype: torch.dtype | None) -> LoRA:
    """The LoRA as the file will hold it: on the CPU, in the asked precision. Refuses what must not be written."""
    if not lora.layers:
        raise LoRAFileError("there is nothing to save: the LoRA has no layers")
    layers = {}
    for module, layer in lora.layers.items():
        down, up = (tensor.detach().to("cpu", dtype or tensor.dtype) for tensor in (layer.down, layer.up))
        layers[module] = LoRALayer(down, up, float(layer.scale))
    require_finite("the LoRA to be saved", layers)
    return replace(lora, layers=layers)


def factor_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The factors under their names in the own format, which are PEFT's."""
    downs = {f"unet.{module}.lora_A.weight": layer.down for module, layer in lora.layers.items()}
    return downs | {f"unet.{module}.lora_B.weight": layer.up for module, layer in lora.layers.items()}


def own_entries(lora: LoRA, kind: str) -> dict[str, str]:
    """The metadata without which the file cannot be read right."""
    entries = {"format": "pt", VERSION_KEY: str(FORMAT_VERSION), KIND_KEY: kind, FINGERPRINT_KEY: lora.fingerprint()}
    entries[BACKBONE_KEY] = lora.backbone
    scales = {module: layer.scale for module, layer in lora.layers.items()}
    distinct = set(scales.values()) or {1.0}
    entries[SCALE_KEY] = json.dumps(distinct.pop() if len(distinct) == 1 else scales, sort_keys=True)
    if kind == LORA_KIND:
        entries |= acts_in_entry(lora)
    if any(scale != 1.0 for scale in scales.values()):
        entries[PEFT_KEY] = peft_config(lora)  # for readers that know PEFT and not us
    return entries


def peft_config(lora: LoRA) -> str:
    """The adapter's configuration as diffusers writes it into safetensors metadata; PEFT divides its alpha by r."""
    first = next(iter(lora.layers.values()))
    alpha = {module: layer.scale * layer.rank for module, layer in lora.layers.items()}
    config = {
        "r": first.rank,
        "lora_alpha": first.scale * first.rank,
        "rank_pattern": {module: layer.rank for module, layer in lora.layers.items() if layer.rank != first.rank},
        "alpha_pattern": {module: a for module, a in alpha.items() if a != first.scale * first.rank},
        "target_modules": sorted(lora.layers),
        "use_rslora": False,
        "use_dora": False,
    }
    return json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)


def described(path: Path, lora: LoRA, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata a reader sees: without paths, with title and hashes, without a workflow that is too large."""
    # How this file is to be read is said by this file: an imported one must not have its say.
    clean = {key: without_paths(value) for key, value in lora.metadata.items() if key != PEFT_KEY}
    if len(clean.get(f"{OWN}workflow", "").encode()) > MAX_WORKFLOW_BYTES:
        _log.warning("the workflow is larger than %d KiB and was left out of %s", MAX_WORKFLOW_BYTES // 1024, path.name)
        del clean[f"{OWN}workflow"]
    data = serialize(tensors, {})
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    clean.setdefault("modelspec.sai_model_spec", MODELSPEC_VERSION)
    clean.setdefault("modelspec.title", path.stem)
    clean |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest, "ss_output_name": path.stem}
    return {**clean, **derived_keys(lora, layers_text(lora))}


def write_checked(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    verify: Callable[[Path], None],
    overwrite: bool,
) -> Path:
    """Serialise, write beside, verify by reading back, rename."""
    return write_atomically(path, serialize(tensors, metadata), verify, overwrite=overwrite)


def same_lora(found: LoRA, expected: LoRA, name: str) -> None:
    """Raise LoRAFileError unless both change every weight by the same bits, in the same part of the noise."""
    if found.acts_in != expected.acts_in:
        raise LoRAFileError(f"{name} was not written: reading it back gave another part of the noise to act in")
    for module in {**found.layers, **expected.layers}:
        a, b = found.layers.get(module), expected.layers.get(module)
        same = a is not None and b is not None and a.scale == b.scale
        if a is None or b is None or not same or not torch.equal(a.down, b.down) or not torch.equal(a.up, b.up):
            raise LoRAFileError(f"{name} was not written: reading it back gave another change for {module}")


def require_kind(name: str, header: Header, kind: str) -> None:
    """Raise LoRAFileError unless the file is of the own format, of a version that is known, and of that kind."""
    if not is_own(header):
        raise LoRAFileError(
            f"{name} is not in the Motion LoRA format: import it with convert, or load it as any format"
        )
    version = header.metadata[VERSION_KEY]
    if not version.isdecimal() or len(version) > 6 or int(version) < 1:
        raise LoRAFileError(f"{name} has the format version {version[:20]!r}, which is no version number")
    if int(version) > FORMAT_VERSION:
        raise LoRAFileError(f"{name} has format version {version}, newer than {FORMAT_VERSION}: update MotionLoRA")
    found = header.metadata.get(KIND_KEY, LORA_KIND)
    if found != kind:
        text = {ABSORBER_KIND: "an appearance absorber", LORA_KIND: "a LoRA"}
        raise LoRAFileError(f"{name} is {text.get(found, repr(found[:40]))}, not {text[kind]}: load it as what it is")


def contents(path: Path, header: Header) -> Contents:
    """All tensors and metadata of a file of the own format, migrated to this version."""
    pairs = {key: info.shape for key, info in header.tensors.items() if _FACTOR.fullmatch(key)}
    for key, shape in pairs.items():
        require_plausible(path.name, key, shape)
    tensors, metadata = read_tensors(path, header), dict(header.metadata)
    for version in range(int(metadata[VERSION_KEY]), FORMAT_VERSION):
        tensors, metadata = MIGRATIONS[version](tensors, metadata)
        metadata[VERSION_KEY] = str(version + 1)
    return tensors, metadata


def layers_from(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, LoRALayer]:
    """Pair the factors and give each pair its scale. Refuses unknown keys, half pairs, inf and nan."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found is None:
            raise LoRAFileError(f"{name} holds {key[:80]!r}, which is no part of a LoRA in this format")
        factors.setdefault(found["module"], {})[found["factor"]] = tensor
    scales = _scales(name, metadata, factors)
    layers = {}
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise LoRAFileError(f"{name} holds only one factor of {module}: it was damaged or edited")
        layers[module] = LoRALayer(pair["A"], pair["B"], scales[module])
    require_pairs(name, layers)
    require_finite(name, layers)
    return layers


def backbone_from(name: str, metadata: Mapping[str, str]) -> str:
    """The backbone that a file says it is for; raises LoRAFileError for one that is not known here."""
    try:
        return named(metadata.get(BACKBONE_KEY, DEFAULT_BACKBONE)).name
    except LoRAFileError as error:
        raise LoRAFileError(f"{name} cannot be used: {error}") from error


def require_pairs(name: str, layers: Mapping[str, LoRALayer]) -> None:
    """Raise LoRAFileError unless there are layers, and the two factors of each belong together."""
    if not layers:
        raise LoRAFileError(f"{name} holds no LoRA layers")
    for module, layer in layers.items():
        up, down = tuple(layer.up.shape), tuple(layer.down.shape)
        floats = layer.up.is_floating_point() and layer.down.is_floating_point()
        if not floats or len(down) < 2 or 0 in up + down or up[1:] != (down[0], *[1] * (len(down) - 2)):
            raise LoRAFileError(f"{name}: the factors of {module} do not belong together (up {up}, down {down})")


def require_finite(name: str, layers: Mapping[str, LoRALayer]) -> None:
    """Raise LoRAFileError naming the first layer with a number that is inf or nan."""
    for module, layer in layers.items():
        finite = bool(layer.down.float().isfinite().all()) and bool(layer.up.float().isfinite().all())
        if not finite or not math.isfinite(layer.scale):
            raise LoRAFileError(f"{name}: {module} holds numbers that are not finite; the training has diverged")


def require_plausible(name: str, key: str, shape: tuple[int, ...]) -> None:
    """Refuse, before anything is read, a factor that no layer could have: a header may claim any size."""
    if not 2 <= len(shape) <= 5 or max(shape) > 2**17 or math.prod(shape) > 2**27:
        raise LoRAFileError(f"{name}: {key[:80]} has the shape {shape}, which no LoRA factor has")


def _scales(name: str, metadata: Mapping[str, str], modules: Mapping[str, Any]) -> dict[str, float]:
    try:
        content = json.loads(metadata.get(SCALE_KEY, "1.0"))
        entries = content if isinstance(content, dict) else dict.fromkeys(modules, content)
        return {module: float(entries[module]) for module in modules}
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise LoRAFileError(f"{name} does not say how strong its layers are: {SCALE_KEY} is damaged") from error
