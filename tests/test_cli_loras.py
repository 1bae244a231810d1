"""The command line on LoRAs beside the plain cases: strengths that vary in `sample`, and `extract`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import fails, succeeds, write_base
from lora_samples import motion_sample
from safetensors.torch import load_file, save_file
from tiny import tiny_unet

from motion_lora.apps.cli.sample import lora_requests
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.core.lora import TEMPORAL, LoRA
from motion_lora.files.own import load_lora, save_lora

QUICK = ("--num-inference-steps", "2", "--guidance-scale", "1", "--num-frames", "2", "--prompt", "a red circle")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(tmp_path_factory.mktemp("lora") / "orbit.safetensors", motion_sample(tiny_unet(), scale=3.0))


def tuned(base: Path, lora: LoRA, folder: Path) -> Path:
    """A copy of the base with the LoRA added to its weights, and one bias moved."""
    shutil.copytree(base, folder)
    weights = load_file(folder / WEIGHTS)
    for module, layer in lora.layers.items():
        weights[f"{module}.weight"] += layer.delta()
    weights["conv_in.bias"] += 1
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


# sample ---------------------------------------------------------------------------------------------------------------


def test_a_lora_takes_a_strength_and_curves_as_words(
    base: Path, lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ("--lora", lora_file, "0.5", "end=0.5", "frame_curve=0:0, 1:2", "block_strengths=mid_block=0")
    second = ("--lora", lora_file, "start=0.25", "curve=cosine", "temporal_strength=-1")
    succeeds("sample", "--base", base, *QUICK, *lora, *second, "--output", tmp_path / "made.mp4", "--json")
    first, other = json.loads(capsys.readouterr().out)["stack"]["entries"]
    assert first["strength"] == 0.5 and first["block_strengths"] == {"mid_block": 0.0}
    assert first["steps"] == {"start": 0.0, "end": 0.5, "curve": "constant"}
    assert first["frames"] == {"start": 0.0, "end": 1.0, "curve": [[0.0, 0.0], [1.0, 2.0]]}
    assert (other["strength"], other["temporal_strength"], other["frames"]) == (1.0, -1.0, None)
    assert other["steps"] == {"start": 0.25, "end": 1.0, "curve": "cosine"}


def test_a_phase_changes_the_video(base: Path, lora_file: Path, tmp_path: Path) -> None:
    made = {}
    for name, words in {"whole": (), "early": ("end=0.5",), "same": ("start=0", "end=1")}.items():
        output = tmp_path / f"{name}.mp4"
        succeeds("sample", "--base", base, *QUICK, "--lora", lora_file, *words, "--output", output)
        made[name] = output.read_bytes()
    assert made["whole"] == made["same"] != made["early"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("ennd=0.5",), "Did you mean 'end'?"),
        (("end=half",), "end is 'half', which is no number"),
        (("curve=wavy",), "unknown curve 'wavy'"),
        (("start=0.9", "end=0.1"), "0 <= start < end <= 1"),
        (("block_strengths=nowhere=1",), "there is no block 'nowhere'"),
        (("1", "strength=2"), "the strength is given twice"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    base: Path, lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple, reason: str
) -> None:
    output = tmp_path / "made.mp4"
    assert reason in fails(capsys, "sample", "--base", base, *QUICK, "--lora", lora_file, *words, "--output", output)
    assert not output.exists()


def test_words_are_typed_and_files_keep_their_names() -> None:
    (request,) = lora_requests([["a b.safetensors", "-0.5", "end=1"]], {}, Path())
    assert request == {"lora": Path("a b.safetensors"), "strength": -0.5, "end": 1.0}


# extract --------------------------------------------------------------------------------------------------------------


def test_extract_finds_what_was_added(
    base: Path, lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = load_lora(lora_file)
    there = tuned(base, known, tmp_path / "tuned")
    output = tmp_path / "difference.safetensors"
    succeeds("extract", base, there, "--rank", "2", "--output", output, "--json")
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["energy_kept"] == pytest.approx(1, abs=1e-4) and "conv_in.bias" in err
    found = load_lora(output)
    assert set(found) == set(known)
    assert all(torch.allclose(found.layers[m].delta(), known.layers[m].delta(), atol=1e-4) for m in known)
    succeeds("extract", base / "unet", there / WEIGHTS, "--rank", "1", "--output", output, "--overwrite", "--json")
    assert load_lora(output).ranks == (1,) and json.loads(capsys.readouterr().out)["energy_kept"] < 0.99


def test_extract_can_be_limited_to_a_preset(base: Path, lora_file: Path, tmp_path: Path) -> None:
    there, output = tuned(base, load_lora(lora_file), tmp_path / "tuned"), tmp_path / "x.safetensors"
    succeeds("extract", base, there, "--preset", "tap-k", "--output", output)
    found = load_lora(output)
    assert all(UNET3D.layer_of(m) == TEMPORAL and m.endswith("to_k") for m in found) and len(found) > 2


def test_extract_refuses_what_has_no_difference(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ("--output", tmp_path / "x.safetensors")
    assert "do not differ" in fails(capsys, "extract", base, base, *output)
    assert "not of one network" in fails(capsys, "extract", base, "playground", *output)
    assert "nothing at" in fails(capsys, "extract", base, tmp_path / "nowhere", *output)
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    assert "broken.safetensors" in fails(capsys, "extract", base, tmp_path / "broken.safetensors", *output)
    assert "rank is 0" in fails(capsys, "extract", base, base, "--rank", "0", *output)
    assert not (tmp_path / "x.safetensors").exists()
