"""The arithmetic of stacks: every property that users of other tools have seen broken."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from lora_samples import (
    appearance_sample,
    everything_sample,
    modules_like,
    motion_sample,
    random_layer,
    random_lora,
    replica_of,
    run,
    state_bytes,
)
from tiny import tiny_unet
from torch import nn

from motion_lora.adapters.apply import applied, applied_to_text_encoder, check_frames
from motion_lora.backbones.unet3d import UNET3D
from motion_lora.core.curves import FrameCurve, Schedule
from motion_lora.core.errors import LoRAFileError, SettingsError
from motion_lora.core.highway import Highway
from motion_lora.core.lora import LoRA, LoRALayer
from motion_lora.core.stack import AdapterStack, StackEntry


@pytest.fixture(scope="module")
def base():
    return tiny_unet(0)


@pytest.fixture
def unet(base):
    return replica_of(base)


def stack_of(*entries: StackEntry) -> AdapterStack:
    return AdapterStack(entries)


def change(unet, stack, frames: int = 3) -> dict[str, torch.Tensor]:
    """What the stack adds to every weight, read off the network."""
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with applied(unet, stack, frames):
        return {name: tensor - before[name] for name, tensor in unet.state_dict().items()}


def output(unet, stack, frames: int = 3, at: float = 0.0, merge: bool = True) -> torch.Tensor:
    with applied(unet, stack, frames, merge=merge) as work:
        work.at(at)
        return run(unet, frames)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


# What merging does


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 2.0])
def test_the_change_of_each_weight_is_strength_times_delta(unet, strength):
    lora = everything_sample(unet)
    found = change(unet, stack_of(StackEntry(lora, strength)))
    for module, layer in lora.layers.items():
        expected = strength * layer.delta()
        assert torch.allclose(found[f"{module}.weight"], expected, atol=1e-7), module
    touched = {f"{module}.weight" for module in lora}
    assert all(not tensor.any() for name, tensor in found.items() if name not in touched)


def test_scale_is_applied_exactly_once(unet):
    """Peers multiply up, down and alpha (power 3), or overwrite alpha: here half the scale is half the change."""
    module = modules_like(unet, "attn1.to_q", path="temporal")[0]
    lora = random_lora(unet, [module], scale=0.25)
    full = LoRA({module: LoRALayer(lora.layers[module].down, lora.layers[module].up, 1.0)})
    quarter, whole = change(unet, stack_of(StackEntry(lora))), change(unet, stack_of(StackEntry(full)))
    name = f"{module}.weight"
    assert torch.allclose(quarter[name], 0.25 * whole[name], atol=1e-7)


def test_output_depends_linearly_on_strength_where_the_network_is_linear(unet):
    """conv_out is the last layer, so the output of the network itself must move in proportion."""
    lora = random_lora(unet, ["conv_out"])
    at_0, at_1, at_3, at_minus = (output(unet, stack_of(StackEntry(lora, s))) for s in (0.0, 1.0, 3.0, -1.0))
    assert close(at_3 - at_0, 3 * (at_1 - at_0), 1e-4)
    assert close(at_minus - at_0, at_0 - at_1, 1e-4)


def test_block_strength_of_a_half_is_exactly_half(unet):
    lora = everything_sample(unet)
    half = change(unet, stack_of(StackEntry(lora, block_strengths={"down_blocks.1": 0.5, "transformer_in": 0.5})))
    whole = change(unet, stack_of(StackEntry(lora)))
    for module in lora:
        factor = 0.5 if UNET3D.block_of(module) in ("down_blocks.1", "transformer_in") else 1.0
        assert torch.allclose(half[f"{module}.weight"], factor * whole[f"{module}.weight"], atol=1e-7), module


def test_temporal_and_spatial_strength_act_on_their_own_path(unet):
    lora = everything_sample(unet)
    found = change(unet, stack_of(StackEntry(lora, 2.0, temporal_strength=0.5, spatial_strength=-0.25)))
    for module, layer in lora.layers.items():
        factor = 1.0 if UNET3D.layer_of(module) == "temporal" else -0.5
        assert torch.allclose(found[f"{module}.weight"], factor * layer.delta(), atol=1e-7), module


def test_strength_and_its_opposite_are_the_base_bit_for_bit(unet, base):
    lora, other = everything_sample(unet), appearance_sample(unet, seed=9)
    two = stack_of(StackEntry(lora, 0.7), StackEntry(other, 0.3))
    four = two.add(StackEntry(lora, -0.7)).add(StackEntry(other, -0.3))
    assert torch.equal(output(unet, four), run(base))
    assert not torch.equal(output(unet, two), run(base))


@pytest.mark.parametrize("merge", [True, False])
def test_strength_zero_is_the_base_bit_for_bit(unet, base, merge):
    assert torch.equal(output(unet, stack_of(StackEntry(everything_sample(unet), 0.0)), merge=merge), run(base))


@pytest.mark.parametrize("merge", [True, False])
def test_order_does_not_matter(unet, merge):
    loras = [motion_sample(unet, seed=1), appearance_sample(unet, seed=2), everything_sample(unet, seed=3)]
    entries = [StackEntry(lora, 0.3 * (i + 1)) for i, lora in enumerate(loras)]
    forward, backward = stack_of(*entries), stack_of(*entries[::-1])
    assert torch.equal(output(unet, forward, merge=merge), output(unet, backward, merge=merge))
    assert forward.fingerprint() == backward.fingerprint()


def test_merged_equals_unmerged(unet, base):
    stack = stack_of(
        StackEntry(everything_sample(unet), 0.8), StackEntry(motion_sample(unet, rank=3, seed=5, scale=0.3), -0.9)
    )
    merged, unmerged = output(unet, stack), output(unet, stack, merge=False)
    assert close(merged, unmerged)
    assert not close(merged, run(base), 1e-2)


def test_two_stacked_are_the_sum_of_their_deltas(unet):
    one, two = motion_sample(unet, rank=2, seed=1), motion_sample(unet, rank=5, seed=2, scale=0.3)
    found = change(unet, stack_of(StackEntry(one, 0.6), StackEntry(two, -1.2)))
    for module in one:
        expected = 0.6 * one.layers[module].delta() - 1.2 * two.layers[module].delta()
        assert torch.allclose(found[f"{module}.weight"], expected, atol=1e-7), module


def test_half_precision_base_is_merged_in_single_precision():
    """W + s * delta is rounded once, not after every LoRA."""
    half = tiny_unet(0).to(torch.float16)
    lora = motion_sample(half)
    module = next(iter(lora))
    weight = half.get_submodule(module).weight.clone()
    entries = [StackEntry(motion_sample(half, seed=i), 0.01) for i in range(8)]
    with applied(half, stack_of(*entries), 3):
        found = half.get_submodule(module).weight
        total = sum(entry.strength * entry.lora.layers[module].delta().double() for entry in entries)
        assert found.dtype == torch.float16
        assert torch.equal(found, (weight.double() + total).to(torch.float16))


# What varies


def test_a_schedule_that_is_constant_equals_a_constant(unet):
    lora = everything_sample(unet)
    plain = output(unet, stack_of(StackEntry(lora, 0.4)))
    for steps in (Schedule(), Schedule(curve=((0.0, 1.0), (1.0, 1.0)))):
        entry = StackEntry(lora, 0.4, steps=steps, frames=FrameCurve())
        with applied(unet, stack_of(entry), 3) as work:
            assert work.varying == 0
            assert torch.equal(run(unet), plain)
    halved = StackEntry(lora, 0.8, steps=Schedule(curve=((0.0, 0.5),)))
    assert torch.equal(output(unet, stack_of(halved), at=0.3), plain)


def test_a_schedule_moves_the_strength(unet, base):
    lora = everything_sample(unet)
    with applied(unet, stack_of(StackEntry(lora, 0.8, steps=Schedule(0.25, 0.75, "linear"))), 3) as work:
        assert (work.merged, work.varying) == (len(lora), 0)
        for position, strength in ((0.0, 0.0), (0.25, 0.8), (0.5, 0.4), (0.75, 0.0), (1.0, 0.0)):
            work.at(position)
            expected = run(base) if strength == 0.0 else output(replica_of(base), stack_of(StackEntry(lora, strength)))
            assert close(run(unet), expected), position
            assert strength or torch.equal(run(unet), expected)


def test_a_schedule_and_constants_work_together(unet):
    motion, look = motion_sample(unet, seed=1), everything_sample(unet, seed=4)
    stack = stack_of(StackEntry(motion, 0.5, steps=Schedule(end=0.5)), StackEntry(look, 0.9))
    early, late = output(unet, stack, at=0.0), output(unet, stack, at=0.5)
    assert close(early, output(unet, stack_of(StackEntry(motion, 0.5), StackEntry(look, 0.9))))
    assert torch.equal(late, output(unet, stack_of(StackEntry(look, 0.9))))


def test_the_first_step_is_set_before_anybody_calls_at(unet, base):
    lora = motion_sample(unet)
    with applied(unet, stack_of(StackEntry(lora, steps=Schedule(curve="linear"))), 3):
        assert close(run(unet), output(replica_of(base), stack_of(StackEntry(lora))))


def test_frame_strength_reaches_the_right_frame_of_a_temporal_attention(unet):
    """Seen on the module itself: its output moves on frame 1 of 4 only, by exactly the delta."""
    module = modules_like(unet, "attn1.to_out.0", path="temporal")[1]
    _check_frames(unet, module, frame_axis=1)


def test_frame_strength_reaches_the_right_frame_of_a_temporal_convolution(unet):
    module = modules_like(unet, "conv2.3", path="temporal")[0]
    _check_frames(unet, module, frame_axis=2)


def _check_frames(unet, module: str, frame_axis: int) -> None:
    lora = random_lora(unet, [module])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    curve = FrameCurve(curve=((0.0, 0.0), (1 / 3, 1.0), (2 / 3, 0.0), (1.0, -2.0)))
    with applied(unet, stack_of(StackEntry(lora, 0.5, frames=curve)), 4):
        target = unet.get_submodule(module)
        handle = target.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        run(unet, 4)
        handle.remove()
    values, result = seen[0]
    with torch.no_grad():
        plain = unet.get_submodule(module)(values)
    with applied(unet, stack_of(StackEntry(lora, 0.5)), 4), torch.no_grad():
        whole = unet.get_submodule(module)(values) - plain
    assert result.shape[frame_axis] == 4
    for frame, factor in enumerate((0.0, 1.0, 0.0, -2.0)):
        moved = (result - plain).select(frame_axis, frame)
        assert torch.allclose(moved, factor * whole.select(frame_axis, frame), atol=1e-5), frame


def test_a_flat_frame_curve_equals_a_constant(unet):
    lora = everything_sample(unet)
    nearly = FrameCurve(curve=((0.0, 0.5), (1.0, 0.5 + 1e-12)))
    with applied(unet, stack_of(StackEntry(lora, 0.8, frames=nearly)), 3) as work:
        temporal = sum(UNET3D.layer_of(module) == "temporal" for module in lora)
        assert (work.merged, work.varying) == (len(lora) - temporal, temporal)
        found = run(unet)
    assert close(found, output(unet, stack_of(StackEntry(lora, 0.8, temporal_strength=0.5))))


def test_steps_and_frames_multiply(unet):
    lora = motion_sample(unet)
    curve = FrameCurve(curve="linear")
    both = StackEntry(lora, frames=curve, steps=Schedule(curve="linear"))
    assert close(output(unet, stack_of(both), at=0.75), output(unet, stack_of(StackEntry(lora, 0.25, frames=curve))))


def test_frame_curve_meets_another_number_of_frames(unet, base):
    lora = motion_sample(unet)
    with (
        applied(unet, stack_of(StackEntry(lora, frames=FrameCurve(curve="linear"))), 5),
        pytest.raises(SettingsError, match="5 frames"),
    ):
        run(unet, 3)
    assert torch.equal(run(unet), run(base))


@pytest.mark.parametrize(
    ("curve", "points"),
    [
        ("constant", {0.0: 1, 0.5: 1, 1.0: 1}),
        ("linear", {0.0: 1, 0.25: 0.75, 1.0: 0}),
        ("linear-in", {0.0: 0, 0.25: 0.25, 1.0: 1}),
        ("cosine", {0.0: 1, 0.5: 0.5, 1.0: 0, 0.25: (1 + math.cos(math.pi / 4)) / 2}),
        ("cosine-in", {0.0: 0, 0.5: 0.5, 1.0: 1}),
        (((0.2, 1.0), (0.6, 3.0)), {0.0: 1, 0.2: 1, 0.4: 2, 0.6: 3, 1.0: 3}),
    ],
)
def test_curves(curve, points):
    for position, factor in points.items():
        assert Schedule(curve=curve).value(position) == pytest.approx(factor, abs=1e-12)


def test_a_window_holds_its_first_step_and_not_its_last():
    window = Schedule(0.25, 0.5)
    assert [window.value(p) for p in (0.2, 0.25, 0.49, 0.5, 1.0)] == [0, 1, 1, 0, 0]
    assert sum(Schedule(end=0.5).samples(30)) == 15
    assert FrameCurve(curve="linear").samples(1) == [1.0]


# What stays as it was


def test_the_base_and_the_replica_are_restored(base):
    before, unet = state_bytes(base), replica_of(base)
    parameters = dict(unet.named_parameters())
    stack = stack_of(StackEntry(everything_sample(unet)), StackEntry(motion_sample(unet), steps=Schedule(end=0.5)))
    with pytest.raises(RuntimeError, match="stop"), applied(unet, stack, 3):
        assert state_bytes(base) == before
        run(unet)
        raise RuntimeError("stop")
    assert all(parameters[name] is parameter for name, parameter in unet.named_parameters())
    assert not any(module._forward_hooks for module in unet.modules())
    assert state_bytes(base) == before


def test_an_empty_stack_is_the_base(unet, base):
    with applied(unet, AdapterStack(), 3) as work:
        work.at(1.0)
        assert torch.equal(run(unet), run(base))


# Refusals: before anything is touched


@pytest.mark.parametrize("fault", ["absent", "shape", "factors", "empty", "block"])
def test_what_does_not_fit_is_refused_and_nothing_is_applied(unet, base, fault):
    good = motion_sample(unet)
    module = next(iter(good))
    layer = good.layers[module]
    bad = {
        "absent": LoRA({**good.layers, "down_blocks.9.attentions.0.proj_in": layer}),
        "shape": LoRA({**good.layers, module: LoRALayer(layer.down[:, :-1], layer.up)}),
        "factors": LoRA({**good.layers, module: LoRALayer(layer.down, layer.up[:, :1])}),
        "empty": LoRA({}),
        "block": good,
    }[fault]
    blocks = {"down_blocks.7": 1.0} if fault == "block" else {}
    named = {"absent": "down_blocks.9.attentions.0.proj_in", "shape": module, "factors": module, "empty": "no layers"}
    error = SettingsError if fault == "block" else LoRAFileError
    stack = stack_of(StackEntry(good), StackEntry(bad, block_strengths=blocks))
    with pytest.raises(error, match=named.get(fault, "down_blocks.7").replace(".", r"\.")), applied(unet, stack, 3):
        pytest.fail("entered")
    assert torch.equal(run(unet), run(base))


def test_a_frame_curve_without_temporal_layers_is_refused(unet):
    with pytest.raises(SettingsError, match="temporal"):
        check_frames(StackEntry(appearance_sample(unet), frames=FrameCurve(curve="linear")))


@pytest.mark.parametrize(
    "make",
    [
        lambda lora: StackEntry(lora, math.nan),
        lambda lora: StackEntry(lora, block_strengths={"mid_block": math.inf}),
        lambda lora: Schedule(0.5, 0.5),
        lambda lora: Schedule(-0.1, 0.5),
        lambda lora: Schedule(curve="wavy"),
        lambda lora: Schedule(curve=()),
        lambda lora: Schedule(curve=((0.5, 1.0), (0.5, 2.0))),
        lambda lora: Schedule(curve=((0.0, 1.0), (1.5, 2.0))),
        lambda lora: Schedule(curve=((0.0, math.nan),)),
        lambda lora: Schedule(curve=(1.0, 2.0)),
    ],
)
def test_values_out_of_range_are_refused(unet, make):
    with pytest.raises(SettingsError):
        make(motion_sample(unet))


def test_positions_and_frames_out_of_range_are_refused(unet):
    stack = stack_of(StackEntry(motion_sample(unet)))
    with applied(unet, stack, 3) as work, pytest.raises(SettingsError, match=r"\[0, 1\]"):
        work.at(1.2)
    with pytest.raises(SettingsError, match="num_frames"), applied(unet, stack, 0):
        pytest.fail("entered")


# The stack as a value


def test_description_is_json(unet):
    motion, both = motion_sample(unet, seed=1), everything_sample(unet, seed=2)
    stack = stack_of(
        StackEntry(motion, 0.5, frames=FrameCurve(0.1, 1.0, "cosine"), name="walk"),
        StackEntry(both, -0.3, 1.1, 0.9, {"mid_block": 0.2}, Schedule(curve=((0.0, 1.0), (1.0, 0.0))), name="look"),
    )
    found = json.loads(json.dumps(stack.describe()))
    assert [entry["name"] for entry in found["entries"]] == ["walk", "look"] and found["highway"] is None
    assert [entry["lora"] for entry in found["entries"]] == [motion.fingerprint(), both.fingerprint()]


def test_the_highway_is_part_of_the_value(unet):
    plain = stack_of(StackEntry(motion_sample(unet)))
    routed = plain.with_highway(Highway("all", 1.2))
    assert json.loads(json.dumps(routed.describe()))["highway"]["preset"] == "all"
    assert routed.fingerprint() != plain.fingerprint()


def test_fingerprint_sees_what_changes_the_result_and_nothing_else(unet):
    lora = motion_sample(unet)
    plain = stack_of(StackEntry(lora, name="a"))
    variants = [
        stack_of(StackEntry(lora, 0.9)),
        stack_of(StackEntry(lora, block_strengths={"mid_block": 0.5})),
        stack_of(StackEntry(lora, steps=Schedule(end=0.5))),
        stack_of(StackEntry(lora, frames=FrameCurve(end=0.5))),
        stack_of(StackEntry(motion_sample(unet, seed=3))),
        stack_of(StackEntry(lora), StackEntry(lora)),
        stack_of(StackEntry(lora, temporal_strength=0.5)),
    ]
    assert plain.fingerprint() == stack_of(StackEntry(lora, name="b")).fingerprint()
    assert len({stack.fingerprint() for stack in [plain, *variants]}) == len(variants) + 1


def test_text_encoder_part_is_merged_and_taken_back(unet):
    text_encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    text = random_lora(text_encoder, ["1"])
    before = text_encoder[1].weight.clone()
    stack = stack_of(StackEntry(appearance_sample(unet), 0.5, text_encoder=text), StackEntry(motion_sample(unet)))
    with applied_to_text_encoder(text_encoder, stack):
        assert torch.allclose(text_encoder[1].weight, before + 0.5 * text.layers["1"].delta())
    assert torch.equal(text_encoder[1].weight, before)


# Cost


def test_ten_merged_loras_add_no_work_to_a_step(unet, base):
    """No hooks and no extra modules: the network is the base's with other numbers. Timed in bench/."""
    stack = stack_of(*[StackEntry(motion_sample(unet, seed=i), 0.1) for i in range(10)])
    with applied(unet, stack, 3) as work:
        assert work.varying == 0
        assert not any(module._forward_hooks for module in unet.modules())
        assert [type(m) for m in unet.modules()] == [type(m) for m in base.modules()]


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.01), (torch.float16, 0.001)])
def test_small_changes_survive_weights_of_sixteen_bits(base, caplog, dtype, share):
    """A hundredth of bfloat16 weights, or a thousandth of float16 ones, changes outputs as in fp32."""
    assert 0.9 < kept_of(base, dtype, share) < 1.1
    assert "too small" not in caplog.text


