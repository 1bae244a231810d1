"""Run is pressed once on every shipped workflow, in a ComfyUI whose folders are empty, with both renderers.

    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/test_host_workflows.py

Trainings are cut to a few steps; HOST_AS_SHIPPED=1 leaves every value as it is. HOST_ARGUMENTS holds more server
options, such as --front-end-root DIR. Screenshots land in out/host_workflows: look at them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_workflows import NEEDS, WORKFLOWS
from PIL import Image
from real_host import FEW, ROOT, Browser, RealComfyUI, comfyui_and_python, run_to_end, saved_videos, shipped

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


def test_a_finished_lora_has_its_picture_and_gives_its_workflow_back(browser: Browser) -> None:
    """As made by the quickstart: what the model browser shows, and what dragging it in brings."""
    folder = browser.server.base / "output/loras/motion"
    picture = folder / "orbit.preview.png"
    assert picture.is_file() and picture.with_name("orbit.mp4").is_file()
    with Image.open(picture) as opened:
        nodes = {node["type"] for node in json.loads(opened.text["workflow"])["nodes"]}
    assert TRAIN in nodes
    browser.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}, "empty")
    assert brought_back(browser, picture) == nodes


def test_a_finished_video_gives_its_workflow_back(browser: Browser) -> None:
    videos = sorted((browser.server.base / "output/video").glob("motion_lora_quickstart*.mp4"))
    browser.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}, "empty")
    assert TRAIN in brought_back(browser, videos[-1])


def brought_back(browser: Browser, path: Path) -> set[str]:
    """Node types in the graph after a file was opened as a dragged one is."""
    browser.page.locator("#comfy-file-input").set_input_files(str(path))
    browser.page.wait_for_timeout(2000)
    found: list[dict[str, Any]] = json.loads(
        browser.page.evaluate("JSON.stringify((app.rootGraph ?? app.graph).serialize().nodes)")
    )
    return {node["type"] for node in found}
