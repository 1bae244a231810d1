"""Jobs as ComfyUI meets them: the one runner of the server, nodes that wait for a job, prompts that go on after it."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.utils

from ...motion_lora.core.errors import OutputError, TrainingError, is_out_of_memory
from ...motion_lora.jobs import (
    ACTIVE,
    APPEARANCE_ABSORBER,
    AUTO,
    FAILED,
    MOTION_LORA,
    PAUSED,
    WITH_RESULT,
    Job,
    JobRunner,
    JobSpec,
    JobStore,
    Outcome,
    Reporter,
    choose_device,
)
from . import folders, memory, models, server

if TYPE_CHECKING:
    from ...motion_lora.jobs.inputs import TrainingInputs
    from ...motion_lora.jobs.training import TrainingWork

_LOG = logging.getLogger(__name__)
WAIT, BACKGROUND = "wait", "background"
EVENT = "motion_lora.jobs"
CONTINUATION = "continuation"
# Repeats `motion_lora.jobs.pictures.WORKFLOW_NOTE`, whose module imports diffusers.
WORKFLOW_NOTE = "workflow"
_POLL = 0.2

_making = threading.Lock()
_runner: JobRunner | None = None
# Guards what both prompts and the messages' thread change: watchers, nodes, prompts that go on.
_guard = threading.Lock()
_watchers: Counter[str] = Counter()
# The nodes that asked for a job: id within the prompt, and the workflow's own id.
_nodes: dict[str, dict[str, str]] = {}
_blocked: Counter[str] = Counter()
# Jobs after which a prompt goes on, with the browser that asked for it ("": before a restart, nobody knows which).
_continuing: dict[str, str] = {}


def runner() -> JobRunner:
    """The server's runner, made when it is first asked for."""
    global _runner
    with _making:
        if _runner is None:
            store = JobStore(folders.job_folder())
            _runner = JobRunner(store, _LazyWork(), listener=_tell, busy=lambda job: _stands_in_the_way())
            _continuing.update({job.id: "" for job in _runner.jobs() if store.has_note(job.id, CONTINUATION)})
            atexit.register(_runner.close)
        return _runner


class _LazyWork:
    """Training as work, imported when there is some: the panel asks for jobs at every start, and rarely finds any."""

    def keep(self, spec: JobSpec, payload: object, folder: Path) -> None:
        self._work.keep(spec, payload, folder)

    def restore(self, spec: JobSpec, folder: Path) -> object:
        return self._work.restore(spec, folder)

    def run(self, spec: JobSpec, payload: object, folder: Path, reporter: Reporter) -> Outcome:
        return self._work.run(spec, payload, folder, reporter)

    def publish(self, spec: JobSpec, folder: Path, step: int) -> str:
        return self._work.publish(spec, folder, step)

    @cached_property
    def _work(self) -> TrainingWork:
        from ...motion_lora.jobs.training import TrainingHost, TrainingWork
        from ...motion_lora.training import Speeds

        places = {
            MOTION_LORA: (folders.lora_folder(), folders.SUBFOLDER),
            APPEARANCE_ABSORBER: (folders.absorber_folder(), ""),
        }
        release = lambda spec: server.release()  # noqa: E731
        return TrainingWork(
            TrainingHost(
                models.load_again,
                prepare=_make_room,
                release=release,
                folders=places,
                find_metric=folders.metric_path,
                speeds=Speeds(folders.speeds_file()),
            )
        )


def _make_room(spec: JobSpec) -> None:
    """For a job that the panel started. One that a node started has asked for room in the prompt's own thread."""
    if not server.is_generating():
        server.make_room_between_prompts()


def _stands_in_the_way() -> bool:
    """Whether a prompt runs that does not itself wait for a job; stepping aside for one that waits would never end."""
    return server.is_generating() and not _watchers


# From nodes ---------------------------------------------------------------------------------------------------------


async def run_job(
    spec: JobSpec,
    inputs: TrainingInputs,
    *,
    node_id: str,
    workflow_id: str,
    run: str,
    retrain: bool,
    continuation: Mapping[str, Any] | None,
    made_by: Mapping[str, Any] | None = None,
) -> Job | None:
    """The finished (or stopped and saved) job of this spec; None when it was handed to the background.

    In the meantime the server's other work goes on. A waiting job is interrupted with ComfyUI's Cancel: it keeps a
    checkpoint, and the same node goes on from there. `made_by` is the prompt and the workflow for the LoRA's picture.
    Raises TrainingError when the job failed.
    """
    if retrain or not is_made(spec.fingerprint):
        memory.make_room_for_training(inputs.pipeline)
    background = run == BACKGROUND
    job = await asyncio.to_thread(runner().submit, spec, inputs, retrain=retrain, background=background)
    with _guard:
        _nodes.setdefault(job.id, {})[node_id] = workflow_id
    if made_by is not None:
        _keep_workflow(job.id, made_by)
    if job.state in WITH_RESULT:
        return job
    if background:
        _blocked[node_id] += 1
        if continuation is not None:
            _keep_continuation(job.id, continuation)
            # The job may have ended between these lines; nobody would hear that something waits for it.
            _tell({"jobs": [runner().get(job.id).to_json()]})
        return None
    return await _follow(job.id)


