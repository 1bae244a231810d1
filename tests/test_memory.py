"""Counted memory: what is alive, what each saving frees, what is chosen to fit, and that it changes no LoRA."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_frames, tiny_unet
from torch import nn
from torch.utils.checkpoint import checkpoint
from training_samples import APPEARANCE, CAPTION, quick, sample_clip

from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.faster import use_fast_layers
from motion_lora.base import placement
from motion_lora.base.placement import share_parameters
from motion_lora.core.clip import Clip
from motion_lora.core.errors import SettingsError
from motion_lora.methods.table import ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS
from motion_lora.training import make_recipe, memory, train
from motion_lora.training.ledger import counting
from motion_lora.training.memory import (
    GB,
    PLAIN,
    CountedStep,
    LayerCost,
    Savings,
    StepMemory,
    choose_savings,
    count_step,
    layer_costs,
    saving,
)
from motion_lora.training.rehearsal import Rehearsal
from motion_lora.training.stage import StageRun

WIDTH, ROWS = 64, 1024
ACTIVATION = ROWS * WIDTH * 4


def network():
    unet = share_parameters(tiny_unet(0, levels=2))
    add_adapter(unet, "new", target_modules(unet, "temporal-attention"), rank=2, alpha=1.0, seed=0)
    Adapter(unet, "new").set_trainable(True)
    return unet


def work_on(unet, size=8, frames=4):
    def work(images=None):
        kind = unet.conv_in.weight.dtype
        latents = torch.randn(1, 4, frames, size, size, generator=torch.Generator().manual_seed(0)).to(kind)
        text = torch.ones(1, 4, 32, dtype=kind)
        unet(latents, torch.tensor([300]), text).sample.float().square().mean().backward()

    return work


def step_of(unet, work=None, **more):
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    return CountedStep(unet, trained, work or work_on(unet), **{"computed": True, **more})


def test_a_chain_of_products_is_counted_to_the_byte():
    """Ten tanh keep ten results for the backward pass, which needs one gradient more, and a second while it moves."""
    chain = nn.Sequential(*(nn.Tanh() for _ in range(10)))
    with counting() as counter:
        start = torch.randn(ROWS, WIDTH, requires_grad=True)
        torch.autograd.grad(chain(start).sum(), [start])
    assert 11 * ACTIVATION <= counter.peak <= 13 * ACTIVATION + 64
    del start
    assert counter.alive == 0


def test_a_recomputed_chain_keeps_its_ends():
    chain = nn.Sequential(*(nn.Tanh() for _ in range(10)))
    with counting() as counter:
        start = torch.randn(ROWS, WIDTH, requires_grad=True)
        middle = checkpoint(chain, start, use_reentrant=False)
        assert counter.alive == 2 * ACTIVATION
        torch.autograd.grad(checkpoint(chain, middle, use_reentrant=False).sum(), [start])


def test_what_was_there_before_is_not_counted():
    weight = torch.randn(WIDTH, WIDTH)
    with counting([weight]) as counter:
        view = weight.t()
        assert view.shape == weight.shape and counter.alive == 0
        assert (weight + 0).numel() and counter.peak == 4 * WIDTH * WIDTH


def test_counting_without_computing_gives_the_same_and_leaves_the_network_as_it_was():
    unet = network()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    found = [count_step(step_of(unet, computed=computed), Savings(recomputed=(1, 2, 5))) for computed in (True, False)]
    assert found[0].activations == pytest.approx(found[1].activations, rel=0.01)
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_layers_computed_twice_take_less_and_are_worth_something(unet):
    step = step_of(unet)
    costs = layer_costs(step)
    assert costs and all(cost.saved > 0 and cost.flops > 0 for cost in costs)
    some = count_step(step, Savings(recomputed=tuple(cost.index for cost in costs[: len(costs) // 2])))
    every = count_step(step, Savings(recomputed=tuple(cost.index for cost in costs)))
    assert every.total < some.total < count_step(step).total


@pytest.fixture(scope="module")
def unet():
    return network()


@pytest.fixture
def counts(monkeypatch):
    """In place of counting: ten layers of 5 bytes, 3 bytes an image, 10 of pieces, 7 offloaded, 20 of encoders."""
    tried = []

    def counted(step, savings=PLAIN):
        tried.append(savings)
        images = step.batch if savings.images is None else savings.images
        layers = 50 - 5 * len(savings.recomputed) + 10 / savings.pieces + (0 if savings.offloaded else 7)
        return StepMemory(0 if savings.encoders else 20, 13, round(3 * images + layers))

    monkeypatch.setattr(memory, "count_step", counted)
    monkeypatch.setattr(memory, "layer_costs", lambda *_: [LayerCost(index, 5, 100 - index) for index in range(10)])
    return tried


EVERY = tuple(range(10))
BUDGETS = [
    (115, PLAIN),
    (99, Savings(encoders=True)),
    (91, Savings(encoders=True, images=3)),
    (83, Savings(encoders=True, images=1)),
    (82, Savings(encoders=True, images=1, recomputed=(9,))),
    (58, Savings(encoders=True, images=1, recomputed=(5, 6, 7, 8, 9))),
    (33, Savings(encoders=True, images=1, recomputed=EVERY)),
    (28, Savings(encoders=True, images=1, recomputed=EVERY, pieces=2)),
    (24, Savings(encoders=True, images=1, recomputed=EVERY, pieces=8)),
    (21, Savings(encoders=True, images=1, recomputed=EVERY, pieces=2, offloaded=True)),
    (17, Savings(encoders=True, images=1, recomputed=EVERY, pieces=8, offloaded=True)),
]


@pytest.mark.parametrize(("budget", "wanted"), BUDGETS, ids=lambda value: str(value)[:20])
def test_the_cheapest_savings_that_fit_are_chosen(counts, unet, budget, wanted):
    step = step_of(unet, batch=5, encoders=(nn.Linear(2, 2),), idle=True, has_bus=True)
    chosen, found = choose_savings(step, budget)
    assert chosen == wanted and found.total <= budget
    assert len(counts) < 16


def test_what_no_saving_makes_fit_is_refused_with_what_it_takes(counts, unet):
    with pytest.raises(SettingsError, match=r"takes .* GB with all that can be saved \(.*10 layers are computed twice"):
        choose_savings(step_of(unet, has_bus=True), 16)
    kept = choose_savings(step_of(unet, batch=5, encoders=(None,), idle=False, divisible=False), 200)
    assert kept[0] == PLAIN
    with pytest.raises(SettingsError, match=r"with all that can be saved \(10 layers are computed twice;"):
        choose_savings(step_of(unet, batch=5, divisible=False), 40)


def test_each_further_saving_takes_less(monkeypatch, unet):
    """In the order in which they are taken; what is sent away, on a device with memory of its own."""
    monkeypatch.setattr(placement, "_WORTH_SENDING", 1024)
    step = step_of(unet, has_bus=True)
    every = Savings(recomputed=tuple(range(100)))
    ways = (every, replace(every, pieces=2), replace(every, pieces=2, offloaded=True))
    taken = [count_step(step, way).total for way in ways]
    assert taken == sorted(taken, reverse=True) and len(set(taken)) == len(taken)
    assert "activations offloaded" in str(ways[-1])
    with_bus, without = (list(memory._heavy(replace(step, has_bus=bus), every)) for bus in (True, False))
    assert [way.offloaded for way in with_bus].index(True) == len(without) and not any(way.offloaded for way in without)


def test_encoders_on_the_device_count_until_they_wait(unet):
    step = step_of(unet, encoders=(nn.Linear(1000, 1000), None), idle=True)
    assert count_step(step).total - count_step(step, Savings(encoders=True)).total == 4 * 1_001_000


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "savings",
    [Savings(pieces=3), Savings(recomputed=tuple(range(100)), pieces=4), Savings(offloaded=True)],
    ids=["pieces", "recomputed pieces", "offloaded"],
)
def test_gradients_are_those_of_the_plain_step(savings, fast, monkeypatch):
    monkeypatch.setattr(placement, "_WORTH_SENDING", 1024)
    unet = network()
    use_fast_layers(unet, fast)
    with torch.no_grad():
        for parameter in (parameters := [p for p in unet.parameters() if p.requires_grad]):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = []
    for way in (PLAIN, savings):
        with saving(unet, way):
            work_on(unet)()
        found.append([parameter.grad for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
    scale = max(float(one.abs().max()) for one in found[0])
    for plain, saved in zip(*found, strict=True):
        assert float((plain - saved).abs().max()) < 2e-5 * scale


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
    ("savings", "kind"),
    [
        (PLAIN, torch.float32),
        (Savings(recomputed=tuple(range(100))), torch.bfloat16),
        (Savings(recomputed=tuple(range(100)), pieces=2), torch.float32),
    ],
    ids=["plain", "checkpointed", "pieces"],
)
def test_the_count_is_what_the_allocator_measures(savings, kind):
    """Within 10 %, on a step of a tiny network, forward and backward."""
    unet = network().to(kind)
    for parameter in Adapter(unet, "new").parameters.values():
        parameter.data = parameter.data.float()
    work = work_on(unet, size=16)

    def once():
        with saving(unet, savings):
            work()
        unet.zero_grad()

    once()
    assert count_step(step_of(unet, work), savings).activations == pytest.approx(measured_peak(once), rel=0.1)


# Trainings ----------------------------------------------------------------------------------------------------------


def memory_of(settings, stage=None, *, base, clip=None):
    recipe = make_recipe([clip or sample_clip()], settings)
    return Rehearsal(base, stage or recipe.main[0], recipe.with_new_tokens(base), None).memory()


def test_the_memory_of_a_stage_is_that_of_its_heaviest_pass(tiny_small):
    both = memory_of(quick(method="motiondirector"), base=tiny_small)
    image = memory_of(quick(method="motiondirector-image"), base=tiny_small)
    assert both.activations > image.activations and both.trained > image.trained


def test_images_of_a_step_are_taken_in_parts_where_that_is_enough(tiny_small):
    """An absorber's step over four images, one or two at a time: less memory, the same gradients."""
    settings = quick(method="temporal-only", absorber="spatial", frames_per_step=3, patch_crop=False)
    run = StageRun(tiny_small, ABSORB_BY_SPATIAL_LORA, make_recipe([sample_clip()], settings), None)
    draw, parameters = run.draw(0), list(run.parameters.values())
    step = run.counted(draw)
    plain = count_step(step)
    chosen, found = choose_savings(step, plain.total - 1)
    assert chosen.images in (1, 2) and not chosen.recomputed and found.total < plain.total
    gradients, losses = [], []
    with run.prepared():
        for images in (None, 1, 2):
            losses.append(float(run.step(run.stage.passes[0], draw, images)))
            gradients.append([parameter.grad for parameter in parameters if parameter.grad is not None])
            for parameter in parameters:
                parameter.grad = None
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    scale = max(float(one.abs().max()) for one in gradients[0])
    for plain_one, *others in zip(*gradients, strict=True):
        assert all(float((plain_one - one).abs().max()) < 2e-5 * scale for one in others)


