"""Run by test_wan_files.py with a ComfyUI's own Python: a Wan made from config, our file on it, our reading of it.

    python wan_in_comfyui.py COMFYUI_DIR LORA.safetensors NETWORK.safetensors

Writes one JSON object: how many keys of the LoRA ComfyUI knows and applies, how far its changed weights are from ours,
and how far its network's prediction is from diffusers' with the weights that we read from its file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def main(comfyui: str, lora_file: str, network_file: str) -> None:
    sys.path.insert(0, comfyui)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora
    import comfy.sd
    import comfy.utils
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    patcher = comfy.sd.load_diffusion_model_state_dict(_random_state(), model_options={"dtype": torch.float32})
    native = patcher.model.diffusion_model
    state = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, network_file)

    known = comfy.lora.model_lora_keys_unet(patcher.model, {})
    tensors = load_file(lora_file)
    loaded = comfy.lora.load_lora(comfy.utils.load_torch_file(lora_file), known)
    patched = patcher.clone()
    applied = patched.add_patches(loaded, 1.0)
    found: dict[str, Any] = {"modules": len(tensors) // 2, "known": len(loaded), "applied": len(applied)}
    patched.patch_model(device_to=torch.device("cpu"))
    after = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    patched.unpatch_model()

    from motion_lora.backbones.registry import named
    from motion_lora.backbones.wan import native_name
    from motion_lora.backbones.wan_files import network_config, network_weights
    from motion_lora.files.reader import load_any

    lora = load_any(lora_file).lora
    deltas = {f"{native_name(module)}.weight": layer.delta() for module, layer in lora.layers.items()}
    found["changed"] = sorted(name for name in state if not torch.equal(state[name], after[name])) == sorted(deltas)
    found["distance"] = max(float((after[n] - state[n] - delta).abs().max()) for n, delta in deltas.items())

    stored = load_file(network_file)
    config = network_config({name: tuple(tensor.shape) for name, tensor in stored.items()}, "it")
    ours = named("wan").network_class.from_config(config).eval()
    ours.load_state_dict(network_weights(stored, "it"))
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([321.0]), torch.randn(1, 7, 4096)
    with torch.no_grad():
        theirs = native.eval()(x, t, text)
        mine = ours(x, t, text, return_dict=False)[0]
    found["prediction"] = float((theirs - mine).abs().max() / theirs.abs().max())
    found["vae"] = _same_vae()
    print(json.dumps(found))  # noqa: T201 - this is what the test reads


def _same_vae() -> bool:
    """Whether ComfyUI's autoencoder, in its own names, is diffusers' with every tensor in its place."""
    import comfy.ldm.wan.vae

    from motion_lora.backbones.registry import named
    from motion_lora.backbones.wan_files import vae_weights

    with torch.device("meta"):
        theirs = comfy.ldm.wan.vae.WanVAE(
            dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        ours = named("wan").vae_class()
    converted = vae_weights(dict(theirs.state_dict()), "it")
    shapes = [{n: tuple(t.shape) for n, t in tensors.items()} for tensors in (converted, ours.state_dict())]
    return shapes[0] == shapes[1]


def _random_state() -> dict[str, torch.Tensor]:
    """The tensors of a Wan of two blocks, 256 wide, in its own names, from ComfyUI's own class."""
    import comfy.ldm.wan.model
    import comfy.ops

    made = comfy.ldm.wan.model.WanModel(
        dim=256, ffn_dim=64, freq_dim=256, num_heads=2, num_layers=2, operations=comfy.ops.disable_weight_init
    )
    generator = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(p.shape, generator=generator) / max(p[0].numel(), 1) ** 0.5 for n, p in made.state_dict().items()
    }


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_dir()
    main(*sys.argv[1:4])