@pytest.mark.parametrize(
    ("dtype", "share", "way_out"),
    [(torch.bfloat16, 0.0005, "bfloat16.*fp16 or fp32"), (torch.float16, 0.00005, "float16.*base in fp32")],
)
def test_a_change_below_the_precision_says_so(base, caplog, dtype, share, way_out):
    """Most of it is gone, which only another precision mends."""
    assert kept_of(base, dtype, share) < 0.7
    assert re.search(rf"the change of 1 layers is too small for {way_out}", caplog.text)


def kept_of(base: nn.Module, dtype: torch.dtype, share: float) -> float:
    """How much of a change with that share of a weight's norm arrives at the outputs of its layer, merged into `dtype`.

    The noise of sixteen bits averages out over many inputs; a change that is lost does not come back.
    """
    name = max(motion_sample(base), key=lambda module: base.get_submodule(module).weight.numel())
    network = copy.deepcopy(base).to(dtype).requires_grad_(False)
    linear = network.get_submodule(name)
    layer = random_layer(linear.weight.float(), 4, 0)
    scaled = replace(layer, scale=layer.scale * share * float(linear.weight.float().norm() / layer.delta().norm()))
    inputs = torch.randn(8192, linear.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, wanted = linear(inputs).float(), inputs.float() @ scaled.delta().T
    with applied(network, stack_of(StackEntry(LoRA({name: scaled}))), num_frames=1):
        found = linear(inputs).float() - before
    return float((found * wanted).sum() / (wanted * wanted).sum())
