"""Adapters: exact at the start, exact when off, alone in training."""

from __future__ import annotations

import pytest
import torch
from lora_samples import random_lora, run
from tiny import tiny_unet
from torch import nn

from motion_lora.adapters.peft import (
    Adapter,
    adapter_names,
    add_adapter,
    load_adapter,
    set_strength,
)
from motion_lora.adapters.targets import parameter_count, target_modules
from motion_lora.backbones.registry import empty_network
from motion_lora.backbones.unet3d import MODELSCOPE_UNET_CONFIG
from motion_lora.base.placement import share_parameters
from motion_lora.core.errors import LoRAFileError, ModelError, SettingsError
from motion_lora.core.lora import LoRA, LoRALayer


@pytest.fixture(scope="module")
def base():
    return tiny_unet(0, levels=2)


@pytest.fixture
def unet(base):
    return share_parameters(base)


def temporal(unet: nn.Module) -> tuple[str, ...]:
    return target_modules(unet, "temporal-attention")


@torch.no_grad()
def randomise_up(unet: nn.Module, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, weight in Adapter(unet, name).parameters.items():
        if key.endswith(".up"):
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


# Counts -------------------------------------------------------------------------------------------------------------


def test_counts_on_modelscope():
    """The numbers that the papers print (Customize-A-Video Table 3)."""
    unet, bare = empty_network(MODELSCOPE_UNET_CONFIG), empty_network(MODELSCOPE_UNET_CONFIG)
    for preset, rank, count in (
        ("temporal-attention", 4, 831_488),
        ("spatial-attention", 1, 207_488),
        ("temporal-all", 2, 779_520),
        ("temporal-all", 4, 1_559_040),
        ("spatial-self-ff", 1, 274_560),
    ):
        name = f"{preset}-{rank}"
        assert parameter_count(bare, preset, rank) == count
        add_adapter(unet, name, target_modules(bare, preset), rank=rank, alpha=1.0, seed=0)
        assert sum(weight.numel() for weight in Adapter(unet, name).parameters.values()) == count


# What it computes ---------------------------------------------------------------------------------------------------


def test_one_layer_by_hand():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    load_adapter(net, "a", LoRA({"0": LoRALayer(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [5.0]]), 0.5)}))
    # delta = alpha * up @ down = 0.5 * [[3, 6], [5, 10]]: alpha multiplies directly, no division by the rank
    assert torch.equal(net(torch.tensor([[1.0, 1.0]])), torch.tensor([[1 + 4.5, 1 + 7.5]]))


def test_new_adapter_changes_nothing(base, unet):
    add_adapter(unet, "new", temporal(unet), rank=3, alpha=1.0, seed=0)
    assert torch.equal(run(unet), run(base))


def test_strength_zero_is_the_base_and_strength_scales_the_change(base, unet):
    add_adapter(unet, "new", temporal(unet), rank=3, alpha=0.7, seed=0)
    randomise_up(unet, "new")
    assert not torch.allclose(run(unet), run(base), atol=1e-3)
    set_strength(unet, "new", 0.0)
    assert torch.equal(run(unet), run(base))
    set_strength(unet, "new", 0.5)
    halved = run(unet)
    lora = Adapter(unet, "new").read()
    unet = share_parameters(base)
    load_adapter(unet, "halved", LoRA({n: LoRALayer(x.down, x.up, 0.35) for n, x in lora.layers.items()}))
    assert torch.equal(run(unet), halved)


def test_half_precision_keeps_factors_in_fp32(base):
    unet = share_parameters(base).to(torch.bfloat16)
    add_adapter(unet, "new", temporal(unet), rank=2, alpha=1.0, seed=0)
    randomise_up(unet, "new")
    Adapter(unet, "new").set_trainable(True)
    inputs = torch.randn(1, 4, 2, 8, 8).bfloat16(), torch.tensor([5]), torch.randn(1, 4, 32).bfloat16()
    output = unet(*inputs, return_dict=False)[0]
    assert output.dtype is torch.bfloat16
    output.float().square().mean().backward()
    parameters = Adapter(unet, "new").parameters.values()
    assert all(weight.dtype is torch.float32 and weight.grad.dtype is torch.float32 for weight in parameters)
    assert all(bool(weight.grad.any()) for weight in parameters)


# Initial values and dropout -----------------------------------------------------------------------------------------


