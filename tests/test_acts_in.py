"""In which part of the noise a LoRA acts is a field of the file: it is there with and without metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_samples import motion_sample
from tiny import tiny_pipeline

from motion_lora.adapters.arithmetic import merge, resize
from motion_lora.backbones.lora import part
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.curves import Schedule
from motion_lora.core.errors import LoRAFileError
from motion_lora.core.lora import ALL_NOISE, TEMPORAL, LoRA
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.files import own
from motion_lora.files.own import load_lora, save_lora
from motion_lora.files.reader import load_any
from motion_lora.files.writers import export_kohya, export_peft, not_carried
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings

EARLY = (0.6, 1.0)


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline(levels=2)


@pytest.fixture(scope="module")
def early(base: VideoPipeline) -> LoRA:
    return replace(motion_sample(base.unet), acts_in=EARLY)


def test_the_same_video_with_and_without_metadata(base: VideoPipeline, early: LoRA, tmp_path: Path) -> None:
    settings = SampleSettings("a red circle", num_frames=2, height=16, width=16, num_inference_steps=4)
    videos = []
    for metadata in (True, False):
        path = save_lora(tmp_path / f"{metadata}.safetensors", early, metadata=metadata)
        entry = StackEntry(load_lora(path), strength=4.0)
        assert entry.schedule == Schedule(end=0.4)
        videos.append(sample(base, settings, stack=AdapterStack((entry,)))[0].frames)
    always = StackEntry(replace(early, acts_in=ALL_NOISE), strength=4.0)
    other = sample(base, settings, stack=AdapterStack((always,)))[0].frames
    assert torch.equal(*videos) and not torch.equal(videos[0], other)


def test_it_survives_arithmetic_and_its_own_parts(early: LoRA) -> None:
    found = [merge([early, early]), resize(early, 1).lora, early.with_metadata(a="b"), part(early, TEMPORAL)]
    assert [lora.acts_in for lora in found] == [EARLY] * 4


def test_the_field_counts_and_not_what_the_settings_say(early: LoRA, tmp_path: Path) -> None:
    everywhere = replace(
        early.with_metadata(**{"motion_lora.settings": json.dumps({"timestep_low": 0.6})}), acts_in=ALL_NOISE
    )
    assert load_lora(save_lora(tmp_path / "a.safetensors", everywhere)).acts_in == ALL_NOISE


def test_a_damaged_entry_is_refused(early: LoRA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "acts_in_entry", lambda lora: {own.ACTS_IN_KEY: "[0.6, 0.2]"})
    with pytest.raises(LoRAFileError, match="which part of the noise it acts"):
        save_lora(tmp_path / "a.safetensors", early)


@pytest.mark.parametrize("export", [export_kohya, export_peft])
def test_exports_carry_it_in_their_metadata_or_say_so(
    export: Callable[..., Path], early: LoRA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_any(export(tmp_path / "with.safetensors", early)).lora.acts_in == EARLY
    assert not caplog.records
    bare = export(tmp_path / "bare.safetensors", early, metadata=False)
    assert load_any(bare).lora.acts_in == ALL_NOISE
    assert "acts in the noise from 0.6 to 1 only" in caplog.text


def test_what_carries_it_says_nothing(early: LoRA) -> None:
    assert not_carried(early, "motion-lora", metadata=False) == ""
    assert not_carried(early, "kohya", metadata=True) == ""
    assert not_carried(replace(early, acts_in=ALL_NOISE), "kohya", metadata=False) == ""
    assert "kohya" in not_carried(early, "kohya", metadata=False)
