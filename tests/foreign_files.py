"""LoRA files as other tools write them, made from known changes: one function per dialect; files of other networks."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from motion_lora.core.lora import LoRA


def kohya(path: Path, lora: LoRA, *, alpha: float | None = None, metadata: dict | None = None, **extra: Tensor) -> Path:
    """Kohya's trainer: `alpha` for all layers, None for a file without one."""
    tensors = {}
    for module, layer in lora.layers.items():
        key = "lora_unet_" + module.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": layer.down, f"{key}.lora_up.weight": layer.up}
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file({**tensors, **extra}, path, {"ss_network_module": "networks.lora", **(metadata or {})})
    return path


def kohya_as_convolutions(path: Path, lora: LoRA) -> Path:
    """Linear layers written as 1x1 convolutions."""
    tensors = {}
    for module, layer in lora.layers.items():
        key = "lora_unet_" + module.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = layer.down[:, :, None, None].clone()
        tensors[f"{key}.lora_up.weight"] = layer.up[:, :, None, None].clone()
    save_file(tensors, path)
    return path


def peft(path: Path, lora: LoRA, *, prefix: str = "unet.", adapter: str = "", metadata: dict | None = None) -> Path:
    middle = f".{adapter}" if adapter else ""
    tensors = {}
    for module, layer in lora.layers.items():
        tensors[f"{prefix}{module}.lora_A{middle}.weight"] = layer.down
        tensors[f"{prefix}{module}.lora_B{middle}.weight"] = layer.up
    save_file(tensors, path, metadata)
    return path


def peft_folder(folder: Path, lora: LoRA, config: dict) -> Path:
    folder.mkdir()
    peft(folder / "adapter_model.safetensors", lora, prefix="base_model.model.")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def diffusers_processors(lora: LoRA, prefix: str = "unet.") -> dict[str, Tensor]:
    """The spelling of 2023: attention only."""
    tensors = {}
    for module, layer in lora.layers.items():
        attention, projection = module.removesuffix(".0").rsplit(".", 1)
        key = f"{prefix}{attention}.processor.{projection}_lora"
        tensors |= {f"{key}.down.weight": layer.down, f"{key}.up.weight": layer.up}
    return tensors


_ATTENTION_BLOCK = re.compile(r"\.attn([12])\.")


def _temporal(module: str) -> str:
    """A module of a motion module as guoyww's code names it."""
    module = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", module)
    return _ATTENTION_BLOCK.sub(lambda found: f".attention_blocks.{int(found[1]) - 1}.", module)


def motion_lora(lora: LoRA) -> dict[str, Tensor]:
    """guoyww's MotionLoRAs (camera moves): attention of the motion modules, no alpha, `to_out` without its number."""
    tensors = {}
    for module, layer in lora.layers.items():
        attention, projection = _temporal(module.removesuffix(".0")).rsplit(".", 1)
        key = f"{attention}.processor.{projection}_lora"
        tensors |= {f"{key}.down.weight": layer.down, f"{key}.up.weight": layer.up}
    return tensors


def admd_temporal(lora: LoRA) -> dict[str, Tensor]:
    """ADMotionDirector's motion: `processor` before the last part of any layer's name, be it a number."""
    tensors = {}
    for module, layer in lora.layers.items():
        place, leaf = _temporal(module).rsplit(".", 1)
        key = f"{place}.processor.{leaf}_lora"
        tensors |= {f"{key}.down.weight": layer.down, f"{key}.up.weight": layer.up}
    return tensors


def admd_spatial(lora: LoRA) -> dict[str, Tensor]:
    """ADMotionDirector's look: `processor` only within attentions, `to_out` without its number."""
    tensors = {}
    for module, layer in lora.layers.items():
        name = re.sub(r"(\.attn[12])\.", r"\1.processor.", module).replace("to_out.0", "to_out")
        tensors |= {f"{name}_lora.down.weight": layer.down, f"{name}_lora.up.weight": layer.up}
    return tensors


def diffusers_text_part(lora: LoRA, spelling: str) -> dict[str, Tensor]:
    """diffusers' keys for modules of a text encoder, beside those of the network."""
    return dotted(lora, spelling, prefix="text_encoder.text_model.")


def dotted(lora: LoRA, spelling: str, prefix: str = "unet.", alpha: float | None = None) -> dict[str, Tensor]:
    """`spelling` as in "lora.{}", "lora_linear_layer.{}", "lora_{}"."""
    tensors = {}
    for module, layer in lora.layers.items():
        for role, tensor in (("down", layer.down), ("up", layer.up)):
            tensors[f"{prefix}{module}.{spelling.format(role)}.weight"] = tensor
        if alpha is not None:
            tensors[f"{prefix}{module}.alpha"] = torch.tensor(alpha)
    return tensors


def list_file(path: Path, *loras: LoRA) -> Path:
    """MotionDirector's list; several LoRAs interleaved layer by layer."""
    tensors = []
    for module in loras[0]:
        for lora in loras:
            layer = lora.layers[module]
            tensors += [torch.nn.Parameter(layer.up), torch.nn.Parameter(layer.down)]
    torch.save(tensors, path)
    return path


def text_encoder_part(lora: LoRA, alpha: float) -> dict[str, Tensor]:
    """Kohya's keys for modules of a text encoder, named as transformers 4 does."""
    tensors = {}
    for module, layer in lora.layers.items():
        key = "lora_te_text_model_" + module.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": layer.down, f"{key}.lora_up.weight": layer.up}
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def _pair(down: str, up: str, inside: int, outside: int) -> dict[str, Tensor]:
    return {down: torch.ones(4, inside), up: torch.ones(outside, 4)}


