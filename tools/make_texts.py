"""Writes what is said twice: help pages and English texts of the nodes, from their schemas and nodes/texts/.

Also the snapshot of ids, orders and types that saved workflows rely on; look at its diff before you commit it.

    python tools/make_texts.py

`test_nodes.py` fails when the files on disk are not what this would write.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # for comfy_double

# What a help page says before its tables: what the node is for, and what to know before using it.
INTRODUCTIONS = ROOT / "nodes" / "texts"

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
    """What saved workflows rely on: ids, and in order the inputs and outputs with their types; which are folded."""
    found = {}
    for node_id, node in sorted(nodes.items()):
        info = node.info()
        found[node_id] = {
            kind: [[name, entry[0]] for name, entry in info["input"].get(kind, {}).items()]
            for kind in ("required", "optional")
        }
        found[node_id]["folded"] = [name for name, (_, options) in _inputs(info).items() if options.get("advanced")]
        found[node_id]["output"] = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return found


def _inputs(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {**info["input"]["required"], **info["input"].get("optional", {})}


def _page(node_id: str, info: dict[str, Any]) -> str:
    introduction = (INTRODUCTIONS / f"{node_id}.md").read_text(encoding="utf-8")
    lines = [f"# {info['display_name']}", "", info["description"], "", introduction.strip(), ""]
    inputs = {name: options for name, (_, options) in _inputs(info).items()}
    folded = {name: options for name, options in inputs.items() if options.get("advanced")}
    lines += ["## Inputs", "", *_table({name: inputs[name] for name in inputs if name not in folded})]
    if folded:
        how = "Shown by *Show Advanced*, in the node or in its menu."
        lines += ["", "## Folded inputs", "", how, "", *_table(folded)]
    lines += ["", "## Outputs", "", "| output | what it is |", "| --- | --- |"]
    for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
        lines.append(f"| `{name}` | {tooltip} |")
    return "\n".join(lines) + "\n"


def _table(inputs: dict[str, Any]) -> list[str]:
    lines = ["| input | default | what it is |", "| --- | --- | --- |"]
    for name, options in inputs.items():
        default = options.get("default", "")
        lines.append(f"| `{name}` | {'' if default == '' else f'`{default}`'} | {options['tooltip']} |")
    return lines


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": o.get("display_name", name), "tooltip": o["tooltip"]}
            for name, (_, o) in _inputs(info).items()
        },
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