def test_initial_values_follow_the_seed():
    def downs(seed: int) -> list[torch.Tensor]:
        net = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 500))
        add_adapter(net, "a", ["0", "1"], rank=4, alpha=1.0, seed=seed)
        values = Adapter(net, "a").parameters
        assert not values["0.up"].any() and not values["1.up"].any()
        return [values["0.down"].detach(), values["1.down"].detach()]

    first, again, other = downs(0), downs(0), downs(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert float(first[0].std()) == pytest.approx(1 / 4, rel=0.05), "standard deviation is one over the rank"


def test_dropout_is_on_the_output_and_only_while_training():
    net = nn.Sequential(nn.Linear(64, 4096, bias=False))
    net[0].weight.data.zero_()
    add_adapter(net, "a", ["0"], rank=2, alpha=1.0, dropout=0.25, seed=0)
    randomise_up(net, "a")
    adapter, inputs = Adapter(net, "a"), torch.ones(1, 64)
    plain = net(inputs)
    adapter.set_trainable(True)
    adapter.seed_dropout(1)
    state = torch.random.get_rng_state()
    dropped = net(inputs)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state is the host's"
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(dropped[kept], plain[kept] / 0.75)
    assert torch.equal(net(inputs), dropped), "the same seed drops the same numbers, as recomputation needs"
    adapter.seed_dropout(2)
    assert not torch.equal(net(inputs), dropped)
    adapter.set_trainable(False)
    assert torch.equal(net(inputs), plain)


# Only what should train ---------------------------------------------------------------------------------------------


def test_only_the_asked_adapter_trains(unet):
    load_adapter(unet, "held", random_lora(unet, list(target_modules(unet, "spatial-attention"))))
    add_adapter(unet, "new", temporal(unet), rank=2, alpha=1.0, seed=0)
    Adapter(unet, "new").set_trainable(True)
    set_strength(unet, "held", 0.0)
    set_strength(unet, "held", 1.0)
    trains = {id(weight) for weight in unet.parameters() if weight.requires_grad}
    assert trains == {id(weight) for weight in Adapter(unet, "new").parameters.values()}
    assert len(trains) == 2 * len(temporal(tiny_unet(0, levels=2)))
    assert adapter_names(unet) == ("held", "new")


def test_reading_gives_back_what_was_loaded(unet):
    names = list(temporal(unet))
    strong, weak = random_lora(unet, names[:2], rank=3), random_lora(unet, names[2:], rank=1, scale=0.1)
    lora = LoRA({**strong.layers, **weak.layers})
    load_adapter(unet, "a", lora)
    set_strength(unet, "a", 0.0)
    found = Adapter(unet, "a").read()
    assert found.fingerprint() == lora.fingerprint() and list(found) == list(lora)


def test_loading_copies(unet):
    lora = random_lora(unet, list(temporal(unet)))
    load_adapter(unet, "a", lora, trainable=True)
    before = lora.fingerprint()
    randomise_up(unet, "a", seed=5)
    assert lora.fingerprint() == before


# What does not fit --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(unet):
    names = temporal(unet)
    with pytest.raises(ModelError, match=r"no module nowhere"):
        add_adapter(unet, "a", ["nowhere"], rank=1, alpha=1.0, seed=0)
    with pytest.raises(ModelError, match="GroupNorm"):
        add_adapter(unet, "a", ["conv_norm_out"], rank=1, alpha=1.0, seed=0)
    with pytest.raises(SettingsError, match=r"rank is 65; .* takes 1 to 64"):
        add_adapter(unet, "a", names[-1:], rank=65, alpha=1.0, seed=0)
    wrong = LoRA({names[0]: LoRALayer(torch.ones(1, 7), torch.ones(32, 1))})
    with pytest.raises(LoRAFileError, match="another base"):
        load_adapter(unet, "a", wrong)
    with pytest.raises(LoRAFileError, match="another kind of network"):
        load_adapter(unet, "a", LoRA({"motion_modules.0": LoRALayer(torch.ones(1, 7), torch.ones(32, 1))}))
    with pytest.raises(LoRAFileError, match="no layers"):
        load_adapter(unet, "a", LoRA({}))
    assert adapter_names(unet) == ()
    add_adapter(unet, "a", names, rank=1, alpha=1.0, seed=0)
    for name in ("a", "with.dot", "half"):
        with pytest.raises(SettingsError, match="adapter name"):
            add_adapter(unet, name, names, rank=1, alpha=1.0, seed=0)
    with pytest.raises(SettingsError, match=r"no adapter named 'b'; it has: a"):
        Adapter(unet, "b")
