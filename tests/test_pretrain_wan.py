"""The tiny Wan's builder and its measurement, without training: parts fit, frames are apart, the table is made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pretrain_playground import measure_wan, wan

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.playground import world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("wan")
    wan.write_model(output, wan.make_parts(), wan.build_vae().eval(), wan.build_transformer().eval())
    return output


def test_what_is_written_is_a_base_of_a_few_megabytes(folder):
    base = VideoPipeline.load(folder, device="cpu", dtype="fp32")
    assert (base.backbone.name, base.default_num_frames, base.default_height) == ("wan", 9, 64)
    assert base.latent_shape(9, 64, 64) == (1, 4, 9, 8, 8)
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 12e6
    assert base.prediction_type == "flow_prediction" and base.noise_schedule().shift == 3.0


def test_every_frame_has_its_own_latent(folder):
    """Its kernels see nothing of the frames before, so that single frames train it."""
    base = VideoPipeline.load(folder, device="cpu", dtype="fp32")
    scene = world.sample_scene(torch.Generator().manual_seed(0), ("orbit",))
    frames = world.render(scene, 9)
    together, apart = base.encode_frames(frames), base.encode_frames(frames[:, None])
    torch.testing.assert_close(together[0].transpose(0, 1), apart[:, :, 0], rtol=1e-4, atol=1e-4)


def test_the_autoencoder_is_taught_both_halves_by_the_playgrounds(tmp_path):
    vae = wan.run_vae(tmp_path, replace(wan.PLANS["vae"], steps=40))
    _, pixels, _ = wan.random_frames(torch.Generator().manual_seed(5), 16)
    known = wan.load_teacher().encode(pixels).latent_dist.mode()
    with wan.as_image_vae(vae):
        taught = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        restored = vae.decode(known[:, :, None]).sample[:, :, 0]
    assert float((taught - known).square().mean()) < 0.8 * float(known.var())
    assert float((restored - pixels).abs().mean()) < 0.8 * float((pixels - pixels.mean()).abs().mean())


def test_sigmas_lie_where_they_are_asked_for():
    latents = torch.zeros(500, 4, 1, 2, 2)
    _, timesteps, target = wan.corrupt(latents, torch.Generator().manual_seed(0), shift=3.0, low=0.8)
    assert float(timesteps.min()) >= 800 and float(timesteps.max()) <= 1000
    assert float(target.std()) == pytest.approx(1.0, abs=0.05)


def test_the_table_has_every_row_and_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_wan, "NUM_INFERENCE_STEPS", 1)
    monkeypatch.setattr(measure_wan, "LOOKS", 1)
    monkeypatch.setitem(measure_wan._TUNING, "absorber_steps", 1)
    base = VideoPipeline.load(folder, device="cpu", dtype="fp32")
    table = measure_wan.measure(base, ["orbit"], 1, tmp_path / "t.json")
    assert set(table) == {"base", *measure_wan.ROWS}
    assert json.loads((tmp_path / "t.json").read_text()) == table
    monkeypatch.setattr(measure_wan, "train", None)
    assert measure_wan.measure(base, ["orbit"], 1, tmp_path / "t.json") == table, "nothing is made twice"
    assert len(measure_wan.rows(table)) == 2 + len(table)
