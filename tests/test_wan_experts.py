"""Two networks of one base, each for a part of the noise: as diffusers' pipeline, with LoRAs for one of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from lora_samples import random_lora
from tiny import TEXT_WIDTH, tiny_pipeline, tiny_wan
from training_samples import quick, sample_clip
from wan_samples import write_files, write_folder

from motion_lora.adapters.targets import target_modules
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.errors import ModelError
from motion_lora.core.lora import LoRA
from motion_lora.core.metadata import EXPERT_KEY
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files.own import load_lora, save_lora
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import train

BOUNDARY = 0.8
ASKED = SampleSettings("a red circle", num_inference_steps=4, guidance_scale=3.0, num_frames=5, scheduler="euler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of A14B's layout, whose boundary is not the usual one."""
    made = write_folder(tmp_path_factory.mktemp("base") / "a14b")
    tiny_wan(5, levels=2).save_pretrained(str(made / "transformer_2"))
    (made / "model_index.json").write_text(json.dumps({"boundary_ratio": BOUNDARY}), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> VideoPipeline:
    return VideoPipeline.load(folder, device="cpu", dtype="fp32", expert="both")


def lora_for(pipeline: VideoPipeline, expert: str) -> LoRA:
    made = random_lora(pipeline.unet, list(target_modules(pipeline.unet, "joint-qk")), scale=2.0)
    return LoRA(made.layers, {EXPERT_KEY: expert} if expert else {}, backbone="wan")


def made_with(pipeline: VideoPipeline, *loras: LoRA) -> torch.Tensor:
    return sample(pipeline, ASKED, stack=AdapterStack(tuple(StackEntry(lora) for lora in loras)))[0].latents


@torch.no_grad()
def test_sampling_is_that_of_diffusers_pipeline(both: VideoPipeline) -> None:
    made = sample(both, replace(ASKED, seed=7))[0]
    theirs = WanPipeline(
        None, None, both.vae, FlowMatchEulerDiscreteScheduler(shift=3.0), both.unet, both.partner, BOUNDARY
    )
    theirs.set_progress_bar_config(disable=True)
    found = theirs(
        prompt_embeds=both.encode_prompt(["a red circle"]),
        negative_prompt_embeds=both.encode_prompt([""]),
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(7)),
        output_type="pt",
    ).frames
    torch.testing.assert_close(made.frames, found[0].movedim(1, -1).float(), rtol=0, atol=5e-5)
    alone = sample(replace(both, partner=None), replace(ASKED, seed=7))[0]
    assert not torch.allclose(made.frames, alone.frames, atol=1e-3), "the second network was at work"


def test_the_boundary_is_that_of_high_noise(both: VideoPipeline) -> None:
    assert [both.expert_at(t) for t in (1000.0, 800.0, 799.9, 0.0)] == ["high", "high", "low", "low"]
    assert tiny_pipeline(levels=2, backbone="wan").expert_at(900.0) == ""


def test_a_lora_acts_on_the_expert_that_it_names(both: VideoPipeline) -> None:
    high, low, everywhere = (lora_for(both, expert) for expert in ("high", "low", ""))
    plain = made_with(both)
    assert torch.equal(made_with(both, high, low), made_with(both, everywhere))
    assert not torch.equal(made_with(both, high), plain) and not torch.equal(made_with(both, low), plain)
    swapped = replace(both, unet=both.partner, partner=both.unet, expert="low")
    swapped = replace(swapped, scheduler_config={**both.scheduler_config, "sigma_low": 0.0, "sigma_high": BOUNDARY})
    assert torch.equal(made_with(swapped, high), made_with(both, high)), "whichever of the two is the trained one"


@pytest.mark.parametrize("expert", ["high", "low"])
def test_an_expert_is_trained_on_its_own_noise_and_its_file_says_so(
    folder: Path, tmp_path: Path, expert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, seen = VideoPipeline.load(folder, device="cpu", dtype="fp32", expert=expert), []
    predict = type(base.backbone).predict
    monkeypatch.setattr(type(base.backbone), "predict", lambda *a: seen.append(a[3]) or predict(*a))
    lora = train(base, [sample_clip(num_frames=5)], quick(method="joint-customize-a-video", absorber_rank=2)).lora
    drawn = torch.cat([timesteps.flatten().float() for timesteps in seen])
    low, high = (800.0, 1000.0) if expert == "high" else (0.0, 800.0)
    assert len(drawn) > 3 and bool(((drawn >= low - 1e-2) & (drawn <= high + 1e-2)).all())
    found = load_lora(save_lora(tmp_path / "x.safetensors", lora, metadata=False))
    assert found.metadata[EXPERT_KEY] == expert


def test_a_part_of_an_experts_steps_is_a_part_of_all(both: VideoPipeline) -> None:
    """Boundary 0.8 at shift 3 is place 0.8 / (3 - 1.6) of the schedule; half of what is above it begins in between."""
    low = 0.8 / 1.4
    assert both.noise_schedule().part_of_whole(0.5, 1.0) == (pytest.approx((low + 1) / 2), pytest.approx(1.0))
    assert both.noise_schedule().part_of_whole(0.0, 1.0) == (0.0, 1.0)


def test_two_files_are_one_base(tmp_path: Path) -> None:
    high, vae = write_files(tmp_path, "wan2.2_t2v_high_noise_tiny")
    low, _ = write_files(tmp_path, "wan2.2_t2v_low_noise_tiny", seed=3)
    texts = {"": torch.zeros(1, TEXT_WIDTH)}
    made = VideoPipeline.from_files(high, vae, texts, partner=low, device="cpu", dtype="fp32")
    assert (made.expert, made.expert_at(875.0), made.expert_at(874.0)) == ("high", "high", "low")
    assert made.partner.proj_out.weight.shape == made.unet.proj_out.weight.shape
    assert not torch.equal(made.partner.proj_out.weight, made.unet.proj_out.weight)
    other = shutil.copy(low, tmp_path / "wan2.1.safetensors")
    with pytest.raises(ModelError, match=r"wan2.1.safetensors are not the two experts .* must say high_noise"):
        VideoPipeline.from_files(high, vae, texts, partner=other, device="cpu")


def test_an_expert_of_a_base_of_one_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has one network, and expert is 'low'"):
        VideoPipeline.load(write_folder(tmp_path / "wan"), device="cpu", expert="low")
    with pytest.raises(ModelError, match=r"no Wan 2\.2 A14B: leave it out"):
        VideoPipeline.load(tmp_path, device="cpu", expert="both")
