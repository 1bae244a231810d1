"""A real ComfyUI server and its real front end, for `test_host.py` and the soak script.

    COMFYUI_DIR       a checkout of ComfyUI 0.12.1 or newer
    COMFYUI_PYTHON    a Python with its requirements and this pack's (default: that of .venv in the checkout)
    CHROMIUM          a Chromium binary (default: /usr/bin/chromium)
    HOST_PATIENCE     how many times as long as usual to wait, on a busy machine (default: 1)

Everything happens below one folder; a server is stopped by its own process handle.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK = "ComfyUI-MotionLoRA"
PATIENCE = float(os.environ.get("HOST_PATIENCE", "1"))
# What ComfyUI would find in a clone; tests, environments and results stay outside.
SHIPPED = ("__init__.py", "pyproject.toml", "motion_lora", "nodes", "web", "locales", "workflows", "subgraphs")
_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def until(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.2) -> Any:
    """The first true value of `condition`; fails after so many seconds."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(pause)
    return value


def own_python(checkout: Path) -> str:
    """The interpreter of a checkout's own environment; without one, that which runs the tests."""
    candidates = [checkout / ".venv/bin/python", checkout / ".venv/Scripts/python.exe"]
    return next((str(path) for path in candidates if path.is_file()), sys.executable)


def lacks_requirements(python: str) -> bool:
    """Whether an interpreter cannot run ComfyUI at all."""
    run = subprocess.run([python, "-c", "import aiohttp, einops, sqlalchemy, torch, torchaudio"], capture_output=True)
    return run.returncode != 0


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def comfyui_and_python() -> tuple[Path, str]:
    """The checkout and an interpreter that runs it; skips the test where either is missing."""
    import pytest

    if "COMFYUI_DIR" not in os.environ:
        pytest.skip("COMFYUI_DIR names no ComfyUI")
    checkout = Path(os.environ["COMFYUI_DIR"]).expanduser()
    python = os.environ.get("COMFYUI_PYTHON") or own_python(checkout)
    if lacks_requirements(python):
        pytest.skip(f"{python} lacks ComfyUI's requirements; COMFYUI_PYTHON can name another")
    return checkout, python


