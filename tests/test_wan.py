"""Wan: joint attention, causal autoencoder, flow matching; what is the same on every backbone is in the matrix."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tiny import FLOW_CONFIG, TEXT_WIDTH, tiny_frames, tiny_latents, tiny_pipeline, tiny_wan, tiny_wan_vae
from training_samples import quick, sample_clip, stage_on

from motion_lora.adapters.targets import parameter_count, target_modules
from motion_lora.backbones.base import Text
from motion_lora.backbones.bypass import temporal_bypass
from motion_lora.backbones.registry import empty_network, of_keys
from motion_lora.backbones.wan import (
    WAN,
    WAN_1_3B_CONFIG,
    WAN_5B_CONFIG,
    WAN_14B_CONFIG,
    diffusers_name,
    native_name,
)
from motion_lora.base.noise import FlowSchedule, NoiseSchedule, noise_schedule, prediction_type
from motion_lora.base.schedulers import make_scheduler
from motion_lora.core.errors import ClipError, ModelError, SettingsError
from motion_lora.files.names import parse_key
from motion_lora.methods.losses import denoising_loss, frame_difference_loss
from motion_lora.methods.table import METHODS
from motion_lora.sampling.loop import sample, start_noise
from motion_lora.sampling.settings import SampleSettings
from motion_lora.sampling.windows import Fusion
from motion_lora.training import TrainSettings, train


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(levels=2, backbone="wan")


def text_of(prompts: int) -> torch.Tensor:
    return torch.randn(prompts, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


# Layers and names


@pytest.mark.parametrize(
    ("config", "preset", "modules", "parameters"),
    [
        (WAN_1_3B_CONFIG, "joint-qk", 60, 184_320),
        (WAN_1_3B_CONFIG, "joint-attention", 120, 368_640),
        (WAN_1_3B_CONFIG, "joint-all", 300, 1_367_040),
        (WAN_14B_CONFIG, "joint-qk", 80, 819_200),
        (WAN_14B_CONFIG, "joint-all", 400, 4_792_320),
        (WAN_5B_CONFIG, "joint-qk", 60, 368_640),
    ],
)
def test_counts_at_full_size(config, preset, modules, parameters):
    network = empty_network(config)
    assert len(target_modules(network, preset)) == modules
    assert parameter_count(network, preset, 1) == parameters


def test_other_networks_presets_are_refused_with_the_way_out(pipeline):
    with pytest.raises(ModelError, match=r"no temporal transformer, .* as method 'joint-customize-a-video' does"):
        target_modules(pipeline.unet, "temporal-attention")
    with pytest.raises(ModelError, match="no joint transformer"):
        target_modules(tiny_pipeline(levels=2).unet, "joint-qk")
    assert TrainSettings.for_base(pipeline).method == "joint-customize-a-video"


def test_native_and_diffusers_names_map_onto_each_other_without_remainder():
    names = list(empty_network({**WAN_1_3B_CONFIG, "num_layers": 2}).state_dict())
    native = [native_name(name) for name in names]
    assert len(set(native)) == len(names)
    assert [diffusers_name(name) for name in native] == names
    pairs = {
        "blocks.1.attn1.to_out.0.bias": "blocks.1.self_attn.o.bias",
        "blocks.1.norm2.weight": "blocks.1.norm3.weight",
        "blocks.0.scale_shift_table": "blocks.0.modulation",
        "scale_shift_table": "head.modulation",
        "proj_out.weight": "head.head.weight",
        "condition_embedder.time_proj.weight": "time_projection.1.weight",
    }
    assert {name: native_name(name) for name in pairs} == pairs


@pytest.mark.parametrize(
    ("key", "module", "role"),
    [
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "blocks.0.attn1.to_q", "down"),
        ("lora_unet_blocks_12_cross_attn_o.lora_up.weight", "blocks.12.attn2.to_out.0", "up"),
        ("lora_unet__blocks_0_ffn_0.lora_down.weight", "blocks.0.ffn.net.0.proj", "down"),
        ("lora_unet_blocks_0_self_attn_k.alpha", "blocks.0.attn1.to_k", "alpha"),
        ("transformer.blocks.3.attn1.to_out.0.lora_B.weight", "blocks.3.attn1.to_out.0", "up"),
    ],
)
def test_keys_of_every_trainer(key, module, role):
    assert of_keys([key]) is WAN
    parsed = parse_key(key)
    assert (WAN.module_named(parsed.module), parsed.role) == (module, role)


# Frames


def test_one_frame_is_one_latent_and_four_more_are_the_next(pipeline):
    vae = tiny_wan_vae()
    assert [WAN.latent_frames(vae, frames) for frames in (1, 5, 81)] == [1, 2, 21]
    assert [WAN.num_frames(vae, latents) for latents in (1, 2, 21)] == [1, 5, 81]
    frames = torch.rand(5, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    latents = pipeline.encode_frames(frames)
    assert latents.shape == pipeline.latent_shape(5, 32, 32) == (1, 4, 2, 4, 4)
    direct = vae.encode((frames.movedim(-1, 0) * 2 - 1)[None]).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (direct - mean) / std)
    torch.testing.assert_close(pipeline.encode_frames(frames[:1]), latents[:, :, :1])
    assert pipeline.decode_latents(latents).shape == (1, 5, 32, 32, 3)
    torch.testing.assert_close(pipeline.scaled(pipeline.unscaled(latents)), latents)


def test_other_numbers_of_frames_are_refused(pipeline):
    with pytest.raises(SettingsError, match=r"num_frames is 8, and this base takes 4 n \+ 1: take 5 or 9"):
        sample(pipeline, SampleSettings("a red circle", num_frames=8))
    with pytest.raises(ClipError, match="take 1 or 5"):
        train(pipeline, [sample_clip(num_frames=3)], quick(method="joint-lora"))


@torch.no_grad()
def test_without_time_each_frame_is_a_clip_of_its_own():
    network, latents, text = (
        tiny_wan(levels=2),
        tiny_latents(num_frames=3, batch=2),
        Text({"encoder_hidden_states": text_of(2)}),
    )
    whole = WAN.predict(network, latents, torch.tensor(321.0), text)
    with temporal_bypass(network):
        apart = WAN.predict(network, latents, torch.tensor(321.0), text)
    alone = [WAN.predict(network, latents[:, :, f : f + 1], torch.tensor(321.0), text) for f in range(3)]
    torch.testing.assert_close(apart, torch.cat(alone, dim=2))
    assert not torch.allclose(apart, whole, atol=1e-2)


def test_single_frames_are_encoded_as_such(pipeline):
    """Of four frames in one latent none can be taken out."""
    clip = sample_clip(num_frames=5)
    stage = METHODS["joint-motiondirector"].stages[0]
    run = stage_on(pipeline, stage, quick(method="joint-motiondirector"), [clip], None)
    still = run.draw(0).one_frame()
    assert still.latents.shape[2] == still.noise.shape[2] == 1
    each = pipeline.encode_frames(clip.frames[:, None])
    assert any(torch.equal(still.latents[0], one) for one in each)
    absorbing = METHODS["joint-customize-a-video"].stages[0]
    run = stage_on(pipeline, absorbing, quick(method="joint-customize-a-video", patch_crop=False), [clip], None)
    drawn = run.draw(0).latents
    assert drawn.shape[2] == 1 and all(any(torch.equal(one, still) for still in each) for one in drawn)


# Flow matching


def test_the_process_is_told_from_the_scheduler():
    assert isinstance(noise_schedule(FLOW_CONFIG), FlowSchedule)
    assert isinstance(noise_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}), FlowSchedule)
    assert isinstance(noise_schedule({}), NoiseSchedule)
    assert prediction_type(FLOW_CONFIG) == "flow_prediction"


@pytest.mark.parametrize("spread", ["uniform", "logit-normal"])
def test_timesteps_are_drawn_even_or_logit_normal_then_shifted(spread):
    schedule = FlowSchedule(FLOW_CONFIG, spread)
    sigma = schedule.sample_timesteps(20_000, torch.Generator().manual_seed(0)) / 1000
    place = sigma / (3 - 2 * sigma)  # the shift undone
    assert float(place.mean()) == pytest.approx(0.5, abs=0.01)
    # Variance of U(0, 1) and of the logistic function of a standard normal.
    assert float(place.var()) == pytest.approx(1 / 12 if spread == "uniform" else 0.0434, abs=0.002)
    part = schedule.sample_timesteps(2000, torch.Generator().manual_seed(0), 0.5, 1.0)
    first_half = make_scheduler("euler", FLOW_CONFIG)
    first_half.set_timesteps(10)
    assert float(part.min()) >= 1000 * 3 * 0.5 / 2 - 1e-3
    assert float(first_half.timesteps[4]) > 750 > float(first_half.timesteps[5])


def test_noise_target_and_weights_by_hand():
    schedule = FlowSchedule(FLOW_CONFIG)
    clean, noise = torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), 6.0)
    at = torch.tensor([250.0])
    assert float(schedule.add_noise(clean, noise, at)) == 0.75 * 2 + 0.25 * 6
    assert float(schedule.target(clean, noise, at)) == 4.0
    # snr = 9; as for v, sigma^2 min(snr, gamma)
    assert schedule.min_snr_weights(at, 5.0).tolist() == [pytest.approx(0.0625 * 5)]
    assert schedule.min_snr_weights(at, 20.0).tolist() == [pytest.approx(0.0625 * 9)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_sampling_is_that_of_diffusers_pipeline(pipeline, name):
    made = sample(
        pipeline,
        SampleSettings("a red circle", num_inference_steps=4, guidance_scale=3.0, num_frames=5, scheduler=name, seed=7),
    )[0]
    kind = {"euler": FlowMatchEulerDiscreteScheduler, "unipc": UniPCMultistepScheduler}[name]
    entries = {"shift": 3.0} if name == "euler" else {k: v for k, v in FLOW_CONFIG.items() if k != "_class_name"}
    theirs = WanPipeline(None, None, pipeline.vae, kind(**entries), pipeline.unet)
    theirs.set_progress_bar_config(disable=True)
    found = theirs(
        prompt_embeds=pipeline.encode_prompt(["a red circle"]),
        negative_prompt_embeds=pipeline.encode_prompt([""]),
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(7)),
        output_type="pt",
    ).frames
    # Theirs asks for the two predictions of the guidance one after the other, ours in one batch.
    torch.testing.assert_close(made.frames, found[0].movedim(1, -1).float(), rtol=0, atol=5e-5)


def test_samplers_of_diffusion_alone_are_refused(pipeline):
    for name in ("euler-ancestral", "dpmpp-2m-karras"):
        with pytest.raises(
            SettingsError, match=f"'{name}', which is not for a base of flow matching; use one of: ddim"
        ):
            sample(pipeline, SampleSettings("a red circle", num_inference_steps=2, scheduler=name))
    with pytest.raises(SettingsError, match="timestep_sampling is 'logit-normal', which is for flow matching"):
        train(tiny_pipeline(levels=2), [sample_clip()], quick(timestep_sampling="logit-normal"))


def test_an_edit_starts_at_its_noise(pipeline):
    source = pipeline.encode_frames(tiny_frames(num_frames=5))
    settings = SampleSettings(
        "a red circle", num_inference_steps=10, num_frames=5, edit_strength=0.1, guidance_scale=1.0
    )
    little, much = (
        sample(pipeline, [SampleSettings(**{**vars(settings), "edit_strength": strength})], source=source)[0].latents
        for strength in (0.1, 0.9)
    )
    assert float((little - source).norm()) < float((much - source).norm())


@torch.no_grad()
def test_windows_over_time_are_of_latent_frames(pipeline):
    """17 frames are 5 latents, a window of 9 frames is 3; one step of Euler from pure noise is noise - velocity."""
    asked = SampleSettings(
        "a red circle",
        num_inference_steps=1,
        guidance_scale=1.0,
        num_frames=17,
        height=16,
        width=16,
        context_frames=9,
        context_overlap=2,
    )
    made = sample(pipeline, asked, decode=False)[0].latents
    noise, fusion = start_noise(pipeline, asked), Fusion(torch.zeros(1, 4, 5, 2, 2))
    text = pipeline.read_prompts(["a red circle"])
    for window in ([0, 1, 2], [2, 3, 4]):
        fusion.add(window, WAN.predict(pipeline.unet, noise[:, :, window], torch.tensor(1000.0), text))
    torch.testing.assert_close(made, noise - fusion.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_frames": 8}, r"context_frames: num_frames is 8, and this base takes 4 n \+ 1"),
        ({"context_frames": 9, "loop": True}, "loop is on, but the first latent of this base is one frame"),
    ],
)
def test_windows_that_cannot_be_are_refused(pipeline, changes, message):
    with pytest.raises(SettingsError, match=message):
        sample(pipeline, SampleSettings("a red circle", num_frames=17, **changes))


# The loss


def test_frame_difference_loss_by_hand():
    """Differences 1 and 3 against 1 and -3, each one number: the lengths are equal, so the cosine of both is 1."""

    def clip(*frames: float) -> torch.Tensor:
        return torch.tensor(frames).view(1, 1, -1, 1, 1)

    same = frame_difference_loss(clip(0.0, 1.0, 4.0), clip(5.0, 6.0, 3.0))
    assert float(same) == pytest.approx(float(denoising_loss(clip(0.0, 1.0, 4.0), clip(5.0, 6.0, 3.0))))
    # Two places: (1, 0) against (0, 1) are apart, (1, 1) against (2, 2) are alike; the mean of 1 - cos is a half.
    one = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]]).view(1, 1, 3, 1, 2)
    other = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 3.0]]).view(1, 1, 3, 1, 2)
    assert float(frame_difference_loss(one, other) - denoising_loss(one, other)) == pytest.approx(0.5)
    assert float(frame_difference_loss(one[:, :, :1], other[:, :, :1])) == 0.0
