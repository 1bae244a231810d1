"""Everything that only a card can tell, in one go and one table: `make gpu-check`.

    python tools/gpu_check.py                          on this machine's accelerator, about ten minutes
    python tools/gpu_check.py --device cpu --small     the same code on toys, to know that it runs

A row says ok, FAILED with why, or skipped with why; the status is 1 if a row failed. Nothing of a row that fails keeps
the others from running. The table is printed and written to out/gpu-check.md.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from full_size import (
    CONFIGS,
    TINY,
    count_flops,
    machine_name,
    matmul_rate,
    peak_memory,
    random_base,
    reset_peak_memory,
    synchronize,
)
from plain_loop import plain_steps

from motion_lora.adapters.apply import applied
from motion_lora.adapters.targets import target_modules
from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.placement import pick_device
from motion_lora.core.clip import Clip
from motion_lora.core.errors import ModelError, MotionLoRAError, SettingsError
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.media.read import clip_from_frames
from motion_lora.methods.table import METHODS
from motion_lora.playground.model import load_playground
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import StepReport, TrainSettings, train
from motion_lora.training.recipe import make_recipe
from motion_lora.training.rehearsal import Rehearsal

RESULTS = Path("out") / "gpu-check.md"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOOKS = ("a blue square {motion} over snow", "a green ring {motion} over brick")
# How far an output may be off, of its largest number.
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class SkipError(Exception):
    """A check that cannot be made here."""


@dataclass(frozen=True)
class Row:
    """What became of one check."""

    name: str
    outcome: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Place:
    """Where the checks run; `small` is a run on toys. `bases` has the toy base of each precision."""

    device: torch.device
    small: bool
    bases: dict[str, VideoPipeline]

    def clip(self, frames: int = 4, side: int = 64) -> Clip:
        """A random clip with captions for every method."""
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(frames, side, side, 3, generator=generator)
        caption, still = "a red circle circling over sand", "a red circle over sand"
        return clip_from_frames(pictures, 8.0, caption=caption, appearance_caption=still, absorb_words="red circle")


Check = tuple[str, Callable[[], str]]


def method_checks(place: Place) -> Iterator[Check]:
    """Every method, two steps of each stage, in every precision; fp16 goes through the GradScaler."""
    for precision, base in place.bases.items():
        for method in METHODS:
            yield f"{method}, {precision}", lambda method=method, base=base: _two_steps(place, base, method)


def _two_steps(place: Place, base: VideoPipeline, method: str) -> str:
    settings = replace(TrainSettings.for_method(method), steps=2, absorber_steps=2, token_steps=2, rank=2)
    settings = replace(settings, frames_per_step=2, looks=LOOKS if METHODS[method].needs_looks else ())
    settings = replace(settings, look_similarity=-1.0)
    try:
        result = train(base, [place.clip()], settings)
    except (SettingsError, ModelError) as error:
        if "has no" in str(error) or "no layers" in str(error):
            raise SkipError("for another network") from error
        raise
    finite = all(bool(layer.up.isfinite().all()) for layer in result.lora.layers.values())
    _require(finite and result.ending == "completed", "the LoRA is not finite")
    return f"loss {result.losses[-1].loss:.3f}"


def resume_check(place: Place) -> str:
    """A training that was broken off goes on to the same bits."""
    base, settings = next(iter(place.bases.values())), TrainSettings(method="temporal-only", steps=4, rank=2)
    whole = train(base, [place.clip()], settings)

    def pause(report: StepReport) -> str:
        return "pause" if report.step >= 2 else "continue"

    with tempfile.TemporaryDirectory() as folder:
        train(base, [place.clip()], settings, callback=pause, checkpoint=folder)
        rest = train(base, [place.clip()], settings, checkpoint=folder)
    _require(whole.lora.fingerprint() == rest.lora.fingerprint(), "other bits after a break")
    return "the same bits"


def merged_check(base: VideoPipeline, place: Place) -> str:
    """A merged LoRA and one beside its modules give the same."""
    lora = train(base, [place.clip()], TrainSettings(method="temporal-only", steps=2, rank=2, learning_rate=1e-2)).lora
    found = []
    latents = torch.randn(base.latent_shape(4, 64, 64), device=base.device, dtype=base.dtype)
    text, step = base.read_prompts(["a red circle"]).to(base.dtype), torch.tensor(500, device=base.device)
    for merge in (True, False):
        unet = base.replica().unet
        with torch.no_grad(), applied(unet, AdapterStack((StackEntry(lora),)), 4, merge=merge):
            found.append(base.backbone.predict(unet, latents, step, text).float())
    off = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    _require(off < _CLOSE[base.dtype], f"off by {off:.1e}")
    return f"off by {off:.1e}"


def layers_check(base: VideoPipeline, place: Place) -> str:
    """The fast layers and diffusers' own give the same."""
    latents = torch.randn(base.latent_shape(4, 64, 64), device=base.device, dtype=base.dtype)
    text, step = base.read_prompts(["a red circle"]).to(base.dtype), torch.tensor(500, device=base.device)
    with torch.no_grad():
        one, two = (
            base.backbone.predict(replace(base, fast_layers=fast).replica().unet, latents, step, text).float()
            for fast in (True, False)
        )
    off = float((one - two).abs().max() / two.abs().max())
    _require(off < _CLOSE[base.dtype], f"off by {off:.1e}")
    return f"off by {off:.1e}"


