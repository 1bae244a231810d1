"""Runs inside a ComfyUI's interpreter: AnimateDiff-Evolved's own loader on our files; `test_ade.py` reads what it says.

    python ade_in_comfyui.py COMFYUI ADE FOLDER

FOLDER holds task.json: shapes of a motion module's tensors, and LoRA files with the factors that each key stands for.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


def main(comfyui: str, ade: str, folder: Path) -> None:
    # ComfyUI reads the command line when it is imported; models are looked for, and folders made, below FOLDER.
    sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(folder)]
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    package = types.ModuleType("ade")
    package.__path__ = [ade]
    sys.modules["ade"] = package
    import torch
    from ade.animatediff import model_injection as injection
    from ade.animatediff.motion_lora import MotionLoraInfo
    from safetensors.torch import load_file, save_file

    task = json.loads((folder / "task.json").read_text())
    state = {name: torch.zeros(shape) for name, shape in task["module"].items()}
    state.update(load_file(str(folder / "first.safetensors")))
    state, about = injection.normalize_ad_state_dict(state, "module")
    model = injection.AnimateDiffModel(mm_state_dict=state, mm_info=about)
    loaded = model.load_state_dict(state, strict=False)
    found = {"version": about.mm_version, "missing": loaded.missing_keys, "unexpected": loaded.unexpected_keys}
    with torch.no_grad():
        layer = model.down_blocks[0].motion_modules[0]
        hidden = load_file(str(folder / "hidden.safetensors"))["hidden"]
        layer.set_video_length(len(hidden), len(hidden))
        save_file({"output": layer(hidden).contiguous()}, str(folder / "output.safetensors"))
    found["loras"] = {name: patched(injection, MotionLoraInfo, model, folder, name) for name in task["loras"]}
    (folder / "found.json").write_text(json.dumps(found))


def patched(injection: types.ModuleType, info: type, model: object, folder: Path, name: str) -> dict:
    """What its loader makes of one file: keys, keys that the model lacks, and the distance to the expected changes."""
    import torch
    from safetensors.torch import load_file

    cpu = torch.device("cpu")
    patcher = injection.create_MotionModelPatcher(model, cpu, cpu)
    injection.get_motion_lora_path = lambda wanted: str(folder / wanted)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if "down_blocks.0" in key}
    injection.load_motion_lora_as_patches(patcher, info(name, 0.5))
    factors = load_file(str(folder / f"{name}.expected"))
    wanted = {key.removesuffix(".up") for key in factors if key.endswith(".up")}
    places = set(model.state_dict())
    patcher.patch_model(cpu)
    after, distance = dict(model.state_dict()), 0.0
    for key in wanted & places:
        change = 0.5 * factors[f"{key}.up"] @ factors[f"{key}.down"]
        start = before.get(key, torch.zeros(()))
        distance = max(distance, float((after[key] - start - change).norm() / change.norm()))
    keys = sorted(patcher.patches)
    patcher.unpatch_model(cpu)
    return {"keys": keys, "missing": sorted(wanted - set(keys)), "lost": sorted(set(keys) - places), "off": distance}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
