"""Two or more: two browsers on a server, two servers on a folder, a server that is restarted, one behind a TLS proxy.

    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/test_host_many.py

Screenshots land in out/host_many: look at them. `real_host.py` says what it needs; skipped where there is no ComfyUI.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from host_prompts import BASE, TRAIN, begun, graph, in_state, job_of, status_of
from real_host import ROOT, Browser, RealComfyUI, comfyui_and_python, shipped, until
from tiny import write_tiny_folder
from tls_proxy import TLSProxy

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.slow,
]

OUT = ROOT / "out" / "host_many"
SEEDS = itertools.count(1)
LONG = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[RealComfyUI]:
    shutil.rmtree(OUT, ignore_errors=True)
    comfyui_and_python()
    server = RealComfyUI(
        OUT,
        settings=json.loads(os.environ.get("HOST_SETTINGS", "{}")),
        arguments=tuple(os.environ.get("HOST_ARGUMENTS", "").split()),
    )
    write_tiny_folder(OUT / "models/diffusers/tiny")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def second(server: RealComfyUI) -> Iterator[RealComfyUI]:
    """Another server of the same user, on the same folders."""
    database = ("--database-url", f"sqlite:///{OUT / 'user' / 'second.db'}")
    other = RealComfyUI(OUT, arguments=(*server.arguments, *database))
    other.log_file = OUT / "second.log"
    other.start()
    yield other
    other.stop()


@pytest.fixture
def browsers() -> Iterator[Callable[..., Browser]]:
    """Opens pages, each in a browser of its own, and closes them after the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    opened: list[Browser] = []
    with playwright.sync_playwright() as running:

        def opens(at: RealComfyUI, **more: Any) -> Browser:
            opened.append(Browser(running, at, OUT, **more).open())
            return opened[-1]

        yield opens
        for browser in opened:
            browser.close()


@pytest.fixture
def seed() -> int:
    return next(SEEDS)


def started(server: RealComfyUI, seed: int, **more: Any) -> dict[str, Any]:
    """A long training in the background, at work."""
    prompt = graph(seed, steps=LONG, run="background", sampled=False, **more)
    assert status_of(server.finished(server.queue(prompt))) == "success"
    return begun(server, seed, 2)


def cancelled(server: RealComfyUI, seed: int) -> None:
    server.command("cancel", job_of(server, seed)["id"])
    in_state(server, seed, "cancelled")


def test_of_two_browsers_both_see_the_jobs_and_one_goes_on(
    server: RealComfyUI, browsers: Callable[..., Browser], seed: int
) -> None:
    one, other = browsers(server), browsers(server)
    started(server, seed, name="seen by two")
    cards = [page.open_panel().locator(".mlora-card", has_text="seen by two").first for page in (one, other)]
    for card in cards:
        card.locator("[data-command=pause]").wait_for()
    cards[0].locator("[data-command=pause]").click()
    in_state(server, seed, "paused")
    cards[1].locator(".mlora-badge[data-state=paused]").wait_for()
    other.shot("paused_by_the_other")
    at = job_of(server, seed)["done_steps"]
    cards[1].locator("[data-command=resume]").click()
    begun(server, seed, at + 2)
    cards[0].locator(".mlora-badge[data-state=running]").wait_for()
    cancelled(server, seed)
    # A workflow that waits for its training is queued again once, however many pages see the training end.
    one.load(shipped("05_train_in_background"), "05_train_in_background")
    for node, widget, value in (
        ("MotionLoRA_LoadT2VModel", "model", BASE),
        (TRAIN, "method", "temporal-only"),
        (TRAIN, "steps", 4),
        ("MotionLoRA_SampleVideo", "num_inference_steps", 2),
    ):
        one.set_widget(node, widget, value)
    known = set(server.call("/history")[1])

    def made() -> list[dict[str, Any]]:
        # Pages act by themselves, but only while they are given time.
        one.page.wait_for_timeout(500)
        return [record for key, record in server.call("/history")[1].items() if key not in known]

    assert status_of(server.finished(one.run())) == "success"
    until(lambda: len(made()) > 1, 300, "the workflow to go on")
    one.page.wait_for_timeout(10_000)
    assert len(made()) == 2 and all(status_of(record) == "success" for record in made())


