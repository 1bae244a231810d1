"""The samplers: names, and how each is made from a base model's own noise schedule.

Every scheduler is built directly from its class. diffusers' `from_config` and `from_pretrained` import all scheduler
classes to find compatible ones, and fail where an optional package of an unrelated one is broken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ..core.errors import SettingsError
from .noise import flow_entries, is_flow


@dataclass(frozen=True)
class Sampler:
    """One sampler: its diffusers class, what it is called in an interface, and what makes it that sampler.

    `flow` is the class for a base of flow matching; None where there is none.
    """

    title: str
    kind: Callable[..., Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    takes_generator: bool = False
    flow: Callable[..., Any] | None = None
    flow_overrides: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS: dict[str, Sampler] = {
    "ddim": Sampler(
        # On the straight lines of flow matching DDIM's step is Euler's.
        "DDIM",
        DDIMScheduler,
        {"thresholding": False},
        flow=FlowMatchEulerDiscreteScheduler,
    ),
    "dpmpp-2m-karras": Sampler(
        "DPM-Solver++ 2M Karras",
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True, "thresholding": False},
    ),
    "euler": Sampler("Euler", EulerDiscreteScheduler, flow=FlowMatchEulerDiscreteScheduler),
    "euler-ancestral": Sampler("Euler ancestral", EulerAncestralDiscreteScheduler, takes_generator=True),
    "unipc": Sampler(
        "UniPC",
        UniPCMultistepScheduler,
        {"solver_order": 2, "thresholding": False},
        flow=UniPCMultistepScheduler,
        flow_overrides={"solver_order": 2, "thresholding": False, "use_flow_sigmas": True},
    ),
}

# Config files of some releases leave this out; diffusers' default would clip latents as if they were pixels.
_DEFAULTS: Mapping[str, Any] = {"clip_sample": False}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler over the noise schedule in `config` (entries of a `scheduler_config.json`).

    Entries that belong to other scheduler classes are left out. Raises SettingsError for an unknown name, and for one
    that is not for the process of the base.
    """
    if name not in SCHEDULERS:
        raise SettingsError(f"scheduler is {name!r}; it must be one of: {', '.join(SCHEDULERS)}.")
    sampler = SCHEDULERS[name]
    if is_flow(config):
        return _made(_flow_kind(name), {**config, **flow_entries(config), **sampler.flow_overrides})
    return _made(sampler.kind, {**_DEFAULTS, **config, **sampler.overrides})


def _flow_kind(name: str) -> Callable[..., Any]:
    kind = SCHEDULERS[name].flow
    if kind is None:
        there = ", ".join(each for each, sampler in SCHEDULERS.items() if sampler.flow is not None)
        raise SettingsError(f"scheduler is {name!r}, which is not for a base of flow matching; use one of: {there}.")
    return kind


def _made(kind: Callable[..., Any], entries: Mapping[str, Any]) -> Any:
    known = inspect.signature(kind).parameters
    return kind(**{key: value for key, value in entries.items() if key in known})


# What the classes do not agree in -----------------------------------------------------------------------------------
def start_scale(scheduler: Any) -> float:
    """What unit noise is multiplied by to start from."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def model_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """The latents as the network takes them at `timestep`."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def noised(scheduler: Any, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Clean latents (b, c, f, h, w) at the noise of `timestep` (b,), from which an edit starts."""
    if hasattr(scheduler, "scale_noise"):
        mixed: Tensor = scheduler.scale_noise(latents, timestep, noise)
    else:
        mixed = scheduler.add_noise(latents, noise, timestep)
    return mixed
