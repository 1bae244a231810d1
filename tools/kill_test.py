"""Kill: `kill -9` at random instants of a training job, and whether the next server brings it to the same bits.

    python tools/kill_test.py --times 200 --minutes 30

The job is a real training of two stages on the tiny network of the tests: preparation, steps, a checkpoint after every
second step, a preview, publishing. Each round is a process of its own, forked so that the libraries are imported once,
killed at an instant drawn evenly over the time that an unbroken run takes; then another process asks for the same job.
The time is the processor's where the system tells it, so that a busy machine does not shift the instants to the
beginning. Prints the row of docs/RELIABILITY.md and, for every round that went wrong, what was found. The counts are
kept in out/kill/kill.json after every round: the same command goes on from there. Needs a system that forks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from reliability import report  # noqa: E402
from training_samples import quick, sample_clip, small_pipeline  # noqa: E402

from motion_lora.base.pipeline import VideoPipeline  # noqa: E402
from motion_lora.jobs import DONE, MOTION_LORA, JobRunner, JobStore, PreviewPlan  # noqa: E402
from motion_lora.jobs.inputs import TrainingInputs  # noqa: E402
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec  # noqa: E402

OUT = ROOT / "out" / "kill"
_STEPS = 6
# A process that waits for the disk or for another thread uses no processor: of so many seconds more, any share.
_AFTERWARDS = 0.05
_PREVIEW = PreviewPlan("a blue square", every=4, num_inference_steps=1)


def run_job(folder: Path, base: VideoPipeline) -> bool:
    """Ask for the job as its node does, and wait for its end; whether it is done."""
    host = TrainingHost(lambda recipe: base, folders={MOTION_LORA: (folder / "loras", "motion")})
    runner = JobRunner(JobStore(folder / "jobs"), TrainingWork(host))
    inputs = TrainingInputs(base, (sample_clip(),))
    settings = replace(quick(steps=_STEPS), checkpoint_every=2, absorber="textual-inversion")
    job = runner.submit(training_spec(MOTION_LORA, "orbit", inputs, settings, base={}, preview=_PREVIEW), inputs)
    job = runner.wait(job.id)
    runner.close()
    if job.state != DONE:
        sys.stderr.write(f"{job.state}: {job.status.message}\n")
    return job.state == DONE


def forked(folder: Path, base: VideoPipeline) -> int:
    """A process that runs the job; its number."""
    child = os.fork()
    if not child:
        os._exit(0 if run_job(folder, base) else 1)
    return child


def outcome(folder: Path, expected: bytes) -> str:
    """What is wrong with what the user finds; "" for nothing."""
    found = sorted((folder / "loras").rglob("*.safetensors"))
    if [path.name for path in found] != ["orbit.safetensors"]:
        return f"published: {[path.name for path in found]}"
    return "" if found[0].read_bytes() == expected else "other bits"


@dataclass
class Tally:
    """What has been found so far; `where` counts what the killed run had left behind."""

    seed: int
    rounds: int = 0
    killed: int = 0
    wrong: list[str] = field(default_factory=list)
    where: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path, seed: int) -> Tally:
        """That of an earlier run with this seed, where there is one."""
        if not file.is_file():
            return cls(seed)
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cls(**kept) if kept["seed"] == seed else cls(seed)


def used(process: int) -> float | None:
    """Seconds of the processor that a process has used; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_at(child: int, instant: float, afterwards: float) -> bool:
    """Kill a process when it has used so much time; whether it was killed in the act."""
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return False
        spent = used(child)
        if (time.monotonic() - began if spent is None else spent) >= instant:
            break
        time.sleep(0.002)
    time.sleep(afterwards)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def stage_of(folder: Path) -> str:
    """How far a killed job had come, by what lies in its folder."""
    jobs = list((folder / "jobs").glob("[0-9]*"))
    if not jobs:
        return "being made"
    if any((folder / "loras").rglob("*.safetensors")):
        return "published"
    names = {path.name for path in jobs[0].rglob("*")}
    if "result.safetensors" in names:
        return "result written"
    return "with a checkpoint" if "checkpoint.json" in names else "before a checkpoint"


def unbroken(folder: Path, base: VideoPipeline) -> float:
    """Seconds of the processor that an unbroken run takes, or of the clock."""
    start = time.monotonic()
    _, status, usage = os.wait4(forked(folder, base), 0)
    assert status == 0
    cpu = usage.ru_utime + usage.ru_stime
    return time.monotonic() - start if used(os.getpid()) is None else cpu


def one_round(folder: Path, base: VideoPipeline, tally: Tally, seconds: float, expected: bytes) -> None:
    chance = random.Random(f"{tally.seed}:{tally.rounds}")
    instant = chance.uniform(0, seconds)
    tally.killed += kill_at(forked(folder, base), instant, chance.uniform(0, _AFTERWARDS))
    stage = stage_of(folder)
    tally.where[stage] = tally.where.get(stage, 0) + 1
    _, status = os.waitpid(forked(folder, base), 0)
    if fault := "it did not end" if status else outcome(folder, expected):
        tally.wrong.append(f"killed after {instant:.3f} s, {stage}: {fault} ({folder})")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    tally.rounds += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no round after so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    root, began, base = Path(tempfile.mkdtemp(prefix="kill-test-")), time.monotonic(), small_pipeline()
    OUT.mkdir(parents=True, exist_ok=True)
    tally = Tally.of(OUT / "kill.json", options.seed)
    unbroken(root / "warm", base)
    seconds = unbroken(root / "whole", base)
    expected = (root / "whole" / "loras" / "motion" / "orbit.safetensors").read_bytes()
    while tally.rounds < options.times and time.monotonic() - began < 60 * options.minutes:
        one_round(root / str(tally.rounds), base, tally, seconds, expected)
        (OUT / "kill.json").write_text(json.dumps(asdict(tally)), encoding="utf-8")
    where = ", ".join(f"{stage} {count}" for stage, count in sorted(tally.where.items()))
    result = (
        f"{tally.rounds - len(tally.wrong)} of {tally.rounds} finished, bit-equal to an unbroken run, published once; "
        f"{tally.killed} were killed in the act, the others had just ended (found: {where}; an unbroken run takes "
        f"{seconds:.1f} s)"
    )
    return report("Kill", result, tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
