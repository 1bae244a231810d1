"""The pack in a real ComfyUI with its real front end. Skipped where there is none; `real_host.py` says what it needs.

    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/test_host.py

Screenshots land in out/host/shots: look at them. The base is the playground where its weights are there, else a tiny
random one. HOST_SETTINGS may hold more front-end settings as JSON, such as {"Comfy.VueNodes.Enabled": true};
HOST_ARGUMENTS more server options, such as --front-end-root DIR.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_double import hosted
from host_prompts import BASE, SAMPLE, TRAIN, begun, graph, in_state, job_of, status_of, train_inputs
from real_host import PACK, ROOT, Browser, RealComfyUI, comfyui_and_python, shipped, until
from shipped_workflows import WORKFLOWS
from tiny import write_tiny_folder

from motion_lora.media.read import read_frames
from motion_lora.media.write import write_video
from motion_lora.playground import world

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.slow,
]

OUT = ROOT / "out" / "host"
SEEDS = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RealComfyUI]:
    shutil.rmtree(OUT, ignore_errors=True)
    arguments = tuple(os.environ.get("HOST_ARGUMENTS", "").split())
    comfyui_and_python()
    server = RealComfyUI(OUT, settings=json.loads(os.environ.get("HOST_SETTINGS", "{}")), arguments=arguments)
    write_tiny_folder(OUT / "models/diffusers/tiny")
    frames = world.render(world.sample_scene(torch.Generator().manual_seed(0), motion="orbit"), 32, 128)
    write_video(OUT / "input/my_clip.mp4", frames, 16)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(server: RealComfyUI) -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = Browser(running, server, OUT).open()
        yield browser
        browser.close()


@pytest.fixture
def seed() -> int:
    return next(SEEDS)


# Loading ------------------------------------------------------------------------------------------------------------


def test_the_pack_loads_without_a_warning(server: RealComfyUI) -> None:
    lines = [line for line in server.log.splitlines() if PACK in line or "MotionLoRA" in line or "motion_lora" in line]
    bad = ("IMPORT FAILED", "Cannot import", "Error while", "WARNING", "Warning", "deprecat", "Traceback")
    assert not [line for line in lines if any(word in line for word in bad)]
    assert any("seconds" in line and PACK in line for line in lines), "it was loaded"


def test_object_info_is_that_of_the_double(server: RealComfyUI, tmp_path: Path) -> None:
    """So that the double can be trusted where there is no ComfyUI."""
    real = {name: info for name, info in server.call("/object_info")[1].items() if PACK in info["python_module"]}
    with hosted(tmp_path) as double:
        expected = {node_id: node.info() for node_id, node in double.nodes.items()}
    assert set(real) == set(expected)
    depends_on_files = {"model", "lora_name", "absorber_name", "file"}
    for node_id, info in expected.items():
        found = {key: real[node_id][key] for key in info}
        for kind in ("required", "optional"):
            for name in depends_on_files & set(info["input"].get(kind, {})):
                for one in (info, found):
                    one["input"][kind][name][1].pop("options")
        found["input"].pop("hidden", None)
        found["input_order"].pop("hidden", None)
        assert found == json.loads(json.dumps(info)), node_id


def test_help_texts_and_templates_are_served(server: RealComfyUI) -> None:
    for node_id in json.loads((ROOT / "tests/object_info.json").read_text(encoding="utf-8")):
        assert server.call(f"/extensions/{PACK}/docs/{node_id}.md")[0] == 200, node_id
    assert server.call("/i18n")[1]["en"]["nodeDefs"][TRAIN]["display_name"] == "Train Motion LoRA"
    assert sorted(server.call("/workflow_templates")[1][PACK]) == sorted(WORKFLOWS)
    for name in WORKFLOWS:
        for suffix in ("json", "jpg"):
            assert server.call(f"/api/workflow_templates/{PACK}/{name}.{suffix}")[0] == 200, name


# Running over the API -----------------------------------------------------------------------------------------------


def test_train_and_sample_in_one_prompt(server: RealComfyUI, seed: int, tmp_path: Path) -> None:
    record = server.finished(server.queue(graph(seed)))
    assert status_of(record) == "success", record["status"]
    (saved,) = record["outputs"]["save"]["images"]
    frames, rate = read_frames(server.download(saved, tmp_path))
    assert frames.shape == (4, 64, 64, 3) and rate == pytest.approx(8)
    assert job_of(server, seed)["state"] == "done"
    assert (OUT / "output/loras/motion" / f"job {seed}.safetensors").exists()


def test_the_same_prompt_again_trains_nothing(server: RealComfyUI, seed: int) -> None:
    server.finished(server.queue(graph(seed)))
    count = len(server.jobs())
    server.call("/free", {"unload_models": True, "free_memory": True})
    began = time.monotonic()
    assert status_of(server.finished(server.queue(graph(seed)))) == "success"
    assert len(server.jobs()) == count and time.monotonic() - began < 60


def test_two_train_nodes_and_the_same_node_twice(server: RealComfyUI, seed: int) -> None:
    prompt = graph(seed, sampled=False)
    prompt["other"] = {"class_type": TRAIN, "inputs": train_inputs(seed + 50_000)}
    prompt["twin"] = {"class_type": TRAIN, "inputs": train_inputs(seed)}
    count = len(server.jobs())
    assert status_of(server.finished(server.queue(prompt))) == "success"
    assert len(server.jobs()) == count + 2
    assert {node["id"] for node in job_of(server, seed)["nodes"]} == {"train", "twin"}


def test_cancel_interrupts_and_the_next_run_resumes(server: RealComfyUI, seed: int) -> None:
    prompt = graph(seed, steps=400)
    prompt_id = server.queue(prompt)
    begun(server, seed, 2)
    pressed = time.monotonic()
    server.call("/interrupt", {"prompt_id": prompt_id})
    record = server.finished(prompt_id, 30)
    assert time.monotonic() - pressed < 10
    assert "execution_interrupted" in [kind for kind, _ in record["status"]["messages"]]
    at = in_state(server, seed, "interrupted")["done_steps"]
    prompt_id = server.queue(prompt)
    resumed = begun(server, seed, at + 1)
    assert resumed["resumed_at"] >= 2 and resumed["message"].startswith("resumed at step")
    assert server.command("stop", resumed["id"])[0] == 200
    assert status_of(server.finished(prompt_id)) == "success", "what was saved is sampled with"


def test_a_background_job_leaves_the_queue_free(server: RealComfyUI, seed: int) -> None:
    record = server.finished(server.queue(graph(seed, steps=400, run="background")), 60)
    assert status_of(record) == "success" and "save" not in record["outputs"], "dependants wait without a word"
    begun(server, seed)
    other = graph(seed + 60_000, sampled=True)
    del other["train"], other["stack"], other["sample"]["inputs"]["stack"]
    assert status_of(server.finished(server.queue(other), 120)) == "success"
    job = job_of(server, seed)
    assert job["state"] == "running"
    server.command("cancel", job["id"])
    in_state(server, seed, "cancelled")


def test_a_yielding_job_steps_aside(server: RealComfyUI, seed: int) -> None:
    server.finished(server.queue(graph(seed, steps=400, run="background", pause_while_generating=True, sampled=False)))
    begun(server, seed)
    other = graph(seed + 70_000)
    del other["train"], other["stack"], other["sample"]["inputs"]["stack"]
    other["sample"]["inputs"].update(num_inference_steps=60, num_frames=16)
    prompt_id = server.queue(other)
    in_state(server, seed, "yielding")
    assert status_of(server.finished(prompt_id)) == "success"
    job = in_state(server, seed, "running")
    server.command("cancel", job["id"])
    in_state(server, seed, "cancelled")


# What the routes refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/motion_lora/jobs/pause", {"data": b'{"id": "x"}', "headers": {"Content-Type": "text/plain"}}, 415),
        ("/motion_lora/jobs/pause", {"data": b"{" * 100}, 400),
        ("/motion_lora/jobs/pause", {"data": b"[" * 4000}, 400),
        ("/motion_lora/jobs/pause", {"body": {"id": 7}}, 400),
        ("/motion_lora/jobs/pause", {"body": ["x"]}, 400),
        ("/motion_lora/jobs/pause", {"body": {"id": "x", "path": "/etc"}}, 400),
        ("/motion_lora/jobs/continue", {"body": {"id": "x", "wanted": "no"}}, 400),
        ("/motion_lora/jobs/pause", {"data": b'{"id": "' + b"x" * 100_000 + b'"}'}, 413),
        ("/motion_lora/jobs/pause", {"body": {"id": "../../x"}}, 404),
        ("/motion_lora/jobs/explode", {"body": {"id": "x"}}, 400),
        ("/motion_lora/jobs/..%2F..%2Fx", {}, 404),
        ("/motion_lora/jobs/x/previews/000001.mp4", {}, 400),
        ("/motion_lora/jobs/ID/previews/..%2Fstatus.json", {}, 400),
        ("/motion_lora/jobs/ID/status.json", {}, 400),
        ("/motion_lora/jobs/ID/..%2F..%2Fx.csv", {}, 400),
        ("/motion_lora/jobs/x/validation.csv", {}, 400),
        ("/motion_lora/jobs/ID/previews/..%2F..%2F..%2F..%2Fx.mp4", {}, 400),
        ("/motion_lora/jobs", {"headers": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}}, 403),
        ("/motion_lora/jobs/pause", {"body": {"id": "x"}, "headers": {"Origin": "http://evil.example"}}, 403),
        ("/motion_lora/jobs/pause", {"body": {"id": "x"}, "headers": {"Origin": "null"}}, 403),
    ],
)
def test_requests_that_are_refused(server: RealComfyUI, path: str, options: dict[str, Any], status: int) -> None:
    before = [job["state"] for job in server.jobs()]
    job_id = server.jobs()[0]["id"]
    assert server.call(path.replace("ID", job_id), **options)[0] == status
    assert [job["state"] for job in server.jobs()] == before


def test_a_get_changes_nothing(server: RealComfyUI) -> None:
    job_id = server.jobs()[0]["id"]
    for command in ("pause", "resume", "stop", "cancel", "delete"):
        assert server.call(f"/motion_lora/jobs/{command}?id={job_id}")[0] in (400, 404, 405)


# The front end ------------------------------------------------------------------------------------------------------


def differences(shipped: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """What loading changed: a sign of a stale workflow."""
    after = {str(node["id"]): node for node in saved["nodes"]}
    found = []
    for node in shipped["nodes"]:
        other = after.get(str(node["id"]))
        if other is None:
            found.append(f"{node['type']} is lost")
            continue
        shows_only = node["type"].startswith("Preview")
        if not shows_only and (node.get("widgets_values") or []) != (other.get("widgets_values") or []):
            found.append(f"{node['type']}: {node.get('widgets_values')} became {other.get('widgets_values')}")
        names, now = ([slot["name"] for slot in one.get("inputs") or []] for one in (node, other))
        if names != now:
            found.append(f"{node['type']}: inputs {names} became {now}")
    if len(shipped["links"]) != len(saved["links"]):
        found.append("links are lost")
    return found


def load_on_test_base(browser: Browser, name: str, **sample: Any) -> None:
    """A shipped workflow, aimed at the test's base, with few steps."""
    browser.load(shipped(name), name)
    browser.set_widget("MotionLoRA_LoadT2VModel", "model", BASE)
    for node, widget, value in (
        (TRAIN, "steps", 4),
        (TRAIN, "absorber_steps", 2),
        (TRAIN, "token_steps", 2),
        ("MotionLoRA_TrainAppearanceAbsorber", "absorber_steps", 2),
        ("MotionLoRA_TrainAppearanceAbsorber", "token_steps", 2),
        (SAMPLE, "num_inference_steps", 2),
        (SAMPLE, "num_frames", 4),
        (SAMPLE, "width", 64),
        (SAMPLE, "height", 64),
        ("MotionLoRA_ReferenceClip", "num_frames", 4),
        ("MotionLoRA_ReferenceClip", "width", 64),
        ("MotionLoRA_ReferenceClip", "height", 64),
        *((SAMPLE, widget, value) for widget, value in sample.items()),
    ):
        browser.set_widget(node, widget, value)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_loads_unchanged(browser: Browser, name: str) -> None:
    before = len(browser.problems)
    assert differences(shipped(name), browser.load(shipped(name), name)) == []
    prompt = browser.api_prompt()
    assert all(node.get("class_type") for node in prompt.values()) and len(prompt) == len(shipped(name)["nodes"]) - 1
    assert browser.problems[before:] == []


