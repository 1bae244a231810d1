"""Soak: a real ComfyUI that trains while prompts are queued, cancelled and sampled, and whose memory has to stay flat.

    COMFYUI_DIR=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python python tools/soak_host.py --minutes 120 --pause 10

Needs no browser. Prints the row of docs/RELIABILITY.md; exit status 1 when something went wrong. out/soak/soak.json is
written after every action, so that a run that was ended early has its figures too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from real_host import RealComfyUI, until  # noqa: E402
from reliability import report  # noqa: E402
from test_host import BASE, graph, sample_inputs  # noqa: E402
from tiny import write_tiny_folder  # noqa: E402

OUT = ROOT / "out" / "soak"
# The first minutes fill caches and import libraries.
WARM_UP = 0.25
ALLOWED_GROWTH = 1.05
# What no line of the server's log may hold.
_FAULT = re.compile(r"Traceback|\[ERROR\]|\bERROR\b|Exception ignored|!!! Exception")


def only_sampling(seed: int) -> dict[str, Any]:
    """A prompt that samples with the base alone; a new seed, so that nothing comes from the cache."""
    nodes = graph(seed)
    for key in ("clip", "train", "stack"):
        del nodes[key]
    nodes["sample"]["inputs"] = sample_inputs(seed=seed, num_inference_steps=4)
    return nodes


class Soak:
    """One background job that always trains, and what is done to the server meanwhile."""

    def __init__(self, server: RealComfyUI, seed: int, steps: int) -> None:
        self.server, self.random, self.steps = server, random.Random(seed), steps
        self.count, self.faults = 0, []
        self.did: dict[str, int] = {}
        self.memory: list[tuple[float, int]] = []
        self.began = time.monotonic()

    def keep_training(self) -> None:
        """One long job is always under way; now and then it is one of its own kind."""
        active = [job for job in self.server.jobs() if job["state"] in ("queued", "running", "yielding")]
        if not any(job["name"].startswith("soak") for job in active):
            self.count += 1
            prompt = graph(
                1_000_000 + self.count, steps=self.steps, run="background", sampled=False, name=f"soak {self.count}"
            )
            self.server.finished(self.server.queue(prompt))

    def sample(self) -> None:
        record = self.server.finished(self.server.queue(only_sampling(self.random.randrange(10**9))))
        self.expect(record, "success")

    def train_and_cancel(self) -> None:
        prompt_id = self.server.queue(graph(self.random.randrange(10**9), steps=200))
        time.sleep(self.random.uniform(0.5, 5))

        def ended() -> Any:
            # ComfyUI passes over an interrupt of a prompt that is still in the queue.
            self.server.call("/interrupt", {"prompt_id": prompt_id})
            return self.server.call(f"/history/{prompt_id}")[1].get(prompt_id)

        record = until(ended, 300, "a cancelled prompt to end")
        self.expect(record, "error", "success")

    def queue_many_and_clear(self) -> None:
        for _ in range(5):
            self.server.queue(only_sampling(self.random.randrange(10**9)))
        self.server.call("/queue", {"clear": True})
        self.server.call("/interrupt", {})

    def pause_and_resume(self) -> None:
        job = self.running()
        if job:
            self.server.command("pause", job["id"])
            until(lambda: self.state(job["id"]) not in ("running", "queued"), 120, "a pause")
            if self.state(job["id"]) == "paused":
                self.server.command("resume", job["id"])

    def stop_and_save(self) -> None:
        job = self.running()
        if job and job["done_steps"]:
            self.server.command("stop", job["id"])

    def reload(self) -> None:
        """Everything unloaded, as by the button of ComfyUI's manager; the next prompt loads it again."""
        self.server.call("/free", {"unload_models": True, "free_memory": True})
        self.sample()

    def delete_an_old_one(self) -> None:
        old = [job for job in self.server.jobs() if job["state"] in ("done", "stopped", "cancelled", "interrupted")]
        if old:
            status, answer = self.server.command("delete", self.random.choice(old)["id"])
            if status != 200:
                self.faults.append(f"delete: {answer}")

    def running(self) -> dict[str, Any] | None:
        return next((job for job in self.server.jobs() if job["state"] == "running"), None)

    def state(self, job_id: str) -> str:
        return next((job["state"] for job in self.server.jobs() if job["id"] == job_id), "deleted")

    def expect(self, record: dict[str, Any], *statuses: str) -> None:
        status = record["status"]["status_str"]
        kinds = [kind for kind, _ in record["status"]["messages"]]
        if status not in statuses or "execution_error" in kinds:
            self.faults.append(json.dumps(record["status"])[:500])

    def step(self) -> None:
        """One thing at random; sampling most often."""
        actions = [self.sample] * 5 + [self.train_and_cancel] * 2
        actions += [self.queue_many_and_clear, self.pause_and_resume, self.stop_and_save, self.delete_an_old_one]
        actions += [self.reload]
        action = self.random.choice(actions)
        self.keep_training()
        action()
        self.did[action.__name__] = self.did.get(action.__name__, 0) + 1
        self.memory.append((time.monotonic() - self.began, self.server.memory()))

    def summary(self, minutes: float) -> dict[str, Any]:
        """Figures so far, of a run that is to take so many minutes."""
        late = [size for moment, size in self.memory if moment > WARM_UP * minutes * 60] or [0]
        half = max(1, len(late) // 2)
        first, second = statistics.median(late[:half]), statistics.median(late[half:] or late)
        failed = [job["message"] for job in self.server.jobs() if job["state"] == "failed"]
        logged = [line[:300] for line in self.server.log.splitlines() if _FAULT.search(line)]
        return {
            "base": BASE,
            "minutes": round((time.monotonic() - self.began) / 60, 1),
            "did": self.did,
            "trainings": self.count,
            "first_half_mib": round(first / 2**20),
            "second_half_mib": round(second / 2**20),
            "largest_mib": round(max(late) / 2**20),
            "faults": self.faults + failed + logged,
            "flat": second <= ALLOWED_GROWTH * first,
        }


def row(found: dict[str, Any]) -> str:
    """The figures as a cell of the table."""
    did = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(found["did"].items()))
    return (
        f"{found['minutes']:g} minutes, {found['trainings']} trainings in the background, {did}; median memory "
        f"{found['first_half_mib']} MiB in the first half and {found['second_half_mib']} MiB in the second, the first "
        f"quarter left out; {len(found['faults'])} faults"
    )


def main() -> int:
    """Soak for as long as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two actions")
    parser.add_argument("--steps", type=int, default=300, help="of every training in the background")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    server = RealComfyUI(OUT)
    write_tiny_folder(OUT / "models/diffusers/tiny")
    try:
        server.start()
        soak = Soak(server, options.seed, options.steps)
        while time.monotonic() - soak.began < options.minutes * 60:
            soak.step()
            found = soak.summary(options.minutes)
            (OUT / "soak.json").write_text(json.dumps({**found, "memory": soak.memory}), encoding="utf-8")
            time.sleep(options.pause)
    finally:
        server.stop()
    grown = [] if found["flat"] else ["memory has grown"]
    return report("Soak", row(found), [*found["faults"], *grown])


if __name__ == "__main__":
    sys.exit(main())
