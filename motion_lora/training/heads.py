"""Only heads that look over time: which they are on the clips of a training, and how the others are kept out of a LoRA.

The rows of the others stay zero in what is learned, so that the file has the shapes of any other and any loader takes
it (Follow-Your-Motion, arXiv 2506.05207, section 3.2, on rows of a plain LoRA).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbones.base import Text
from ..base.noise import Process
from ..base.pipeline import VideoPipeline
from ..base.placement import no_gradients, sent
from ..core.errors import TrainingError

# A head is of time where its mass there is so many times that in the frame: the factor of its authors' code.
_TIMES = 1.3
_DRAWS = 4

_log = logging.getLogger(__name__)


def temporal_heads(
    pipeline: VideoPipeline, clips: Sequence[tuple[Tensor, Text]], schedule: Process, generator: torch.Generator
) -> dict[str, Tensor]:
    """Which heads look over time, bool (heads,) by attention: the mean over the clips at a few random timesteps.

    `clips` are latents (1, c, f, h, w) with their texts. Raises TrainingError where there is none.
    """
    network = replace(pipeline, fast_layers=False).replica().unet
    total: dict[str, Tensor] = {}
    with no_gradients():
        for latents, text in clips:
            for timesteps in schedule.sample_timesteps(_DRAWS, generator).split(1):
                for name, found in _measured(pipeline, network, latents, text, timesteps, schedule, generator).items():
                    total[name] = total.get(name, torch.zeros(())) + found
    chosen = {name: mass[:, 0] >= _TIMES * mass[:, 1] for name, mass in total.items()}
    count, every = sum(int(heads.sum()) for heads in chosen.values()), sum(len(heads) for heads in chosen.values())
    _log.info("%d of %d heads look over time on these clips", count, every)
    if not count:
        raise TrainingError(
            f"None of the {every} attention heads of {pipeline.identity.name} looks over time on these clips: switch "
            "temporal_heads off."
        )
    return chosen


def _measured(
    pipeline: VideoPipeline,
    network: nn.Module,
    latents: Tensor,
    text: Text,
    timesteps: Tensor,
    schedule: Process,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    noise = sent(torch.randn(latents.shape, generator=generator), latents.device)
    noisy = schedule.add_noise(latents, noise, timesteps).to(pipeline.dtype)
    predict = lambda: pipeline.backbone.predict(network, noisy, timesteps, text)  # noqa: E731
    return pipeline.backbone.head_masses(network, latents.shape[2], predict)


def rows_of(parameter: nn.Parameter, heads: Tensor) -> Tensor:
    """(rows, 1), 1 for the rows of a factor "up" (rows, rank) that belong to these heads, else 0."""
    rows = heads.to(parameter.device).repeat_interleave(len(parameter) // len(heads))
    return rows[:, None].to(parameter.dtype)