def test_the_quickstart_runs_by_pressing_run(browser: Browser, server: RealComfyUI, tmp_path: Path) -> None:
    load_on_test_base(browser, "01_quickstart_playground")
    record = server.finished(browser.run(), 400)
    assert status_of(record) == "success", record["status"]
    browser.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    browser.page.wait_for_timeout(2500)
    browser.shot("quickstart")
    videos = [image for output in record["outputs"].values() for image in output.get("images", [])]
    saved = [video for video in videos if video["filename"].startswith("motion_lora_quickstart")]
    frames, _ = read_frames(server.download(saved[0], tmp_path))
    assert frames.shape[0] == 8 and frames.shape[2] > frames.shape[1], "three videos beside each other"


def test_a_video_file_is_trained_on(browser: Browser, server: RealComfyUI) -> None:
    load_on_test_base(browser, "02_customize_a_video")
    browser.set_widget("MotionLoRA_ReferenceClip", "caption", "a red circle over sand circling")
    browser.set_widget("MotionLoRA_ReferenceClip", "appearance_caption", "a red circle over sand")
    browser.set_widget("MotionLoRA_ReferenceClip", "absorb_words", "red circle")
    record = server.finished(browser.run(), 400)
    assert status_of(record) == "success", record["status"]
    browser.page.wait_for_timeout(2000)
    browser.shot("customize_a_video")