def test_what_drops_is_not_divided(tiny_small):
    recipe = make_recipe([sample_clip()], quick(dropout=0.1, absorber="none"))
    run = StageRun(tiny_small, recipe.main[0], recipe, None)
    assert not run.counted(run.draw(0)).divisible


def test_the_graph_of_learned_tokens_is_counted_too(tiny_small):
    settings = quick(method="temporal-only", absorber="textual-inversion", num_tokens=2)
    found = memory_of(settings, ABSORB_BY_TOKENS, base=tiny_small)
    assert found.trained == 12 * 2 * 32 and found.activations > 100_000


def test_a_run_within_a_budget_gives_the_same_lora(caplog, tiny_small):
    """One that computing every layer twice does not fit."""
    clip = Clip(tiny_frames(), 8.0, CAPTION, APPEARANCE)
    settings = quick(method="temporal-only", steps=1)
    least = memory_of(replace(settings, gradient_checkpointing=True), clip=clip, base=tiny_small)
    caplog.set_level("INFO", logger="motion_lora")
    tight, plain = (
        train(tiny_small, [clip], replace(settings, memory=memory)).lora for memory in ((least.total - 1000) / GB, None)
    )
    assert "layers are computed twice, sequences in " in caplog.text
    assert plain.layers and all(torch.allclose(tight.layers[n].up, plain.layers[n].up, atol=1e-4) for n in plain)
