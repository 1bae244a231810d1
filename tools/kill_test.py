"""Kill: `kill -9` at random instants of a training job, and whether the next server brings it to the same bits.

    python tools/kill_test.py --times 200 --minutes 30

The job is a real training on the tiny network of the tests: preparation, steps, a checkpoint every second step,
previews, publishing. Each round is a process of its own, forked so that the libraries are imported once, killed at an
instant drawn evenly over the time that an unbroken run takes; then another process asks for the same job. Prints the
row of docs/RELIABILITY.md and, for every round that went wrong, what was found. Needs a system that forks.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from reliability import report  # noqa: E402
from training_samples import quick, sample_clip, small_pipeline  # noqa: E402

from motion_lora.base.pipeline import VideoPipeline  # noqa: E402
from motion_lora.jobs import DONE, MOTION_LORA, JobRunner, JobStore, PreviewPlan  # noqa: E402
from motion_lora.jobs.inputs import TrainingInputs  # noqa: E402
from motion_lora.jobs.training import TrainingHost, TrainingWork, training_spec  # noqa: E402

_STEPS = 8
_PREVIEW = PreviewPlan("a blue square", every=4, num_inference_steps=1)


def run_job(folder: Path, base: VideoPipeline) -> bool:
    """Ask for the job as its node does, and wait for its end; whether it is done."""
    host = TrainingHost(lambda recipe: base, folders={MOTION_LORA: (folder / "loras", "motion")})
    runner = JobRunner(JobStore(folder / "jobs"), TrainingWork(host))
    inputs = TrainingInputs(base, (sample_clip(),))
    settings = replace(quick(steps=_STEPS), checkpoint_every=2)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no round after so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    root, chance, began = Path(tempfile.mkdtemp(prefix="kill-test-")), random.Random(options.seed), time.monotonic()
    base = small_pipeline()
    os.waitpid(forked(root / "warm", base), 0)
    start = time.monotonic()
    _, status = os.waitpid(forked(root / "whole", base), 0)
    seconds = time.monotonic() - start
    expected = (root / "whole" / "loras" / "motion" / "orbit.safetensors").read_bytes()
    assert status == 0
    rounds, killed, wrong = 0, 0, []
    while rounds < options.times and time.monotonic() - began < 60 * options.minutes:
        folder, instant = root / str(rounds), chance.uniform(0, seconds)
        child = forked(folder, base)
        time.sleep(instant)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        _, status = os.waitpid(forked(folder, base), 0)
        fault = "it did not end" if status else outcome(folder, expected)
        if fault:
            wrong.append(f"killed after {instant:.3f} s: {fault} ({folder})")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        rounds += 1
    result = (
        f"{rounds - len(wrong)} of {rounds} finished, bit-equal to an unbroken run, published once; {killed} were "
        f"killed in the act, the others had just ended (an unbroken run takes {seconds:.1f} s)"
    )
    return report("Kill", result, wrong)


if __name__ == "__main__":
    sys.exit(main())
