"""Files that are LoRAs of something else: known by their keys, widths and metadata, and named in one sentence.

Shapes alone do not tell: AnimateDiff's motion modules and Stable Diffusion 1.5 share most of theirs with this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from ..backbones.base import Backbone
from ..backbones.registry import BACKBONES, of_keys
from ..core.errors import LoRAFileError
from .names import TEXT, UNET, parse_key
from .source import Source

_WIDTHS = {
    768: "Stable Diffusion 1.5",
    1024: "Stable Diffusion 2.1",
    1280: "SDXL",
    2048: "SDXL",
    4096: "a diffusion transformer",
}
_IMAGE_WIDTHS = {768, 1024}
_ROOT = r"^(?:base_model\.model\.)?(?:transformer\.|diffusion_model\.|model\.|lora_unet_|lora_transformer_|unet\.)?"
# In the order in which they are tried; the first that any key matches is what the file is. Networks without a backbone.
_TRANSFORMERS = (
    (r"double_blocks|single_blocks", "a LoRA for HunyuanVideo or Flux, diffusion transformers"),
    (r"single_transformer_blocks|joint_blocks|lora_transformer_", "a LoRA for Flux or SD3, diffusion transformers"),
    (rf"{_ROOT}transformer_blocks[._]\d+[._]", "a LoRA for LTX-Video, CogVideoX or another diffusion transformer"),
    (r"^transformer(?:_\d)?\.|^lora_unet_layers_|^diffusion_model\.layers\.", "a LoRA for a diffusion transformer"),
)
_BY_KEY = (
    (r"lora_te[12]_|^text_encoder_2\.|input_blocks|output_blocks", "an SDXL LoRA"),
    (r"attentions[._]\d+[._]transformer_blocks[._][1-9]", "an SDXL LoRA"),
    (
        r"hada_w\d|lokr_w\d|oft_blocks|oft_diag|glora|\.[ab][12]\.weight$",
        "a LyCORIS file (LoHa, LoKr, OFT): not a LoRA",
    ),
    (r"dora_scale|lora_magnitude_vector", "a DoRA: it also rescales the weights, which a LoRA cannot hold"),
    (r"\.diff_b$|\.diff$|\.set_weight$", "a LoRA with whole weights beside it, which a LoRA cannot hold"),
    (r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.", "a whole model, not a LoRA"),
)
_BY_METADATA = (
    (r"sdxl|stable-diffusion-xl", "an SDXL LoRA", 2048),
    (r"\bsd_v1|sd_1\.5|sd15|stable-diffusion-v1", "a Stable Diffusion 1.5 LoRA", 768),
    (r"wan_?2|wan2|hunyuan|ltx|flux|sd3|cogvideo|qwen|lumina|kandinsky", "a LoRA for a diffusion transformer", 4096),
)
_METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")


def backbone_of(source: Source) -> Backbone:
    """The backbone that a file is for where no network is at hand: by its names, else by the text that it reads.

    The image networks of two backbones share their names: what tells them apart is the width of their text embeddings,
    or what the trainer says. Where nothing tells, it is `registry.DEFAULT`.
    """
    by_names = of_keys(source.shapes)
    if by_names.recognises_keys(source.shapes):
        return by_names
    widths = {*_widths(source.shapes, UNET, by_names.reads_text), *_widths(source.shapes, TEXT, _text_projection)}
    widths |= {width for _, width in _said(source)} if not widths else set()
    if not widths <= _IMAGE_WIDTHS:
        return by_names
    return next((backbone for backbone in BACKBONES.values() if widths == {backbone.text_width}), by_names)


def refuse_foreign(source: Source, unet: nn.Module | None, backbone: Backbone) -> None:
    """Raise LoRAFileError if the file is for another kind of network than `backbone`; the sentence says which."""
    keys = list(source.shapes)
    for other in BACKBONES.values():
        if other is not backbone and other.recognises_keys(keys):
            raise LoRAFileError(_sentence(source.name, other.refusal, backbone))
    foreign = [key for key in keys if backbone.own_keys is None or not backbone.own_keys.search(key)]
    known = [(pattern, what, foreign) for pattern, what in _TRANSFORMERS]
    for pattern, what, among in known + [(pattern, what, keys) for pattern, what in _BY_KEY]:
        if any(re.search(pattern, key) for key in among):
            raise LoRAFileError(_sentence(source.name, what, backbone))
    refuse_embedding(source)
    for what, width in _said(source):
        if width != backbone.text_width:
            raise LoRAFileError(_sentence(source.name, what, backbone))
    _refuse_width(source, unet, backbone)


def _said(source: Source) -> Iterator[tuple[str, int]]:
    """What the metadata says that a file is, with the width of that model's text embeddings."""
    for entry in (" ".join(source.metadata.get(key, "").lower().split()) for key in _METADATA_KEYS):
        for pattern, what, width in _BY_METADATA:
            if re.search(pattern, entry):
                yield f"{what} (its metadata says {entry[:60]!r})", width


def refuse_embedding(source: Source) -> None:
    """Raise LoRAFileError if the file is a textual inversion: learned words and no layers."""
    width = embedding_width(source.shapes)
    if width is not None:
        made_for = _WIDTHS.get(width, "another text encoder")
        raise LoRAFileError(
            f"{source.name} is a textual inversion of width {width} ({made_for}): learned words, not a LoRA"
        )


def embedding_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The width of a textual inversion's rows; None for a file that is none."""
    known = [key for key in shapes if key in ("emb_params", "clip_g", "clip_l") or key.startswith("string_to_param")]
    bare = len(shapes) <= 8 and all(len(shape) in (1, 2) and shape[-1] in _WIDTHS for shape in shapes.values())
    nameless = not any("." in key or "lora" in key for key in shapes)
    if shapes and (known or (bare and nameless)):
        return shapes[known[0] if known else next(iter(shapes))][-1]
    return None


def _refuse_width(source: Source, unet: nn.Module | None, backbone: Backbone) -> None:
    """Against the network, or, without one, against the widths that are known to be those of other bases."""
    own = backbone.text_width
    expected = int(getattr(getattr(unet, "config", None), "cross_attention_dim", own) or own)
    for width in (*_widths(source.shapes, UNET, backbone.reads_text), *_widths(source.shapes, TEXT, _text_projection)):
        if width != expected and (unet is not None or width in _WIDTHS):
            what = _WIDTHS.get(width, "another base")
            said = f"a LoRA for {what}: it reads text of width {width}, this base {expected}"
            raise LoRAFileError(_sentence(source.name, said, backbone))


def _widths(shapes: Mapping[str, tuple[int, ...]], part: str, wanted: Callable[[str], bool]) -> Iterable[int]:
    for key, shape in shapes.items():
        parsed = parse_key(key)
        if parsed and parsed.part == part and parsed.role == "down" and wanted(parsed.module) and len(shape) > 1:
            yield shape[1]


def _text_projection(module: str) -> bool:
    return module.endswith(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))


def _sentence(name: str, what: str, backbone: Backbone) -> str:
    return f"{name} is {what}; what fits here are {backbone.takes}"
