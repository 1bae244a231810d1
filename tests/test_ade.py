"""Our files in AnimateDiff-Evolved itself: its loader patches every key, and its layers compute as ours do.

    ADE_DIR=~/ComfyUI-AnimateDiff-Evolved COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=... pytest tests/test_ade.py

Its sizes are fixed, so this takes about 3 GB of memory; skipped where either is absent.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from lora_samples import random_layer
from real_host import comfyui_and_python
from safetensors.torch import load_file, save_file
from sd15_files import REAL_WIDTHS, adapter, official_module
from tiny import randomise

from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.motion_unet import ANIMATEDIFF_CONFIG, normalise_per_frame
from motion_lora.backbones.registry import empty_network
from motion_lora.core.lora import LoRA
from motion_lora.files.writers import export_native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not {"ADE_DIR", "COMFYUI_DIR"} <= set(os.environ), reason="ADE_DIR or COMFYUI_DIR is not set"),
]
FRAMES = 4
FILES = ("attention", "everything")


def lora_of(*, mid: bool, preset: str) -> LoRA:
    network = empty_network({**ANIMATEDIFF_CONFIG, "use_motion_mid_block": mid})
    weights = {name: network.get_submodule(name).weight for name in target_modules(network, preset)}
    layers = {name: random_layer(weight, 4, place, 0.7) for place, (name, weight) in enumerate(weights.items())}
    return LoRA(layers, backbone="animatediff")


def key_of(module: str) -> str:
    """guoyww's name of a weight."""
    place, _, rest = module.partition(".transformer_blocks.")
    rest = rest.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1.")
    return f"{place}.temporal_transformer.transformer_blocks.{rest}.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["v2", "v3"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, bool]:
    comfyui, python = comfyui_and_python()
    folder, mid = tmp_path_factory.mktemp("ade"), request.param
    with torch.device("meta"):
        made = adapter(mid=mid, frames=32, widths=REAL_WIDTHS)
    task = {"module": {name: tuple(tensor.shape) for name, tensor in official_module(made).items()}, "loras": []}
    for name, preset in zip(FILES, ("temporal-attention", "temporal-all"), strict=True):
        task["loras"].append(f"{name}.safetensors")
        lora = lora_of(mid=mid, preset=preset)
        export_native(folder / f"{name}.safetensors", lora)
        factors = {f"{key_of(m)}.down": layer.down for m, layer in lora.layers.items()}
        factors |= {f"{key_of(m)}.up": layer.up * layer.scale for m, layer in lora.layers.items()}
        save_file(factors, folder / f"{name}.safetensors.expected")
    first = first_layer()
    named = {f"down_blocks.0.motion_modules.0.{name}": tensor for name, tensor in first.state_dict().items()}
    save_file(official_names(named), folder / "first.safetensors")
    save_file({"hidden": hidden()}, folder / "hidden.safetensors")
    (folder / "task.json").write_text(json.dumps(task))
    script = Path(__file__).with_name("ade_in_comfyui.py")
    command = [python, str(script), str(comfyui), str(Path(os.environ["ADE_DIR"]).expanduser()), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, json.loads((folder / "found.json").read_text()), mid


def first_layer() -> torch.nn.Module:
    """The first motion module at real width, with random weights."""
    made = adapter(mid=False, frames=32, widths=(320, 32, 32, 32)).down_blocks[0].motion_modules[0]
    return randomise(made, 5)


def official_names(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    class Holder:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return named

    return official_module(Holder())


def hidden() -> torch.Tensor:
    """Maps (f, c, h, w) of frames that differ in their statistics."""
    maps = torch.randn(FRAMES, 320, 8, 8, generator=torch.Generator().manual_seed(0))
    return maps * torch.arange(1, FRAMES + 1).view(-1, 1, 1, 1) + torch.arange(FRAMES).view(-1, 1, 1, 1)


def test_it_knows_the_version_of_an_official_module(found: tuple[Path, dict, bool]) -> None:
    _, said, mid = found
    assert said["version"] == ("v2" if mid else "v3")
    assert not said["missing"] and not said["unexpected"]


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_patched_and_the_sums_are_ours(found: tuple[Path, dict, bool], name: str) -> None:
    _, said, mid = found
    one = said["loras"][f"{name}.safetensors"]
    lora = lora_of(mid=mid, preset="temporal-attention" if name == "attention" else "temporal-all")
    assert one["keys"] == sorted(key_of(module) for module in lora)
    assert not one["missing"] and not one["lost"]
    assert one["off"] < 1e-5


@torch.no_grad()
def test_its_layers_compute_as_ours_and_not_as_diffusers(found: tuple[Path, dict, bool]) -> None:
    """Norms of each frame by itself; how far diffusers' own way is off is known too."""
    folder, _, _ = found
    theirs = load_file(folder / "output.safetensors")["output"]
    layer = first_layer()
    stock = layer(hidden(), num_frames=FRAMES)
    normalise_per_frame(layer)
    torch.testing.assert_close(layer(hidden(), num_frames=FRAMES), theirs, rtol=1e-3, atol=1e-3)
    assert float((stock - theirs).norm() / (theirs - hidden()).norm()) > 0.05
