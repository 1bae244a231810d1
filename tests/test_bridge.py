"""The bridge to ComfyUI's samplers: the same videos as Sample Video, by ComfyUI's own code."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfy_double import hosted
from real_host import ROOT, comfyui_and_python

pytestmark = pytest.mark.comfy
SCRIPT = Path(__file__).with_name("bridge_in_comfyui.py")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    checkout, python = comfyui_and_python()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([python, "-P", str(SCRIPT)], cwd=checkout, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_the_same_seed_gives_the_video_of_sample_video(found: dict[str, dict[str, float]]) -> None:
    """Euler and DPM++ 2M; noise and v; guidance, a batch, a stack with schedule, frame curve and highway."""
    assert len(found) == 16
    wrong = {key: entry for key, entry in found.items() if entry["error"] > 1e-3}
    assert not wrong
    assert all(entry["spread"] > 0.01 for entry in found.values()), "there is something to see"


def test_what_it_cannot_do_is_said_before_anything_is_sampled(tmp_path: Path) -> None:
    from tiny import tiny_pipeline

    from motion_lora.core.errors import SettingsError

    with hosted(tmp_path) as host, pytest.raises(Exception, match=r"height x width") as caught:
        host.nodes["MotionLoRA_ForKSampler"].execute(tiny_pipeline(), 0, 33, 32, 1)
    assert type(caught.value).__name__ == SettingsError.__name__
