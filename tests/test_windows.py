"""Windows over time: every frame is covered, one window is no window, seams and loops close."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from lora_samples import random_lora
from tiny import tiny_motion_unet, tiny_pipeline

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.bypass import temporal_bypass
from motion_lora.core.curves import FrameCurve
from motion_lora.core.errors import SettingsError
from motion_lora.core.lora import LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.playground.model import load_playground
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.sampling.windows import Fusion, weights, windows

QUICK = SampleSettings("a red circle", num_frames=4, num_inference_steps=2, guidance_scale=2.0)


def with_settings(**changes: object) -> SampleSettings:
    return replace(QUICK, **changes)


# The plan


@pytest.mark.parametrize("frames", [3, 8, 9, 16, 17, 31, 48, 96])
@pytest.mark.parametrize(("length", "overlap"), [(8, 0), (8, 4), (16, 4), (16, 15)])
@pytest.mark.parametrize("loop", [False, True])
def test_every_frame_is_covered_and_neighbours_share(frames: int, length: int, overlap: int, loop: bool) -> None:
    for step in range(3):
        plan = windows(frames, length, overlap, loop=loop, step=step)
        assert {frame for window in plan for frame in window} == set(range(frames))
        assert {len(window) for window in plan} == {min(length, frames)}
        assert all((b - a) % frames == 1 or frames == 1 for window in plan for a, b in itertools.pairwise(window))
        if len(plan) > 1:
            pairs = [*itertools.pairwise(plan), *([(plan[-1], plan[0])] if loop else [])]
            assert min(len(set(a) & set(b)) for a, b in pairs) >= overlap


def test_windows_are_as_few_as_can_be_and_those_of_a_loop_move() -> None:
    assert windows(16, 16, 4) == [list(range(16))] == windows(16, 0, 4)
    assert [window[0] for window in windows(48, 16, 4)] == [0, 11, 21, 32]
    assert windows(48, 16, 4, step=5) == windows(48, 16, 4)
    assert len(windows(48, 16, 4, loop=True)) == 4
    starts = {windows(48, 16, 4, loop=True, step=step)[0][0] for step in range(12)}
    assert len(starts) == 12
    seam = [window for step in range(4) for window in windows(48, 16, 4, loop=True, step=step) if {47, 0} <= {*window}]
    assert len(seam) >= 4


def test_weights_fall_towards_the_ends_and_the_mean_is_one() -> None:
    assert weights(5).tolist() == [1, 2, 3, 2, 1]
    fusion = Fusion(torch.zeros(1, 1, 8, 1, 1))
    for window in windows(8, 4, 2):
        fusion.add(window, torch.arange(8.0).view(1, 1, 8, 1, 1)[:, :, window])
    torch.testing.assert_close(fusion.mean().flatten(), torch.arange(8.0))


# Sampling


def test_one_window_is_no_window(tiny_small) -> None:
    plain = sample(tiny_small, QUICK, decode=False)[0].latents
    for context in (4, 9):
        made = sample(tiny_small, with_settings(context_frames=context), decode=False)[0].latents
        assert torch.equal(made, plain)
    windowed = with_settings(context_frames=3, context_overlap=1)
    assert not torch.equal(sample(tiny_small, windowed, decode=False)[0].latents, plain)


def test_without_time_windows_change_nothing(tiny_small) -> None:
    """Known answer: frames that do not see each other are the same in whichever windows they are."""
    base = tiny_small.replica()
    settings = with_settings(num_frames=7)
    with temporal_bypass(base.unet):
        plain = sample(base, settings, decode=False)[0].latents
        for loop in (False, True):
            windowed = replace(settings, context_frames=3, context_overlap=1, loop=loop)
            torch.testing.assert_close(sample(base, windowed, decode=False)[0].latents, plain, rtol=1e-3, atol=1e-4)


def test_more_frames_than_positions_in_windows() -> None:
    base = tiny_pipeline(levels=2, backbone="animatediff")
    with pytest.raises(SettingsError, match=r"take at most 8, or sample a longer video in windows \(context_frames\)"):
        sample(base, with_settings(num_frames=12))
    with pytest.raises(
        SettingsError,
        match=r"^context_frames: the motion module has positions for 8 frames, not for 9; take at most 8\.$",
    ):
        sample(base, with_settings(num_frames=12, context_frames=9))
    made = sample(base, with_settings(num_frames=12, context_frames=8, num_inference_steps=1))[0]
    assert made.frames.shape[0] == 12


@pytest.mark.parametrize(("frames", "loop", "passes"), [(48, True, 4), (96, False, 8)])
def test_long_videos_of_a_module_of_16_frames(frames: int, loop: bool, passes: int) -> None:
    base = tiny_pipeline(levels=2, backbone="animatediff")
    base = replace(base, unet=tiny_motion_unet(levels=2, max_frames=16))
    seen: list[int] = []
    hook = base.unet.register_forward_pre_hook(lambda unet, given: seen.append(given[0].shape[2]))
    long = {"num_frames": frames, "height": 16, "width": 16, "guidance_scale": 1.0, "num_inference_steps": 1}
    made = sample(base, with_settings(**long, context_frames=16, context_overlap=4, loop=loop), decode=False)[0]
    hook.remove()
    assert made.latents.shape[2] == frames and torch.isfinite(made.latents).all()
    assert seen == [16] * passes


def test_wrong_windows_are_named() -> None:
    base = tiny_pipeline(levels=2)
    with pytest.raises(SettingsError, match="context_overlap is 4, it must be a whole number from 0 to 3"):
        sample(base, with_settings(num_frames=9, context_frames=4, context_overlap=4))
    with pytest.raises(SettingsError, match="loop is on, but context_frames is 0"):
        sample(base, with_settings(loop=True))


@torch.no_grad()
def test_strengths_over_frames_follow_the_window(tiny_small) -> None:
    """In the window of the last frames a layer has the strengths that those frames have in the whole."""
    unet = tiny_small.replica().unet
    name = target_modules(unet, "temporal-attention")[0]
    lora = LoRA(random_lora(unet, [name], 2, 0).layers)
    module, tokens = unet.get_submodule(name), torch.randn(1, 3, unet.get_submodule(name).in_features)
    curve = FrameCurve(curve=((0.0, 0.0), (1.0, 1.0)))
    stack = AdapterStack((StackEntry(lora, frames=curve),))
    plain = module(tokens)
    with applied(unet, stack, 6) as work:
        work.on_frames([3, 4, 5])
        changed = module(tokens)
    share = torch.tensor([0.6, 0.8, 1.0]).view(1, 3, 1)
    expected = plain + share * (tokens @ lora.layers[name].delta().T)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)


# A rendered clip


@pytest.fixture(scope="module")
def jumps() -> dict[str, torch.Tensor]:
    """Mean change from each frame to the next, the first after the last included, of long videos of the playground."""
    base = load_playground(device="cpu")
    common = {"num_frames": 24, "num_inference_steps": 5, "guidance_scale": 2.5, "seed": 2, "context_frames": 8}
    cases = {"overlap": {"context_overlap": 4}, "none": {"context_overlap": 0}}
    cases["loop"] = {"context_overlap": 4, "loop": True}
    found = {}
    for name, case in cases.items():
        settings = SampleSettings("a red circle moving right over sand", **common, **case)
        frames = sample(base, settings)[0].frames
        found[name] = (frames - frames.roll(-1, 0)).abs().mean((1, 2, 3))
    return found


def test_seams_do_not_show(jumps: dict[str, torch.Tensor]) -> None:
    """Windows of 8 that share nothing meet after frames 7 and 15, and jump there; those that overlap do not."""
    seams = {name: float(jumps[name][[7, 15]].mean() / jumps[name][:-1].median()) for name in ("none", "overlap")}
    assert seams["none"] > 2 > 1.5 > seams["overlap"]


def test_a_loop_closes(jumps: dict[str, torch.Tensor]) -> None:
    assert float(jumps["loop"][-1] / jumps["loop"][:-1].median()) < 2
    assert float(jumps["overlap"][-1] / jumps["overlap"][:-1].median()) > 2