METHOD_STORIES = [name for name in WORKFLOWS if "06" <= name < "12"]


@pytest.mark.parametrize("name", METHOD_STORIES)
def test_a_story_of_the_methods_runs_by_pressing_run(browser: Browser, server: RealComfyUI, name: str) -> None:
    """All of it: trainings, absorbers and inversion feed each other by links, and nothing has to be put anywhere."""
    load_on_test_base(browser, name)
    browser.set_widget("MotionLoRA_InvertClip", "num_inference_steps", 3)
    browser.set_widget("MotionLoRA_PreviewAbsorber", "num_inference_steps", 1)
    record = server.finished(browser.run(), 400)
    assert status_of(record) == "success", record["status"]
    videos = [image for output in record["outputs"].values() for image in output.get("images", [])]
    assert any(video["filename"].startswith("motion_lora_") and video["type"] == "output" for video in videos)


def test_checkpoints_are_validated_and_compared(browser: Browser, server: RealComfyUI) -> None:
    load_on_test_base(browser, "13_compare_and_choose")
    browser.set_widget(TRAIN, "validate_every", 2)
    browser.set_widget(TRAIN, "seed", 90_002)
    browser.set_widget("MotionLoRA_CompareLoRAs", "num_inference_steps", 2)
    panel = browser.open_panel()
    record = server.finished(browser.run(), 600)
    assert status_of(record) == "success", record["status"]
    job = job_of(server, 90_002)
    assert [point["step"] for point in job["validation"]["points"]] == [2, 4]
    for name in ("validation.csv", "validation.png"):
        assert server.call(f"/motion_lora/jobs/{job['id']}/{name}")[0] == 200
    card = panel.locator(f"[data-id='{job['id']}']")
    assert card.locator("polyline.mlora-curve-motion_fidelity").get_attribute("points").count(",") == 3
    card.locator("summary", has_text="Validations").focus()
    browser.page.keyboard.press("Enter")
    assert "best" in card.locator(".mlora-table").inner_text()
    browser.page.keyboard.press("Tab")
    assert browser.page.evaluate("document.activeElement.textContent") == "validation.csv"
    browser.shot("panel_validation")


