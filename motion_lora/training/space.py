"""How much room a training takes on the disk, worked out before its first step."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapters.targets import parameter_count
from ..base.pipeline import VideoPipeline
from .settings import TrainSettings, all_stages
from .stage import TOKENS, adapter_names_of, part_settings

_FP32 = 4
# Of each parameter a checkpoint holds the value and AdamW's two moments.
_PER_PARAMETER = 3


def bytes_needed(
    pipeline: VideoPipeline, settings: TrainSettings, plan: Mapping[str, int], num_clips: int
) -> tuple[int, int]:
    """About how many bytes the result takes, and how many the work on the way to it.

    `plan` names the stages that will run. While a checkpoint is replaced the former one is still there, and holds what
    earlier stages have made.
    """
    sizes = [_FP32 * count for count in _parameters(pipeline, settings, plan, num_clips)]
    if not sizes:
        return 0, 0
    return max(sizes), 2 * (_PER_PARAMETER * max(sizes) + sum(sizes))


def _parameters(
    pipeline: VideoPipeline, settings: TrainSettings, plan: Mapping[str, int], num_clips: int
) -> list[int]:
    """Of each stage; learned tokens are a few kilobytes, and left out."""
    counts = []
    for stage in all_stages(settings, absorber_given=False):
        parts = [part for part in stage.parts if part.name != TOKENS]
        if stage.name in plan and parts:
            chosen = [(part, part_settings(part, settings)) for part in parts]
            counts.append(
                sum(
                    len(adapter_names_of(part, num_clips)) * parameter_count(pipeline.unet, of.targets, of.rank)
                    for part, of in chosen
                )
            )
    return counts
