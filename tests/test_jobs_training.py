"""Real training through the runner, on the tiny base: pauses, previews and restarts change nothing in the result."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import NUM_FRAMES, SIZE, tiny_frames, tiny_pipeline

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.core.clip import Clip
from motion_lora.core.errors import ModelError, TrainingError
from motion_lora.files.absorber_file import load_absorber
from motion_lora.files.own import load_lora
from motion_lora.jobs import (
    APPEARANCE_ABSORBER,
    DONE,
    FAILED,
    INTERRUPTED,
    MOTION_LORA,
    PAUSED,
    RESULT,
    STOPPED,
    Job,
    JobRunner,
    JobSpec,
    JobStore,
    PreviewPlan,
)
from motion_lora.jobs.inputs import TrainingInputs, kept_clips
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec
from motion_lora.training import TrainSettings, train, train_absorber

SETTINGS = replace(
    TrainSettings(), steps=5, absorber_steps=3, token_steps=2, patch_crop=False, frames_per_step=2, num_tokens=2
)
CLIP = Clip(
    tiny_frames(), 8.0, "a red circle circling over snow", "a red circle over snow", "red circle", source="test"
)


@pytest.fixture(scope="module")
def base() -> VideoPipeline:
    return tiny_pipeline(levels=2)


class Bench:
    """A runner whose steps can be held up at chosen points."""

    def __init__(self, folder: Path, base: VideoPipeline) -> None:
        self.folder, self.base = folder, base
        self.loaded: list[Mapping[str, str]] = []
        self.calls: list[str] = []
        self.runner = self.open()

    def open(self) -> JobRunner:
        host = TrainingHost(
            self._load,
            prepare=lambda spec: self.calls.append("prepare"),
            release=lambda spec: self.calls.append("release"),
            folders={
                MOTION_LORA: (self.folder / "loras", "motion"),
                APPEARANCE_ABSORBER: (self.folder / "absorbers", ""),
            },
        )
        return JobRunner(JobStore(self.folder / "jobs"), TrainingWork(host))

    def _load(self, recipe: Mapping[str, str]) -> VideoPipeline:
        self.loaded.append(dict(recipe))
        if recipe.get("name") != "tiny":
            raise ModelError("the base is gone")
        return self.base

    def spec(self, settings: TrainSettings = SETTINGS, kind: str = MOTION_LORA, **options: object) -> JobSpec:
        return training_spec(kind, "orbit", self.inputs(), settings, base={"name": "tiny"}, **options)

    def inputs(self) -> TrainingInputs:
        return TrainingInputs(self.base, (CLIP,))

    def submit(self, *args: object, **options: object) -> Job:
        return self.runner.submit(self.spec(*args, **options), self.inputs())

    def when(self, condition: Callable[[Job], bool], job: Job, action: Callable[[str], Job]) -> Job:
        """Do something as soon as a job has come so far, and wait for its end."""
        watcher = threading.Thread(target=self._act, args=(condition, job, action))
        watcher.start()
        watcher.join(60)
        return self.runner.wait(job.id, timeout=60)

    def _act(self, condition: Callable[[Job], bool], job: Job, action: Callable[[str], Job]) -> None:
        with self.runner._changed:
            assert self.runner._changed.wait_for(lambda: condition(self.runner.get(job.id)), timeout=60)
            action(job.id)


@pytest.fixture
def bench(tmp_path: Path, base: VideoPipeline) -> Iterator[Bench]:
    bench = Bench(tmp_path, base)
    yield bench
    bench.runner.close(timeout=30)


@pytest.fixture(scope="module")
def expected(base: VideoPipeline) -> str:
    """What training gives without jobs, pauses and previews."""
    return train(base, [CLIP], SETTINGS).lora.fingerprint()


def fingerprint(job: Job) -> str:
    return load_lora(job.folder / RESULT).fingerprint()


def test_a_job_gives_what_train_gives_and_publishes_it(bench: Bench, expected: str) -> None:
    job = bench.runner.wait(bench.submit().id, timeout=120)
    assert job.state == DONE, job.status.message
    assert fingerprint(job) == expected
    assert job.status.all_steps == job.status.done_steps == 10
    assert job.status.published == "motion/orbit.safetensors"
    published = load_lora(bench.folder / "loras" / job.status.published)
    assert published.fingerprint() == expected
    assert published.metadata["modelspec.title"] == "orbit" and str(bench.folder) not in str(published.metadata)
    beside = {path.name for path in (bench.folder / "loras/motion").iterdir()}
    assert beside == {"orbit.safetensors", "orbit.preview.png", "orbit.mp4"}
    assert [p.stage for p in bench.runner.losses(job.id)] == ["absorber-spatial"] * 3 + ["absorber-tokens"] * 2 + [
        "motion"
    ] * 5
    assert bench.calls == ["prepare", "release"]


def test_paused_restarted_and_resumed_equals_uninterrupted(bench: Bench, expected: str) -> None:
    job = bench.submit()
    paused = bench.when(lambda j: j.status.done_steps >= 7, job, bench.runner.pause)
    assert paused.state == PAUSED and paused.status.done_steps < 10
    bench.runner.close()
    bench.runner = bench.open()
    assert bench.runner.get(job.id).state == PAUSED
    bench.runner.resume(job.id)
    done = bench.runner.wait(job.id, timeout=120)
    assert done.state == DONE, done.status.message
    assert fingerprint(done) == expected and done.status.resumed_at >= 7
    assert bench.loaded == [{"name": "tiny"}]
    assert len(bench.runner.losses(job.id)) == 10


def test_previews_are_drawn_and_change_nothing(bench: Bench, expected: str) -> None:
    plan = PreviewPlan("a blue square", every=2, num_inference_steps=2)
    job = bench.runner.wait(bench.submit(preview=plan).id, timeout=120)
    assert job.state == DONE, job.status.message
    assert job.status.previews == ("000002.mp4", "000004.mp4", "000005.mp4")
    assert all((job.folder / "previews" / name).stat().st_size for name in job.status.previews)
    assert fingerprint(job) == expected


def test_a_preview_that_fails_is_a_note_only(bench: Bench, expected: str) -> None:
    plan = PreviewPlan("a blue square", every=2, num_inference_steps=5000)
    job = bench.runner.wait(bench.submit(preview=plan).id, timeout=120)
    assert job.state == DONE and job.status.previews == () and "num_inference_steps" in job.status.message
    assert fingerprint(job) == expected


def test_stop_and_save_gives_a_lora_of_the_steps_taken(bench: Bench) -> None:
    stopped = bench.when(lambda j: j.status.done_steps >= 7, bench.submit(), bench.runner.stop)
    assert stopped.state == STOPPED and stopped.status.published.startswith("motion/orbit-00000")
    lora = load_lora(stopped.folder / RESULT)
    assert any(layer.up.abs().sum() > 0 for layer in lora.layers.values())


def test_stopping_before_the_motion_stage_saves_nothing_and_says_so(bench: Bench) -> None:
    paused = bench.when(lambda j: j.status.done_steps >= 1, bench.submit(), bench.runner.stop)
    assert paused.state == PAUSED and "no step yet" in paused.status.message
    assert not (paused.folder / RESULT).exists() and not (bench.folder / "loras").exists()


def test_cancel_leaves_nothing_but_what_a_retry_needs(bench: Bench, expected: str) -> None:
    job = bench.submit()
    cancelled = bench.when(lambda j: j.status.done_steps >= 4, job, bench.runner.cancel)
    assert not (cancelled.folder / "checkpoint").exists()
    bench.runner.resume(job.id)
    assert fingerprint(bench.runner.wait(job.id, timeout=120)) == expected


def test_an_absorber_is_a_job_too(bench: Bench, base: VideoPipeline) -> None:
    job = bench.runner.wait(bench.submit(kind=APPEARANCE_ABSORBER).id, timeout=120)
    assert job.state == DONE and job.status.all_steps == 5, job.status.message
    made = load_absorber(job.folder / RESULT)
    assert made.fingerprint() == train_absorber(base, [CLIP], SETTINGS).fingerprint()
    assert load_absorber(bench.folder / "absorbers" / job.status.published).fingerprint() == made.fingerprint()
    assert bench.spec().fingerprint != bench.spec(kind=APPEARANCE_ABSORBER).fingerprint


def test_an_interrupted_absorber_resumes(bench: Bench, base: VideoPipeline) -> None:
    job = bench.submit(kind=APPEARANCE_ABSORBER)
    interrupted = bench.when(lambda j: j.status.done_steps >= 2, job, bench.runner.interrupt)
    assert interrupted.state == INTERRUPTED
    bench.runner.resume(job.id)
    done = bench.runner.wait(job.id, timeout=120)
    assert load_absorber(done.folder / RESULT).fingerprint() == train_absorber(base, [CLIP], SETTINGS).fingerprint()


def test_the_fingerprint_is_that_of_the_result(bench: Bench) -> None:
    same = [
        bench.spec(),
        bench.spec(replace(SETTINGS, gradient_checkpointing=True)),
        bench.spec(preview=PreviewPlan("x", 9)),
    ]
    other = [bench.spec(replace(SETTINGS, steps=6)), bench.spec(replace(SETTINGS, seed=1))]
    assert len({spec.fingerprint for spec in same}) == 1
    assert len({spec.fingerprint for spec in (*same, *other)}) == 3


def test_training_leaves_no_reference_behind(bench: Bench) -> None:
    pipeline = bench.base.replica()
    watched = [weakref.ref(pipeline), weakref.ref(pipeline.unet)]
    job = bench.runner.submit(bench.spec(), TrainingInputs(pipeline, (CLIP,)))
    del pipeline
    assert bench.runner.wait(job.id, timeout=120).state == DONE
    # The thread that ran it ends in its own time; those of messages and leases stay.
    deadline = time.monotonic() + 30
    while any(alive() for alive in watched) and time.monotonic() < deadline:
        time.sleep(0.02)
        gc.collect()
    assert [alive() for alive in watched] == [None, None]


def test_a_job_whose_base_is_gone_fails_with_the_reason(bench: Bench) -> None:
    job = bench.submit()
    bench.when(lambda j: j.status.done_steps >= 1, job, bench.runner.pause)
    bench.base = None
    spec_file = job.folder / "job.json"
    spec_file.write_text(spec_file.read_text().replace('"tiny"', '"gone"'))
    bench.runner.close()
    bench.runner = bench.open()
    bench.runner.resume(job.id)
    failed = bench.runner.wait(job.id, timeout=60)
    assert failed.state == FAILED and failed.status.message == "the base is gone"


def test_bad_inputs_fail_before_a_step_and_say_why(bench: Bench) -> None:
    odd = Clip(tiny_frames(size=SIZE)[:, : SIZE - 4], 8.0, "a red circle", "a red circle", "red circle")
    job = bench.runner.submit(bench.spec(), TrainingInputs(bench.base, (odd,)))
    failed = bench.runner.wait(job.id, timeout=60)
    assert failed.state == FAILED and "nearest size" in failed.status.message and failed.status.done_steps == 0


def test_clips_come_back_to_the_bit_even_from_inference_mode(bench: Bench) -> None:
    job = bench.submit()
    with torch.inference_mode():
        (clip,) = kept_clips(job.folder / "inputs")
    assert clip.fingerprint() == CLIP.fingerprint() and clip.num_frames == NUM_FRAMES and not clip.frames.is_inference()
    (job.folder / "inputs" / "clips.json").write_text("[{}]")
    with pytest.raises(TrainingError, match="damaged"):
        kept_clips(job.folder / "inputs")
