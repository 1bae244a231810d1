"""Run is pressed once on every shipped workflow, in a ComfyUI whose folders are empty, with both renderers.

    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/test_host_workflows.py

Trainings are cut to a few steps; HOST_AS_SHIPPED=1 leaves every value as it is. HOST_ARGUMENTS holds more server
options, such as --front-end-root DIR. Screenshots land in out/host_workflows: look at them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from real_host import FEW, PACK, ROOT, Browser, RealComfyUI, comfyui_and_python, run_to_end, saved_videos, shipped
from shipped_workflows import BLUEPRINTS, NEEDS, WORKFLOWS

from motion_lora.media.read import read_frames

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.slow,
]

TRAIN = "MotionLoRA_TrainMotionLoRA"
AS_SHIPPED = bool(os.environ.get("HOST_AS_SHIPPED"))


@pytest.fixture(scope="module", params=["canvas", "nodes2"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    out = ROOT / "out" / "host_workflows" / request.param
    shutil.rmtree(out, ignore_errors=True)
    arguments = tuple(os.environ.get("HOST_ARGUMENTS", "").split())
    comfyui_and_python()
    server = RealComfyUI(out, settings={"Comfy.VueNodes.Enabled": request.param == "nodes2"}, arguments=arguments)
    server.start()
    with playwright.sync_playwright() as running:
        browser = Browser(running, server, out).open()
        yield browser
        browser.close()
    server.stop()


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name not in NEEDS])
def test_it_runs_at_one_press(browser: Browser, name: str, tmp_path: Path) -> None:
    browser.load(shipped(name), name)
    for node, widget, value in () if AS_SHIPPED else FEW:
        if name != "13_compare_and_choose" or widget != "validate_every":
            browser.set_widget(node, widget, value)
    record = run_to_end(browser, browser.server, 1800)
    browser.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    browser.page.wait_for_timeout(2000)
    browser.shot(name)
    assert record["status"]["status_str"] == "success", record["status"]
    frames, _ = read_frames(browser.server.download(saved_videos(record)[-1], tmp_path))
    assert len(frames) >= 8 and float(frames.std()) > 0.01, "a video with something in it"


EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}
OPENINGS = ("dropped", "chosen")


@pytest.mark.parametrize("how", OPENINGS)
def test_a_finished_lora_has_its_picture_and_gives_its_workflow_back(browser: Browser, how: str) -> None:
    """As made by the quickstart: what the model browser shows, and what dragging it in brings."""
    folder = browser.server.base / "output/loras/motion"
    picture = folder / "orbit.preview.png"
    assert picture.is_file() and picture.with_name("orbit.mp4").is_file()
    with Image.open(picture) as opened:
        nodes = {node["type"] for node in json.loads(opened.text["workflow"])["nodes"]}
    assert TRAIN in nodes
    assert brought_back(browser, picture, how) == nodes


@pytest.mark.parametrize("how", OPENINGS)
def test_a_finished_video_gives_its_workflow_back(browser: Browser, how: str) -> None:
    videos = sorted((browser.server.base / "output/video").glob("motion_lora_quickstart*.mp4"))
    assert TRAIN in brought_back(browser, videos[-1], how)


_DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([bytes], name, { type }))
  const place = { clientX: 800, clientY: 500, bubbles: true, cancelable: true, dataTransfer }
  const canvas = document.querySelector('#graph-canvas')
  for (const kind of ['dragenter', 'dragover', 'drop']) canvas.dispatchEvent(new DragEvent(kind, place))
}"""


def brought_back(browser: Browser, path: Path, how: str) -> set[str]:
    """Node types in the graph after a file was dropped onto an empty one, or chosen in the dialog to open one."""
    browser.load(EMPTY, "empty")
    if how == "chosen":
        browser.page.locator("#comfy-file-input").set_input_files(str(path))
    else:
        kind = {".png": "image/png", ".mp4": "video/mp4"}[path.suffix]
        browser.page.evaluate(_DROP, [path.name, kind, base64.b64encode(path.read_bytes()).decode()])
    browser.page.wait_for_function("() => (app.rootGraph ?? app.graph)._nodes.length > 0")
    browser.page.wait_for_timeout(1000)
    found: list[dict[str, Any]] = json.loads(
        browser.page.evaluate("JSON.stringify((app.rootGraph ?? app.graph).serialize().nodes)")
    )
    return {node["type"] for node in found}


