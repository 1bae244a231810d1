"""Methods side by side on a base and a clip of the user's: what should `auto` be there? By the proxies.

Every method trains on the clip, the prompts are sampled from equal noise, and the base's judge scores the videos
(`evaluate.judge`): tracked points, colours and texture, CLIP and LPIPS where they are given. What is trained is kept,
so that a run that was cut off goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base.pipeline import VideoPipeline
from ...core.clip import Clip
from ...core.disk import write_atomically
from ...core.errors import SettingsError
from ...core.lora import LoRA
from ...core.stack import AdapterStack, StackEntry
from ...evaluate.compare import Candidate, Comparison, compare, markdown_of, write_comparison
from ...evaluate.judge import Judge
from ...files.own import load_lora, save_lora
from ...media.tables import Table
from ...methods.table import METHODS
from ...sampling.settings import SampleSettings
from ...training import Callback, StepReport, TrainSettings, check_settings, run_fingerprint, train
from .report import machine_facts

# Those that a user would choose between; the ablations answer another question.
DEFAULT_METHODS = ("customize-a-video", "motiondirector", "separate-motion-appearance", "temporal-only")
_JOINT_METHODS = ("joint-customize-a-video", "joint-motiondirector", "joint-lora")


@dataclass(frozen=True)
class BasePlan:
    """`steps` of None are each method's own. `looks` let Many Looks take part, which redraws the clip under them.

    Without `methods` those that the base has layers for: see `default_methods`.
    """

    prompts: tuple[str, ...]
    methods: tuple[str, ...] = ()
    steps: int | None = None
    looks: tuple[str, ...] = ()
    num_inference_steps: int = 25
    guidance_scale: float = 9.0
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)


def bench_base(
    pipeline: VideoPipeline,
    clip: Clip,
    plan: BasePlan,
    judge: Judge,
    output: Path,
    *,
    command: str = "",
    callback: Callable[[str, StepReport], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train, sample, score, and write README.md, table.md, table.csv, sheet.png and grid.mp4; plain values of them.

    `callback(method, report)` hears of training steps, `progress(step, total)` of sampling steps. Raises SettingsError
    before work starts for settings that are not legal.
    """
    if not plan.prompts:
        raise SettingsError("There is no prompt; name one or more (--prompt).")
    wanted = {name: method_settings(pipeline, name, plan) for name in plan.methods or default_methods(pipeline)}
    trained = {
        name: _trained(pipeline, clip, settings, output / "loras", name, callback) for name, settings in wanted.items()
    }
    candidates = [Candidate(name, AdapterStack((StackEntry(lora),))) for name, (lora, _) in trained.items()]
    found = compare(
        pipeline, candidates, plan.prompts, _sampling(clip, plan), judge, reference=clip.frames, callback=progress
    )
    seconds = {name: each for name, (_, each) in trained.items()}
    machine = machine_facts(pipeline)
    page = write_atomically(output / "README.md", _page(found, wanted, seconds, machine, command).encode())
    files = [page, *write_comparison(output, found)]
    means = dict(zip(found.labels, found.means(), strict=True))
    return {"files": [str(path) for path in files], "seconds": seconds, "scores": means, "machine": machine}


def default_methods(pipeline: VideoPipeline) -> tuple[str, ...]:
    """The methods that a user of this base would choose between."""
    recommended = pipeline.backbone.recommended_method
    return DEFAULT_METHODS if recommended in DEFAULT_METHODS else _JOINT_METHODS


def method_settings(pipeline: VideoPipeline, method: str, plan: BasePlan) -> TrainSettings:
    """A method's defaults on this base with the plan's changes; raises SettingsError."""
    settings = TrainSettings.for_base(pipeline, method)
    changes: dict[str, Any] = {"seed": plan.seed, **plan.training}
    if plan.steps is not None:
        changes["steps"] = plan.steps
    if METHODS[method].needs_looks and plan.looks:
        changes["looks"] = plan.looks
    settings = dataclasses.replace(settings, **changes)
    check_settings(settings)
    return settings


def _sampling(clip: Clip, plan: BasePlan) -> SampleSettings:
    return SampleSettings(
        plan.prompts[0],
        num_frames=clip.num_frames,
        height=clip.height,
        width=clip.width,
        num_inference_steps=plan.num_inference_steps,
        guidance_scale=plan.guidance_scale,
        seed=plan.seed,
        fps=clip.fps,
    )


def _trained(
    pipeline: VideoPipeline,
    clip: Clip,
    settings: TrainSettings,
    folder: Path,
    name: str,
    callback: Callable[[str, StepReport], None] | None,
) -> tuple[LoRA, float]:
    """The LoRA and the seconds of its training, from `folder` where this very training is done."""
    path, about = folder / f"{name}.safetensors", folder / f"{name}.json"
    mark = run_fingerprint(pipeline, [clip], settings)
    known = json.loads(about.read_text(encoding="utf-8")) if about.is_file() and path.is_file() else {}
    if known.get("fingerprint") != mark:
        began = time.perf_counter()
        lora = train(pipeline, [clip], settings, callback=_reporter(name, callback)).lora
        known = {"fingerprint": mark, "seconds": time.perf_counter() - began}
        save_lora(path, lora)
        write_atomically(about, json.dumps(known).encode())
    return load_lora(path), known["seconds"]


def _reporter(name: str, callback: Callable[[str, StepReport], None] | None) -> Callback:
    def report(step: StepReport) -> str:
        if callback is not None:
            callback(name, step)
        return "continue"

    return report


def _page(
    found: Comparison,
    wanted: dict[str, TrainSettings],
    seconds: dict[str, float],
    machine: dict[str, str],
    command: str,
) -> str:
    rows: Sequence[Sequence[Any]] = [(name, settings.steps, round(seconds[name])) for name, settings in wanted.items()]
    parts = [
        "# Methods side by side on one clip",
        f"    {command}",
        markdown_of(found).rstrip(),
        Table(("method", "steps", "seconds"), rows).markdown(),
        "![every video as a row of frames](sheet.png)",
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
    ]
    return "\n\n".join(parts) + "\n"
