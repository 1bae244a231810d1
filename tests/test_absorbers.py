"""Absorbers of others: LoRAs and fine-tuned networks as what holds a look, and what is refused before work starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_pipeline, tiny_unet
from torch import Tensor
from training_samples import quick, sample_clip

from motion_lora.backbones.unet3d import UNET3D
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.absorber import Absorber
from motion_lora.core.errors import LoRAFileError, TrainingError
from motion_lora.core.lora import SPATIAL, LoRA, LoRALayer
from motion_lora.files.absorber_file import save_absorber
from motion_lora.files.absorbers import absorber_from_lora, load_any_absorber
from motion_lora.files.own import save_lora
from motion_lora.files.writers import export_kohya
from motion_lora.jobs.inputs import keep_absorber, kept_absorber
from motion_lora.training import check_absorber, train

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NETWORK = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline()


def look(base: VideoPipeline) -> LoRA:
    out, into = base.unet.get_submodule(LAYER).weight.shape
    return LoRA({LAYER: LoRALayer(torch.ones(2, into), torch.ones(out, 2), 0.5)}, {"modelspec.title": "look"})


def tuned_weights(base: VideoPipeline, shift: float = 0.03) -> dict[str, Tensor]:
    """What a DreamBooth run of an image model of this layout leaves: spatial names only."""
    return {n: p.detach() + shift for n, p in base.unet.named_parameters() if UNET3D.layer_of(n) == SPATIAL}


def write_network(folder: Path, weights: dict[str, Tensor], name: str = NETWORK) -> Path:
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "unet" / f"{name}.safetensors")
    return folder


def test_trained_absorbers_and_loras_of_any_format(base, tmp_path):
    spatial = look(base)
    own = save_absorber(tmp_path / "own.safetensors", Absorber(spatial, metadata={}))
    lora = save_lora(tmp_path / "lora.safetensors", spatial)
    kohya = export_kohya(tmp_path / "kohya.safetensors", spatial)
    for path in (own, lora, kohya):
        absorber = load_any_absorber(path, base.unet).absorber
        assert torch.allclose(absorber.spatial.layers[LAYER].delta(), spatial.layers[LAYER].delta())
        check_absorber(base, absorber)
        weak = load_any_absorber(path, base.unet, strength=0.5).absorber
        assert torch.allclose(weak.spatial.layers[LAYER].delta(), 0.5 * spatial.layers[LAYER].delta())


def test_a_network_is_read_from_its_folder_its_unet_its_shards_or_its_file(base, tmp_path):
    weights = tuned_weights(base)
    folder = write_network(tmp_path / "whole", weights)
    names = sorted(weights)
    halves = {i: {name: weights[name] for name in names[i::2]} for i in (0, 1)}
    for i, half in halves.items():
        sharded = write_network(tmp_path / "shards", half, f"{NETWORK}-0000{i + 1}-of-00002")
    rounded = write_network(tmp_path / "fp16", {n: w.half() for n, w in weights.items()}, f"{NETWORK}.fp16")
    write_network(rounded, {"conv_in.weight": torch.zeros(1)}, f"{NETWORK}.non_ema")
    for path in (folder, folder / "unet", folder / "unet" / f"{NETWORK}.safetensors", sharded, rounded):
        report = load_any_absorber(path, base.unet)
        assert set(report.absorber.weights) == set(weights) and report.absorber.source == str(path.resolve())
        tolerance = 1e-3 if path == rounded else 0
        assert all(torch.allclose(report.absorber.weights[n], weights[n], atol=tolerance) for n in names)
        assert f"{len(weights)} of {len(weights)} spatial weights" in report.notes[0]


def test_a_video_network_gives_its_spatial_part_and_the_base_nothing(base, tmp_path):
    own = dict(base.unet.state_dict())
    name = "down_blocks.0.temp_attentions.0.norm.weight"
    path = write_network(tmp_path / "base", own)
    with pytest.raises(LoRAFileError, match="the base's own spatial weights"):
        load_any_absorber(path, base.unet)
    path = write_network(tmp_path / "tuned", {n: w + 0.1 for n, w in own.items()})
    assert name not in load_any_absorber(path, base.unet).absorber.weights


REFUSED = {
    "another size": (lambda w: {**w, "conv_in.weight": torch.zeros(8, 4, 3, 3)}, "network of another size"),
    "another layout": (lambda w: {"conv_in.weight": w["conv_in.weight"]}, "network of another layout"),
    "a checkpoint": (lambda w: {"model.diffusion_model.out.weight": torch.zeros(2, 2)}, "Stability's layout"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_do_not_fit_are_refused_by_their_headers(base, tmp_path, case):
    change, reason = REFUSED[case]
    path = tmp_path / "network.safetensors"
    save_file(change(tuned_weights(base)), path)
    with pytest.raises(LoRAFileError, match=reason):
        load_any_absorber(path, base.unet)


def test_what_is_no_look_is_refused(base, tmp_path):
    (tmp_path / "empty" / "unet").mkdir(parents=True)
    with pytest.raises(LoRAFileError, match=f"holds no {NETWORK}"):
        load_any_absorber(tmp_path / "empty", base.unet)
    with pytest.raises(LoRAFileError, match="which has no strength"):
        load_any_absorber(write_network(tmp_path / "n", tuned_weights(base)), base.unet, strength=0.5)
    temporal = "transformer_in.transformer_blocks.0.attn1.to_q"
    with pytest.raises(LoRAFileError, match="changes temporal layers only"):
        absorber_from_lora(LoRA({temporal: look(base).layers[LAYER]}))


def test_an_absorber_that_was_trained_on_another_base_is_refused_before_work(base):
    other = {"motion_lora.base_weights_hash": "1", "motion_lora.base_name": "other"}
    with pytest.raises(LoRAFileError, match="trained on other, not on tiny"):
        train(base, [sample_clip()], quick(), absorber=Absorber(look(base), metadata=other))
    check_absorber(base, Absorber(look(base), metadata={**other, "motion_lora.base_weights_hash": ""}))


def test_a_job_keeps_a_network_by_its_place(base, tmp_path):
    network = write_network(tmp_path / "net", tuned_weights(base))
    absorber = load_any_absorber(network, base.unet).absorber
    both = replace(absorber, spatial=look(base))
    for number, value in enumerate((absorber, both)):
        folder = tmp_path / str(number)
        keep_absorber(folder, value)
        assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000
        assert kept_absorber(folder, base).fingerprint() == value.fingerprint()
    assert kept_absorber(tmp_path / "none", base) is None
    write_network(tmp_path / "net", tuned_weights(base, 0.04))
    with pytest.raises(TrainingError, match="not the one this job began with"):
        kept_absorber(tmp_path / "0", base)
    (network / "unet" / f"{NETWORK}.safetensors").unlink()
    with pytest.raises(TrainingError, match=f"cannot be read.*holds no {NETWORK}"):
        kept_absorber(tmp_path / "0", base)
    with pytest.raises(LoRAFileError, match="came from no file"):
        keep_absorber(tmp_path / "2", Absorber(weights=tuned_weights(base)))


def test_a_smaller_base_refuses_the_network_of_a_larger_one(tmp_path):
    path = write_network(tmp_path / "large", dict(tiny_unet(levels=3).state_dict()))
    with pytest.raises(LoRAFileError, match="network of another"):
        load_any_absorber(path, tiny_unet(levels=2))
