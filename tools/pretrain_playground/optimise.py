"""The loop of one pre-training stage: a plan, averaged weights, and checkpoints to resume from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from motion_lora.core.errors import SettingsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """How long and how fast one stage trains; the learning rate warms up, stays, and falls over the last `cooldown`."""

    name: str
    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    cooldown: float = 0.25
    ema_decay: float = 0.999
    # Stochastic depth of the temporal convolutions: the chance to be left out of a step, and over the last quarter.
    drop: float = 0.0
    last_drop: float = 0.0


def learning_rate_factor(plan: StagePlan, step: int) -> float:
    """Linear warm-up, constant, linear fall to 2 % of the rate."""
    fall = int(plan.steps * plan.cooldown)
    rise = min(1.0, (step + 1) / max(plan.warmup, 1))
    left = (plan.steps - step) / max(fall, 1)
    return rise * min(1.0, max(left, 0.02))


def run_stage(
    plan: StagePlan, modules: dict[str, nn.Module], loss: Callable[[torch.Generator, float], Tensor], work: Path
) -> None:
    """Train one stage to its end, from its checkpoint if there is one; leaves the averaged weights in the modules.

    `loss` is given the step's own generator and the share of the steps that are done.

    Raises SettingsError where the checkpoint is of another plan (more or fewer steps are the same one) or began with
    other weights.
    """
    checkpoint = work / f"{plan.name}.safetensors"
    named = {
        f"{key}.{name}": p
        for key, module in modules.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    average = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=plan.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    mark = _mark(plan, named)
    start = _restore(checkpoint, mark, named, average, optimizer)
    log = work / f"{plan.name}.log.csv"
    began, recent = time.monotonic(), 0.0
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(plan, step)
        generator = torch.Generator().manual_seed(1_000_003 * plan.seed + step)
        torch.manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        value = loss(generator, step / plan.steps)
        value.backward()
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
        decay = min(plan.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(named.values()), 1 - decay)
        value = value.detach()
        recent = float(value) if step == start else 0.98 * recent + 0.02 * float(value)
        if (step + 1) % 50 == 0:
            rate = (time.monotonic() - began) / (step + 1 - start)
            logger.info("%s %d/%d loss %.4f %.2f s/step", plan.name, step + 1, plan.steps, recent, rate)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{step + 1},{recent:.6f},{rate:.3f}\n")
        if (step + 1) % 250 == 0 or step + 1 == plan.steps:
            _save(checkpoint, mark, named, average, optimizer, step + 1)
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(average[name])


def _mark(plan: StagePlan, named: dict[str, nn.Parameter]) -> str:
    """Of what a run is and what it begins with."""
    digest = hashlib.sha256(json.dumps({**asdict(plan), "steps": None}, sort_keys=True).encode())
    for name, p in sorted(named.items()):
        digest.update(name.encode() + p.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(
    path: Path,
    mark: str,
    named: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
    step: int,
) -> None:
    tensors: dict[str, Tensor] = {f"weight.{name}": p.detach() for name, p in named.items()}
    tensors |= {f"average.{name}": t for name, t in average.items()}
    for name, p in named.items():
        state = optimizer.state[p]
        tensors[f"m.{name}"], tensors[f"v.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, str(temporary), metadata={"step": str(step), "run": mark}
    )
    os.replace(temporary, path)


def _restore(
    path: Path,
    mark: str,
    named: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
) -> int:
    if not path.exists():
        return 0
    tensors = load_file(str(path))
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata()
    if about.get("run") != mark:
        raise SettingsError(
            f"{path} belongs to another run, with another plan or other weights to begin with; take another --work "
            "folder, or delete it to start over."
        )
    step = int(about["step"])
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(tensors[f"weight.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"m.{name}"],
                "exp_avg_sq": tensors[f"v.{name}"],
            }
    return step
