"""Merging, resizing and extracting: each against the matrices themselves."""

from __future__ import annotations

import json

import pytest
import torch
from lora_samples import appearance_sample, everything_sample, modules_like, motion_sample, random_lora, replica_of, run
from tiny import tiny_unet

from motion_lora.adapters.apply import applied
from motion_lora.adapters.arithmetic import extract, merge, resize
from motion_lora.core.errors import LoRAFileError, SettingsError
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry, trained_schedule
from motion_lora.files.own import load_lora, save_lora


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(0)


def output(unet, *entries: StackEntry) -> torch.Tensor:
    with applied(unet, AdapterStack(entries), 2):
        return run(unet, 2, 1)


# Merge


def test_a_merge_is_the_sum_of_the_parts_exactly(unet):
    loras = [motion_sample(unet, 2, 1, 0.3), everything_sample(unet, 2), appearance_sample(unet, 5, 4, -1.5)]
    strengths = [0.8, 1.0, -0.4]
    merged = merge(loras, strengths)
    assert set(merged.layers) == {module for lora in loras for module in lora}
    for module, layer in merged.layers.items():
        parts = [(lora.layers[module], s) for lora, s in zip(loras, strengths, strict=True) if module in lora.layers]
        expected = sum(s * part.delta(torch.float64) for part, s in parts)
        assert torch.allclose(layer.delta(torch.float64), expected, rtol=1e-6, atol=1e-8), module
        assert layer.rank == sum(part.rank for part, _ in parts)


def test_a_merge_samples_as_the_stack_does(unet):
    replica = replica_of(unet)
    one, two = motion_sample(unet, seed=1), everything_sample(unet, seed=2)
    stacked = output(replica, StackEntry(one, 0.7), StackEntry(two, -0.3))
    merged = output(replica, StackEntry(merge([one, two], [0.7, -0.3])))
    assert torch.allclose(stacked, merged, atol=1e-5)


def test_a_merge_says_where_it_comes_from(tmp_path, unet):
    said = {"motion_lora.base_weights_hash": "f00d", "motion_lora.steps": "500"}
    one = motion_sample(unet, seed=1).with_metadata(**said, **{"motion_lora.captions": '["a walk"]'})
    two = motion_sample(unet, seed=2).with_metadata(**said, **{"motion_lora.captions": '["a zoom", "a walk"]'})
    merged = load_lora(save_lora(tmp_path / "x.safetensors", merge([one, two], [1.0, 0.5])))
    parts = json.loads(merged.metadata["motion_lora.merged_from"])
    assert [part["strength"] for part in parts] == [1.0, 0.5]
    assert [part["fingerprint"] for part in parts] == [one.fingerprint(), two.fingerprint()]
    assert json.loads(merged.metadata["motion_lora.captions"]) == ["a walk", "a zoom"]
    assert merged.metadata["motion_lora.base_weights_hash"] == "f00d"
    assert "motion_lora.steps" not in merged.metadata
    assert merged.metadata["motion_lora.rank"] == "4"
    other = two.with_metadata(**{"motion_lora.base_weights_hash": "beef"})
    assert "motion_lora.base_weights_hash" not in merge([one, other]).metadata


def test_a_merge_acts_in_the_steps_that_its_parts_act_in(unet):
    early = [
        LoRA(motion_sample(unet).layers, {"motion_lora.settings": json.dumps({"seed": seed})}, acts_in=(0.6, 1.0))
        for seed in (1, 2)
    ]
    assert trained_schedule(merge(early)) == trained_schedule(early[0]) is not None
    assert trained_schedule(merge([motion_sample(unet)] * 2)) is None
    with pytest.raises(SettingsError, match="act in different sampling steps"):
        merge([early[0], motion_sample(unet)])


def test_merging_refuses_what_does_not_go_together(unet):
    lora = motion_sample(unet)
    module, layer = next(iter(lora.layers.items()))
    other = LoRA({module: LoRALayer(layer.down[:, :-1], layer.up)})
    with pytest.raises(LoRAFileError, match=module.replace(".", r"\.")):
        merge([lora, other])
    for loras, strengths in (([], None), ([lora], [1.0, 2.0]), ([lora], [float("nan")])):
        with pytest.raises(SettingsError):
            merge(loras, strengths)


# Resize


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_resizing_gives_the_nearest_matrix_of_that_rank(unet, rank):
    """Against the truncated SVD of the whole change (Eckart and Young)."""
    lora = merge([everything_sample(unet, seed=1), everything_sample(unet, seed=2), everything_sample(unet, seed=3)])
    resized = resize(lora, rank)
    for module, layer in resized.lora.layers.items():
        whole = lora.layers[module].delta(torch.float64)
        left, values, right = torch.linalg.svd(whole.flatten(1), full_matrices=False)
        nearest = (left[:, :rank] * values[:rank] @ right[:rank]).view(whole.shape)
        kept = float(values[:rank].square().sum() / values.square().sum())
        assert layer.rank == min(rank, lora.layers[module].rank)
        assert layer.delta().shape == whole.shape
        assert torch.allclose(layer.delta(torch.float64), nearest, atol=1e-5 * float(whole.abs().max())), module
        assert resized.kept_by_module[module] == pytest.approx(kept, rel=1e-6)