def memory_check(place: Place) -> str:
    """What a training took is given back, and was what was counted."""
    if place.device.type == "cpu":
        raise SkipError("a CPU's allocator does not say")
    base = next(iter(place.bases.values()))
    settings = TrainSettings(method="temporal-only", steps=2, rank=2)
    train(base, [place.clip()], settings)
    gc.collect()
    before = torch.accelerator.memory_allocated()
    reset_peak_memory(place.device)
    train(base, [place.clip()], settings)
    gc.collect()
    kept = torch.accelerator.memory_allocated() - before
    _require(kept < 2**20, f"{kept / 2**20:.1f} MiB were kept")
    recipe = make_recipe([place.clip()], settings)
    counted = Rehearsal(base, recipe.stages[0], recipe, None).memory().total / 2**30
    return f"peak {peak_memory(place.device):.3f} GiB, counted {counted:.3f}"


def waiting_check(place: Place) -> str:
    """No step waits for the device while nobody listens."""
    if place.device.type != "cuda":
        raise SkipError("CUDA alone says who waits")
    base = place.bases["fp32"]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            train(base, [place.clip()], TrainSettings(method="temporal-only", steps=18, rank=2, checkpoint_every=1000))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Making ready and the end may wait; eighteen steps that wait once each would show.
    return f"{len(seen)} waits in 18 steps with all before and after"


def real_networks(place: Place) -> Iterator[Check]:
    """A step of each real network, ours beside the plain loop of diffusers and PEFT, with the floor."""
    from motion_lora.backbones.motion_unet import ANIMATEDIFF_CONFIG

    sizes = {"modelscope": (CONFIGS["modelscope"], 16, 256), "animatediff": (ANIMATEDIFF_CONFIG, 16, 512)}
    if place.small:
        tiny = {**ANIMATEDIFF_CONFIG, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 1,
                "cross_attention_dim": 32, "norm_num_groups": 8, "num_attention_heads": 4,
                "motion_num_attention_heads": 4}  # fmt: skip
        sizes = {"modelscope (toy)": (TINY, 4, 64), "animatediff (toy)": (tiny, 4, 64)}
    for name, (config, frames, side) in sizes.items():
        for recompute in (False, True):
            title = f"{name} {frames}x{side}x{side}{', recomputed' if recompute else ''}"
            yield title, lambda c=config, f=frames, s=side, r=recompute: _side_by_side(place, c, f, s, r)


def _side_by_side(place: Place, config: dict[str, object], frames: int, side: int, recompute: bool) -> str:
    dtype = torch.float32 if place.small else torch.bfloat16
    steps, rank = (2 if place.small else 6), (2 if place.small else 32)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(config, place.device, dtype, Path(folder))
    clip = place.clip(frames, side)
    settings = TrainSettings(
        method="temporal-only", targets="temporal-all", rank=rank, steps=steps, gradient_checkpointing=recompute
    )
    reset_peak_memory(place.device)
    ends: list[float] = []

    def heard(report: StepReport) -> str:
        synchronize(place.device)
        ends.append(time.perf_counter())
        return "continue"

    train(base, [clip], settings, callback=heard)
    ours, peak = min(b - a for a, b in pairwise(ends)), peak_memory(place.device)
    latents = torch.randn(base.latent_shape(frames, side, side), device=place.device, dtype=torch.float32)
    text = base.encode_prompt(["a red circle"]).to(dtype)
    plain, plain_peak = plain_steps(
        base.unet.float() if dtype is torch.float32 else base.unet, target_modules(base.unet, "temporal-all"),
        latents.to(dtype), text, rank=rank, steps=steps, dtype=dtype, gradient_checkpointing=recompute,
    )  # fmt: skip
    words = f"ours {ours:.3f} s, {peak:.2f} GiB; plain {plain:.3f} s, {plain_peak:.2f} GiB"
    if "motion_max_seq_length" not in config:
        flops = count_flops(config, tuple(latents.shape), bypass=False, backward=True)
        words += f"; floor {flops / matmul_rate(place.device, dtype, 256 if place.small else 8192):.3f} s"
    return words


