"""What only a card can show: nobody waits for it, the fused optimiser resumes to the same bits, memory comes back."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_samples import quick, sample_clip, small_pipeline

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.placement import Arriving, sent
from motion_lora.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def on_card(dtype: torch.dtype = torch.float32) -> VideoPipeline:
    base, device = small_pipeline(), torch.device("cuda")
    for module in (base.unet, base.vae, base.text_encoder):
        module.to(device, dtype)
    return replace(base, device=device, dtype=dtype)


def test_steps_that_nobody_listens_to_do_not_wait() -> None:
    """Ten steps more wait as often as none: what waits is before and after."""
    waits = []
    for steps in (5, 15):
        settings = quick(method="temporal-only", steps=steps, checkpoint_every=1000)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                train(on_card(), [sample_clip()], settings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(one.message) for one in seen))
    assert waits[0] == waits[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_resumed_run_has_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    base, settings = on_card(dtype), quick(method="temporal-only", steps=6)
    whole = train(base, [sample_clip()], settings)
    train(
        base, [sample_clip()], settings, checkpoint=tmp_path, callback=lambda r: "pause" if r.step > 2 else "continue"
    )
    rest = train(base, [sample_clip()], settings, checkpoint=tmp_path)
    assert rest.lora.fingerprint() == whole.lora.fingerprint()


def test_memory_comes_back() -> None:
    base = on_card()
    train(base, [sample_clip()], quick(method="temporal-only"))
    gc.collect()
    before = torch.cuda.memory_allocated()
    train(base, [sample_clip()], quick(method="temporal-only"))
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 2**20


def test_numbers_arrive() -> None:
    device = torch.device("cuda")
    assert Arriving(torch.tensor(2.5, device=device)).value() == 2.5
    large = torch.randn(10_000)
    assert torch.equal(sent(large, device).cpu(), large)