def _kohya_pair(name: str, inside: int, outside: int) -> dict[str, Tensor]:
    return _pair(f"{name}.lora_down.weight", f"{name}.lora_up.weight", inside, outside)


def _peft_pair(name: str, inside: int, outside: int) -> dict[str, Tensor]:
    return _pair(f"{name}.lora_A.weight", f"{name}.lora_B.weight", inside, outside)


def _processor_pair(name: str, inside: int, outside: int) -> dict[str, Tensor]:
    return _pair(f"{name}.processor.to_q_lora.down.weight", f"{name}.processor.to_q_lora.up.weight", inside, outside)


_BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
_DOTS = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
_MOTION = "down_blocks.0.motion_modules.0"
_OLD_MOTION = f"{_MOTION}.temporal_transformer.transformer_blocks.0.attention_blocks.0"
_TEXT = "text_model_encoder_layers_0"
_PLAIN = _kohya_pair(f"{_BLOCK}_attn1_to_q", 320, 320)
_DIT = "diffusion transformer"

# Files of the other backbone: refused on this one, read where no network is given.
ANIMATEDIFF: dict[str, dict[str, Tensor]] = {
    "as its tools write": _processor_pair(_OLD_MOTION, 320, 320),
    "prefixed": _processor_pair(f"module.{_OLD_MOTION}", 320, 320),
    "of diffusers": _processor_pair(f"unet.{_MOTION}.transformer_blocks.0.attn1", 320, 320),
}

# Image LoRAs of the other backbone's image network: tensors and metadata.
SD15: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
    "by cross-attention": (_kohya_pair(f"{_BLOCK}_attn2_to_k", 768, 320), {}),
    "in peft": (_peft_pair(f"{_DOTS}.attn2.to_v", 768, 320), {}),
    "by text encoder": ({**_PLAIN, **_kohya_pair(f"lora_te_{_TEXT}_self_attn_q_proj", 768, 768)}, {}),
    "by metadata": (_PLAIN, {"ss_base_model_version": "sd_v1"}),
}

# Files of other networks: what they are, their tensors, their metadata, and words that the refusal must hold.
FOREIGN: dict[str, tuple[dict[str, Tensor], dict[str, str], str]] = {
    "sdxl by cross-attention": (_kohya_pair(f"{_BLOCK}_attn2_to_k", 2048, 640), {}, "SDXL"),
    "sdxl by text encoders": ({**_PLAIN, **_kohya_pair(f"lora_te2_{_TEXT}_mlp_fc1", 1280, 5120)}, {}, "SDXL"),
    "sdxl by ldm names": (_kohya_pair("lora_unet_input_blocks_4_1_proj_in", 640, 640), {}, "SDXL"),
    "sdxl by depth": (_kohya_pair(f"{_BLOCK[:-1]}1_attn1_to_q", 640, 640), {}, "SDXL"),
    "sdxl by metadata": (_PLAIN, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
    "wan": (_peft_pair("diffusion_model.blocks.0.self_attn.q", 1536, 1536), {}, "Wan"),
    "wan of musubi": (_kohya_pair("lora_unet_blocks_0_cross_attn_k", 5120, 5120), {}, "Wan"),
    "ltx": (_peft_pair("transformer.transformer_blocks.0.attn1.to_q", 2048, 2048), {}, "LTX"),
    "ltx of comfy": (_peft_pair("diffusion_model.transformer_blocks.0.attn2.to_k", 4096, 4096), {}, "LTX"),
    "hunyuan": (_kohya_pair("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216), {}, "Hunyuan"),
    "flux": (_peft_pair("transformer.single_transformer_blocks.0.attn.to_q", 3072, 3072), {}, "Flux"),
    "a transformer by metadata": (_PLAIN, {"modelspec.architecture": "wan2.2/lora"}, _DIT),
    "loha": ({f"{_BLOCK}_attn1_to_q.hada_w1_a": torch.ones(4, 4)}, {}, "LyCORIS"),
    "lokr": ({f"{_BLOCK}_attn1_to_q.lokr_w1": torch.ones(4, 4)}, {}, "LyCORIS"),
    "dora": ({**_PLAIN, f"{_BLOCK}_attn1_to_q.dora_scale": torch.ones(320, 1)}, {}, "DoRA"),
    "whole weights": ({**_PLAIN, "lora_unet_conv_in.diff_b": torch.ones(320)}, {}, "whole weights"),
    "checkpoint": ({"model.diffusion_model.out.2.weight": torch.ones(4, 4, 3, 3)}, {}, "whole model"),
    "textual inversion 768": ({"emb_params": torch.ones(4, 768)}, {}, "textual inversion of width 768"),
    "textual inversion 1024": ({"<cat>": torch.ones(2, 1024)}, {}, "textual inversion of width 1024"),
    "textual inversion sdxl": ({"clip_g": torch.ones(2, 1280), "clip_l": torch.ones(2, 768)}, {}, "textual inversion"),
}


class RunsCode:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "owned"))


def tucker(down: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A middle and a down factor, random, for a convolution whose plain down factor is (r, in, k, k)."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(rank, rank, *down.shape[2:], generator=generator) / math.sqrt(rank)
    return middle, torch.randn(rank, down.shape[1], 1, 1, generator=generator)
