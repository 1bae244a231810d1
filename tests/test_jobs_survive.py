"""Jobs survive what disks, other programs and other servers do: nothing is lost, no thread dies, the next job runs."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_jobs import STEPS, Counting, Payload, at_step, result, spec, until

from motion_lora.core import disk
from motion_lora.core.errors import OutputError, SettingsError
from motion_lora.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    INTERRUPTED,
    PAUSED,
    RUNNING,
    STOPPED,
    JobRunner,
    JobStatus,
    JobStore,
)
from motion_lora.jobs import lease as lease_module
from motion_lora.jobs import store as store_module
from motion_lora.jobs.lease import LEASE, Leases
from motion_lora.jobs.loss_log import LossLog, LossPoint


class Servers:
    """Runners over one folder, with permits to spare at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, Counting()
        self.opened: list[JobRunner] = []

    def open(self) -> JobRunner:
        self.opened.append(JobRunner(JobStore(self.folder), self.work, interval=0.01))
        return self.opened[-1]

    def killed(self, runner: JobRunner) -> None:
        """What its lease says after kill -9."""
        runner.store.leases.abandon()

    def close(self) -> None:
        self.work.permit(10_000)
        for runner in self.opened:
            runner.close(timeout=10)


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setattr(disk, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr("motion_lora.jobs.registry._SYNC_EVERY", 0.0)
    servers = Servers(tmp_path / "jobs")
    yield servers
    servers.close()


def no_space(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# The disk -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_fails_a_job_and_not_the_queue(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work = servers.open(), servers.work
    work.fail_at = {3: OutputError("no disk space left for the checkpoint")}
    job, queued = runner.submit(spec("a"), Payload()), runner.submit(spec("b"), Payload())
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_write", no_space)
        work.permit(3)
        failed = runner.wait(job.id, timeout=10)
        assert failed.state == FAILED and "no disk space" in failed.status.message
        work.permit(STEPS)
        assert runner.wait(queued.id, timeout=10).state == DONE
        assert json.loads((queued.folder / "status.json").read_text())["state"] != DONE
        assert (queued.folder / "inputs").is_dir(), "what a restart would need stays until the end is on disk"
        with pytest.raises(OutputError, match="no disk space"):
            runner.submit(spec("c"), Payload())
    work.permit(STEPS)
    assert runner.wait(runner.submit(spec("d"), Payload()).id, timeout=10).state == DONE
    until(lambda: json.loads((queued.folder / "status.json").read_text())["state"] == DONE)
    until(lambda: not (queued.folder / "inputs").exists())
    assert not [p.name for p in servers.folder.iterdir() if p.name.startswith(".")]


def test_a_package_that_cannot_be_imported_is_named_with_its_way_out(servers: Servers) -> None:
    runner, work = servers.open(), servers.work
    work.fail_at = {1: ImportError("DLL load failed", name="peft.tuners")}
    work.permit(2 * STEPS)
    failed = runner.wait(runner.submit(spec("a"), Payload()).id, timeout=10)
    assert failed.state == FAILED and "peft cannot be imported (DLL load failed)" in failed.status.message
    assert "pip install --force-reinstall peft" in failed.status.message
    assert runner.wait(runner.submit(spec("b"), Payload()).id, timeout=10).state == DONE


def test_an_unforeseen_error_starts_another_thread(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work = servers.open(), servers.work
    tidy, left = runner._board.tidy, [1]

    def broken() -> None:
        if left:
            left.pop()
            raise ZeroDivisionError
        tidy()

    monkeypatch.setattr(runner._board, "tidy", broken)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    work.permit(2 * STEPS)
    jobs = [runner.submit(spec(name), Payload()) for name in "ab"]
    assert [runner.wait(job.id, timeout=10).state for job in jobs] == [DONE, DONE]


def test_a_locked_status_is_tried_again(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work, left, replace_ = servers.open(), servers.work, [], os.replace

    def held_once(source: Path, target: Path) -> None:
        if target not in left:
            left.append(target)
            raise PermissionError(errno.EACCES, "used by another process")
        replace_(source, target)

    monkeypatch.setattr(disk.os, "replace", held_once)
    work.permit(STEPS)
    job = runner.wait(runner.submit(spec(), Payload()).id, timeout=10)
    assert job.state == DONE and json.loads((job.folder / "status.json").read_text())["state"] == DONE


def test_a_folder_in_use_is_not_deleted_by_half(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work = servers.open(), servers.work
    work.permit(10 * STEPS)
    first = runner.wait(runner.submit(spec("a"), Payload()).id, timeout=10)

    def in_use(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    runner.store.max_jobs = 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", in_use)
        with pytest.raises(OutputError, match="open in another program"):
            runner.delete(first.id)
        assert runner.get(first.id).state == DONE and result(first) == "21"
        runner._board.tidy()
        assert runner.get(first.id).state == DONE
    runner.store.max_jobs = 200
    assert runner.wait(runner.submit(spec("c"), Payload()).id, timeout=10).state == DONE
    runner.delete(first.id)
    assert not first.folder.exists()


def test_a_folder_that_vanishes_does_not_end_the_job(servers: Servers) -> None:
    runner, work = servers.open(), servers.work
    job = runner.submit(spec(), Payload())
    work.permit(2)
    at_step(runner, job, 2)
    disk.remove_tree(job.folder)
    job.folder.mkdir()
    work.permit(STEPS)
    done = runner.wait(job.id, timeout=10)
    assert done.state == DONE and result(done) == "21"
    assert servers.open().get(job.id).state == DONE, "a later server can read it"
    disk.remove_tree(job.folder)
    assert not [one for one in runner.jobs() if one.id == job.id]


def test_the_loss_log_makes_up_for_what_the_disk_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LossLog(tmp_path / "losses.jsonl")
    log.append(LossPoint("motion", 1, 0.5, 0.1))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_write", no_space)
        patch.setattr(log, "_open", no_space)
        for step in (2, 3):
            log.append(LossPoint("motion", step, 0.5, 0.1))
        log.close()
    log.append(LossPoint("motion", 4, 0.5, 0.1))
    log.close()
    assert [point.step for point in LossLog(log.path).points] == [1, 2, 3, 4]


def test_cutting_the_log_back_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LossLog(tmp_path / "losses.jsonl")
    for step in (1, 2, 3):
        log.append(LossPoint("motion", step, 0.5, 0.1))
    before = log.path.read_text()
    monkeypatch.setattr(disk.os, "replace", no_space)
    log.append(LossPoint("motion", 2, 0.25, 0.1))
    log.close()
    assert log.path.read_text() == before


def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text('["motion", 1, 0.5, 0.1]\n["motion", 2, 0.')
    log = LossLog(path)
    log.append(LossPoint("motion", 2, 0.5, 0.1))
    log.close()
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    assert [point.step for point in LossLog(path).points] == [1, 2]


# A kill at any instant ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [DONE, CANCELLED])
def test_a_kill_at_the_end_never_starts_anew(servers: Servers, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The end is written first; what is not needed any more goes after, or when the next server finds it."""
    runner, work, order = servers.open(), servers.work, []
    save, remove = runner.store.save_status, store_module.remove_tree
    monkeypatch.setattr(runner.store, "save_status", lambda i, s: (order.append(s.state), save(i, s))[1])
    monkeypatch.setattr(store_module, "remove_tree", lambda folder: order.append(folder.name))
    job = runner.submit(spec(), Payload())
    work.permit(1)
    at_step(runner, job, 1)
    if state == CANCELLED:
        runner.cancel(job.id)
    work.permit(STEPS)
    assert runner.wait(job.id, timeout=10).state == state
    until(lambda: "checkpoint" in order)
    assert order.index(state) < order.index("checkpoint")
    assert (job.folder / "checkpoint").is_dir()
    monkeypatch.setattr(store_module, "remove_tree", remove)
    assert servers.open().get(job.id).state == state
    assert not (job.folder / "checkpoint").exists()


# What is the user's ---------------------------------------------------------------------------------------------------


def test_work_that_can_go_on_is_never_tidied_away(tmp_path: Path) -> None:
    store = JobStore(tmp_path, max_jobs=1, max_bytes=10)

    def made(state: str, age: float, *parts: str) -> str:
        folder = store.create(spec(state), JobStatus(state=state, created=1e9 - age, finished=1e9 - age))
        store.leases.drop(folder)
        for part in parts:
            (folder / part).mkdir()
            (folder / part / "big").write_bytes(b"x" * 1000)
        return folder.name

    kept = [made(state, 100, "checkpoint", "inputs") for state in (PAUSED, INTERRUPTED, STOPPED, FAILED)]
    kept.append(made(PAUSED, 90, "inputs"))
    old, worthless, new = made(DONE, 30), made(FAILED, 20, "inputs"), made(DONE, 10)
    assert sorted(store.tidy()) == sorted([old, worthless])
    assert {job.id for job in store.load()} == {*kept, new}


def test_a_corrected_name_helps(servers: Servers) -> None:
    runner, work = servers.open(), servers.work
    work.permit(STEPS)
    publish, said = work.publish, []

    def picky(spec: object, folder: Path, step: int) -> str:
        if spec.name.startswith(".."):
            raise OutputError("the name leads out")
        said.append(spec.name)
        return publish(spec, folder, step)

    work.publish = picky
    bad = replace(spec(), name="../mine")
    failed = runner.wait(runner.submit(bad, Payload()).id, timeout=10)
    assert failed.state == FAILED and "leads out" in failed.status.message
    job = runner.wait(runner.submit(replace(bad, name="mine"), Payload()).id, timeout=10)
    assert job.id == failed.id and job.state == DONE and job.status.published == f"mine-{STEPS}"
    again = runner.submit(replace(bad, name="better"), Payload())
    assert again.id == job.id and again.status.published == f"better-{STEPS}" and again.spec.name == "better"
    assert runner.submit(replace(bad, name="better"), Payload()).id == job.id and said == ["mine", "better"]
    assert servers.open().get(job.id).spec.name == "better"


def test_a_setting_that_changes_no_result_can_be_corrected_too(servers: Servers) -> None:
    runner, work = servers.open(), servers.work
    work.fail_at = {1: OutputError("no memory")}
    work.permit(1)
    first = replace(spec(), settings={"gradient_checkpointing": False})
    failed = runner.wait(runner.submit(first, Payload()).id, timeout=10)
    again = runner.submit(replace(first, settings={"gradient_checkpointing": True}), Payload())
    assert again.id == failed.id and again.spec.settings == {"gradient_checkpointing": True}


# Two servers ----------------------------------------------------------------------------------------------------------


def test_two_servers_on_one_folder_leave_each_others_jobs_alone(servers: Servers) -> None:
    first, second, work = servers.open(), servers.open(), servers.work
    job = first.submit(spec(), Payload())
    work.permit(1)
    at_step(first, job, 1)
    assert (job.folder / LEASE).is_file()
    seen = next(one for one in second.jobs() if one.id == job.id)
    assert seen.state == RUNNING and "another server" in seen.status.message
    for command in (second.resume, second.pause, second.stop, second.cancel, second.delete):
        with pytest.raises(SettingsError, match="at work in another server"):
            command(job.id)
    with pytest.raises(SettingsError, match="at work in another server"):
        second.submit(spec(), Payload())
    second.store.tidy()
    assert first.get(job.id).state == RUNNING
    work.permit(STEPS)
    assert first.wait(job.id, timeout=10).state == DONE
    assert second.submit(spec(), Payload()).state == DONE and work.runs == ["orbit"]
    assert not (job.folder / LEASE).exists()


def test_what_one_server_paused_the_other_may_take(servers: Servers) -> None:
    first, second, work = servers.open(), servers.open(), servers.work
    job = first.submit(spec(), Payload())
    work.permit(1)
    at_step(first, job, 1)
    first.pause(job.id)
    work.permit(1)
    first.wait(job.id, timeout=10)
    second.jobs()
    second.resume(job.id)
    work.permit(1)
    at_step(second, job, 3)
    with pytest.raises(SettingsError, match="at work in another server"):
        first.resume(job.id)
    work.permit(STEPS)
    assert result(second.wait(job.id, timeout=10)) == "21"
    assert first.wait(job.id, timeout=10).state == DONE
    with pytest.raises(SettingsError, match="is done"):
        first.resume(job.id)


def test_the_job_of_a_killed_server_is_taken_over(servers: Servers) -> None:
    first, work = servers.open(), servers.work
    second = servers.open()
    job = first.submit(spec(), Payload())
    work.permit(1)
    at_step(first, job, 1)
    assert second.wait(job.id, timeout=0.01).state == RUNNING
    servers.killed(first)
    assert next(one for one in second.jobs() if one.id == job.id).state == INTERRUPTED


def test_a_lease_counts_while_its_process_lives_and_beats(tmp_path: Path) -> None:
    ours, path = Leases(), tmp_path / LEASE

    def written(pid: int, host: str, age: float = 0.0) -> bool:
        path.write_text(json.dumps({"pid": pid, "host": host, "token": "x"}))
        os.utime(path, (time.time() - age,) * 2)
        return ours.owner(tmp_path) is not None

    here, dead = lease_module._HOST, 2**22 + 12345
    assert written(os.getppid(), here) and not written(os.getppid(), here, 1000), "alive, and its heart beats"
    assert not written(dead, here) and not written(os.getpid(), here), "gone; and a former life of this very number"
    assert written(dead, "elsewhere") and not written(dead, "elsewhere", 1000)
    path.write_text("{ half")
    assert ours.owner(tmp_path) is None
    path.unlink()
    assert ours.take(tmp_path) is None and ours.held(tmp_path)
    assert Leases().take(tmp_path) is not None
    ours.close()
    assert not path.exists()


@pytest.mark.parametrize("left", [b"", b"{ half", b"[]"])
def test_a_lease_that_a_power_failure_emptied_is_taken(tmp_path: Path, left: bytes) -> None:
    """It was written without waiting for the disk; nobody could ever take the job again."""
    (tmp_path / LEASE).write_bytes(left)
    ours = Leases()
    assert ours.take(tmp_path) is None and ours.held(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LEASE] and Leases().take(tmp_path) is not None
    ours.close()


@pytest.mark.parametrize("behind", [-3600.0, 3600.0])
def test_a_clock_that_differs_from_the_disks_takes_no_job_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float
) -> None:
    """Two machines on one folder: what counts is the time of the disk."""
    (tmp_path / LEASE).write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "x"}))
    real = time.time
    monkeypatch.setattr(lease_module.time, "time", lambda: real() + behind)
    assert Leases().owner(tmp_path) is not None
    os.utime(tmp_path / LEASE, (real() - 1000,) * 2)
    assert Leases().owner(tmp_path) is None


def test_a_job_that_lies_on_another_drive_is_deleted_whole(servers: Servers, tmp_path: Path) -> None:
    """Its owner moved the folder and put a link in its place."""
    runner = servers.open()
    servers.work.permit(STEPS)
    job = runner.wait(runner.submit(spec(), Payload()).id, timeout=20)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-drive"
    job.folder.rename(elsewhere)
    job.folder.symlink_to(elsewhere, target_is_directory=True)
    runner.delete(job.id)
    assert not elsewhere.exists() and not [path for path in servers.folder.iterdir() if path.name.startswith(".old")]


@pytest.mark.parametrize(
    "damage",
    [
        {"status.json": {"created": "yesterday"}},
        {"status.json": {"state": "explode"}},
        {"status.json": {"loss": float("nan")}},
        {"status.json": {"previews": [1]}},
        {"status.json": {"all_steps": 1e999}},
        {"job.json": {"fingerprint": 3}},
        {"job.json": {"plan": {"motion": "x"}}},
        {"job.json": {"base": [1]}},
        {"job.json": {"preview": {"every": None}}},
    ],
)
def test_values_of_another_kind_cost_one_job_and_not_the_panel(servers: Servers, damage: dict[str, dict]) -> None:
    """A number where a text belongs was met by whatever listed or sorted all jobs."""
    runner = servers.open()
    servers.work.permit(2 * STEPS)
    good, bad = (runner.wait(runner.submit(spec(name), Payload()).id, timeout=20) for name in ("good", "bad"))
    for name, values in damage.items():
        file = bad.folder / name
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    later = servers.open()
    assert [job.id for job in later.jobs()] == [good.id]
    json.dumps(later.snapshot(), allow_nan=False)
    assert (bad.folder / "job.json").exists(), "what cannot be read is left alone"


def test_of_many_that_ask_one_gets_the_lease(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text(json.dumps({"pid": 2**22 + 12345, "host": lease_module._HOST, "token": "gone"}))
    askers, got = [Leases() for _ in range(8)], []
    threads = [threading.Thread(target=lambda one=one: got.append(one.take(tmp_path))) for one in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(None) == 1 and [path.name for path in tmp_path.iterdir()] == [LEASE]
    for one in askers:
        one.close()


def test_a_heart_that_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT", 0.01)
    leases = Leases()
    assert leases.take(tmp_path) is None
    os.utime(tmp_path / LEASE, (1, 1))
    until(lambda: (tmp_path / LEASE).stat().st_mtime > 1)
    leases.close()


def test_a_job_that_another_server_makes_is_no_leftover(tmp_path: Path) -> None:
    job_id = "20261121-050000-deadbeef-0000"
    theirs = tmp_path / f".new-{job_id}-{lease_module._short(lease_module._HOST)}-{os.getppid()}"
    gone = tmp_path / f".new-{job_id}-{lease_module._short(lease_module._HOST)}-{2**22 + 12345}"
    for path in (theirs, gone):
        path.mkdir()
    JobStore(tmp_path).tidy()
    assert list(tmp_path.iterdir()) == [theirs]
