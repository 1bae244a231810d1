"""Writes what is said twice: help pages and English texts of the nodes, from their schemas and the introductions below.

Also the snapshot of ids, orders and types that saved workflows rely on; look at its diff before you commit it.

    python tests/make_texts.py

`test_nodes.py` fails when the files on disk are not what this would write.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# What a help page says before its tables: what the node is for, and what to know before using it.
INTRODUCTIONS: dict[str, str] = {
    "MotionLoRA_LoadT2VModel": """
The built-in **playground** model needs no download: it draws moving shapes at 64 x 64 pixels and shows in a minute
how everything works.

For real videos put a text-to-video model in diffusers' layout (`unet/`, `vae/`, `text_encoder/`, `tokenizer/`,
`scheduler/`) into `models/diffusers/<name>` and press R. ModelScope (`text-to-video-ms-1.7b`) and ZeroScope
(`zeroscope_v2_576w`) are known by name; with `download` allowed they are fetched once.

The model stays in memory while the workflow is cached and is shared by everything that uses it: nothing ever
changes it.
""",
    "MotionLoRA_ReferenceClip": """
The clip whose motion is learned. Connect a **video** (Load Video) or **images** in order.

* `caption` says what is seen *and* what moves: `a man is skateboarding on a street`.
* `appearance_caption` is the same sentence without its motion: `a man on a street`.
* `absorb_words` are the words for the look that stand in both: `man, street`.

Frames are taken at `fps` from `start` on, without changing the speed, then scaled and cropped at the centre. The
node shows exactly the frames that will be trained. Two seconds of one clear motion make a good clip.
""",
    "MotionLoRA_PlaygroundClip": """
A rendered clip for the built-in model, with its captions filled in. The motions `orbit`, `bounce`, `zigzag`,
`spiral`, `diagonal`, `swing`, `eight` and `shake` are new to that model, so they can be taught to it.
""",
    "MotionLoRA_CombineClips": """
Several clips of the *same* motion teach it better than one, because they share nothing else. Each keeps its own
captions. Chain the node for more than two.
""",
    "MotionLoRA_TrainAppearanceAbsorber": """
First half of Customize-A-Video: learns what single frames of the clip look like, with every temporal layer of the
model bypassed. While the motion is learned, the absorber is active and frozen, so the look is explained already and
need not go into the motion LoRA. Afterwards it is thrown away.

Train Motion LoRA trains an absorber by itself. This node is for using one absorber several times, or for looking at
it with Preview Absorber.
""",
    "MotionLoRA_PreviewAbsorber": """
If the pictures look like frames of the clip, the absorber has learned enough. If they look like anything the prompt
could mean, give it more steps.
""",
    "MotionLoRA_LoadAbsorber": """
An absorber belongs to its clip and its base model; it is refused for a base that it does not fit.
""",
    "MotionLoRA_SaveAbsorber": """
Finished absorbers are kept in `output/motion_lora_absorbers` by themselves; this node is for another name.
""",
    "MotionLoRA_TrainMotionLoRA": """
Learns the motion of the clips as a small file that can be put into other videos.

**Zero means default**: `steps`, `rank`, `alpha` and `learning_rate` at 0 take the values of the method on this base
model.

**Wait or background.** With `run` at *wait*, whatever depends on the LoRA follows in the same run; everything else
in the workflow goes on meanwhile. At *background* the node ends at once and the queue is free. What depends on the
LoRA is left out for now; when the training is done the same workflow is queued again by itself, unless
`continue_when_done` is off.

**Nothing is trained twice.** A training is known by its clips, captions, base model and settings. Run it again and
the finished file is loaded at once, also after a restart. A training that was stopped, cancelled with ComfyUI's
Cancel, or lost in a crash goes on from its last checkpoint. `retrain` trains again nevertheless.

**The panel** (the camera symbol in the sidebar) shows every training with its loss, speed and previews, and has the
buttons to pause, resume, stop and save, and cancel. The finished file is in `output/loras/motion`.

**Memory.** Too little? Switch `gradient_checkpointing` on, use fewer frames or smaller ones, or
`pause_while_generating` to give the memory back whenever another workflow runs.
""",
    "MotionLoRA_LoadMotionLoRA": """
