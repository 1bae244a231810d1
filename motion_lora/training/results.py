"""From the trained parameters of the stages to values: the motion LoRA with its metadata, absorber, spatial LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backbones.lora import layers_text
from ..base.pipeline import VideoPipeline
from ..core.absorber import Absorber
from ..core.lora import LoRA, LoRALayer
from ..core.metadata import Provenance, build_metadata
from ..methods.stages import Part
from .checkpoint import Values, part_of
from .recipe import Recipe
from .settings import find_method
from .stage import ROWS, TOKENS, adapter_names_of

if TYPE_CHECKING:
    from ..core.clip import Clip

Results = Mapping[str, Values]


def lora_from(values: Values, alpha: float, backbone: str) -> LoRA:
    """The LoRA of one adapter's parameters, "<module>.down" and "<module>.up"."""
    modules = [name.removesuffix(".down") for name in values if name.endswith(".down")]
    layers = {m: LoRALayer(values[f"{m}.down"], values[f"{m}.up"], alpha) for m in modules}
    return LoRA(layers, backbone=backbone)


def absorber_from(results: Results, pipeline: VideoPipeline, recipe: Recipe) -> Absorber | None:
    """What the absorber stages that are done have made; None before the first.

    What parts with targets learned is its spatial LoRA, what a part of tokens learned its tokens.
    """
    layers: dict[str, LoRALayer] = {}
    tokens = None
    done = [(stage, part) for stage in recipe.absorbing if results.get(stage.name) for part in stage.parts]
    for stage, part in done:
        values = results[stage.name]
        if part.is_tokens:
            assert recipe.new_tokens is not None
            tokens = replace(recipe.new_tokens, rows=part_of(values, TOKENS)[ROWS])
        else:
            alpha = recipe.part(part).alpha
            layers.update(lora_from(part_of(values, part.name), alpha, pipeline.backbone.name).layers)
    if not layers and tokens is None:
        return None
    spatial = LoRA(layers, backbone=pipeline.backbone.name) if layers else None
    parts = [part for _, part in done if not part.is_tokens]
    return Absorber(spatial, tokens, _absorber_metadata(spatial, parts, pipeline, recipe))


def kept_lora(results: Results, recipe: Recipe, pipeline: VideoPipeline, steps: int, mark: str) -> LoRA:
    """What the method keeps, with the metadata of its file; without layers when no motion stage took a step.

    `mark` is the fingerprint of the run.
    """
    keeps, stages = find_method(recipe.settings.method).keeps, recipe.main
    layers: dict[str, LoRALayer] = {}
    kept = [part for stage in stages if stage.name in results for part in stage.parts if part.name in keeps]
    for stage in stages:
        for part in kept:
            alpha = recipe.part(part).alpha
            values = part_of(results.get(stage.name, {}), part.name)
            layers.update(lora_from(values, alpha, pipeline.backbone.name).layers)
    lora = LoRA(layers, acts_in=_acts_in(recipe, pipeline), backbone=pipeline.backbone.name)
    if not kept:
        return lora
    return _described(lora, _provenance(kept, recipe, pipeline, recipe.clips, steps, mark))


def spatial_loras(results: Results, recipe: Recipe, pipeline: VideoPipeline, steps: int, mark: str) -> tuple[LoRA, ...]:
    """The spatial LoRAs of a dual path, one per clip: each clip's appearance, with the metadata of its file."""
    found = []
    parts = [(stage, part) for stage in recipe.main if stage.name in results for part in stage.parts if part.per_clip]
    for stage, part in parts:
        alpha = recipe.part(part).alpha
        for clip, name in zip(recipe.clips, adapter_names_of(part, len(recipe.clips)), strict=True):
            lora = lora_from(part_of(results[stage.name], name), alpha, pipeline.backbone.name)
            lora = replace(lora, acts_in=_acts_in(recipe, pipeline))
            found.append(_described(lora, _provenance([part], recipe, pipeline, [clip], steps, mark)))
    return tuple(found)


def _described(lora: LoRA, source: Provenance) -> LoRA:
    return replace(lora, metadata=build_metadata(source, lora, layers_text(lora)))


def _acts_in(recipe: Recipe, pipeline: VideoPipeline) -> tuple[float, float]:
    """The part of the noise that was trained on, in which alone the LoRA acts."""
    return pipeline.noise_schedule().part_of_whole(recipe.settings.timestep_low, recipe.settings.timestep_high)


def _provenance(
    kept: Sequence[Part], recipe: Recipe, pipeline: VideoPipeline, clips: Sequence[Clip], steps: int, mark: str
) -> Provenance:
    first, settings = clips[0], recipe.settings
    chosen = [recipe.part(part) for part in kept]
    return Provenance(
        method=settings.method,
        target_preset="+".join(part.targets for part in chosen),
        base=pipeline.identity,
        alpha=chosen[0].alpha,
        captions=[clip.caption for clip in clips],
        appearance_captions=[clip.appearance_caption for clip in clips],
        num_frames=first.num_frames,
        height=first.height,
        width=first.width,
        fps=first.fps,
        steps=steps,
        learning_rate=chosen[0].learning_rate,
        seed=settings.seed,
        settings=settings.with_effect(),
        clips=[clip.fingerprint() for clip in clips],
        training_fingerprint=mark,
        prediction_type=pipeline.prediction_type,
        expert=pipeline.expert,
    )


def _absorber_metadata(
    spatial: LoRA | None, parts: Sequence[Part], pipeline: VideoPipeline, recipe: Recipe
) -> dict[str, str]:
    chosen, settings = [recipe.part(part) for part in parts], recipe.settings
    source = Provenance(
        method=settings.method,
        target_preset="+".join(part.targets for part in chosen),
        base=pipeline.identity,
        alpha=chosen[0].alpha if chosen else None,
        captions=[clip.caption for clip in recipe.clips],
        appearance_captions=[clip.appearance_caption for clip in recipe.clips],
        seed=settings.seed,
        settings=settings.with_effect(),
        clips=[clip.fingerprint() for clip in recipe.clips],
    )
    lora = spatial or LoRA({}, backbone=pipeline.backbone.name)
    return build_metadata(source, lora, layers_text(lora))
