"""Workflows that need large files: ComfyUI knows all their nodes, and takes them with files of the right names.

    ADE_DIR=~/ComfyUI-AnimateDiff-Evolved COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=... pytest tests/test_host_real_models.py

The files are empty, so the prompts are accepted and end at the first that is opened; `real_host.py` says what it needs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from build_workflows import with_real_models
from real_host import ROOT, Browser, RealComfyUI, comfyui_and_python, shipped
from shipped_workflows import NEEDS

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.slow,
]

OUT = ROOT / "out" / "host_real_models"
EVOLVED = [name for name in NEEDS if "AnimateDiff-Evolved" in NEEDS[name]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    comfyui_and_python()
    shutil.rmtree(OUT, ignore_errors=True)
    server = RealComfyUI(OUT, arguments=tuple(os.environ.get("HOST_ARGUMENTS", "").split()))
    with_real_models(server)
    server.start()
    with playwright.sync_playwright() as running:
        browser = Browser(running, server, OUT).open()
        yield browser
        browser.close()
    server.stop()


def unmuted(browser: Browser, name: str) -> dict[str, Any]:
    """The prompt of a workflow with every node in it at work, and its files chosen."""
    graph = shipped(name)
    for node in graph["nodes"]:
        node["mode"] = 0
    browser.load(graph, name)
    for widget, value in (("checkpoint", "sd15.safetensors"), ("motion_module", "v3_sd15_mm.ckpt")):
        browser.set_widget("MotionLoRA_LoadT2VModel", widget, value)
    browser.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    browser.page.wait_for_timeout(1000)
    browser.shot(name)
    return browser.api_prompt()


@pytest.mark.parametrize("name", NEEDS)
def test_with_its_files_the_whole_workflow_is_accepted(browser: Browser, name: str) -> None:
    """Every node is known and every link has its type: ComfyUI checks a prompt before it takes it."""
    if name in EVOLVED and "ADE_DIR" not in os.environ:
        pytest.skip("ADE_DIR names no AnimateDiff-Evolved")
    prompt = unmuted(browser, name)
    assert len(prompt) == len(shipped(name)["nodes"]) - 1, "all but the note"
    record = browser.server.finished(browser.server.queue(prompt), 300)
    kinds = [kind for kind, _ in record["status"]["messages"]]
    assert "execution_start" in kinds and "execution_error" in kinds, "empty files are told as a fault"
