"""Block swap: equal to the bit, one block's weights on the device at a time, everything back where it was."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny import tiny_latents, tiny_pipeline
from training_samples import sample_clip

from motion_lora.adapters.peft import Adapter, add_adapter
from motion_lora.adapters.targets import target_modules
from motion_lora.backbones import swapping
from motion_lora.backbones.checkpointing import checkpointed_layers
from motion_lora.backbones.swapping import block_bytes, swapped_blocks
from motion_lora.backbones.wan import WAN
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings

EVERY = range(3)


class Bus:
    """Stands in for the way to a device: what came over it, and how many bytes of it were alive at once."""

    def __init__(self) -> None:
        self.trips, self.alive, self.peak = 0, 0, 0

    def fetched(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        copy, size = weight.detach().clone(), weight.numel() * weight.element_size()
        self.trips, self.alive = self.trips + 1, self.alive + size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(copy.untyped_storage(), self._gone, size)
        return copy

    def _gone(self, size: int) -> None:
        self.alive -= size


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    made = Bus()
    monkeypatch.setattr(swapping, "fetched", made.fetched)
    return made


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(levels=3, backbone="wan")


def step(pipeline, unet) -> list[torch.Tensor]:
    """Gradients of one pass."""
    text = pipeline.read_prompts([sample_clip().caption])
    predicted = WAN.predict(unet, tiny_latents(num_frames=3), torch.tensor(500.0), text)
    return list(torch.autograd.grad(predicted.square().mean(), Adapter(unet, "new").parameters.values()))


def with_adapter(pipeline):
    unet = pipeline.replica().unet.eval().requires_grad_(False)
    add_adapter(unet, "new", target_modules(pipeline.unet, "joint-qk"), rank=2, alpha=1.0, seed=0)
    for parameter in Adapter(unet, "new").parameters.values():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    Adapter(unet, "new").set_trainable(True)
    return unet


def test_gradients_are_equal_and_one_block_is_there_at_a_time(pipeline, bus) -> None:
    unet = with_adapter(pipeline)
    plain, sizes = step(pipeline, unet), block_bytes(pipeline.unet)
    with swapped_blocks((pipeline.unet, unet), EVERY), checkpointed_layers(unet, EVERY):
        found = step(pipeline, unet)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
    assert bus.trips == 2 * sum(len(list(block.parameters())) for block in pipeline.unet.blocks)
    assert bus.peak <= max(sizes) and bus.alive == 0 and len(sizes) == 3


def test_without_recomputing_the_graph_holds_every_block(pipeline, bus) -> None:
    """Why a training swaps only what it recomputes."""
    unet = with_adapter(pipeline)
    with swapped_blocks((pipeline.unet, unet), EVERY):
        step(pipeline, unet)
    assert bus.peak > max(block_bytes(pipeline.unet))


def test_only_the_chosen_blocks_come_and_all_is_put_back(pipeline, bus) -> None:
    unet = with_adapter(pipeline)
    kinds, weights = [type(block) for block in unet.blocks], [id(p) for p in pipeline.unet.parameters()]
    with pytest.raises(RuntimeError), swapped_blocks((pipeline.unet, unet), [1]), checkpointed_layers(unet, EVERY):
        step(pipeline, unet)
        raise RuntimeError
    assert bus.trips == 2 * len(list(pipeline.unet.blocks[1].parameters()))
    assert [type(block) for block in unet.blocks] == kinds == [type(block) for block in pipeline.unet.blocks]
    assert [id(p) for p in pipeline.unet.parameters()] == weights


def test_a_preview_in_the_middle_of_it_is_the_same_video(pipeline, bus) -> None:
    asked = SampleSettings("a red circle", num_inference_steps=1, num_frames=5, height=16, width=16)
    plain = sample(pipeline, asked, decode=False)[0].latents
    with swapped_blocks((pipeline.unet,), EVERY):
        assert torch.equal(sample(pipeline, asked, decode=False)[0].latents, plain)
    assert bus.trips and bus.alive == 0


def test_weights_shared_by_a_replica_leave_together_and_stay_one() -> None:
    """A CPU by its number counts as another device than the CPU."""
    base = torch.nn.Linear(2, 2)
    replica, before = torch.nn.Parameter(base.weight.data, requires_grad=False), base.weight.data.clone()
    old = base.weight.data
    swapping._move([base.weight, replica], [torch.device("cpu", 0)] * 2)
    assert base.weight.data_ptr() == replica.data_ptr() != old.data_ptr() and torch.equal(replica, before)
