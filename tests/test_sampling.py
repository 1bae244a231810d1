"""The denoising loop against one written out by hand, seeds across batches, edits, and what it must leave alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import NUM_FRAMES, SIZE, tiny_frames, tiny_latents, tiny_pipeline
from torch import Tensor, nn

from motion_lora.adapters.highway import appearance_highway
from motion_lora.adapters.targets import target_modules
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.schedulers import SCHEDULERS
from motion_lora.core.curves import Schedule
from motion_lora.core.errors import LoRAFileError, SettingsError
from motion_lora.core.highway import Highway
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.sampling.loop import sample, start_noise
from motion_lora.sampling.settings import SampleSettings, resolve

PROMPT = "a red circle moving left"


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    # v_prediction keeps a network without training from blowing its latents up.
    return tiny_pipeline(levels=2, prediction_type="v_prediction")


def settings(**entries: object) -> SampleSettings:
    defaults: dict = {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 3.0, "num_frames": 2}
    return SampleSettings(**{**defaults, **entries})


def latents_of(base: VideoPipeline, wanted: SampleSettings, **options: object) -> Tensor:
    return sample(base, wanted, decode=False, **options)[0].latents


def random_lora(unet: nn.Module, preset: str = "temporal-attention", seed: int = 3) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in target_modules(unet, preset):
        out, into = unet.get_submodule(name).weight.shape
        down, up = (torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in ((2, into), (out, 2)))
        layers[name] = LoRALayer(down, up)
    return LoRA(layers)


@torch.no_grad()
def by_hand(base: VideoPipeline, wanted: SampleSettings) -> Tensor:
    """Two network calls a step, one for each text, on the plain base."""
    scheduler = base.make_scheduler(wanted.scheduler)
    scheduler.set_timesteps(wanted.num_inference_steps)
    generator = torch.Generator().manual_seed(wanted.seed)
    latents = torch.randn(1, 4, wanted.num_frames, 8, 8, generator=generator) * scheduler.init_noise_sigma
    options = {"generator": generator} if wanted.scheduler == "euler-ancestral" else {}
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, timestep)
        positive = base.unet(noisy, timestep, base.encode_prompt([wanted.prompt])).sample
        negative = base.unet(noisy, timestep, base.encode_prompt([wanted.negative_prompt])).sample
        guided = negative + wanted.guidance_scale * (positive - negative)
        latents = scheduler.step(guided, timestep, latents, **options).prev_sample
    return latents


def close(a: Tensor, b: Tensor, within: float = 1e-3) -> bool:
    return float((a - b).abs().max()) < within * float(b.std())


# The loop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "prediction"), [*((name, "v_prediction") for name in SCHEDULERS), ("ddim", "epsilon")]
)
def test_equals_the_loop_by_hand(base: VideoPipeline, scheduler: str, prediction: str) -> None:
    of_kind = dataclasses.replace(base, scheduler_config={**base.scheduler_config, "prediction_type": prediction})
    wanted = settings(scheduler=scheduler, negative_prompt="a blue square", seed=5)
    assert close(latents_of(of_kind, wanted), by_hand(of_kind, wanted))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_seed_gives_the_same_video_alone_and_in_a_batch(base: VideoPipeline, scheduler: str) -> None:
    wanted = [settings(scheduler=scheduler, seed=seed, prompt=f"{PROMPT} over snow"[: 10 + seed]) for seed in (1, 2)]
    together = sample(base, wanted, decode=False)
    for one, video in zip(wanted, together, strict=True):
        alone = latents_of(base, one)
        assert close(alone, video.latents)
        assert video.settings.seed == one.seed
    assert not close(together[0].latents, together[1].latents, 0.1)
    assert torch.equal(latents_of(base, wanted[1]), alone)


def test_more_sequences_than_cuda_takes_go_in_parts(base: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts with guidance at 576 x 1024 are 73,728 sequences for a temporal attention; 65,535 is CUDA's end."""
    wanted = [settings(seed=seed) for seed in (1, 2, 3)]
    together, sizes = sample(base, wanted, decode=False), []
    predict = type(base.backbone).predict

    def watched(self: object, unet: object, latents: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(latents.shape[0] * latents.shape[-2] * latents.shape[-1])
        return predict(self, unet, latents, *rest)

    monkeypatch.setattr(type(base.backbone), "predict", watched)
    monkeypatch.setattr("motion_lora.sampling.loop.MOST_SEQUENCES", 150)
    parts = sample(base, wanted, decode=False)
    assert set(sizes) == {128}, "two of the six at a time"
    for one, other in zip(together, parts, strict=True):
        assert close(one.latents, other.latents)


def test_a_size_that_cuda_cannot_take_is_named() -> None:
    full = tiny_pipeline(levels=2)

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("CUDA error: invalid configuration argument")

    full.unet.register_forward_pre_hook(fail)
    with pytest.raises(SettingsError, match="32 x 32 pixels are more than cpu can take in one call"):
        sample(full, settings())


def test_videos_that_differ_in_more_than_the_seed(base: VideoPipeline) -> None:
    """Own guidance scale, negative prompt, size, frames, steps and scheduler each; order kept; small batches."""
    wanted = [
        settings(seed=1, guidance_scale=2.0),
        settings(seed=2, num_frames=3),
        settings(seed=3, guidance_scale=7.0, negative_prompt="sand"),
        settings(seed=4, guidance_scale=1.0),
        settings(seed=5, height=SIZE, width=2 * SIZE),
        settings(seed=6, scheduler="euler", num_inference_steps=2),
        settings(seed=7),
    ]
    steps: list[tuple[int, int]] = []
    videos = sample(base, wanted, batch_size=2, callback=lambda *done: steps.append(done), decode=False)
    assert [video.settings.seed for video in videos] == [1, 2, 3, 4, 5, 6, 7]
    # Batches of seeds 1 and 3, 7, 2, 4, 5 take three steps, that of 6 takes two.
    assert steps == [(done, 17) for done in range(1, 18)]
    for one, video in zip(wanted, videos, strict=True):
        assert close(latents_of(base, one), video.latents)
    assert videos[4].latents.shape == (1, 4, 2, 8, 16)


@pytest.mark.parametrize(("scale", "passes"), [(0.0, 1), (1.0, 1), (1.5, 2)])
def test_guidance_of_one_skips_the_unconditional_pass(scale: float, passes: int) -> None:
    watched = tiny_pipeline(levels=2)
    batches: list[int] = []
    watched.unet.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
    sample(watched, [settings(guidance_scale=scale, seed=seed) for seed in (1, 2)], decode=False)
    assert batches == [2 * passes] * 3


def test_without_guidance_the_negative_prompt_has_no_effect(base: VideoPipeline) -> None:
    plain = latents_of(base, settings(guidance_scale=1.0))
    assert torch.equal(latents_of(base, settings(guidance_scale=1.0, negative_prompt="sand")), plain)
    assert not close(latents_of(base, settings(negative_prompt="sand")), latents_of(base, settings()), 1e-2)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_begin_at_the_noise(scheduler: str, steps: int) -> None:
    watched = tiny_pipeline(levels=2)
    times: list[float] = []
    watched.unet.register_forward_pre_hook(lambda module, args: times.append(float(args[1])))
    video = sample(watched, settings(scheduler=scheduler, num_inference_steps=steps), decode=False)[0]
    assert len(times) == steps
    assert times[0] > 500
    assert bool(torch.isfinite(video.latents).all())


def test_result(base: VideoPipeline) -> None:
    video = sample(base, SampleSettings(PROMPT, num_inference_steps=2, seed=4))[0]
    assert video.frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert video.latents.shape == (1, 4, NUM_FRAMES, SIZE // 4, SIZE // 4)
    assert video.frames.dtype == video.latents.dtype == torch.float32
    assert torch.equal(video.frames, base.decode_latents(video.latents)[0])
    full = video.settings
    assert (full.num_frames, full.height, full.width, full.fps) == (NUM_FRAMES, SIZE, SIZE, 8.0)
    assert torch.equal(sample(base, full)[0].frames, video.frames)
    assert sample(base, full, decode=False)[0].frames.shape == (0, SIZE, SIZE, 3)
    assert sample(base, []) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_networks_keep_the_schedulers_in_float32(base: VideoPipeline, dtype: torch.dtype) -> None:
    modules = {
        part: nn.Module.to(getattr(tiny_pipeline(levels=2), part), dtype) for part in ("unet", "vae", "text_encoder")
    }
    half = dataclasses.replace(base, dtype=dtype, **modules)
    video = sample(half, settings())[0]
    assert video.latents.dtype == video.frames.dtype == torch.float32
    assert close(video.latents, latents_of(base, settings()), 0.5)


# Start noise and edits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_given_noise_takes_the_place_of_the_seed(base: VideoPipeline, scheduler: str) -> None:
    wanted = settings(scheduler=scheduler, seed=8)
    own = start_noise(base, wanted)
    assert torch.equal(latents_of(base, wanted, latents=own), latents_of(base, wanted))
    assert not close(latents_of(base, wanted, latents=-own), latents_of(base, wanted), 0.1)


def test_one_noise_for_all_or_one_for_each(base: VideoPipeline) -> None:
    noises = tiny_latents(7, batch=2, num_frames=2)
    wanted = [settings(seed=1), settings(seed=2)]
    shared = sample(base, wanted, latents=noises[:1], decode=False)
    assert close(shared[0].latents, shared[1].latents)
    each = sample(base, wanted, latents=noises, decode=False)
    assert close(each[0].latents, shared[0].latents)
    assert not close(each[1].latents, shared[1].latents, 0.1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_editing_runs_a_share_of_the_steps_and_stays_near_the_source(base: VideoPipeline, scheduler: str) -> None:
    clip = base.encode_frames(tiny_frames(num_frames=2))
    steps: list[tuple[int, int]] = []

    def edited(strength: float) -> Tensor:
        wanted = settings(num_inference_steps=10, edit_strength=strength, guidance_scale=1.0, scheduler=scheduler)
        return latents_of(base, wanted, source=clip, callback=lambda *done: steps.append(done))

    little = edited(0.1)
    assert steps == [(1, 1)]
    much = edited(0.9)
    assert steps[1:] == [(step, 9) for step in range(1, 10)]
    assert (little - clip).abs().mean() < 0.5 * (much - clip).abs().mean()
    assert torch.isfinite(edited(1.0)).all()


def test_the_noise_of_an_edit_is_the_seeds(base: VideoPipeline) -> None:
    clip = base.encode_frames(tiny_frames(num_frames=2))
    wanted = settings(edit_strength=0.7, seed=3)
    first = latents_of(base, wanted, source=clip)
    assert torch.equal(latents_of(base, wanted, source=clip), first)
    assert not close(latents_of(base, settings(edit_strength=0.7, seed=4), source=clip), first, 0.1)
    assert not close(latents_of(base, wanted, source=-clip), first, 0.1)


# What the loop must leave alone -------------------------------------------------------------------------------------


def assert_untouched(base: VideoPipeline, before: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(before, base.unet.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in base.unet.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in base.unet.modules())


def test_the_base_stays_bit_identical(base: VideoPipeline) -> None:
    before = [tensor.clone() for tensor in base.unet.state_dict().values()]
    stack = AdapterStack((StackEntry(random_lora(base.unet)),), Highway())
    plain = latents_of(base, settings())
    changed = latents_of(base, settings(), stack=stack)
    assert_untouched(base, before)
    assert not close(changed, plain, 0.1)
    assert torch.equal(latents_of(base, settings()), plain)


def test_what_the_callback_raises_passes_through(base: VideoPipeline) -> None:
    before = [tensor.clone() for tensor in base.unet.state_dict().values()]
    stack = AdapterStack((StackEntry(random_lora(base.unet)),), Highway())

    def interrupt(step: int, total: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(base, settings(), stack=stack, callback=interrupt)
    assert_untouched(base, before)


def test_in_inference_mode_all_stays_fit_for_training(base: VideoPipeline) -> None:
    with torch.inference_mode():
        noise = start_noise(base, settings()) * 1
        video = sample(base, settings(), latents=noise)[0]
    assert not video.latents.is_inference() and not video.frames.is_inference()
    assert not video.latents.requires_grad
    unet = base.replica().unet
    weight = unet.conv_out.weight.requires_grad_(True)
    unet(video.latents, 5, base.encode_prompt([PROMPT])).sample.sum().backward()
    assert weight.grad is not None


# The stack ----------------------------------------------------------------------------------------------------------


def test_strength_zero_is_the_base_and_merged_is_unmerged(base: VideoPipeline) -> None:
    lora = random_lora(base.unet)
    plain = latents_of(base, settings())
    assert torch.equal(latents_of(base, settings(), stack=AdapterStack((StackEntry(lora, strength=0.0),))), plain)
    merged = latents_of(base, settings(), stack=AdapterStack((StackEntry(lora, strength=0.5),)))
    always = Schedule(curve=((0.0, 0.5), (0.5, 0.5), (1.0, 0.50001)))
    beside = latents_of(base, settings(), stack=AdapterStack((StackEntry(lora, steps=always),)))
    assert not close(merged, plain, 0.1)
    assert close(beside, merged, 1e-2)


def test_step_positions_count_over_the_whole_schedule(base: VideoPipeline) -> None:
    """Of four steps an edit at one half runs the positions 2/3 and 1; what ends before has no part in it."""
    lora = random_lora(base.unet)
    clip = base.encode_frames(tiny_frames(num_frames=2))
    wanted = settings(num_inference_steps=4, edit_strength=0.5)

    def with_schedule(steps: Schedule) -> Tensor:
        return latents_of(base, wanted, source=clip, stack=AdapterStack((StackEntry(lora, steps=steps),)))

    plain = latents_of(base, wanted, source=clip)
    assert torch.equal(with_schedule(Schedule(end=0.66)), plain)
    assert not close(with_schedule(Schedule(end=0.67)), plain, 1e-2)
    assert not close(with_schedule(Schedule(start=0.99)), plain, 1e-2)


def test_highway_acts_during_sampling(base: VideoPipeline) -> None:
    stack = AdapterStack(highway=Highway("all", scale=1.0))
    routed = base.replica()
    with appearance_highway(routed.unet, stack.highway):
        expected = by_hand(routed, settings())
    assert close(latents_of(base, settings(), stack=stack), expected)
    assert not close(expected, by_hand(base, settings()), 1e-2)


def test_text_part_of_an_image_lora(base: VideoPipeline) -> None:
    names = [name for name, m in base.text_encoder.named_modules() if isinstance(m, nn.Linear) and "q_proj" in name]
    layers = {name: LoRALayer(torch.ones(1, 32), torch.ones(32, 1)) for name in names}
    entry = StackEntry(random_lora(base.unet), strength=0.3)
    plain = latents_of(base, settings(), stack=AdapterStack((entry,)))
    text = base.encode_prompt([PROMPT])
    with_text = dataclasses.replace(entry, text_encoder=LoRA(layers))
    assert not close(latents_of(base, settings(), stack=AdapterStack((with_text,))), plain, 1e-2)
    assert torch.equal(base.encode_prompt([PROMPT]), text)


# Refusing -----------------------------------------------------------------------------------------------------------

FAULTS = [
    ({"num_frames": 0}, "num_frames is 0, it must be a whole number from 1 to 1024"),
    ({"num_frames": 2.5}, r"num_frames is 2\.5, it must be a whole number"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0, it must be a whole number from 1 to 999"),
    ({"num_inference_steps": 1000}, "num_inference_steps is 1000, it must be a whole number from 1 to 999"),
    ({"guidance_scale": -1.0}, r"guidance_scale is -1\.0, it must be a number from 0 to 100"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"seed": -1}, "seed is -1, it must be a whole number from 0 to 18446744073709551615"),
    (
        {"scheduler": "plms"},
        "scheduler is 'plms', it must be one of: ddim, dpmpp-2m-karras, euler, euler-ancestral, unipc",
    ),
    ({"fps": 0}, r"fps is 0, it must be a number from 0\.1 to 240"),
    ({"height": 36}, "height x width is 36 x 32; tiny takes multiples of 8 pixels, the nearest size is 32 x 32"),
    ({"width": -8}, "width is -8, it must be a whole number from 1"),
    ({"prompt": None}, "prompt is None, it must be text"),
    ({"edit_strength": 1.5}, r"edit_strength is 1\.5, it must be a number from 0 to 1"),
    ({"edit_strength": 0.5}, r"edit_strength is 0\.5, but there is no source clip"),
]


@pytest.mark.parametrize(("entries", "message"), FAULTS, ids=[next(iter(entries)) for entries, _ in FAULTS])
def test_wrong_settings_before_any_work(base: VideoPipeline, entries: dict, message: str) -> None:
    calls: list[int] = []
    with pytest.raises(SettingsError, match=message):
        sample(base, [settings(), settings(**entries)], callback=lambda *done: calls.append(1))
    assert not calls


def test_all_faults_are_named_at_once(base: VideoPipeline) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(base, settings(seed=-1, height=33, scheduler="x", num_frames=0, guidance_scale=200))
    for name in (
        "seed is -1",
        "height x width is 33 x 32",
        "scheduler is 'x'",
        "num_frames is 0",
        "guidance_scale is 200",
    ):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_edit_without_a_step_to_run(base: VideoPipeline) -> None:
    clip = tiny_latents(num_frames=2)
    with pytest.raises(SettingsError, match=r"edit_strength 0\.2 of 3 steps leaves none to run; use at least 0\.333"):
        sample(base, settings(edit_strength=0.2), source=clip)


@pytest.mark.parametrize("name", ["latents", "source"])
def test_wrong_latents(base: VideoPipeline, name: str) -> None:
    for shape in ((1, 4, 3, 8, 8), (1, 3, 2, 8, 8), (1, 4, 2, 8, 16), (4, 2, 8, 8), (3, 4, 2, 8, 8)):
        with pytest.raises(SettingsError, match=rf"{name} has shape .*need \(1 or 2, 4, 2, 8, 8\)"):
            sample(base, [settings(), settings(seed=1)], **{name: torch.zeros(shape)})
    with pytest.raises(SettingsError, match="not finite"):
        sample(base, settings(), **{name: torch.full((1, 4, 2, 8, 8), float("nan"))})


def test_stacks_that_do_not_fit(base: VideoPipeline) -> None:
    calls: list[int] = []

    def refused(error: type[Exception], stack: AdapterStack) -> None:
        with pytest.raises(error):
            sample(base, settings(), stack=stack, callback=lambda *done: calls.append(1))

    foreign = LoRA({"down_blocks.7.attn": LoRALayer(torch.zeros(1, 4), torch.zeros(4, 1))})
    refused(LoRAFileError, AdapterStack((StackEntry(foreign),)))
    refused(LoRAFileError, AdapterStack((StackEntry(random_lora(base.unet), text_encoder=foreign),)))
    assert not calls
    with pytest.raises(SettingsError, match="batch_size is 0"):
        sample(base, settings(), batch_size=0)


def test_out_of_memory_says_what_to_lower() -> None:
    full = tiny_pipeline(levels=2)

    def fail(module: nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("allocation failed")

    full.unet.register_forward_pre_hook(fail)
    with pytest.raises(SettingsError, match="too little memory for 2 x 2 frames of 32 x 32; lower batch_size") as found:
        sample(full, [settings(), settings(seed=1)])
    assert isinstance(found.value, torch.cuda.OutOfMemoryError), "by which a host knows that it should free its models"
    assert found.value.__cause__ is None, "the failed frames hold what fills the device"


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_seed_gives_the_same_video_on_the_accelerator(base: VideoPipeline, scheduler: str) -> None:
    there = torch.accelerator.current_accelerator()
    modules = {part: getattr(tiny_pipeline(levels=2), part).to(there) for part in ("unet", "vae", "text_encoder")}
    moved = dataclasses.replace(base, device=there, **modules)
    video = sample(moved, settings(scheduler=scheduler))[0]
    assert close(video.latents, latents_of(base, settings(scheduler=scheduler)), 0.05)
    assert video.latents.device.type == video.frames.device.type == "cpu"