def test_the_kept_energy_is_that_of_all_modules_together(unet):
    lora = motion_sample(unet, rank=6)
    resized = resize(lora, 2)
    total = sum(float(layer.delta().square().sum()) for layer in lora.layers.values())
    kept = sum(float(layer.delta().square().sum()) for layer in resized.lora.layers.values())
    assert 0.2 < resized.kept < 0.99
    assert resized.kept == pytest.approx(kept / total, rel=1e-4)


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_resizing_by_energy_takes_the_smallest_rank_that_keeps_it(unet, energy):
    lora = motion_sample(unet, rank=8)
    resized = resize(lora, energy=energy)
    assert resized.kept >= energy - 1e-9
    for module, layer in resized.lora.layers.items():
        assert resized.kept_by_module[module] >= energy - 1e-9
        if layer.rank > 1:
            values = torch.linalg.svdvals(lora.layers[module].delta(torch.float64).flatten(1)).square()
            assert float(values[: layer.rank - 1].sum() / values.sum()) < energy
    assert max(resize(lora, 3, energy=energy).lora.ranks) <= 3


def test_a_rank_is_never_raised_and_a_full_one_changes_nothing(unet):
    replica, lora = replica_of(unet), motion_sample(unet, rank=3, scale=0.4)
    resized = resize(lora, 64)
    assert resized.lora.ranks == (3,)
    assert resized.kept == pytest.approx(1.0)
    assert torch.allclose(output(replica, StackEntry(resized.lora)), output(replica, StackEntry(lora)), atol=1e-5)


def test_a_merge_of_copies_shrinks_back_to_one(unet):
    lora = motion_sample(unet, rank=2)
    resized = resize(merge([lora, lora, lora], [0.5, 0.25, 0.25]), 2)
    assert resized.kept == pytest.approx(1.0)
    for module, layer in lora.layers.items():
        assert torch.allclose(resized.lora.layers[module].delta(), layer.delta(), atol=1e-6)


def test_an_untrained_layer_survives_resizing(unet):
    lora = motion_sample(unet, rank=4)
    module = next(iter(lora))
    layers = {**lora.layers, module: LoRALayer(lora.layers[module].down, torch.zeros_like(lora.layers[module].up))}
    resized = resize(LoRA(layers), 2, energy=0.9)
    assert not resized.lora.layers[module].delta().any()
    assert resized.kept_by_module[module] == 1.0


@pytest.mark.parametrize("values", [{}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
def test_resizing_refuses_what_is_no_rank(unet, values):
    with pytest.raises(SettingsError):
        resize(motion_sample(unet), **values)


# Extract


def tuned_by(unet, lora: LoRA, strength: float = 1.0) -> dict[str, torch.Tensor]:
    with applied(unet, AdapterStack((StackEntry(lora, strength),)), 2):
        return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def test_extracting_gives_back_what_was_merged_in(unet):
    replica, lora = replica_of(unet), everything_sample(unet)
    found = extract(unet.state_dict(), tuned_by(replica, lora, 0.8), rank=4)
    assert set(found.lora.layers) == set(lora.layers)
    assert found.left_out == ()
    assert found.kept > 0.999
    for module, layer in lora.layers.items():
        expected = 0.8 * layer.delta()
        error = (found.lora.layers[module].delta() - expected).norm() / expected.norm()
        assert error < 1e-4, module  # the merged weight was rounded to fp32


def test_extracting_keeps_the_largest_part(unet):
    replica = replica_of(unet)
    lora = random_lora(unet, modules_like(unet, "attn1.to_q"), rank=8)
    found = extract(unet.state_dict(), tuned_by(replica, lora), rank=2)
    expected = resize(lora, 2)
    assert found.kept == pytest.approx(expected.kept, rel=1e-3)


def test_extracting_is_limited_and_names_what_it_leaves_out(unet):
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    temporal = modules_like(unet, "attn1.to_q", path="temporal")
    changed = [temporal[0], modules_like(unet, "attn1.to_q", path="spatial")[0]]
    for module in changed:
        state[f"{module}.weight"] += 0.1
    state["conv_in.bias"] += 1.0
    found = extract(unet.state_dict(), state, 2, temporal)
    assert set(found.lora.layers) == {temporal[0]}
    assert set(found.left_out) == {f"{changed[1]}.weight", "conv_in.bias"}


def test_large_matrices_take_the_quick_way_to_the_same_result():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(640, 320, generator=generator)
    spectrum = torch.logspace(0, -3, 200)
    left = torch.linalg.qr(torch.randn(640, 200, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(320, 200, generator=generator)).Q
    difference = left * spectrum @ right.T
    found = extract({"a.weight": base}, {"a.weight": base + difference}, 8)
    best = float(spectrum[:8].square().sum() / spectrum.square().sum())
    assert found.kept == pytest.approx(best, rel=1e-3)
    again = extract({"a.weight": base}, {"a.weight": base + difference}, 8)
    assert found.lora.fingerprint() == again.lora.fingerprint()


def test_extracting_refuses_two_networks_and_no_difference(unet):
    state = unet.state_dict()
    with pytest.raises(LoRAFileError, match="not differ"):
        extract(state, dict(state), 4)
    with pytest.raises(LoRAFileError, match="one network"):
        extract(state, {name: tensor for name, tensor in state.items() if name != "conv_in.bias"}, 4)
    with pytest.raises(LoRAFileError, match="conv_in"):
        extract(state, {**state, "conv_in.weight": torch.ones(1)}, 4)
    with pytest.raises(SettingsError, match="rank"):
        extract(state, dict(state), 0)
