"""How much room a training takes on the disk, worked out before its first step."""

from __future__ import annotations

from collections.abc import Container

from ..adapters.targets import parameter_count
from ..base.pipeline import VideoPipeline
from .recipe import Recipe
from .stage import adapter_names_of

_FP32 = 4
# Of each parameter a checkpoint holds the value and AdamW's two moments.
_PER_PARAMETER = 3


def bytes_needed(pipeline: VideoPipeline, recipe: Recipe, plan: Container[str]) -> tuple[int, int]:
    """About how many bytes the result takes, and how many the work on the way to it.

    `plan` names the stages that will run. While a checkpoint is written the two before it are still there; each holds
    what earlier stages have made.
    """
    sizes = [_FP32 * count for count in _parameters(pipeline, recipe, plan)]
    if not any(sizes):
        return 0, 0
    return max(sizes), 3 * (_PER_PARAMETER * max(sizes) + sum(sizes))


def _parameters(pipeline: VideoPipeline, recipe: Recipe, plan: Container[str]) -> list[int]:
    """Of each stage; learned tokens are a few kilobytes, and left out."""
    counts = []
    for stage in recipe.stages:
        if stage.name in plan:
            parts = [(part, recipe.part(part)) for part in stage.parts if not part.is_tokens]
            counts.append(
                sum(
                    len(adapter_names_of(part, len(recipe.clips))) * parameter_count(pipeline.unet, of.targets, of.rank)
                    for part, of in parts
                )
            )
    return counts
