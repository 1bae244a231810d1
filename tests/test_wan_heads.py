"""Only heads that look over time: told apart with known answers, and what a training on them leaves in the file."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from tiny import tiny_pipeline
from training_samples import quick, sample_clip

from motion_lora.backbones.wan import WAN
from motion_lora.backbones.wan_heads import masses
from motion_lora.core.errors import SettingsError, TrainingError
from motion_lora.training import heads as heads_module
from motion_lora.training import train

FRAMES, PLACES = 3, 4


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(levels=2, backbone="wan")


def test_a_head_that_reads_places_looks_over_time_and_one_that_reads_frames_inside_them() -> None:
    """Tokens say their place in the first half of their numbers and their frame in the second."""
    attention = WanAttention(dim=8, heads=3, dim_head=8)
    tokens = torch.zeros(FRAMES, PLACES, 8)
    tokens[:, :, :4] = torch.eye(PLACES)
    tokens[:, :, 4:7] = torch.eye(FRAMES)[:, None]
    reads = torch.zeros(3, 8, 8)
    reads[0, :4, :4] = reads[1, 4:, 4:] = torch.eye(4)
    with torch.no_grad():
        for projection in (attention.to_q, attention.to_k):
            projection.weight.copy_(10 * reads.flatten(0, 1))
            projection.bias.zero_()
        still = torch.ones(1, FRAMES * PLACES, 1, 8), torch.zeros(1, FRAMES * PLACES, 1, 8)
        found = masses(attention, tokens.flatten(0, 1)[None], still, FRAMES)
    # RMS over all 24 numbers, of which two are set: each becomes sqrt(12). The exponent of a match is 12 / sqrt(8).
    match = torch.tensor(12 / 8**0.5).exp()
    time, space = match / (match * FRAMES + 9), match / (match * PLACES + 8)
    torch.testing.assert_close(found[0], torch.stack([time, 1 / (match * FRAMES + 9)]))
    torch.testing.assert_close(found[1], torch.stack([1 / (match * PLACES + 8), space]))
    torch.testing.assert_close(found[2], torch.full((2,), 1 / 12))


def test_masses_are_those_of_the_networks_own_attention(pipeline, monkeypatch) -> None:
    """Against the weights of the attention call itself, positions included."""
    from diffusers.models.transformers import transformer_wan

    called, real = [], transformer_wan.dispatch_attention_fn
    monkeypatch.setattr(
        transformer_wan, "dispatch_attention_fn", lambda q, k, v, **kw: called.append((q, k)) or real(q, k, v, **kw)
    )
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    text = pipeline.read_prompts(["a red circle"])
    with torch.no_grad():
        found = WAN.head_masses(
            pipeline.unet, 3, lambda: WAN.predict(pipeline.unet, latents, torch.tensor(500.0), text)
        )
    query, key = called[0]
    weights = torch.einsum("qhd,khd->hqk", query[0], key[0]).div(12**0.5).softmax(-1)
    frame, place = torch.arange(12) // 4, torch.arange(12) % 4
    in_time = (place[:, None] == place) & (frame[:, None] != frame)
    expected = (weights * in_time).sum(dim=(1, 2)) / in_time.sum()
    assert set(found) == {"blocks.0.attn1", "blocks.1.attn1"}
    torch.testing.assert_close(found["blocks.0.attn1"][:, 0], expected)


def test_rows_of_other_heads_are_zero_in_what_is_learned(pipeline, monkeypatch) -> None:
    one = {"blocks.0.attn1": [True, False], "blocks.1.attn1": [False, True]}
    chosen = {name: torch.tensor(heads) for name, heads in one.items()}
    monkeypatch.setattr("motion_lora.training.stage.temporal_heads", lambda *a: chosen)
    settings = quick(method="joint-customize-a-video", absorber_rank=2, temporal_heads=True)
    layers = train(pipeline, [sample_clip(num_frames=5)], settings).lora.layers
    assert len(layers) == 4
    for module, layer in layers.items():
        kept, other = (0, 1) if module.startswith("blocks.0") else (1, 0)
        halves = layer.delta().unflatten(0, (2, 12))
        assert bool(halves[kept].any()) and not bool(halves[other].any())


def test_measured_heads_are_repeatable_and_none_is_refused(pipeline, monkeypatch) -> None:
    clip, settings = sample_clip(num_frames=5), quick(method="joint-lora", temporal_heads=True)
    monkeypatch.setattr(heads_module, "_TIMES", 0.0)
    first, again = (train(pipeline, [clip], settings).lora.fingerprint() for _ in range(2))
    assert first == again == train(pipeline, [clip], quick(method="joint-lora")).lora.fingerprint(), "all were chosen"
    monkeypatch.setattr(heads_module, "_TIMES", math.inf)
    with pytest.raises(TrainingError, match="None of the 4 attention heads of tiny looks over time"):
        train(pipeline, [clip], settings)


def test_networks_without_such_heads_are_refused() -> None:
    with pytest.raises(SettingsError, match="temporal_heads is on, and no layer of targets 'temporal-attention'"):
        train(tiny_pipeline(levels=2), [sample_clip()], quick(method="temporal-only", temporal_heads=True))
