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
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ..core.errors import SettingsError


@dataclass(frozen=True)
class Sampler:
    """One sampler: its diffusers class, what it is called in an interface, and what makes it that sampler."""

    title: str
    kind: Callable[..., Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    takes_generator: bool = False


SCHEDULERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", DDIMScheduler, {"thresholding": False}),
    "dpmpp-2m-karras": Sampler(
        "DPM-Solver++ 2M Karras",
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True, "thresholding": False},
    ),
    "euler": Sampler("Euler", EulerDiscreteScheduler),
    "euler-ancestral": Sampler("Euler ancestral", EulerAncestralDiscreteScheduler, takes_generator=True),
    "unipc": Sampler("UniPC", UniPCMultistepScheduler, {"solver_order": 2, "thresholding": False}),
}

# Config files of some releases leave this out; diffusers' default would clip latents as if they were pixels.
_DEFAULTS: Mapping[str, Any] = {"clip_sample": False}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler over the noise schedule in `config` (entries of a `scheduler_config.json`).

    Entries that belong to other scheduler classes are left out. Raises SettingsError for an unknown name.
    """
    if name not in SCHEDULERS:
        raise SettingsError(f"scheduler is {name!r}; it must be one of: {', '.join(SCHEDULERS)}.")
    sampler = SCHEDULERS[name]
    entries = {**_DEFAULTS, **config, **sampler.overrides}
    known = inspect.signature(sampler.kind).parameters
    return sampler.kind(**{key: value for key, value in entries.items() if key in known})