Put files that others shared into `models/loras/motion` or `models/motion_lora` and press R. A LoRA fits base models
of the kind it was trained on; one that does not fit is refused before anything is sampled.
""",
    "MotionLoRA_SaveMotionLoRA": """
A finished training is saved in `output/loras/motion` by itself; this node is for another name or a smaller
precision. The file says how it was made (captions, base, settings), unless ComfyUI runs with `--disable-metadata`.
""",
    "MotionLoRA_MotionLoRAStack": """
A stack is a list of LoRAs with their strengths; the order changes nothing. A strength below 0 turns the learned
change round. Stacked LoRAs cost no time: they are merged into a private copy of the weights.
""",
    "MotionLoRA_AppearanceLoRA": """
Image LoRAs for Stable Diffusion 2.1 fit the spatial layers of ModelScope and ZeroScope. The file is recognised by
its content and every layer is checked; a file for another model is refused with a sentence that says what it is.
""",
    "MotionLoRA_AppearanceHighway": """
In the stock network a skip connection carries what the motion LoRA did to the decoder, and with it some of the
clip's look. On the highway it starts one layer earlier, before the temporal attention. No training is needed:
switch it on and off and compare.
""",
    "MotionLoRA_SampleVideo": """
Zeros stand for the base model's own frames, size and rate. The start noise depends on the seed alone, so two of
these nodes with the same seed, one with a stack and one without, show what the LoRA does.
""",
    "MotionLoRA_DecodeVideo": """
For latents that were sampled with `decode` off, or changed in between. Latents travel unscaled, as everywhere in
ComfyUI.
""",
    "MotionLoRA_SideBySide": """
Videos of different sizes are brought to one size. Connect the clip's frames as `reference` to see all three.
""",
}

MAIN = {
    "nodeCategories": {
        "MotionLoRA": "MotionLoRA",
        "clips": "clips",
        "load": "load",
        "sample": "sample",
        "save": "save",
        "stack": "stack",
        "train": "train",
    }
}
COMMANDS = {"MotionLoRA_TogglePanel": {"label": "Show or hide the Motion LoRA trainings"}}


def texts(nodes: dict[str, Any]) -> dict[Path, str]:
    """Every file that is written, with its content; `nodes` are the node classes by id."""
    infos = {node_id: node.info() for node_id, node in sorted(nodes.items())}
    files = {ROOT / "web" / "docs" / f"{node_id}.md": _page(node_id, info) for node_id, info in infos.items()}
    english = ROOT / "locales" / "en"
    files[english / "nodeDefs.json"] = _json({node_id: _definition(info) for node_id, info in infos.items()})
    files[english / "main.json"] = _json(MAIN)
    files[english / "commands.json"] = _json(COMMANDS)
    return files


def snapshot(nodes: dict[str, Any]) -> dict[str, Any]:
    """What saved workflows rely on: ids, and in order the inputs and outputs with their types."""
    found = {}
    for node_id, node in sorted(nodes.items()):
        info = node.info()
        found[node_id] = {
            kind: [[name, entry[0]] for name, entry in info["input"].get(kind, {}).items()]
            for kind in ("required", "optional")
        }
        found[node_id]["output"] = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return found


def _inputs(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {**info["input"]["required"], **info["input"].get("optional", {})}


def _page(node_id: str, info: dict[str, Any]) -> str:
    lines = [f"# {info['display_name']}", "", info["description"], "", INTRODUCTIONS[node_id].strip(), ""]
    lines += ["## Inputs", "", "| input | default | what it is |", "| --- | --- | --- |"]
    for name, (_, options) in _inputs(info).items():
        default = options.get("default", "")
        shown = "" if default == "" else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {options['tooltip']} |")
    lines += ["", "## Outputs", "", "| output | what it is |", "| --- | --- |"]
    for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
        lines.append(f"| `{name}` | {tooltip} |")
    return "\n".join(lines) + "\n"


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": o["tooltip"]} for name, (_, o) in _inputs(info).items()},
        "outputs": {
            str(index): {"name": name, "tooltip": tooltip}
            for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        },
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def main() -> int:
    """Write them."""
    from comfy_double import hosted

    with tempfile.TemporaryDirectory() as folder, hosted(Path(folder)) as host:
        written = {**texts(host.nodes), ROOT / "tests" / "object_info.json": _json(snapshot(host.nodes))}
        for path, text in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