def test_a_second_server_sees_and_does_not_take(
    server: RealComfyUI, second: RealComfyUI, browsers: Callable[..., Browser], seed: int
) -> None:
    started(server, seed, name="of the first")
    seen = begun(second, seed)
    assert seen["state"] == "running" and "at work in another server" in seen["message"]
    status, answer = second.command("pause", seen["id"])
    assert status == 400 and "use the panel there" in answer["error"]
    page = browsers(second)
    card = page.open_panel().locator(".mlora-card", has_text="of the first").first
    card.locator(".mlora-badge[data-state=running]").wait_for()
    page.shot("at_work_in_another_server")
    # The same training asked for there is waited for, not begun again.
    prompt_id = second.queue(graph(seed, steps=LONG, sampled=False))
    page.page.wait_for_timeout(3000)
    assert prompt_id not in second.call("/history")[1]
    server.command("stop", seen["id"])
    assert status_of(second.finished(prompt_id, 120)) == "success"
    assert [job["settings"]["seed"] for job in second.jobs()].count(seed) == 1
    # Nothing told this page so; it asks by itself.
    card.locator(".mlora-badge[data-state=stopped]").wait_for()


def test_a_job_of_a_server_that_ended_is_taken_by_the_other(
    server: RealComfyUI, second: RealComfyUI, seed: int
) -> None:
    started(server, seed, name="handed on")
    assert begun(second, seed)["state"] == "running"
    server.stop(signal.SIGKILL)
    left = in_state(second, seed, "interrupted")
    assert second.command("resume", left["id"])[0] == 200
    resumed = until(lambda: (job := job_of(second, seed))["state"] == "running" and job, 120, "the job to run again")
    assert resumed["resumed_at"] <= left["done_steps"]
    server.start()
    assert "at work in another server" in begun(server, seed)["message"]
    cancelled(second, seed)


def test_a_training_outlives_a_restart(server: RealComfyUI, seed: int) -> None:
    """Ctrl-C in the middle, the server again, Run again: it goes on at the step at which it was."""
    prompt = graph(seed, steps=LONG, sampled=False, name="through a restart")
    server.queue(prompt)
    begun(server, seed, 3)
    server.stop(signal.SIGINT)
    server.start()
    left = in_state(server, seed, "interrupted")
    prompt_id = server.queue(prompt)
    resumed = begun(server, seed, left["done_steps"] + 1)
    assert resumed["resumed_at"] == left["done_steps"] >= 3
    assert server.command("stop", resumed["id"])[0] == 200
    assert status_of(server.finished(prompt_id)) == "success"


def test_behind_a_proxy_with_tls(server: RealComfyUI, browsers: Callable[..., Browser], seed: int) -> None:
    """The page over https and wss: jobs are seen as they go on, and buttons of the panel work."""
    proxy = TLSProxy(server.port, OUT / "tls")
    try:
        page = browsers(server, url=proxy.url)
        panel = page.open_panel()
        started(server, seed, name="over tls")
        card = panel.locator(".mlora-card", has_text="over tls").first
        card.locator("[data-command=pause]").click()
        in_state(server, seed, "paused")
        card.locator(".mlora-badge[data-state=paused]").wait_for()
        page.shot("over_tls")
        assert page.page.evaluate("window.isSecureContext && location.protocol") == "https:"
        page.load(shipped("03_sample_shared_lora"), "03_sample_shared_lora")
        page.set_widget("MotionLoRA_SampleVideo", "num_inference_steps", 2)
        assert status_of(server.finished(page.run())) == "success"
        page.page.wait_for_function("() => document.querySelector('.mlora-planned')?.innerText.includes('steps')")
        assert [line for line in page.problems if "motion" in line.lower()] == []
        cancelled(server, seed)
    finally:
        proxy.close()
