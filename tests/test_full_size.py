"""tools/full_size.py: what it counts on the real network, and that the whole of it runs on a toy."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG

LATENTS = (1, 4, 16, 32, 32)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "tools" / "full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module
    spec.loader.exec_module(module)
    return module


def test_floor_of_the_real_network(bench: ModuleType) -> None:
    """4.89 TFLOP a forward pass at 16 x 256 x 256, 59 % of it with the temporal layers bypassed."""
    full = bench.count_flops(MODELSCOPE_UNET_CONFIG, LATENTS, bypass=False, backward=False)
    assert full / 1e12 == pytest.approx(4.89, abs=0.01)
    bypassed = bench.count_flops(MODELSCOPE_UNET_CONFIG, LATENTS, bypass=True, backward=False)
    assert bypassed / full == pytest.approx(0.59, abs=0.01)


def test_backward_pass_costs_as_much_again(bench: ModuleType) -> None:
    """Frozen weights take no gradient: only the activations' part of the backward pass is counted."""
    shape = (1, 4, 4, 16, 16)
    forward = bench.count_flops(bench.TINY, shape, bypass=False, backward=False)
    both = bench.count_flops(bench.TINY, shape, bypass=False, backward=True)
    assert 1.9 < both / forward < 2.2


def test_runs_on_a_toy_and_writes_its_rows(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, counted = bench.count_flops, dict[str, int]()

    def counted_once(*given: object, **said: object) -> int:
        """Both runs make the same passes."""
        key = repr((given, sorted(said.items())))
        if key not in counted:
            counted[key] = count(*given, **said)
        return counted[key]

    monkeypatch.setattr(bench, "count_flops", counted_once)
    results = tmp_path / "full-size.md"
    words = ["--config", "tiny", "--num-frames", "2", "--height", "64", "--width", "64", "--device", "cpu", "--json"]
    for extra in ([], ["--gradient-checkpointing", "--repeat", "2"]):
        assert bench.main([*words, *extra, "--write", "--results", str(results)]) == 0
        facts = json.loads(capsys.readouterr().out)
        whats = [row["what"].split(",")[0] for row in facts["rows"]]
        assert whats == ["temporal LoRA step", "absorber step", "two sampling steps"]
        assert all(0 < row["floor"] < row["seconds"] for row in facts["rows"])
    lines = results.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.startswith("| machine")]) == 1
    assert len([line for line in lines if "tiny" in line]) == 6


def test_dtype_on_a_cpu_without_matrix_units(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx, memory, expected in ((False, 24, torch.float32), (True, 24, torch.bfloat16), (False, 8, torch.bfloat16)):
        monkeypatch.setattr(bench, "has_amx", lambda amx=amx: amx)
        monkeypatch.setattr(bench, "total_memory", lambda memory=memory: memory * 2**30)
        assert bench.choose_dtype("auto", cpu, MODELSCOPE_UNET_CONFIG) is expected
    assert bench.choose_dtype("fp16", cpu, MODELSCOPE_UNET_CONFIG) is torch.float16


def test_checkpointing_is_on_where_memory_would_not_do_without(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(bench, "total_memory", lambda: 24 * 2**30)
    for dtype, words, expected in (
        (torch.float32, [], True),
        (torch.bfloat16, [], False),
        (torch.float32, ["--num-frames", "8"], False),
    ):
        assert bench.needs_checkpointing(bench.parse(words), cpu, dtype, MODELSCOPE_UNET_CONFIG) is expected
    assert not bench.needs_checkpointing(bench.parse([]), torch.device("meta"), torch.float32, MODELSCOPE_UNET_CONFIG)
