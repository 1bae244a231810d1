"""Where a LoRA comes from, as the string metadata of its file: our own keys, and those that LoRA managers read.

Three namespaces (docs/FORMAT.md lists every key): `motion_lora.*` is ours and complete, `modelspec.*` is the Stability
AI model specification, `ss_*` is what kohya's trainer writes. No absolute path and no home folder is ever written.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .lora import ALL_NOISE, LoRA, NoiseRange
from .process import EXPERTS

if TYPE_CHECKING:
    from .identity import BaseIdentity

OWN = "motion_lora."
ACTS_IN_KEY = f"{OWN}acts_in"
EXPERT_KEY = f"{OWN}expert"
MODELSPEC_VERSION = "1.0.1"
_LIBRARIES = ("motion-lora", "torch", "diffusers", "transformers", "peft")
# Two or more path parts after a slash that does not belong to a word, a URL or a fraction.
_POSIX_PATH = re.compile(r"(?<![\w:/.])~?(?:/[^\s/\"'\\:*?<>|,;]+){2,}/?")
_WINDOWS_PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:|\\\\[^\s\\\"']+)(?:[\\/]+[^\s\\/\"':*?<>|,;]+)+")


@dataclass(frozen=True)
class Provenance:
    """Everything that determined a trained LoRA; what does not apply stays empty and is left out of the file.

    `settings` is the complete training configuration (json-able), `clips` the fingerprints of the reference clips,
    `created` an ISO date: left empty by default, because the same seed has to give the same file.
    """

    title: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    method: str = ""
    target_preset: str = ""
    base: BaseIdentity | None = None
    alpha: float | None = None
    captions: Sequence[str] = ()
    appearance_captions: Sequence[str] = ()
    trigger_words: Sequence[str] = ()
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    steps: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    clips: Sequence[str] = ()
    training_fingerprint: str = ""
    prediction_type: str = ""
    expert: str = ""
    workflow: str = ""
    created: str = ""


def build_metadata(provenance: Provenance, lora: LoRA, layers: str) -> dict[str, str]:
    """The metadata of a trained LoRA in all three namespaces, ready for `LoRA.metadata`; empty entries are left out.

    `layers` is the text of `backbones.lora.layers_text`.
    """
    model = _modelspec_keys(provenance, lora.backbone)
    entries = {**_own_keys(provenance), **model, **_kohya_keys(provenance), **derived_keys(lora, layers)}
    return {key: without_paths(value) for key, value in entries.items() if value not in ("", "[]", "{}")}


def derived_keys(lora: LoRA, layers: str) -> dict[str, str]:
    """What follows from the layers themselves; every file gets it anew, so arithmetic cannot make it untrue."""
    ranks = lora.ranks
    # kohya's alpha is divided by the rank; ours multiplies directly
    alphas = {layer.scale * layer.rank for layer in lora.layers.values()}
    found = {
        f"{OWN}layers": layers,
        f"{OWN}rank": "+".join(str(rank) for rank in ranks),
        "ss_network_dim": str(ranks[0]) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": repr(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }
    return found if lora.layers else {}


def without_paths(text: str) -> str:
    """The text with every absolute path cut down to its last part, inside JSON too; nothing else is changed."""
    if text[:1] in ("{", "["):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if content is not None:
            return text if (clean := _clean(content)) == content else _json(clean)
    return _clean_text(text)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on; those that are not installed as packages are left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def acts_in_of(metadata: Mapping[str, str]) -> NoiseRange:
    """The part of the noise that a file's LoRA acts in; all of it where the file says nothing that makes sense.

    Files of before the entry say it among the settings of their training.
    """
    try:
        if ACTS_IN_KEY in metadata:
            low, high = (float(bound) for bound in json.loads(metadata[ACTS_IN_KEY]))
        else:
            settings = json.loads(metadata.get(f"{OWN}settings", "{}"))
            low, high = float(settings.get("timestep_low", 0.0)), float(settings.get("timestep_high", 1.0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ALL_NOISE
    return (low, high) if 0.0 <= low < high <= 1.0 else ALL_NOISE


def expert_of(metadata: Mapping[str, str]) -> str:
    """ "high" or "low" where a file's LoRA is for one of a base's two experts; "" where it is for every network."""
    said = metadata.get(EXPERT_KEY, "")
    return said if said in EXPERTS else ""


def acts_in_entry(lora: LoRA) -> dict[str, str]:
    """The entries that `acts_in_of` and `expert_of` read."""
    expert = expert_of(lora.metadata)
    return {ACTS_IN_KEY: json.dumps(list(lora.acts_in)), **({EXPERT_KEY: expert} if expert else {})}


def _own_keys(source: Provenance) -> dict[str, str]:
    base = source.base
    plain = {
        "title": source.title,
        "description": source.description,
        "method": source.method,
        "target_preset": source.target_preset,
        "alpha": _number(source.alpha),
        "base_name": base.name if base else "",
        "base_config_hash": base.config_hash if base else "",
        "base_weights_hash": base.weights_hash if base else "",
        "num_frames": _number(source.num_frames),
        "height": _number(source.height),
        "width": _number(source.width),
        "fps": _number(source.fps),
        "steps": _number(source.steps),
        "learning_rate": _number(source.learning_rate),
        "seed": _number(source.seed),
        "expert": source.expert,
        "training_fingerprint": source.training_fingerprint,
        "workflow": source.workflow,
        "created": source.created,
    }
    structured = {
        "captions": list(source.captions),
        "appearance_captions": [caption for caption in source.appearance_captions if caption],
        "trigger_words": list(source.trigger_words),
        "settings": dict(source.settings),
        "clips": list(source.clips),
        "versions": library_versions(),
    }
    own = {**plain, **{key: _json(value) for key, value in structured.items()}}
    return {OWN + key: value for key, value in own.items()}


def _modelspec_keys(source: Provenance, backbone: str) -> dict[str, str]:
    architecture = source.base.name if source.base else backbone
    keys = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers",
        "title": source.title,
        "description": source.description or (source.captions[0] if source.captions else ""),
        "author": source.author,
        "license": source.license,
        "date": source.created,
        "resolution": _resolution(source, "x"),
        "trigger_phrase": ", ".join(source.trigger_words),
        "tags": ", ".join(["motion", *([source.method] if source.method else [])]),
        "prediction_type": "v" if source.prediction_type == "v_prediction" else source.prediction_type,
    }
    return {f"modelspec.{key}": value for key, value in keys.items()}


def _kohya_keys(source: Provenance) -> dict[str, str]:
    tags = Counter([*source.trigger_words, *source.captions])
    return {
        "ss_network_module": "motion_lora",
        "ss_base_model_version": source.base.name if source.base else "",
        "ss_sd_model_name": source.base.name if source.base else "",
        "ss_resolution": _resolution(source, ", "),
        "ss_learning_rate": _number(source.learning_rate),
        "ss_steps": _number(source.steps),
        "ss_max_train_steps": _number(source.steps),
        "ss_seed": _number(source.seed),
        "ss_num_train_images": _number(len(source.captions) or None),
        "ss_tag_frequency": _json({"motion_lora": dict(tags)}) if tags else "",
        "ss_training_comment": source.description,
    }


def _resolution(source: Provenance, between: str) -> str:
    return f"{source.width}{between}{source.height}" if source.width and source.height else ""


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    if isinstance(value, dict):
        return {_clean_text(key): _clean(entry) for key, entry in value.items()}
    return value


def _clean_text(text: str) -> str:
    """A value that is a path as a whole may hold blanks; a path within a text ends at the first one."""
    one_line = "\n" not in text and len(text) < 1024
    if one_line and PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    if one_line and text.startswith(("/", "~/")) and len(PurePosixPath(text).parts) > 2:
        return PurePosixPath(text).name
    text = text.replace(str(Path.home()), "~") if len(str(Path.home())) > 1 else text
    text = _WINDOWS_PATH.sub(lambda found: PureWindowsPath(found.group()).name, text)
    return _POSIX_PATH.sub(lambda found: PurePosixPath(found.group()).name, text)