def pretraining_check(place: Place) -> str:
    """Clips per second of the playground's pre-training step."""
    base = load_playground(str(place.device))
    batch = 2 if place.small else 64
    unet = base.replica().unet.requires_grad_(True)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    latents = torch.randn(batch, 4, 8, 8, 8, device=place.device)
    text, best = base.read_prompts(["a red circle"]).expand(batch), float("inf")
    for _ in range(2 if place.small else 10):
        synchronize(place.device)
        began = time.perf_counter()
        steps = torch.randint(0, 1000, (batch,), device=place.device)
        base.backbone.predict(unet, latents, steps, text).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        synchronize(place.device)
        best = min(best, time.perf_counter() - began)
    return f"{batch / best:.0f} clips a second, batch {batch}"


def sampling_check(place: Place) -> str:
    """The playground draws a video on the device, finite and in range."""
    settings = SampleSettings(prompt="a red circle circling over sand", num_inference_steps=2 if place.small else 20)
    made = sample(load_playground(str(place.device)), settings)[0]
    _require(bool(made.frames.isfinite().all()), "frames are not finite")
    return f"{len(made.frames)} frames"


def host_check(place: Place) -> str:
    """ComfyUI's model management: loading, unloading, rescue from a full device; its tests, on this device."""
    if "COMFYUI_DIR" not in os.environ:
        raise SkipError("COMFYUI_DIR names no ComfyUI")
    return _tests("comfy and not slow")


def marked_tests(place: Place) -> str:
    """The tests that are marked gpu."""
    if place.device.type == "cpu":
        raise SkipError("they need a device")
    return _tests("gpu")


def _tests(mark: str) -> str:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", mark, "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
    _require(done.returncode == 0, last)
    return last


def all_checks(place: Place) -> list[Check]:
    """Every check, the quick ones first."""
    found: list[Check] = [("sampling, playground", lambda: sampling_check(place))]
    for precision, base in place.bases.items():
        found.append((f"fast layers as stock, {precision}", lambda base=base: layers_check(base, place)))
        found.append((f"merged as unmerged, {precision}", lambda base=base: merged_check(base, place)))
    found += [("resumed to the same bits", lambda: resume_check(place)), ("memory", lambda: memory_check(place))]
    found += [("no waiting", lambda: waiting_check(place)), *method_checks(place)]
    found += [("pre-training, playground", lambda: pretraining_check(place)), *real_networks(place)]
    return [*found, ("tests marked gpu", lambda: marked_tests(place)), ("ComfyUI", lambda: host_check(place))]


def run_check(name: str, work: Callable[[], str]) -> Row:
    """Run one; whatever it raises is its row's."""
    began = time.perf_counter()
    try:
        outcome, detail = "ok", work()
    except SkipError as reason:
        outcome, detail = "skipped", str(reason)
    except (MotionLoRAError, RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError) as error:
        outcome, detail = "FAILED", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        logging.getLogger("gpu_check").debug("%s", traceback.format_exc())
    return Row(name, outcome, time.perf_counter() - began, detail)


def table(place: Place, rows: Sequence[Row]) -> str:
    """The rows in Markdown, with what they were made on."""
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in ("ok", "FAILED", "skipped")}
    lines = [
        f"# GPU check: {machine_name(place.device)}, torch {torch.__version__}{', on toys' if place.small else ''}",
        "",
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items()),
        "",
        "| check | | seconds | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.name} | {row.outcome} | {row.seconds:.1f} | {row.detail} |" for row in rows]
    return "\n".join(lines) + "\n"


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise AssertionError(why)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="toys in place of the real networks")
    parser.add_argument("--only", default="", help="checks whose name has this in it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("diffusers", "motion_lora"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        bases = {name: random_base(TINY, device, dtype, Path(folder)) for name, dtype in DTYPES.items()}
    place, rows = Place(device, options.small, bases), []
    for name, work in all_checks(place):
        if options.only in name:
            rows.append(run_check(name, work))
            logging.getLogger("gpu_check").info("%-44s %-8s %6.1f s  %s", *vars(rows[-1]).values())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(table(place, rows), encoding="utf-8")
    sys.stdout.write(table(place, rows))
    return int(any(row.outcome == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