@pytest.mark.parametrize("name", ["03_sample_shared_lora", "04_stack_motions_and_look", "12_inspect_and_stack"])
def test_a_shared_lora_is_sampled_with(browser: Browser, server: RealComfyUI, seed: int, name: str) -> None:
    assert status_of(server.finished(server.queue(graph(seed, sampled=False, name="shared")))) == "success"
    lora = job_of(server, seed)["published"]
    load_on_test_base(browser, name)
    for node in ("LoadMotionLoRA", "AppearanceLoRA", "LoadAnyLoRA", "InspectLoRA"):
        browser.set_widget(f"MotionLoRA_{node}", "lora_name", lora)
    record = server.finished(browser.run(), 400)
    assert status_of(record) == "success", record["status"]


def test_the_background_workflow_goes_on_by_itself(browser: Browser, server: RealComfyUI) -> None:
    load_on_test_base(browser, "05_train_in_background")
    known = set(server.call("/history")[1])
    first = browser.run()
    assert status_of(server.finished(first)) == "success"

    def second() -> dict[str, Any] | None:
        new = {key: record for key, record in server.call("/history")[1].items() if key not in known | {first}}
        return next(iter(new.values()), None)

    deadline = time.monotonic() + 300
    while not (record := second()):
        assert time.monotonic() < deadline, "the workflow did not go on"
        browser.page.wait_for_timeout(500)
    assert status_of(record) == "success", record["status"]
    assert any("images" in output for output in record["outputs"].values())