# Puts nodes around the subgraph, links them, and sets two widgets through it; gives what the node inside has then.
_AROUND = """async (few) => {
  const graph = app.rootGraph ?? app.graph
  const outer = graph._nodes.find((node) => node.subgraph)
  const made = (type) => { const node = LiteGraph.createNode(type); graph.add(node); return node }
  const [base, clip] = [made('MotionLoRA_LoadT2VModel'), made('MotionLoRA_LoadClip')]
  const [sample, save] = [made('MotionLoRA_SampleVideo'), made('SaveVideo')]
  const join = (from, output, to, input) => from.connect(from.findOutputSlot(output), to, to.findInputSlot(input))
  join(base, 'base_model', outer, 'base_model')
  join(clip, 'video', outer, 'video')
  join(base, 'base_model', sample, 'base_model')
  join(outer, 'stack', sample, 'stack')
  join(sample, 'video', save, 'video')
  // Front ends differ in whether they put the inner node's id before the name of its widget.
  const isOf = (one, name) => one.name === name || one.name.endsWith(`: ${name}`)
  const set = (node, widget, value) => { node.widgets.find((one) => isOf(one, widget)).value = value }
  set(clip, 'file', 'examples/clips/orbit.mp4')
  set(sample, 'prompt', 'a blue square circling around over snow')
  set(save, 'filename_prefix', 'video/motion_lora_subgraph')
  for (const [type, widget, value] of few)
    for (const node of [...graph._nodes, ...outer.subgraph.nodes]) if (node.type === type) set(node, widget, value)
  set(outer, 'steps', 4)
  set(outer, 'name', 'from a subgraph')
  return outer.subgraph.nodes.find((node) => node.type === 'MotionLoRA_TrainMotionLoRA').widgets
    .filter((one) => ['steps', 'name'].includes(one.name)).map((one) => one.value)
}"""


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_listed_and_runs(browser: Browser, name: str) -> None:
    """Found by its name in the search box, as a user adds a node; its widgets are those of the nodes inside."""
    server = browser.server
    listed = {one["name"]: key for key, one in server.call("/global_subgraphs")[1].items() if PACK in str(one["info"])}
    assert set(listed) == set(BLUEPRINTS) and json.loads(server.call(f"/global_subgraphs/{listed[name]}")[1]["data"])
    browser.load(EMPTY, "empty")
    browser.page.mouse.dblclick(900, 600)
    browser.page.wait_for_timeout(1500)
    browser.page.keyboard.type(name)
    browser.page.wait_for_timeout(3000)
    browser.shot("blueprint_search")
    browser.page.keyboard.press("Enter")
    browser.page.wait_for_timeout(1500)
    few = [] if AS_SHIPPED else [list(one) for one in FEW if one[1] not in ("steps", "validate_every")]
    assert browser.page.evaluate(_AROUND, few) == [4, "from a subgraph"]
    record = run_to_end(browser, server, 1800)
    assert record["status"]["status_str"] == "success", record["status"]
    assert saved_videos(record)
    browser.shot("blueprint")
    # The node inside shows its job and what it will do, with the base that is outside.
    (asked,) = server.jobs()[0]["nodes"]
    assert asked["id"].count(":") == 1
    browser.page.evaluate("app.canvas.openSubgraph(app.graph._nodes.find((node) => node.subgraph).subgraph)")
    browser.page.wait_for_function(
        "() => [...document.querySelectorAll('.mlora-planned')].some((one) => /steps, rank /.test(one.innerText))"
    )
    browser.page.locator(".mlora-in-node .mlora-card").first.wait_for()
    browser.shot("blueprint_inside")
