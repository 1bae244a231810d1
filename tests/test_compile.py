"""torch.compile: one graph for a training with dropout, however many steps it has, and as many when it goes on."""

from __future__ import annotations

from functools import partial

import torch
from tiny import tiny_pipeline
from torch._dynamo.testing import CompileCounter
from training_samples import quick, sample_clip

from motion_lora.adapters.peft import hashed
from motion_lora.training import train

_compile = torch.compile


def test_one_graph_with_dropout_and_none_more_by_the_step(monkeypatch, tmp_path):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(_compile, backend=counter))
    pipeline, clip = tiny_pipeline(levels=1), sample_clip()
    settings = quick(method="temporal-only", dropout=0.2, steps=3, compile=True)
    whole = train(pipeline, [clip], settings)
    assert counter.frame_count == 1
    part = train(
        pipeline, [clip], settings, checkpoint=tmp_path, callback=lambda r: "pause" if r.step == 1 else "continue"
    )
    assert part.ending == "paused"
    rest = train(pipeline, [clip], settings, checkpoint=tmp_path)
    assert rest.lora.fingerprint() == whole.lora.fingerprint()
    assert counter.frame_count == 1, "three trainings on one kind of network"


def test_hashed_numbers_are_even_and_go_with_the_seed():
    like = torch.empty(64, 1000)
    one, again, two = (hashed(like, torch.tensor(seed)) for seed in (5, 5, 2**40 + 5))
    assert torch.equal(one, again) and not torch.equal(one, two)
    assert float(one.min()) >= 0 and float(one.max()) < 1
    for numbers in (one, two):
        assert abs(float((numbers < 0.1).float().mean()) - 0.1) < 0.005
        assert abs(float(torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.02