def test_the_panel_from_start_to_save(browser: Browser, server: RealComfyUI) -> None:
    """Start, pause, resume, reload, crash of the server, resume, stop and save, add to graph, delete: by mouse."""
    load_on_test_base(browser, "05_train_in_background")
    for widget, value in (("steps", 4000), ("seed", 90_001), ("name", "by mouse"), ("preview_every", 3)):
        browser.set_widget(TRAIN, widget, value)
    panel = browser.open_panel()
    server.finished(browser.run())
    card = panel.locator(".mlora-card", has_text="by mouse").first
    card.wait_for()
    begun(server, 90_001, 8)
    card.locator("video").wait_for(timeout=60_000)
    browser.page.wait_for_timeout(1500)
    browser.shot("panel_running")

    card.locator("[data-command=pause]").click()
    paused = in_state(server, 90_001, "paused")
    card.locator("[data-command=resume]").wait_for()
    assert "paused" in card.locator(".mlora-badge").inner_text()
    browser.shot("panel_paused")
    card.locator("[data-command=resume]").click()
    begun(server, 90_001, paused["done_steps"] + 2)

    browser.page.reload(wait_until="domcontentloaded")
    browser.page.wait_for_function("() => window.app?.extensionManager && window.LiteGraph?.registered_node_types")
    browser.page.wait_for_timeout(3000)
    card = browser.open_panel().locator(".mlora-card", has_text="by mouse").first
    card.wait_for()
    assert card.locator(".mlora-chart-mean").get_attribute("points"), "the curve is back after a reload"

    at = job_of(server, 90_001)["done_steps"]
    server.stop(signal.SIGKILL)
    server.start()
    in_state(server, 90_001, "interrupted")
    # The page reconnects by itself and asks for the state again.
    card.locator(".mlora-badge[data-state=interrupted]").wait_for(timeout=60_000)
    browser.shot("panel_interrupted")
    card.locator("[data-command=resume]").click()
    resumed = begun(server, 90_001, 1)
    resumed = until(lambda: (job := job_of(server, 90_001))["state"] == "running" and job, 120, "the job to run again")
    assert resumed["resumed_at"] <= at

    card.locator("[data-command=stop]").click()
    in_state(server, 90_001, "stopped")
    card.locator("[data-command=add]").click()
    browser.page.wait_for_timeout(800)
    added = json.loads(browser.page.evaluate("JSON.stringify((app.rootGraph ?? app.graph).serialize())"))
    loaders = [node for node in added["nodes"] if node["type"] == "MotionLoRA_LoadMotionLoRA"]
    assert loaders[-1]["widgets_values"][0] == job_of(server, 90_001)["published"] and added["links"]
    card.get_by_text("Details", exact=True).click()
    card.locator(".mlora-facts dd").first.wait_for()
    browser.shot("panel_saved")

    card.locator("[data-command=delete]").click()
    assert job_of(server, 90_001), "it asks once more"
    card.locator("[data-command=delete]").click()
    until(lambda: job_of(server, 90_001) is None, 20, "the job to be deleted")
    browser.page.wait_for_timeout(1000)
    assert not browser.page.locator(".mlora-card", has_text="by mouse").count()


