"""Counted memory: what is alive, what checkpointing frees, and layers chosen to fit a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_unet
from torch import nn
from torch.utils.checkpoint import checkpoint
from training_samples import quick, sample_clip, small_pipeline

from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.checkpointing import checkpointed_layers
from motion_lora.base.placement import share_parameters
from motion_lora.core.errors import SettingsError
from motion_lora.training import train
from motion_lora.training.estimate import estimate_memory
from motion_lora.training.memory import GB, _faked, choose_recomputed, count_step, layer_costs

WIDTH, ROWS = 64, 1024
ACTIVATION = ROWS * WIDTH * 4


def network():
    unet = share_parameters(tiny_unet(0, levels=2))
    add_adapter(unet, "new", target_modules(unet, "temporal-attention"), rank=2, alpha=1.0, seed=0)
    Adapter(unet, "new").set_trainable(True)
    return unet


def loss_of(unet, size=8, frames=4):
    def loss():
        latents, text = torch.randn(1, 4, frames, size, size), torch.randn(1, 4, 32)
        return unet(latents, torch.tensor([300]), text).sample.square().mean()

    return loss


def test_a_chain_of_products_is_counted_to_the_byte():
    """Ten tanh keep ten results for the backward pass, which needs one gradient more, and a second while it moves."""
    chain = nn.Sequential(*(nn.Tanh() for _ in range(10)))
    with _faked() as counter:
        start = torch.randn(ROWS, WIDTH, requires_grad=True)
        torch.autograd.grad(chain(start).sum(), [start])
    assert 11 * ACTIVATION <= counter.peak <= 13 * ACTIVATION + 64
    del start
    assert counter.alive == 0


def test_a_recomputed_chain_keeps_its_ends():
    chain = nn.Sequential(*(nn.Tanh() for _ in range(10)))
    with _faked() as counter:
        start = torch.randn(ROWS, WIDTH, requires_grad=True)
        middle = checkpoint(chain, start, use_reentrant=False)
        assert counter.alive == 2 * ACTIVATION
        torch.autograd.grad(checkpoint(chain, middle, use_reentrant=False).sum(), [start])


def test_counting_leaves_the_network_as_it_was():
    unet = network()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    count_step(unet, loss_of(unet), range(100))
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_layers_are_chosen_within_the_budget_from_none_to_all():
    unet = network()
    loss = loss_of(unet)
    plain = count_step(unet, loss)
    costs = layer_costs(unet, loss)
    assert costs
    everything = count_step(unet, loss, [cost.index for cost in costs])
    assert everything.total < plain.total
    assert choose_recomputed(unet, loss, plain.total)[0] == ()
    middle = (plain.total + everything.total) // 2
    chosen, found = choose_recomputed(unet, loss, middle)
    assert 0 < len(chosen) < len(costs) and found.total <= middle
    with pytest.raises(SettingsError, match=r"takes .* GB with every layer"):
        choose_recomputed(unet, loss, everything.weights)


def measured_peak(work):
    """Bytes at the highest point of the CPU allocator, by torch's profiler."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    alive = highest = 0
    for _, change in changes:
        alive += change
        highest = max(highest, alive)
    return highest


@pytest.mark.parametrize(
    ("recomputed", "kind"), [((), torch.float32), (tuple(range(100)), torch.bfloat16)], ids=["plain", "checkpointed"]
)
def test_the_count_is_what_the_allocator_measures(recomputed, kind):
    """Within 10 %, on a step of a tiny network, forward and backward."""
    unet = network().to(kind)
    for parameter in Adapter(unet, "new").parameters.values():
        parameter.data = parameter.data.float()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]

    def loss():
        latents, text = torch.randn(1, 4, 8, 16, 16, dtype=kind), torch.randn(1, 4, 32, dtype=kind)
        return unet(latents, torch.tensor([300]), text).sample.square().mean()

    def step():
        with checkpointed_layers(unet, recomputed):
            torch.autograd.grad(loss(), trained, allow_unused=True)

    step()
    assert count_step(unet, loss, recomputed).activations == pytest.approx(measured_peak(step), rel=0.1)


def test_the_estimate_of_a_training_is_the_heaviest_pass():
    pipeline, clip = small_pipeline(), sample_clip()
    both = estimate_memory(pipeline, [clip], quick(method="motiondirector"))
    image = estimate_memory(pipeline, [clip], quick(method="motiondirector-image"))
    assert both.activations > image.activations and both.trained > image.trained


def test_a_run_within_a_budget_gives_the_same_lora(caplog):
    pipeline, clip = small_pipeline(), sample_clip()
    settings = quick(method="temporal-only", steps=1)
    plain = estimate_memory(pipeline, [clip], settings)
    least = estimate_memory(pipeline, [clip], replace(settings, gradient_checkpointing=True))
    budget = (plain.total + least.total) / 2 / GB
    caplog.set_level("INFO", logger="motion_lora")
    tight = train(pipeline, [clip], replace(settings, memory=budget))
    assert "layers are computed twice" in caplog.text and " 0 of" not in caplog.text
    assert tight.lora.fingerprint() == train(pipeline, [clip], settings).lora.fingerprint()