def device_for(wanted: str, own: str, fingerprint: str) -> str:
    """The device for a training: as the node names it, or the next free one; of a job that is under way, its own."""
    known = runner().find(fingerprint)
    if wanted == AUTO and known is not None and known.status.active:
        return known.spec.device
    return choose_device(wanted, own, server.devices(), runner().waiting)


def is_made(fingerprint: str) -> bool:
    """Whether a job of this fingerprint has its result already."""
    known = runner().find(fingerprint)
    return known is not None and known.state in WITH_RESULT


def _keep_workflow(job_id: str, made_by: Mapping[str, Any]) -> None:
    """The training goes on in any case; without it the LoRA's picture holds no workflow."""
    try:
        runner().store.put_note(job_id, WORKFLOW_NOTE, made_by)
    except OutputError as error:
        _LOG.warning("Motion LoRA: the workflow is not kept for the LoRA's picture: %s", error)


def _keep_continuation(job_id: str, continuation: Mapping[str, Any]) -> None:
    """The training goes on in any case; a prompt that cannot be kept has to be queued by hand."""
    try:
        runner().store.put_note(job_id, CONTINUATION, continuation)
    except OutputError as error:
        _LOG.warning("Motion LoRA: after the training, queue the workflow again by hand: %s", error)
        return
    with _guard:
        _continuing[job_id] = server.client_id() or ""


def cache_mark(node_id: str) -> str:
    """Part of a train node's cache key: changes whenever its outputs were blocked, so that they are asked for again."""
    return str(_blocked[node_id])


def continuation_of(prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None, node_id: str) -> dict[str, Any]:
    """The running prompt as it can be queued again: without ComfyUI's own marks, and without training anew."""
    again: dict[str, Any] = {}
    for key, node in (prompt or {}).items():
        inputs = dict(node["inputs"])
        if key == node_id and "retrain" in inputs:
            inputs["retrain"] = False
        again[key] = {"class_type": node["class_type"], "inputs": inputs, "_meta": node.get("_meta", {})}
    return {"prompt": again, "workflow": (extra or {}).get("workflow")}


async def _follow(job_id: str) -> Job:
    """Wait without holding up the prompt's other nodes; every way out but success leaves the job interrupted."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_watch, job_id, stop)
    except asyncio.CancelledError:
        # Another node failed or saw Cancel first. The thread would outlive the prompt, so it is told.
        stop.set()
        raise


def _watch(job_id: str, stop: threading.Event) -> Job:
    jobs = runner()
    bar = comfy.utils.ProgressBar(1)
    with _watching(job_id):
        try:
            while True:
                job = jobs.wait(job_id, timeout=_POLL)
                if job.state not in ACTIVE and job.state != PAUSED:
                    return _outcome(job)
                if stop.is_set() or server.interrupt_requested():
                    raise server.Interrupted()
                if job.status.all_steps:
                    bar.update_absolute(job.status.done_steps, job.status.all_steps)
                if job.state == PAUSED:
                    stop.wait(_POLL)
        except server.Interrupted:
            if not jobs.get(job_id).status.background:
                jobs.interrupt(job_id)
            raise


def _outcome(job: Job) -> Job:
    if job.state in WITH_RESULT:
        return job
    if job.state == FAILED:
        raise _failure(job.status.message)
    # Cancelled or interrupted from the panel: the prompt ends as if its own Cancel had been pressed.
    raise server.Interrupted()


def _failure(message: str) -> TrainingError:
    """Of the kind by which ComfyUI knows that it should unload its models, where memory ran out."""
    from ...motion_lora.core.out_of_memory import TrainingMemoryError

    failed = TrainingError(message)
    return TrainingMemoryError(message) if is_out_of_memory(failed) else failed


@contextmanager
def _watching(job_id: str) -> Iterator[None]:
    with _guard:
        _watchers[job_id] += 1
    try:
        yield
    finally:
        with _guard:
            _watchers[job_id] -= 1
            if not _watchers[job_id]:
                del _watchers[job_id]


# To the panel -------------------------------------------------------------------------------------------------------


def snapshot() -> dict[str, Any]:
    """Everything the panel shows."""
    return {"jobs": [with_host(job) for job in runner().snapshot()["jobs"]]}


def describe(job_id: str) -> dict[str, Any]:
    """One job in full."""
    return with_host(runner().describe(job_id))


def take_continuation(job_id: str, *, wanted: bool = True) -> dict[str, Any] | None:
    """The prompt to queue again, once: of several open pages one gets it. Raises SettingsError for an unknown job.

    Not `wanted`, it is thrown away: the user does not want the prompt to go on by itself.
    """
    job = runner().get(job_id)
    if wanted and job.state not in WITH_RESULT:
        return None
    with _guard:
        _continuing.pop(job_id, None)
    taken = runner().store.take_note(job_id, CONTINUATION)
    _tell({"jobs": [job.to_json()]})
    return taken if wanted else None


def _tell(message: Mapping[str, Any]) -> None:
    for change in message["jobs"]:
        if change.get("deleted"):
            with _guard:
                _nodes.pop(change["id"], None)
                _continuing.pop(change["id"], None)
    server.send(EVENT, {"jobs": [change if change.get("deleted") else with_host(change) for change in message["jobs"]]})


def with_host(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job with what only the host knows: which nodes show it, and whether a prompt waits to go on after it."""
    with _guard:
        nodes = [{"id": node, "workflow": workflow} for node, workflow in _nodes.get(job["id"], {}).items()]
        return {**job, "nodes": nodes, "continues": _continuing.get(job["id"])}
