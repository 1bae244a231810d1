"""Gradient checkpointing: the same numbers, the network as it was afterwards, and it does recompute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_latents, tiny_unet
from training_samples import quick, sample_clip, small_pipeline

from motion_lora.adapters.highway import appearance_highway
from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones.bypass import temporal_bypass
from motion_lora.backbones.checkpointing import gradient_checkpointing
from motion_lora.base.placement import share_parameters
from motion_lora.core.highway import Highway
from motion_lora.training import train


def gradients(preset: str, *, checkpointed: bool, bypass: bool, highway: Highway | None, dropout: float):
    """Loss, gradients, and how often the inside of a checkpointed layer ran forward."""
    unet = share_parameters(tiny_unet(0, levels=2))
    modules = target_modules(unet, preset)
    add_adapter(unet, "new", modules, rank=2, alpha=1.0, dropout=dropout, seed=0)
    adapter = Adapter(unet, "new")
    with torch.no_grad():
        for index, weight in enumerate(adapter.parameters.values()):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    adapter.set_trainable(True)
    adapter.seed_dropout(3)
    calls = []
    inner = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    hook = inner.register_forward_hook(lambda *_: calls.append(1))
    text = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    with (
        gradient_checkpointing(unet, checkpointed),
        appearance_highway(unet, highway),
        temporal_bypass(unet, bypass),
    ):
        loss = unet(tiny_latents(size=4, num_frames=2), torch.tensor([300]), text).sample.square().mean()
        loss.backward()
    hook.remove()
    assert not any("forward" in module.__dict__ for module in unet.modules())
    return loss.detach(), [weight.grad for weight in adapter.parameters.values()], len(calls)


@pytest.mark.parametrize(
    ("preset", "bypass", "highway", "dropout"),
    [
        ("temporal-attention", False, None, 0.0),
        ("temporal-all", False, Highway("all", 1.1), 0.3),
        ("spatial-self-ff", True, None, 0.3),
    ],
)
def test_gradients_are_identical(preset, bypass, highway, dropout):
    options = {"bypass": bypass, "highway": highway, "dropout": dropout}
    loss, plain, once = gradients(preset, checkpointed=False, **options)
    same_loss, checkpointed, twice = gradients(preset, checkpointed=True, **options)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True)) and any(g.any() for g in plain)
    assert (once, twice) == (1, 2), "the layer is computed again in the backward pass"


def test_the_network_comes_back_after_an_error():
    unet = share_parameters(tiny_unet(0, levels=2))
    with pytest.raises(KeyError), gradient_checkpointing(unet):
        assert "forward" in unet.transformer_in.__dict__
        with temporal_bypass(unet):
            raise KeyError
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_a_run_gives_the_same_bits_with_and_without():
    pipeline, clip = small_pipeline(), sample_clip()
    settings = quick(method="motiondirector", dropout=0.2, steps=2, spatial_path_probability=1.0)
    plain = train(pipeline, [clip], settings)
    checkpointed = train(pipeline, [clip], replace(settings, gradient_checkpointing=True))
    assert plain.lora.fingerprint() == checkpointed.lora.fingerprint()
    assert plain.spatial[0].fingerprint() == checkpointed.spatial[0].fingerprint()
