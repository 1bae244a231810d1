"""Packages that are installed and broken cost only what needs them, and are named with the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from motion_lora.core.errors import SettingsError
from motion_lora.evaluate.metrics.optional import require

ROOT = Path(__file__).parents[1]
WORK = """
import logging, sys
logging.basicConfig(level="WARNING", stream=sys.stderr)
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import motion_lora.base.pipeline  # as in every use of ours, before anything of diffusers
import motion_lora.base
from tiny import tiny_pipeline
from motion_lora.adapters.peft import Adapter, add_adapter
base = tiny_pipeline(levels=2).replica()
name = next(name for name, module in base.unet.named_modules() if name.endswith("attn1.to_q"))
add_adapter(base.unet, "motion", [name], rank=1, alpha=1.0, seed=0)
add_adapter(base.unet, "other", [name], rank=1, alpha=1.0, seed=0)
print("done", len(Adapter(base.unet, "motion").read()))
"""
BROKEN_PACKAGES = {
    "torchao": {"torchao/__init__.py": ""},
    "xformers": {"xformers/__init__.py": "", "xformers/ops.py": "raise ImportError('DLL load failed')"},
    "flash_attn": {"flash_attn/__init__.py": "raise OSError('undefined symbol: _ZN3c104cuda')"},
    "gguf": {"gguf/__init__.py": "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')"},
    "bitsandbytes": {"bitsandbytes/__init__.py": "raise RuntimeError('CUDA Setup failed despite GPU being available')"},
}
VERSIONS = {
    "torchao": "0.10.0",
    "xformers": "0.0.30",
    "flash_attn": "2.8.0",
    "bitsandbytes": "0.45.0",
    "gguf": "0.17.0",
}


def installed(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which these packages are there and broken."""
    for package in packages:
        for name, text in BROKEN_PACKAGES[package].items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        about = folder / f"{package}-{VERSIONS[package]}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {VERSIONS[package]}\n"
        )
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torchao", "all of them"])
def test_a_broken_package_ends_nothing(package: str, tmp_path: Path) -> None:
    names = tuple(BROKEN_PACKAGES) if package == "all of them" else (package,)
    code = WORK.format(tests=str(ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=installed(tmp_path, *names),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "done 1" in done.stdout
    for name in names:
        assert f"{name} is installed and does not work" in done.stderr and f"pip uninstall {name}" in done.stderr


def test_a_metric_whose_library_does_not_load_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_metric").mkdir()
    (tmp_path / "broken_metric" / "__init__.py").write_text("raise AttributeError('_ARRAY_API not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"This needs opencv-python-headless.*_ARRAY_API"):
        require("broken_metric", "opencv-python-headless", "This")
