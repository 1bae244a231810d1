"""Kernels of zero sum over time: a LoRA of `temporal-difference` leaves alone what stands still."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training_samples import quick, sample_clip, small_pipeline

import motion_lora as ml
from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules


@pytest.fixture(scope="module")
def pipeline() -> ml.VideoPipeline:
    return small_pipeline()


def test_it_adapts_all_temporal_layers(pipeline: ml.VideoPipeline) -> None:
    assert target_modules(pipeline.unet, "temporal-difference") == target_modules(pipeline.unet, "temporal-full")


def test_what_stands_still_passes_unchanged_and_what_moves_does_not(pipeline: ml.VideoPipeline) -> None:
    unet = pipeline.replica().unet
    module = target_modules(unet, "temporal-conv")[0]
    add_adapter(unet, "motion", [module], rank=4, alpha=1.0, zero_sum=True, seed=0)
    adapter = Adapter(unet, "motion")
    torch.nn.init.normal_(adapter.parameters[f"{module}.up"])
    host = unet.get_submodule(module)
    moving = torch.randn(1, host.get_base_layer().in_channels, 6, 3, 3)
    still = moving[:, :, :1].expand_as(moving)
    change = [host(x) - host.get_base_layer()(x) for x in (still, moving)]
    inner = slice(1, -1)  # at its ends the convolution sees the zeros beside the clip
    assert change[0][:, :, inner].abs().max() < 1e-5
    assert change[1][:, :, inner].abs().max() > 1e-2


def test_training_keeps_the_kernels_at_zero_sum(pipeline: ml.VideoPipeline) -> None:
    settings = quick(method="temporal-only", targets="temporal-difference", steps=3, rank=2)
    lora = ml.train(pipeline, [sample_clip()], settings).lora
    assert lora is not None
    kernels = [layer.down for layer in lora.layers.values() if layer.down.ndim == 5]
    assert kernels and max(float(down.sum(dim=2).abs().max()) for down in kernels) < 1e-5
    assert all(layer.up.abs().max() > 0 for layer in lora.layers.values())
    plain = ml.train(pipeline, [sample_clip()], replace(settings, targets="temporal-conv")).lora
    assert plain is not None
    assert max(float(layer.down.sum(dim=2).abs().max()) for layer in plain.layers.values()) > 0.1
