"""Background jobs: states, commands, the queue per device, fingerprints, what is on disk, and what listeners hear.

The work here counts steps and keeps its position in a checkpoint file, so that every path of the runner is exercised
in milliseconds; `test_jobs_training.py` runs real training through the same runner.
"""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from motion_lora.core.errors import SettingsError, TrainingError
from motion_lora.jobs import (
    AUTO,
    CANCELLED,
    DONE,
    FAILED,
    INTERRUPTED,
    PAUSED,
    QUEUED,
    RUNNING,
    STOPPED,
    YIELDING,
    Job,
    JobRunner,
    JobSpec,
    JobStatus,
    JobStore,
    Outcome,
    Reporter,
    choose_device,
)
from motion_lora.jobs import store as store_module
from motion_lora.jobs.loss_log import LossLog, LossPoint, thin

STEPS = 6


@dataclass(frozen=True)
class Step:
    stage: str
    step: int
    total: int
    loss: float
    learning_rate: float = 0.1


class Payload:
    """Something that can be watched until it is gone."""


@dataclass(eq=False)
class Counting:
    """Work that adds up 1..STEPS, one step per permit, and can be paused, stopped and resumed like training."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    kept: int = 0
    restored: int = 0
    runs: list[str] = field(default_factory=list)
    at_work: list[str] = field(default_factory=list)
    together: int = 0
    fail_at: dict[int, BaseException] = field(default_factory=dict)
    previews: bool = False

    def keep(self, spec: JobSpec, payload: object, folder: Path) -> None:
        self.kept += 1
        (folder / "inputs").mkdir()

    def restore(self, spec: JobSpec, folder: Path) -> object:
        self.restored += 1
        return Payload()

    def run(self, spec: JobSpec, payload: object, folder: Path, reporter: Reporter) -> Outcome:
        assert isinstance(payload, Payload)
        self.runs.append(spec.name)
        self.at_work.append(spec.device)
        self.together = max(self.together, self.at_work.count(spec.device))
        try:
            return self._count(folder, reporter)
        finally:
            self.at_work.remove(spec.device)

    def _count(self, folder: Path, reporter: Reporter) -> Outcome:
        checkpoint = folder / "checkpoint" / "state.json"
        at, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
        for step in range(at + 1, STEPS + 1):
            assert self.gate.acquire(timeout=10), "the test gave no permit"
            if step in self.fail_at:
                raise self.fail_at.pop(step)
            total += step
            command = reporter.step(Step("motion", step, STEPS, 1 / step))
            if command == "abort":
                return Outcome(finished=False, saved=False)
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text(json.dumps([step, total]))
            if self.previews and step % 2 == 0:
                reporter.preview(f"{step:06d}.mp4")
            if command == "stop":
                (folder / "result.txt").write_text(str(total))
                return Outcome(finished=step == STEPS, saved=True)
            if command == "pause":
                return Outcome(finished=False, saved=False)
        (folder / "result.txt").write_text(str(total))
        return Outcome(finished=True, saved=True)

    def publish(self, spec: JobSpec, folder: Path, step: int) -> str:
        return f"{spec.name}-{step}"

    def permit(self, steps: int) -> None:
        self.gate.release(steps)


@pytest.fixture
def work() -> Counting:
    return Counting()


@pytest.fixture
def open_runner(tmp_path: Path, work: Counting) -> Iterator[Callable[..., JobRunner]]:
    """Opens runners over one folder; closes them all, with permits to spare, at the end."""
    opened: list[JobRunner] = []

    def make(**options: object) -> JobRunner:
        runner = JobRunner(JobStore(tmp_path / "jobs"), work, interval=0.01, **options)
        opened.append(runner)
        return runner

    yield make
    work.permit(10_000)
    for runner in opened:
        runner.close(timeout=10)


@pytest.fixture
def runner(open_runner: Callable[..., JobRunner]) -> JobRunner:
    return open_runner()


def spec(name: str = "orbit", **changes: object) -> JobSpec:
    values = {"fingerprint": f"{abs(hash(name)):016x}"[:16], "plan": {"motion": STEPS}, **changes}
    return JobSpec("motion-lora", name, **values)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def at_step(runner: JobRunner, job: Job, step: int) -> None:
    until(lambda: runner.get(job.id).status.done_steps >= step)


def result(job: Job) -> str:
    return (job.folder / "result.txt").read_text()


# Running to the end ---------------------------------------------------------------------------------------------------


def test_a_job_runs_to_the_end_and_cleans_up(runner: JobRunner, work: Counting) -> None:
    work.permit(STEPS)
    job = runner.wait(runner.submit(spec(), Payload()).id, timeout=10)
    assert job.state == DONE and result(job) == "21"
    assert job.status.published == f"orbit-{STEPS}"
    assert job.status.done_steps == job.status.all_steps == STEPS
    assert not (job.folder / "inputs").exists() and not (job.folder / "checkpoint").exists()
    assert [point.step for point in runner.losses(job.id)] == list(range(1, STEPS + 1))


def test_nothing_is_held_and_no_thread_lives_after_the_job(runner: JobRunner, work: Counting) -> None:
    payload = Payload()
    alive = weakref.ref(payload)
    work.permit(STEPS)
    job = runner.submit(spec(), payload)
    del payload
    runner.wait(job.id, timeout=10)
    until(lambda: not [t for t in threading.enumerate() if t.name == "motion-lora-cpu"])
    gc.collect()
    assert alive() is None


def test_progress_counts_over_stages(runner: JobRunner, work: Counting) -> None:
    work.permit(2)
    job = runner.submit(spec(plan={"absorber": 10, "motion": STEPS}), Payload())
    at_step(runner, job, 12)
    status = runner.get(job.id).status
    assert (status.done_steps, status.all_steps, status.stage, status.step) == (12, 16, "motion", 2)
    assert status.eta is not None and status.eta > 0


# Commands -------------------------------------------------------------------------------------------------------------


def test_pause_and_resume_give_the_uninterrupted_result(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(2)
    at_step(runner, job, 2)
    assert runner.pause(job.id).command == "pause"
    work.permit(1)
    paused = runner.wait(job.id, timeout=10)
    assert (paused.state, paused.status.done_steps, work.gate._value) == (PAUSED, 3, 0)
    runner.resume(job.id)
    work.permit(STEPS)
    finished = runner.wait(job.id, timeout=10)
    assert finished.state == DONE and result(finished) == "21"
    assert finished.status.resumed_at == 3
    assert [point.step for point in runner.losses(job.id)] == list(range(1, STEPS + 1))


def test_stop_saves_a_usable_result_and_can_go_on(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.stop(job.id)
    work.permit(1)
    stopped = runner.wait(job.id, timeout=10)
    assert stopped.state == STOPPED and result(stopped) == "3" and stopped.status.published == "orbit-2"
    assert runner.submit(spec(), Payload()).state == STOPPED, "what was saved is used"
    runner.resume(job.id)
    work.permit(STEPS)
    assert result(runner.wait(job.id, timeout=10)) == "21"


def test_stop_wakes_a_paused_job_for_one_step(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.pause(job.id)
    work.permit(1)
    assert runner.wait(job.id, timeout=10).state == PAUSED
    runner.stop(job.id)
    work.permit(1)
    stopped = runner.wait(job.id, timeout=10)
    assert stopped.state == STOPPED and result(stopped) == "6"


def test_stop_before_the_first_step_is_refused(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    with pytest.raises(SettingsError, match="no step to save"):
        runner.stop(job.id)


def test_cancel_throws_the_work_away_and_retry_starts_anew(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(2)
    at_step(runner, job, 2)
    runner.cancel(job.id)
    work.permit(1)
    cancelled = runner.wait(job.id, timeout=10)
    assert cancelled.state == CANCELLED and cancelled.status.done_steps == 0
    assert not (job.folder / "checkpoint").exists() and not list(job.folder.glob("result*"))
    runner.resume(job.id)
    work.permit(STEPS)
    assert result(runner.wait(job.id, timeout=10)) == "21"
    assert [point.step for point in runner.losses(job.id)] == list(range(1, STEPS + 1))


def test_a_queued_job_is_cancelled_at_once(runner: JobRunner, work: Counting) -> None:
    first, second = runner.submit(spec("a"), Payload()), runner.submit(spec("b"), Payload())
    until(lambda: runner.get(first.id).state == RUNNING)
    assert second.state == QUEUED
    assert runner.cancel(second.id).state == CANCELLED
    work.permit(STEPS)
    runner.wait(first.id, timeout=10)
    assert work.runs == ["a"]


def test_a_weaker_command_does_not_undo_a_stronger_one(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.cancel(job.id)
    assert runner.pause(job.id).command == "cancel"
    work.permit(1)
    assert runner.wait(job.id, timeout=10).state == CANCELLED


def test_resume_takes_back_a_pause_that_has_not_happened_yet(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.pause(job.id)
    assert runner.resume(job.id).command == ""
    work.permit(STEPS)
    assert runner.wait(job.id, timeout=10).state == DONE and work.runs == ["orbit"]


def test_active_jobs_cannot_be_deleted_and_others_leave_no_trace(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    with pytest.raises(SettingsError, match="cancel it before"):
        runner.delete(job.id)
    work.permit(STEPS)
    folder = runner.wait(job.id, timeout=10).folder
    runner.delete(job.id)
    assert not folder.exists() and runner.jobs() == []
    with pytest.raises(SettingsError, match="may have been deleted"):
        runner.get(job.id)


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_the_same_fingerprint_attaches_while_it_runs_and_loads_when_it_is_done(
    runner: JobRunner, work: Counting
) -> None:
    first = runner.submit(spec(), Payload())
    assert runner.submit(spec(), Payload()).id == first.id
    work.permit(STEPS)
    runner.wait(first.id, timeout=10)
    again = runner.submit(spec(), Payload())
    assert again.id == first.id and again.state == DONE and work.runs == ["orbit"]


def test_two_threads_that_ask_at_once_get_one_job(runner: JobRunner, work: Counting) -> None:
    ids: list[str] = []
    askers = [threading.Thread(target=lambda: ids.append(runner.submit(spec(), Payload()).id)) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(ids) == 8 and len(set(ids)) == 1 and work.kept == 1


def test_attaching_to_a_paused_job_resumes_it(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.pause(job.id)
    work.permit(1)
    runner.wait(job.id, timeout=10)
    assert runner.submit(spec(), Payload()).id == job.id
    work.permit(STEPS)
    assert result(runner.wait(job.id, timeout=10)) == "21" and work.restored == 0


def test_retrain_starts_a_second_job_but_not_while_one_runs(runner: JobRunner, work: Counting) -> None:
    first = runner.submit(spec(), Payload())
    assert runner.submit(spec(), Payload(), retrain=True).id == first.id
    work.permit(2 * STEPS)
    runner.wait(first.id, timeout=10)
    second = runner.submit(spec(), Payload(), retrain=True)
    assert second.id != first.id and runner.wait(second.id, timeout=10).state == DONE
    assert runner.find(spec().fingerprint).id == second.id


def test_background_is_remembered_when_any_asker_wanted_it(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(), Payload())
    assert not job.status.background
    assert runner.submit(spec(), Payload(), background=True).status.background
    assert runner.submit(spec(), Payload()).status.background


# The queue ------------------------------------------------------------------------------------------------------------


def test_one_job_at_a_time_on_a_device_and_devices_side_by_side(runner: JobRunner, work: Counting) -> None:
    names = ["a", "b", "c"]
    jobs = [runner.submit(spec(name), Payload()) for name in names] + [
        runner.submit(spec("d", device="gpu"), Payload())
    ]
    until(lambda: len(work.at_work) == 2)
    assert sorted(work.at_work) == ["cpu", "gpu"]
    work.permit(4 * STEPS)
    assert [runner.wait(job.id, timeout=10).state for job in jobs] == [DONE] * 4
    assert work.together == 1 and [name for name in work.runs if name in names] == names


CARDS = ("cuda:0", "cuda:1", "cuda:2")


def test_a_job_goes_to_the_card_that_is_named_or_to_the_next_free_one(runner: JobRunner, work: Counting) -> None:
    def submit(name: str, wanted: str = AUTO) -> str:
        device = choose_device(wanted, "cuda:1", CARDS, runner.waiting)
        runner.submit(spec(name, device=device), Payload())
        return device

    assert [submit("a"), submit("b"), submit("c", "cuda:1")] == ["cuda:1", "cuda:0", "cuda:1"]
    assert submit("d") == "cuda:2", "the one that is free"
    assert submit("e") == "cuda:0", "the first of the shortest queues"
    until(lambda: len(work.at_work) == 3)
    assert sorted(work.at_work) == list(CARDS) and work.together == 1
    work.permit(5 * STEPS)
    for job in runner.jobs():
        assert runner.wait(job.id, timeout=10).state == DONE
    assert runner.waiting("cuda:0") == 0 and submit("f") == "cuda:1", "the base's own when all are free"


def test_a_card_that_is_not_there_is_refused_and_a_base_elsewhere_stays_there() -> None:
    with pytest.raises(SettingsError, match=r"'cuda:7'; here it can be: auto, cuda:0"):
        choose_device("cuda:7", "cuda:0", CARDS, lambda device: 0)
    assert choose_device(AUTO, "cpu", CARDS, lambda device: 0) == "cpu"
    assert choose_device(AUTO, "cpu", ("cpu",), lambda device: 3) == "cpu"


def test_a_paused_job_goes_on_on_the_card_that_it_is_asked_for_on(runner: JobRunner, work: Counting) -> None:
    job = runner.submit(spec(device="cuda:0"), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    runner.pause(job.id)
    work.permit(1)
    until(lambda: runner.get(job.id).state == PAUSED)
    runner.submit(spec(device="cuda:1"), Payload())
    until(lambda: work.at_work == ["cuda:1"])
    work.permit(STEPS)
    assert runner.wait(job.id, timeout=10).state == DONE


def test_pausing_lets_the_next_job_on_the_device_run(runner: JobRunner, work: Counting) -> None:
    first, second = runner.submit(spec("a"), Payload()), runner.submit(spec("b"), Payload())
    work.permit(1)
    at_step(runner, first, 1)
    runner.pause(first.id)
    work.permit(1 + STEPS)
    assert runner.wait(second.id, timeout=10).state == DONE
    assert runner.get(first.id).state == PAUSED


@pytest.mark.parametrize("error", [TrainingError("the loss is not finite at step 3"), RuntimeError("boom\nmore")])
def test_a_failure_is_told_and_does_not_stop_the_queue(runner: JobRunner, work: Counting, error: Exception) -> None:
    work.fail_at = {3: error}
    first, second = runner.submit(spec("a"), Payload()), runner.submit(spec("b"), Payload())
    work.permit(3)
    failed = runner.wait(first.id, timeout=10)
    expected = str(error) if isinstance(error, TrainingError) else "RuntimeError: boom"
    assert failed.state == FAILED and failed.status.message == expected
    work.permit(STEPS)
    assert runner.wait(second.id, timeout=10).state == DONE
    runner.resume(first.id)
    work.permit(STEPS)
    retried = runner.wait(first.id, timeout=10)
    assert retried.state == DONE and result(retried) == "21" and retried.status.resumed_at == 2


def test_stepping_aside_while_something_is_generated(open_runner: Callable[..., JobRunner], work: Counting) -> None:
    busy = threading.Event()
    runner = open_runner(busy=lambda job: busy.is_set())
    yielding, stubborn = spec("a", yields=True), spec("b", device="gpu")
    job, other = runner.submit(yielding, Payload()), runner.submit(stubborn, Payload())
    work.permit(2)
    busy.set()
    work.permit(2 * STEPS)
    until(lambda: runner.get(job.id).state == YIELDING)
    assert runner.wait(other.id, timeout=10).state == DONE, "a job that does not yield goes on"
    assert runner.get(job.id).status.done_steps < STEPS
    busy.clear()
    finished = runner.wait(job.id, timeout=10)
    assert finished.state == DONE and result(finished) == "21"
    assert work.restored == 1, "its memory was given back meanwhile"


def test_a_yielding_job_can_be_cancelled(open_runner: Callable[..., JobRunner], work: Counting) -> None:
    runner = open_runner(busy=lambda job: True)
    job = runner.submit(spec("a", yields=True), Payload())
    work.permit(STEPS)
    until(lambda: runner.get(job.id).state == YIELDING)
    runner.cancel(job.id)
    assert runner.wait(job.id, timeout=10).state == CANCELLED


# After a crash --------------------------------------------------------------------------------------------------------


def test_a_finished_job_is_found_after_a_restart(open_runner: Callable[..., JobRunner], work: Counting) -> None:
    runner = open_runner()
    work.permit(STEPS)
    job = runner.wait(runner.submit(spec(), Payload()).id, timeout=10)
    again = open_runner().submit(spec(), Payload())
    assert again.id == job.id and again.state == DONE and work.runs == ["orbit"]


def test_an_unfinished_job_is_interrupted_after_a_restart_and_resumes(
    open_runner: Callable[..., JobRunner], work: Counting
) -> None:
    runner = open_runner()
    job = runner.submit(spec(), Payload())
    work.permit(2)
    at_step(runner, job, 2)
    # The first runner is left hanging in its third step, as a killed server would be.
    runner.store.leases.abandon()
    restarted = open_runner()
    found = restarted.get(job.id)
    assert found.state == INTERRUPTED and "restart" in found.status.message
    assert len(restarted.losses(job.id)) == 2
    runner.pause(job.id)
    work.permit(1)
    runner.wait(job.id, timeout=10)
    (job.folder / "checkpoint" / "state.json").write_text("[2, 3]")
    restarted.resume(job.id)
    work.permit(STEPS)
    finished = restarted.wait(job.id, timeout=10)
    assert finished.state == DONE and result(finished) == "21" and finished.status.resumed_at == 2
    assert work.restored == 1


def test_closing_leaves_a_checkpoint(open_runner: Callable[..., JobRunner], work: Counting) -> None:
    runner = open_runner()
    job, waiting = runner.submit(spec("a"), Payload()), runner.submit(spec("b"), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    closer = threading.Thread(target=runner.close)
    closer.start()
    until(lambda: runner.get(job.id).command == "interrupt")
    work.permit(1)
    closer.join(timeout=10)
    assert (job.folder / "checkpoint" / "state.json").exists()
    reopened = open_runner()
    assert [reopened.get(one.id).state for one in (job, waiting)] == [INTERRUPTED, INTERRUPTED]
    with pytest.raises(SettingsError, match="shutting down"):
        runner.resume(job.id)


def test_unreadable_folders_do_not_stop_the_others(open_runner: Callable[..., JobRunner], work: Counting) -> None:
    runner = open_runner()
    work.permit(2 * STEPS)
    good = runner.wait(runner.submit(spec("a"), Payload()).id, timeout=10)
    bad = runner.wait(runner.submit(spec("b"), Payload()).id, timeout=10)
    (bad.folder / "job.json").write_text("{ half of it")
    (good.folder / "status.json").write_text(json.dumps({**good.status.to_json(), "from_the_future": 1}))
    with (good.folder / "losses.jsonl").open("a") as stream:
        stream.write('["motion", 7, 0.')
    reopened = open_runner()
    assert [job.id for job in reopened.jobs()] == [good.id]
    assert len(reopened.losses(good.id)) == STEPS


# The store ------------------------------------------------------------------------------------------------------------


def finished_job(store: JobStore, name: str, age: float, size: int = 0) -> str:
    folder = store.create(spec(name), JobStatus(state=DONE, created=1e9 - age, finished=1e9 - age))
    (folder / "result.txt").write_bytes(b"x" * size)
    return folder.name


def test_the_store_keeps_the_newest(tmp_path: Path) -> None:
    store = JobStore(tmp_path, max_jobs=2)
    old, middle, new = (finished_job(store, name, age) for name, age in (("a", 30), ("b", 20), ("c", 10)))
    active = store.create(spec("d"), JobStatus(state=RUNNING, created=1.0)).name
    assert store.tidy() == [old]
    assert {job.id for job in store.load()} == {middle, new, active}


def test_the_store_bounds_its_bytes_but_keeps_the_last_result(tmp_path: Path) -> None:
    store = JobStore(tmp_path, max_bytes=1500)
    finished_job(store, "a", 20, size=1000)
    newest = finished_job(store, "b", 10, size=10_000)
    store.tidy()
    assert [job.id for job in store.load()] == [newest]


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    for name in (".new-x", ".old-y"):
        (tmp_path / name / "deep").mkdir(parents=True)
    store.tidy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad", ["../x", "", ".", "20261121-050000-deadbeef", "20261121-050000-deadbeef-0000/..", "a" * 300]
)
def test_only_job_ids_are_looked_up(tmp_path: Path, bad: str) -> None:
    with pytest.raises(SettingsError, match="not a job id"):
        JobStore(tmp_path).folder(bad)


@pytest.mark.parametrize("bad", ["../status.json", "..", ".hidden", "a/b", "a\\b", "", "x" * 200, "missing.mp4"])
def test_only_plain_existing_files_are_served(tmp_path: Path, bad: str) -> None:
    store = JobStore(tmp_path)
    job_id = finished_job(store, "a", 0)
    with pytest.raises(SettingsError):
        store.file(job_id, "previews", bad)
    with pytest.raises(SettingsError):
        store.file(job_id, ".", "status.json")


def test_links_are_not_followed(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job_id = finished_job(store, "a", 0)
    (tmp_path / "secret").write_text("secret")
    previews = store.folder(job_id) / "previews"
    previews.mkdir()
    try:
        (previews / "000001.mp4").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("this system lets nobody make links")
    with pytest.raises(SettingsError, match="has no"):
        store.file(job_id, "previews", "000001.mp4")


def test_a_note_is_taken_by_one_only(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job_id = finished_job(store, "a", 0)
    store.put_note(job_id, "continuation", {"prompt": {"1": {}}})
    taken: list[object] = []
    takers = [threading.Thread(target=lambda: taken.append(store.take_note(job_id, "continuation"))) for _ in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert [value for value in taken if value is not None] == [{"prompt": {"1": {}}}]
    assert not store.has_note(job_id, "continuation")


# Messages -------------------------------------------------------------------------------------------------------------


def test_messages_are_few_and_carry_every_new_point_once(tmp_path: Path, work: Counting) -> None:
    heard: list[tuple[float, dict]] = []
    listener = lambda message: heard.append((time.monotonic(), dict(message)))  # noqa: E731
    runner = JobRunner(JobStore(tmp_path), work, listener=listener, interval=0.25)
    work.previews = True
    job = runner.submit(spec(), Payload())
    for _ in range(STEPS):
        work.permit(1)
        time.sleep(0.02)
    runner.wait(job.id, timeout=10)
    runner.close()
    changes = [change for _, message in heard for change in message["jobs"]]
    steps = [point[1] for change in changes for point in change["new_losses"]]
    assert steps == list(range(1, STEPS + 1))
    assert changes[-1]["state"] == DONE and changes[-1]["previews"] == ("000002.mp4", "000004.mp4", "000006.mp4")
    times = [moment for moment, _ in heard]
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(times[:-1])), "the last may come at once"
    json.dumps([message for _, message in heard])


def test_a_listener_that_fails_does_not_hurt(tmp_path: Path, work: Counting) -> None:
    def listener(message: object) -> None:
        raise RuntimeError("no one is there")

    runner = JobRunner(JobStore(tmp_path), work, listener=listener, interval=0.01)
    work.permit(STEPS)
    assert runner.wait(runner.submit(spec(), Payload()).id, timeout=10).state == DONE
    runner.close()


def test_a_deleted_job_is_announced(tmp_path: Path, work: Counting) -> None:
    heard: list[dict] = []
    runner = JobRunner(JobStore(tmp_path), work, listener=lambda m: heard.extend(m["jobs"]), interval=0.01)
    work.permit(STEPS)
    job = runner.wait(runner.submit(spec(), Payload()).id, timeout=10)
    until(lambda: runner.get(job.id).state == DONE)
    runner.delete(job.id)
    until(lambda: {"id": job.id, "deleted": True} in heard)
    runner.close()


def test_the_snapshot_is_json_without_paths(runner: JobRunner, work: Counting, tmp_path: Path) -> None:
    work.permit(STEPS)
    runner.wait(runner.submit(spec(), Payload()).id, timeout=10)
    text = json.dumps(runner.snapshot())
    (only,) = json.loads(text)["jobs"]
    assert only["state"] == DONE and len(only["losses"]) == STEPS
    assert str(tmp_path) not in text


# The loss log ---------------------------------------------------------------------------------------------------------


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "losses.jsonl")
    for stage in ("absorber", "motion"):
        for step in range(1, 5):
            log.append(LossPoint(stage, step, 0.5, 0.1))
    log.append(LossPoint("motion", 3, 0.25, 0.1))
    log.close()
    points = LossLog(tmp_path / "losses.jsonl").points
    assert [(p.stage, p.step) for p in points] == [("absorber", s) for s in range(1, 5)] + [
        ("motion", s) for s in (1, 2, 3)
    ]
    assert points[-1].loss == 0.25


def test_thinning_keeps_the_ends() -> None:
    points = [LossPoint("motion", step, 1.0, 0.1) for step in range(1, 1001)]
    kept = thin(points, 100)
    assert len(kept) <= 101 and kept[0] is points[0] and kept[-1] is points[-1]


def test_a_job_that_is_being_made_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may tidy up between the folder and its first file."""
    store = JobStore(tmp_path)
    (tmp_path / ".new-left-by-a-crash").mkdir(parents=True)
    write = store_module._write

    def tidied(path: Path, content: object) -> None:
        store.tidy()
        write(path, content)

    monkeypatch.setattr(store_module, "_write", tidied)
    folder = store.create(spec(), JobStatus())
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "lease.json", "status.json"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
