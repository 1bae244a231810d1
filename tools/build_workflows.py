"""Builds the shipped workflows in a real front end and saves them as it saves them, with a thumbnail each.

Subgraph blueprints are made there too, by its own *Convert to Subgraph*.

    COMFYUI_DIR=... COMFYUI_PYTHON=... ADE_DIR=... python tools/build_workflows.py [name ...]

ADE_DIR is a checkout of AnimateDiff-Evolved, whose nodes are in 17_animatediff_evolved.

Widgets are set by name here, so that a new widget of a node does not shift the others.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from real_host import ROOT, Browser, RealComfyUI
from shipped_workflows import BLUEPRINTS, WORKFLOWS
from shipped_workflows.blueprints import Blueprint
from shipped_workflows.real_models import WAN_LORA, WAN_NETWORK, WAN_TEXT, WAN_VAE

FOLDER = ROOT / "workflows"
BLUEPRINT_FOLDER = ROOT / "subgraphs"
# Text is drawn however small it is, so that a thumbnail can be read.
_SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.01,
}
_NAMESPACE = uuid.UUID("6f0c1b60-5f0e-4a2b-9c65-0a3d4c5b6e7f")

_BUILD = """async (nodes) => {
  app.graph.clear()
  const made = {}
  for (const wanted of nodes) {
    const node = LiteGraph.createNode(wanted.type)
    app.graph.add(node)
    node.pos = wanted.pos
    if (wanted.title) node.title = wanted.title
    if (wanted.mode) node.mode = wanted.mode
    for (const [name, value] of Object.entries(wanted.widgets)) {
      const widget = name ? node.widgets.find((one) => one.name === name) : node.widgets[0]
      if (!widget) throw new Error(`${wanted.type} has no widget ${name}`)
      widget.value = value
    }
    // What is set here is worth being seen.
    const folded = (one) => one.advanced || one.options?.advanced
    if (node.widgets?.some((one) => folded(one) && one.name in wanted.widgets)) node.showAdvanced = true
    const control = node.widgets?.find((one) => one.name === 'control_after_generate')
    if (control) control.value = 'fixed'
    const least = node.computeSize()
    const [width, height] = wanted.size ?? [node.size[0], 0]
    node.setSize([Math.max(width, least[0]), Math.max(height, least[1])])
    made[wanted.key] = node
  }
  for (const wanted of nodes) for (const [input, [key, output]] of Object.entries(wanted.links)) {
    const [from, to] = [made[key], made[wanted.key]]
    const [slot, target] = [from.findOutputSlot(output), to.findInputSlot(input)]
    if (slot < 0 || target < 0) throw new Error(`no link ${key}.${output} -> ${wanted.key}.${input}`)
    from.connect(slot, to, target)
  }
  await new Promise((done) => setTimeout(done, 300))
  window.built = made
  return JSON.stringify(app.graph.serialize())
}"""

# What is inside is made anew by the front end, so each of its nodes is known again by its title.
_ENCLOSE = """async ([inside, shown, name]) => {
  inside.forEach((key) => { built[key].title = key })
  const { subgraph, node } = app.graph.convertToSubgraph(new Set(inside.map((key) => built[key])))
  subgraph.name = node.title = name
  const inner = Object.fromEntries(subgraph.nodes.map((one) => [one.title, one]))
  for (const one of subgraph.nodes) one.title = one.constructor.title
  node.properties.proxyWidgets = shown.map(([key, widget]) => {
    if (!inner[key].widgets.some((one) => one.name === widget)) throw new Error(`${key} has no widget ${widget}`)
    return [String(inner[key].id), widget]
  })
  await new Promise((done) => setTimeout(done, 300))
  const [width, height] = node.computeSize()
  node.setSize([Math.max(width, 420), height])
  const { nodes, subgraphs } = app.canvas._serializeItems([node])
  return JSON.stringify({ nodes, subgraphs })
}"""


def normalised(name: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one build to the next."""
    saved["id"] = str(uuid.uuid5(_NAMESPACE, name))
    saved["revision"] = 0
    saved["extra"] = {"ds": {"scale": 0.6, "offset": [120, 120]}}
    saved.pop("floatingLinks", None)
    for node in saved["nodes"]:
        _normalise(node)
    return saved


