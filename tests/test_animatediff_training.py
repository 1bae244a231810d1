"""Everything that trains, on AnimateDiff's network as on any other: absorbers, presets, looks; all of them rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_files import kohya
from lora_samples import predict, random_lora
from tiny import tiny_latents, tiny_motion_unet, tiny_pipeline
from training_samples import largest_change, quick, sample_clip

from motion_lora.adapters.targets import TARGETS, target_modules
from motion_lora.backbones.lora import layers_text
from motion_lora.backbones.motion_unet import normalise_per_frame
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import ModelError
from motion_lora.files.absorbers import load_any_absorber
from motion_lora.sampling.ddim import invert
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import train


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline(levels=2, backbone="animatediff")


@pytest.mark.parametrize("absorber", ["spatial", "textual-inversion", "dual"])
def test_absorbers(base: VideoPipeline, absorber: str) -> None:
    settings = quick(absorber=absorber, steps=1, absorber_steps=1, token_steps=1)
    result = train(base, [sample_clip()], settings)
    assert result.absorber is not None
    assert (result.absorber.spatial is not None) == (absorber != "textual-inversion")
    assert (result.absorber.tokens is not None) == (absorber != "spatial")
    if result.absorber.spatial is not None:
        assert layers_text(result.absorber.spatial) == "spatial"
    assert layers_text(result.lora) == "temporal" and largest_change(result.lora) > 0


@pytest.mark.parametrize("preset", [name for name, row in TARGETS.items() if row.layer == "temporal"])
def test_presets(base: VideoPipeline, preset: str) -> None:
    """Those of convolutions over frames alone have nothing here, and say so."""
    if preset == "temporal-conv":
        with pytest.raises(ModelError, match="temporal-conv"):
            target_modules(base.unet, preset)
        return
    result = train(base, [sample_clip()], quick(method="temporal-only", targets=preset, steps=1))
    assert set(result.lora) == set(target_modules(base.unet, preset))


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_how_far_diffusers_norm_is_off(seed: int) -> None:
    """The figure of docs/CLI.md: distance of the predictions over the size of the one that AnimateDiff makes."""
    unet, noisy, text = tiny_motion_unet(seed, max_frames=32), tiny_latents(seed, num_frames=16), torch.ones(1, 5, 32)
    normalise_per_frame(unet)
    own = predict(unet, noisy, 500, text)
    normalise_per_frame(unet, enabled=False)
    assert 0.05 < float((predict(unet, noisy, 500, text) - own).norm() / own.norm()) < 0.11


def test_many_looks(base: VideoPipeline) -> None:
    looks = ("a blue square moving left over snow", "a red square moving left over snow")
    settings = quick(method="many-looks", looks=looks, look_similarity=-1.0, absorber="dual", steps=1)
    result = train(base, [sample_clip()], settings)
    assert result.lora.backbone == "animatediff" and largest_change(result.lora) > 0


def test_an_image_lora_as_absorber(base: VideoPipeline, tmp_path: Path) -> None:
    """One of the thousands for Stable Diffusion 1.5, in kohya's form."""
    look = random_lora(base.unet, list(target_modules(base.unet, "spatial-self-ff")))
    report = load_any_absorber(kohya(tmp_path / "look.safetensors", look, alpha=1.0), base.unet, strength=0.5)
    assert report.absorber.spatial is not None and report.absorber.spatial.backbone == "animatediff"
    result = train(base, [sample_clip()], quick(steps=1), absorber=report.absorber)
    assert layers_text(result.lora) == "temporal"


def test_an_inverted_clip_comes_back(base: VideoPipeline) -> None:
    latents = tiny_latents(num_frames=3, size=4) * 0.5
    noise = invert(base, latents, num_inference_steps=20)
    settings = SampleSettings(
        "", num_frames=3, height=16, width=16, num_inference_steps=20, guidance_scale=1.0, scheduler="ddim"
    )
    back = sample(base, settings, latents=noise, decode=False)[0].latents
    fresh = sample(base, settings, decode=False)[0].latents
    assert float((back - latents).norm()) < 0.5 * float((fresh - latents).norm())
