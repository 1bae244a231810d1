"""The tiny Wan's builder and its measurement, without training: parts fit, frames are apart, the table is made."""

from __future__ import annotations

import json

import pytest
import torch
from pretrain_playground import measure_wan, wan

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.playground import world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("wan")
    parts = wan.make_parts(wan.build_vae().eval().requires_grad_(False))
    wan.write_model(output, parts, wan.build_transformer().eval())
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
    assert float(together.std()) == pytest.approx(1.0, abs=0.5)


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
