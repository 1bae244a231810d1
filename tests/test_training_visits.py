"""Visits inside a running training: they see the LoRA as it is, change no bit of the result, and raise in peace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from training_samples import Listener, quick, sample_clip, small_pipeline

import motion_lora.training.loop as loop
from motion_lora.core.errors import SettingsError
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import StepReport, TrainResult, View, train

PLAIN = quick(dropout=0.1, steps=6, lr_scheduler="cosine", absorber="none")
DUAL = quick(method="motiondirector", absorber="none", dropout=0.1, steps=6, spatial_rank=2)


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@dataclass
class Guest:
    """Looks at every second step of the motion stage, and behaves badly: draws from everybody's random numbers."""

    pipeline: object
    answers: dict[int, object] = field(default_factory=dict)
    seen: dict[int, str] = field(default_factory=dict)
    samples: bool = True

    def due(self, report: StepReport) -> bool:
        return report.stage == "motion" and report.step % 2 == 0

    def visit(self, view: View) -> str:
        self.seen[view.step] = view.lora.fingerprint()
        if self.samples:
            asked = SampleSettings("a blue square", num_frames=3, height=16, width=16, num_inference_steps=1)
            sample(self.pipeline, asked, stack=view.stack)
        torch.manual_seed(99)
        torch.rand(3)
        for layer in view.lora.layers.values():
            layer.up.fill_(7.0)
        answer = self.answers.get(view.step, "continue")
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)


def same(a: TrainResult, b: TrainResult) -> bool:
    losses = [[replace(report, seconds=0.0) for report in result.losses] for result in (a, b)]
    alike = a.lora.fingerprint() == b.lora.fingerprint() and a.lora.metadata == b.lora.metadata
    return alike and losses[0] == losses[1]


@pytest.mark.parametrize("settings", [PLAIN, DUAL], ids=["customize-a-video", "motiondirector"])
def test_visits_change_no_bit(pipeline, settings):
    clip = sample_clip()
    plain = train(pipeline, [clip], settings)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    guest = Guest(pipeline)
    visited = train(pipeline, [clip], settings, visitor=guest)
    assert same(plain, visited)
    assert list(guest.seen) == [2, 4, 6] and guest.seen[6] == plain.lora.fingerprint()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_visit_sees_what_stopping_there_would_give(pipeline):
    guest = Guest(pipeline, samples=False)
    train(pipeline, [sample_clip()], PLAIN, visitor=guest)
    for step in (2, 4):
        stopped = train(pipeline, [sample_clip()], PLAIN, callback=Listener(("motion", step), "stop"))
        assert stopped.lora.fingerprint() == guest.seen[step]


def test_nothing_is_built_or_written_for_a_visit(pipeline, tmp_path, monkeypatch):
    built, saved = [], []
    stage, save = loop.StageRun, loop.Keeper.save
    monkeypatch.setattr(loop, "StageRun", lambda *args: built.append(1) or stage(*args))
    monkeypatch.setattr(loop.Keeper, "save", lambda self, *args: saved.append(1) or save(self, *args))
    train(pipeline, [sample_clip()], quick(absorber="none", steps=6), visitor=Guest(pipeline), checkpoint=tmp_path)
    assert len(built) == 1 and len(saved) == 1, "one stage, and its end"


def test_a_visit_may_stop_and_the_training_can_go_on(pipeline, tmp_path):
    plain = train(pipeline, [sample_clip()], PLAIN)
    stopped = train(pipeline, [sample_clip()], PLAIN, visitor=Guest(pipeline, {4: "stop"}), checkpoint=tmp_path)
    assert stopped.ending == "stopped" and stopped.losses[-1].step == 4
    assert same(train(pipeline, [sample_clip()], PLAIN, checkpoint=tmp_path), plain)


@pytest.mark.parametrize("error", [SettingsError("the judge is gone"), KeyboardInterrupt()], ids=["own", "ctrl-c"])
def test_a_visit_that_raises_leaves_a_checkpoint_of_its_step(pipeline, tmp_path, error):
    plain = train(pipeline, [sample_clip()], PLAIN)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(type(error)):
        train(pipeline, [sample_clip()], PLAIN, visitor=Guest(pipeline, {4: error}), checkpoint=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    listener = Listener()
    resumed = train(pipeline, [sample_clip()], PLAIN, callback=listener, checkpoint=tmp_path)
    assert [report.step for report in listener.heard] == [5, 6] and same(resumed, plain)


def test_an_answer_that_is_none_is_refused(pipeline):
    with pytest.raises(SettingsError, match="must be one of"):
        train(pipeline, [sample_clip()], PLAIN, visitor=Guest(pipeline, {2: "maybe"}))


def test_steps_between_reports_are_not_visited(pipeline):
    guest = Guest(pipeline, samples=False)
    train(pipeline, [sample_clip()], replace(PLAIN, report_every=3), visitor=guest)
    assert list(guest.seen) == [6]