class RealComfyUI:
    """A server with the pack in it. `models` is used as its models folder, `settings` are the front end's."""

    def __init__(
        self, folder: Path, *, settings: Mapping[str, Any] | None = None, arguments: tuple[str, ...] = ()
    ) -> None:
        self.base = folder
        self.checkout = Path(os.environ["COMFYUI_DIR"])
        self.python = os.environ.get("COMFYUI_PYTHON") or own_python(self.checkout)
        self.arguments = arguments
        self.log_file = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name in ("custom_nodes", "input", "output", "temp", "user/default", "models/diffusers", "models/loras"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._link_pack()
        path = folder / "user/default/comfy.settings.json"
        path.write_text(json.dumps({**_SETTINGS, **(settings or {})}), encoding="utf-8")

    def _link_pack(self) -> None:
        pack = self.base / "custom_nodes" / PACK
        if pack.exists():
            return
        pack.mkdir()
        for name in SHIPPED:
            if (ROOT / name).exists():
                (pack / name).symlink_to(ROOT / name, target_is_directory=(ROOT / name).is_dir())

    def start(self, timeout: float = 300) -> None:
        """Start it, again on the same port after a stop."""
        database = f"sqlite:///{self.base / 'user' / 'comfyui.db'}"
        options = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--log-stdout"]
        options += [
            "--base-directory",
            str(self.base),
            "--database-url",
            database,
            "--disable-api-nodes",
            *self.arguments,
        ]
        self.process = subprocess.Popen(
            [self.python, "main.py", *options],
            cwd=self.checkout,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self.log_file.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background job is started with Ctrl-C ignored, and what it starts inherits that.
            preexec_fn=_heed_ctrl_c,
        )
        until(self._answers, timeout, "the server's first answer", pause=0.5)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended:\n{self.log[-3000:]}"
        try:
            return self.call("/system_stats")[0] == 200
        except OSError:
            return False

    def stop(self, how: int = signal.SIGINT) -> None:
        """End the process: SIGINT as with Ctrl-C, SIGKILL as in a crash."""
        if self.process is None:
            return
        for sign, patience in ((how, 30), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            if self.process.poll() is None:
                self.process.send_signal(sign)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self.process = None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> tuple[int, Any]:
        """Status and answer, parsed where it is JSON; a POST where there is a body."""
        raw = json.dumps(body).encode() if body is not None else data
        given = {"Content-Type": "application/json", **(headers or {})} if raw is not None else dict(headers or {})
        request = urllib.request.Request(self.url + path, raw, given)
        try:
            with urllib.request.urlopen(request, timeout=60 * PATIENCE) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def queue(self, prompt: Mapping[str, Any], client: str | None = None, **extra: Any) -> str:
        """Queue an API prompt; it has to be accepted without a node error."""
        status, answer = self.call("/prompt", {"prompt": prompt, "client_id": client or uuid.uuid4().hex, **extra})
        assert status == 200 and not answer.get("node_errors"), answer
        return answer["prompt_id"]

    def finished(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry of a prompt once it has ended."""
        ended = lambda: self.call(f"/history/{prompt_id}")[1].get(prompt_id)  # noqa: E731
        return until(ended, timeout, f"prompt {prompt_id} to end")

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs, newest first."""
        status, answer = self.call("/motion_lora/jobs")
        assert status == 200, answer
        return sorted(answer["jobs"], key=lambda job: job["created"], reverse=True)

    def command(self, name: str, job_id: str, **more: Any) -> tuple[int, Any]:
        return self.call(f"/motion_lora/jobs/{name}", {"id": job_id, **more})

    def download(self, result: Mapping[str, str], target: Path) -> Path:
        """A file that a prompt's history names."""
        query = urllib.parse.urlencode({key: result.get(key, "") for key in ("filename", "subfolder", "type")})
        status, content = self.call(f"/view?{query}")
        assert status == 200, result
        target.mkdir(parents=True, exist_ok=True)
        path = target / result["filename"]
        path.write_bytes(content)
        return path

    def memory(self) -> int:
        """Resident bytes of the server."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Browser:
    """The front end in headless Chromium; `problems` are console errors that are not everyday noise."""

    NOISE = (
        "user.css",
        "favicon",
        "/userdata",
        "api.comfy.org",
        "registry.comfy",
        "workflow_templates/",
        "ERR_NAME_NOT_RESOLVED",
        "huggingface.co",
        "missingModel",
        "accessed before initialization",
        "/settings/",
    )

    def __init__(self, playwright: Any, server: RealComfyUI, folder: Path, *, url: str = "") -> None:
        self.server, self.folder, self.url = server, folder, url or server.url
        self.problems: list[str] = []
        self.profile = folder / f"profile-{uuid.uuid4().hex[:6]}"
        self.context = playwright.chromium.launch_persistent_context(
            str(self.profile),
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            headless=True,
            args=CHROMIUM_FLAGS,
            ignore_https_errors=True,
            viewport={"width": 1600, "height": 1000},
        )
        self.page = self.context.pages[0] if self.context.pages else self.context.new_page()
        self.page.set_default_timeout(30_000 * PATIENCE)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._note(f"page error: {error}"))

    def open(self) -> Browser:
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000 * PATIENCE)
        self.page.wait_for_function(
            "() => window.app?.extensionManager && window.app.canvas && window.LiteGraph?.registered_node_types"
            "?.MotionLoRA_TrainMotionLoRA",
            timeout=120_000 * PATIENCE,
        )
        self.page.wait_for_timeout(1500)
        return self

    def close(self) -> None:
        self.context.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self._note(f"{message.text[:300]} [{(message.location or {}).get('url', '')[-100:]}]")

    def _note(self, line: str) -> None:
        if not any(noise in line for noise in self.NOISE):
            self.problems.append(line)

    def shot(self, name: str) -> Path:
        path = self.folder / "shots" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))
        return path

    def load(self, workflow: Mapping[str, Any], name: str = "test") -> dict[str, Any]:
        """Load a workflow as the user does; returns it as the front end would save it."""
        code = """async ([workflow, name]) => {
          await app.loadGraphData(workflow, true, true, name)
          await new Promise((done) => setTimeout(done, 500))
          return JSON.stringify((app.rootGraph ?? app.graph).serialize())
        }"""
        return json.loads(self.page.evaluate(code, [workflow, name]))

    def api_prompt(self) -> dict[str, Any]:
        return json.loads(self.page.evaluate("app.graphToPrompt().then((made) => JSON.stringify(made.output))"))

    def run(self) -> str:
        """Press Run; the prompt's id."""
        is_prompt = lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")  # noqa: E731
        with self.page.expect_response(is_prompt, timeout=60_000 * PATIENCE) as waiting:
            self.page.locator("[data-testid='queue-button']").first.click()
        answer = waiting.value.json()
        assert waiting.value.status == 200 and not answer.get("node_errors"), answer
        return answer["prompt_id"]

    @contextmanager
    def small(self) -> Iterator[None]:
        """A small window for as long as nobody looks: without a graphics card most of the work is drawing."""
        shown = self.page.viewport_size or {"width": 1600, "height": 1000}
        self.page.set_viewport_size({"width": 320, "height": 200})
        try:
            yield
        finally:
            self.page.set_viewport_size(shown)

    def open_panel(self) -> Any:
        """The Motion LoRA panel."""
        panel = self.page.locator(".mlora-panel")
        if not panel.count():
            self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.motion-lora')")
        panel.wait_for()
        return panel

    def set_widget(self, node_type: str, widget: str, value: Any) -> None:
        """Set a widget of every node of a type, as the user would."""
        code = """([type, name, value]) => { for (const node of (app.rootGraph ?? app.graph)._nodes) {
          const widget = node.type === type && node.widgets.find((one) => one.name === name)
          if (widget) { widget.value = value; widget.callback?.(value) }
        } }"""
        self.page.evaluate(code, [node_type, widget, value])


# Shipped workflows --------------------------------------------------------------------------------------------------


_TRAIN = "MotionLoRA_TrainMotionLoRA"
_ABSORBER = "MotionLoRA_TrainAppearanceAbsorber"
# Widgets that make a workflow end soon.
FEW = (
    (_TRAIN, "steps", 4),
    (_TRAIN, "absorber_steps", 2),
    (_TRAIN, "token_steps", 2),
    (_TRAIN, "validate_every", 0),
    (_ABSORBER, "absorber_steps", 2),
    (_ABSORBER, "token_steps", 2),
    ("MotionLoRA_SampleVideo", "num_inference_steps", 3),
    ("MotionLoRA_InvertClip", "num_inference_steps", 3),
    ("MotionLoRA_PreviewAbsorber", "num_inference_steps", 1),
    ("MotionLoRA_CompareLoRAs", "num_inference_steps", 2),
)


def shipped(name: str) -> dict[str, Any]:
    """A workflow as it is shipped."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def saved_videos(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a prompt has written into the output folder."""
    made = [image for output in record["outputs"].values() for image in output.get("images", [])]
    return [image for image in made if image["type"] == "output" and image["filename"].startswith("motion_lora")]


def run_to_end(browser: Browser, server: RealComfyUI, seconds: float) -> dict[str, Any]:
    """Press Run and wait for a video or a fault; after a training in the background the workflow goes on by itself."""
    known = set(server.call("/history")[1])
    first = browser.run()
    with browser.small():
        record = server.finished(first, seconds)
        deadline = time.monotonic() + seconds
        while record["status"]["status_str"] == "success" and not saved_videos(record) and time.monotonic() < deadline:
            new = {key: one for key, one in server.call("/history")[1].items() if key not in known | {first}}
            record = next(iter(new.values()), record)
            # The page asks the server by itself, but only while it is given time to run.
            browser.page.wait_for_timeout(500)
    return record