def _normalise(node: dict[str, Any]) -> None:
    node["pos"] = [round(value) for value in node["pos"]]
    node["size"] = [round(value) for value in node["size"]]
    if node["type"].startswith("Preview"):
        # What these show is no setting.
        node.pop("widgets_values", None)
    for key in ("cnr_id", "ver", "aux_id"):
        node["properties"].pop(key, None)
    if node["type"].startswith("MotionLoRA_"):
        node["properties"]["cnr_id"] = "motion-lora"
    elif node["type"].startswith("ADE_"):
        node["properties"]["cnr_id"] = "comfyui-animatediff-evolved"
    elif node["type"] not in ("MarkdownNote",):
        node["properties"]["cnr_id"] = "comfy-core"


def blueprint(browser: Browser, name: str, wanted: Blueprint) -> dict[str, Any]:
    """A graph with one subgraph node, as the front end publishes one; ids are made of the name and their order."""
    browser.page.evaluate(_BUILD, [vars(node) for node in wanted.nodes])
    made = json.loads(browser.page.evaluate(_ENCLOSE, [wanted.inside, wanted.shown, name]))
    (outer,), (subgraph,) = made["nodes"], made["subgraphs"]
    outer |= {"id": 1, "pos": [0, 0], "order": 0, "size": [round(value) for value in outer["size"]]}
    for node in subgraph["nodes"]:
        _normalise(node)
    saved = {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": wanted.description},
    }
    text = json.dumps(saved)
    for number, found in enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))):
        text = text.replace(found, str(uuid.uuid5(_NAMESPACE, f"{name} {number}")))
    return json.loads(text)


def thumbnail(browser: Browser) -> bytes:
    """The graph as the user sees it, 16:9, as JPEG."""
    from PIL import Image

    browser.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    browser.page.wait_for_timeout(1500)
    shot = Image.open(io.BytesIO(browser.page.screenshot())).convert("RGB")
    # Without the bars at the left and at the top.
    shot = shot.crop((80, 45, shot.width, 45 + round((shot.width - 80) * 9 / 16)))
    stream = io.BytesIO()
    shot.resize((960, 540), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def with_real_models(server: RealComfyUI) -> None:
    """AnimateDiff-Evolved from ADE_DIR beside the pack, and files of the names that its nodes are to show."""
    if "ADE_DIR" in os.environ:
        place = server.base / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved"
        place.symlink_to(Path(os.environ["ADE_DIR"]).expanduser().resolve(), target_is_directory=True)
    for name in ("checkpoints/sd15.safetensors", "animatediff_models/v3_sd15_mm.ckpt"):
        _touched(server.base / "models" / name)
    for name in ("animatediff/my_motion.safetensors", WAN_LORA):
        _touched(server.base / "output/loras" / name)
    for folder, name in (("diffusion_models", WAN_NETWORK), ("text_encoders", WAN_TEXT), ("vae", WAN_VAE)):
        _touched(server.base / "models" / folder / name)


def _touched(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write(path: Path, saved: dict[str, Any]) -> None:
    """As JSON with one value on a line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8", newline="\n")


def build(browser: Browser, name: str) -> str:
    """Write the workflow or the blueprint of this name; what was written, in words."""
    if name in BLUEPRINTS:
        saved = blueprint(browser, name, BLUEPRINTS[name])
        write(BLUEPRINT_FOLDER / f"{name}.json", saved)
        return f"{name}: {len(saved['definitions']['subgraphs'][0]['nodes'])} nodes inside"
    nodes = [vars(node) for node in WORKFLOWS[name]]
    saved = normalised(name, json.loads(browser.page.evaluate(_BUILD, nodes)))
    write(FOLDER / f"{name}.json", saved)
    (FOLDER / f"{name}.jpg").write_bytes(thumbnail(browser))
    return f"{name}: {len(saved['nodes'])} nodes, {len(saved['links'])} links"


def main(names: list[str]) -> int:
    """Build those named, or all."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = RealComfyUI(Path(folder), settings=_SETTINGS)
        with_real_models(server)
        server.start()
        browser = Browser(playwright, server, Path(folder)).open()
        browser.page.set_viewport_size({"width": 1920, "height": 1080})
        try:
            for name in names or [*WORKFLOWS, *BLUEPRINTS]:
                sys.stdout.write(build(browser, name) + "\n")
                sys.stdout.flush()
        finally:
            browser.close()
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