def test_a_node_says_what_it_will_do(browser: Browser) -> None:
    browser.load(shipped("02_customize_a_video"), "02_customize_a_video")
    browser.page.wait_for_function(
        "() => [...document.querySelectorAll('.mlora-planned')].some((one) => /steps, rank /.test(one.innerText))",
        timeout=90_000,
    )
    browser.shot("planned")


def test_the_panel_shows_the_sheet_and_compares_with_the_base(browser: Browser, server: RealComfyUI) -> None:
    load_on_test_base(browser, "05_train_in_background")
    chosen = {"steps": 4, "seed": 90_003, "name": "compared", "run": "wait", "preview_every": 2}
    for widget, value in {**chosen, "method": "temporal-only"}.items():
        browser.set_widget(TRAIN, widget, value)
    panel = browser.open_panel()
    assert status_of(server.finished(browser.run(), 300)) == "success"
    card = panel.locator(".mlora-card", has_text="compared").first
    card.locator("img.mlora-sheet").wait_for(timeout=60_000)
    card.locator("[data-command=compare]").click()
    browser.page.wait_for_function(
        "() => [...document.querySelectorAll('.mlora-panel video')].some((one) => one.src.includes('/view'))",
        timeout=120_000,
    )
    browser.shot("panel_compared")


def test_the_panel_by_keyboard(browser: Browser, server: RealComfyUI, seed: int) -> None:
    server.finished(server.queue(graph(seed, steps=4000, run="background", sampled=False, name="by keyboard")))
    begun(server, seed, 2)
    panel = browser.open_panel()
    card = panel.locator(".mlora-card", has_text="by keyboard").first
    pause = card.locator("[data-command=pause]")
    pause.focus()
    browser.page.keyboard.press("Enter")
    in_state(server, seed, "paused")
    card.locator("[data-command=resume]").wait_for()
    focused = browser.page.evaluate("document.activeElement?.dataset?.command ?? document.activeElement?.tagName")
    assert focused == "resume", "the focus stays on the card's buttons"
    browser.page.keyboard.press("Tab")
    assert browser.page.evaluate("document.activeElement?.closest('.mlora-card') !== null")
    server.command("cancel", job_of(server, seed)["id"])


def test_the_panel_in_the_light_theme(browser: Browser) -> None:
    browser.open_panel()
    browser.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleTheme')")
    browser.page.wait_for_timeout(1000)
    browser.shot("panel_light")
    colours = browser.page.evaluate(
        "() => { const style = getComputedStyle(document.querySelector('.mlora-card'));"
        " return [style.color, style.backgroundColor] }"
    )
    browser.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleTheme')")
    text, ground = ([int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]] for colour in colours)
    assert sum(ground) - sum(text) > 250, f"dark text on a light ground, not {colours}"


def test_messages_come_at_most_four_a_second(browser: Browser, server: RealComfyUI, seed: int) -> None:
    browser.page.evaluate(
        "() => { window.heard = []; app.api.addEventListener('motion_lora.jobs', () => heard.push(performance.now())) }"
    )
    server.finished(server.queue(graph(seed, steps=60, sampled=False)))
    in_state(server, seed, "done")
    browser.page.wait_for_timeout(1500)
    times = [moment / 1000 for moment in browser.page.evaluate("window.heard")]
    assert len(times) >= 2
    span = max(times) - min(times)
    assert len(times) <= 4 * span + 2, f"{len(times)} messages in {span:.1f} s"


def test_the_console_is_clean(browser: Browser) -> None:
    assert [line for line in browser.problems if "motion" in line.lower()] == []
