"""Keys of LoRA files, in every dialect, to module names of this project.

    kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .lora_mid.weight, .alpha
    PEFT        [base_model.model.][unet.]<module>.lora_A[.<adapter>].weight, .lora_B...
    diffusers   unet.<module>.processor.to_q_lora.down.weight, .lora.up.weight, .lora_linear_layer...
    AnimateDiff <module>.processor.to_q_lora.down.weight, ff.net.0.processor.proj_lora..., ff.net.processor.2_lora...
    ADMotionDirector  the same, and for looks ff.net.0.proj_lora.down.weight, proj_in_lora.down.weight
    ComfyUI     diffusion_model.<module>.lora_down.weight, .alpha
    loralib     <module>.lora_A, .lora_B (Stable LoRA, by which ModelScope and ZeroScope were tuned in 2023)

Kohya writes the dots of a module name as underscores; since some words hold underscores themselves, they are read back
with the words that these networks are made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .source import Source

from ..backbones.registry import BACKBONES, of_keys

UNET, TEXT = "unet", "text"
# Of several in one file the first names it: alphas of any trainer read like those of diffusers.
DIALECTS = ("kohya", "peft", "diffusers", "loralib")

_TEXT_WORDS = "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2"
_NETWORK_WORDS = {word for backbone in BACKBONES.values() for word in backbone.key_words}
_WORDS = sorted({*_NETWORK_WORDS, *_TEXT_WORDS.split()}, key=lambda word: (-len(word), word))
_WORD = re.compile("(?:" + "|".join([*_WORDS, r"\d+"]) + ")(?=_|$)")
_ROLES = r"(?P<role>down|up|mid)"
_KOHYA = re.compile(rf"lora_(?P<part>unet|te)_(?P<module>\w+)\.(?:lora_{_ROLES}\.weight|(?P<alpha>alpha))")
_PREFIX = re.compile(
    r"(?:base_model\.model\.|module\.)?(?:(?P<unet>unet\.|diffusion_model\.|transformer\.(?=blocks\.))|(?P<text>text_encoder\.))?(?:base_model\.model\.)?"
)
_DOTTED = (
    re.compile(r"(?P<module>.+)\.lora_(?P<ab>[AB])(?:\.(?!weight$)[^.]+)?\.weight"),
    re.compile(rf"(?P<module>.+)\.(?:lora_|lora\.|lora_linear_layer\.){_ROLES}\.weight"),
    re.compile(rf"(?P<module>.+?)\.(?:processor\.)?(?P<projection>to_q|to_k|to_v|to_out)_lora\.{_ROLES}\.weight"),
    re.compile(rf"(?P<module>.+?)\.(?:processor\.)?(?P<leaf>\w+)_lora\.{_ROLES}\.weight"),
    re.compile(r"(?P<module>.+)\.(?P<alpha>alpha)"),
)
_LORALIB = re.compile(r"(?P<module>.+)\.lora_(?P<ab>[AB])")
_PEFT_ROLES = {"A": "down", "B": "up"}
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Key(NamedTuple):
    """What a key names: part of the model, module, role (down, up, mid or alpha), and the dialect it was written in."""

    part: str
    module: str
    role: str
    dialect: str


def parse_key(key: str) -> Key | None:
    """The meaning of a key, or None for one that no dialect has."""
    # torch.compile's wrapper, around a network or any of its modules, is none of it.
    key = key.replace("_orig_mod.", "").replace("_orig_mod_", "")
    found = _KOHYA.fullmatch(key)
    if found:
        module = dotted(found["module"].removeprefix("_"))  # some trainers of Wan-Fun write two underscores
        part = UNET if found["part"] == "unet" else TEXT
        return None if module is None else Key(part, _bare(part, module), found["role"] or "alpha", "kohya")
    return _parse_dotted(key)


def dialect_of(keys: Iterable[Key]) -> str:
    """The dialect of a file with these keys; empty where there are none."""
    found = {key.dialect for key in keys}
    return next((name for name in DIALECTS if name in found), "")


def is_kohya(source: Source) -> bool:
    """Whether a file has keys in kohya's spelling."""
    return _dialect_in(source) == "kohya"


def is_peft(source: Source) -> bool:
    """Whether a file has PEFT's keys."""
    return _dialect_in(source) == "peft"


def is_comfyui(source: Source) -> bool:
    """Whether a file has PEFT's factors under ComfyUI's own names, of a network whose tools exchange such files."""
    own = of_keys(source.shapes).native_format == "comfyui"
    return own and is_peft(source) and all(key.startswith("diffusion_model.") for key in source.shapes)


def is_diffusers(source: Source) -> bool:
    """Whether a file has the keys of diffusers or ComfyUI."""
    return _dialect_in(source) == "diffusers"


def is_animatediff(source: Source) -> bool:
    """Whether a file has the keys of AnimateDiff's own tools."""
    return is_diffusers(source) and any(".temporal_transformer." in key for key in source.shapes)


def is_loralib(source: Source) -> bool:
    """Whether a file has the keys of diffusers or ComfyUI."""
    return _dialect_in(source) == "loralib"


def _dialect_in(source: Source) -> str:
    return dialect_of(parsed for key in source.shapes if (parsed := parse_key(key)) is not None)


def _parse_dotted(key: str) -> Key | None:
    prefix = _PREFIX.match(key)
    assert prefix is not None  # it may match nothing, but it matches
    part, rest = TEXT if prefix["text"] else UNET, key[prefix.end() :]
    if rest.startswith("lora_"):
        return None  # kohya's, for a part or with a word that is not known
    if found := _LORALIB.fullmatch(rest):
        return Key(part, _bare(part, found["module"]), _PEFT_ROLES[found["ab"]], "loralib")
    for pattern in _DOTTED:
        found = pattern.fullmatch(rest)
        if found is None:
            continue
        groups = found.groupdict()
        if "projection" in groups:
            module = f"{groups['module']}.{_projection(part, groups['projection'])}"
            return Key(part, _bare(part, module), groups["role"], "diffusers")
        if "leaf" in groups:
            return Key(part, _bare(part, f"{groups['module']}.{groups['leaf']}"), groups["role"], "diffusers")
        if "ab" in groups:
            return Key(part, _bare(part, groups["module"]), _PEFT_ROLES[groups["ab"]], "peft")
        return Key(part, _bare(part, groups["module"]), groups.get("role") or "alpha", "diffusers")
    return None


def dotted(name: str) -> str | None:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`; None where a word is not known."""
    words, position = [], 0
    while position < len(name):
        found = _WORD.match(name, position)
        if found is None:
            return None
        words.append(found.group())
        position = found.end() + 1  # the underscore between two words
    return ".".join(words) if words and not name.endswith("_") else None


def _projection(part: str, name: str) -> str:
    if part == TEXT:
        return _TEXT_PROJECTIONS[name]
    return "to_out.0" if name == "to_out" else name


def _bare(part: str, module: str) -> str:
    """Text encoders of transformers 4 have `text_model.` in front, those of 5 do not: here it never is."""
    return module.removeprefix("text_model.") if part == TEXT else module
