"""Fast layers compute what diffusers' do, forward and backward, with and without adapters; and go as they came."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from tiny import tiny_unet
from torch import nn

from motion_lora.adapters.peft import Adapter, add_adapter, merge_adapters
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones import faster
from motion_lora.backbones.checkpointing import gradient_checkpointing
from motion_lora.backbones.faster import MERGED, use_fast_layers
from motion_lora.base.placement import share_parameters

# Of the largest number: sums in another order, in fp32.
TOLERANCE = 2e-5


def relative(one, two):
    return float((one - two).abs().max() / two.abs().max().clamp(min=1e-9))


def outputs(network, inputs, kwargs):
    """What a module gives, and every gradient; its first input is fresh each time."""
    network.requires_grad_(True)
    start = inputs[0].clone().requires_grad_()
    found = network(start, *inputs[1:], **kwargs)
    found = found[0] if isinstance(found, tuple) else found
    weights = (torch.arange(found.numel()) % 7 - 3.0).view(found.shape)
    wanted = [start, *network.parameters()]
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), wanted, allow_unused=True)]


def places(batch=6, channels=32, side=4):
    hidden = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    return hidden.contiguous(memory_format=torch.channels_last)


def tokens(batch=8, count=4, width=32):
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(1))


TUPLE = {"return_dict": False}
CASES = [
    (lambda: Attention(32, heads=2, dim_head=16), (tokens(),), {}),
    (lambda: Attention(32, 24, heads=2, dim_head=16), (tokens(3, 16), tokens(3, 5, 24)), {}),
    (lambda: BasicTransformerBlock(32, 2, 16, double_self_attention=True), (tokens(),), {}),
    (
        lambda: Transformer2DModel(
            2, 16, in_channels=32, norm_num_groups=8, cross_attention_dim=24, use_linear_projection=True
        ),
        (places(), tokens(6, 5, 24)),
        TUPLE,
    ),
    (
        lambda: Transformer2DModel(2, 16, in_channels=32, norm_num_groups=8, cross_attention_dim=24),
        (places(), tokens(6, 5, 24)),
        TUPLE,
    ),
    (
        lambda: TransformerTemporalModel(2, 16, in_channels=32, norm_num_groups=8),
        (places(),),
        {"num_frames": 3, **TUPLE},
    ),
    (lambda: TemporalConvLayer(32, norm_num_groups=8), (places(),), {"num_frames": 3}),
    (
        lambda: ResnetBlock2D(in_channels=32, out_channels=16, temb_channels=24, groups=8, eps=1e-5),
        (places(), torch.randn(6, 24)),
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "inputs", "kwargs"), CASES, ids=lambda _: "")
def test_a_layer_is_diffusers_own_forward_and_backward(make, inputs, kwargs):
    torch.manual_seed(0)
    layer = make().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    stock = outputs(layer, inputs, kwargs)
    kind = type(layer)
    use_fast_layers(layer)
    assert type(layer) is not kind and isinstance(layer, kind)
    fast = outputs(layer, inputs, kwargs)
    assert [one is None for one in stock] == [one is None for one in fast]
    scale = max(float(one.abs().max()) for one in stock[1:] if one is not None)
    assert relative(fast[0], stock[0]) < TOLERANCE
    for one, two in zip(fast[1:], stock[1:], strict=True):
        assert one is None or float((one - two).abs().max()) < TOLERANCE * scale
    use_fast_layers(layer, False)
    assert type(layer) is kind
    assert all(a is b or torch.equal(a, b) for a, b in zip(outputs(layer, inputs, kwargs), stock, strict=True))


def test_what_is_not_the_plain_case_stays_stock():
    layer = Attention(32, heads=2, dim_head=16, norm_num_groups=8)
    use_fast_layers(layer)
    assert type(layer) is Attention


def test_a_hook_on_a_projection_is_heard():
    layer = Attention(32, heads=2, dim_head=16).eval()
    use_fast_layers(layer)
    plain = layer(tokens())
    handle = layer.to_k.register_forward_hook(lambda module, args, output: output * 2)
    assert not torch.allclose(layer(tokens()), plain)
    handle.remove()
    assert torch.equal(layer(tokens()), plain)


def test_more_sequences_than_a_grid_holds_go_in_several_calls(monkeypatch):
    query, key, value = torch.randn(3, 10, 2, 20, 8)
    whole = faster._attend(query, key, value)
    calls = []
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(faster, "_MOST_SEQUENCES", 4)
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *x, **k: calls.append(1) or attention(*x, **k)
    )
    assert torch.allclose(faster._attend(query, key, value), whole, atol=1e-6)
    assert len(calls) == 3


def trained(preset, fast, merged, checkpointed, dropout=0.0, rank=8):
    unet = share_parameters(tiny_unet(0, levels=2))
    modules = target_modules(unet, preset)
    use_fast_layers(unet, fast)
    for number, name in enumerate(("one", "two")):
        add_adapter(unet, name, modules, rank=rank + number, alpha=0.5 + number, dropout=dropout, seed=number)
        with torch.no_grad():
            for index, weight in enumerate(Adapter(unet, name).parameters.values()):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    merge_adapters(unet, merged)
    adapter = Adapter(unet, "one")
    adapter.set_trainable(True)
    adapter.seed_dropout(3)
    generator = torch.Generator().manual_seed(5)
    latents, text = torch.randn(1, 4, 4, 4, 4, generator=generator), torch.randn(1, 4, 32, generator=generator)
    found = []
    for strength in (1.0, 0.5):
        Adapter(unet, "two").set_strength(strength)
        with gradient_checkpointing(unet, checkpointed):
            loss = unet(latents, torch.tensor([300]), text, return_dict=False)[0].square().mean()
            found += [loss.detach(), *torch.autograd.grad(loss, list(adapter.parameters.values()))]
    return found, sum(MERGED in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("preset", ["temporal-full", "spatial-self-ff"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_merged_adapters_learn_as_those_beside_their_modules(preset, checkpointed):
    stock, none = trained(preset, False, False, checkpointed)
    fast, some = trained(preset, True, True, checkpointed)
    assert none == 0 and some > 4
    scale = max(float(one.abs().max()) for one in stock[1:])
    for one, two in zip(fast, stock, strict=True):
        assert float((one - two).abs().max()) < 1e-4 * max(scale, float(two.abs().max()))


def test_what_drops_is_not_merged():
    _, merged = trained("temporal-all", True, True, False, dropout=0.3)
    assert merged == 0
