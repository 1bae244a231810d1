"""From the trained parameters of the stages to values: the motion LoRA with its metadata, absorber, spatial LoRAs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backbones.lora import layers_text
from ..base.pipeline import VideoPipeline
from ..base.tokens import initial_tokens
from ..core.absorber import Absorber
from ..core.lora import LoRA, LoRALayer
from ..core.metadata import Provenance, build_metadata
from ..methods.stages import Part, Stage
from ..methods.table import ABSORB_BY_SPATIAL_LORA, ABSORB_BY_TOKENS
from .batches import words_to_absorb
from .checkpoint import Values, part_of
from .settings import TrainSettings, find_method
from .stage import ROWS, TOKENS, adapter_names_of, part_settings

if TYPE_CHECKING:
    from ..core.clip import Clip

Results = Mapping[str, Values]


def lora_from(values: Values, alpha: float, backbone: str) -> LoRA:
    """The LoRA of one adapter's parameters, "<module>.down" and "<module>.up"."""
    modules = [name.removesuffix(".down") for name in values if name.endswith(".down")]
    layers = {m: LoRALayer(values[f"{m}.down"], values[f"{m}.up"], alpha) for m in modules}
    return LoRA(layers, backbone=backbone)


def absorber_from(
    results: Results, pipeline: VideoPipeline, clips: Sequence[Clip], settings: TrainSettings
) -> Absorber | None:
    """What the absorber stages that are done have made; None before the first."""
    spatial = tokens = None
    if values := results.get(ABSORB_BY_SPATIAL_LORA.name):
        spatial = lora_from(part_of(values, "absorber"), settings.absorber_alpha, pipeline.backbone.name)
    if values := results.get(ABSORB_BY_TOKENS.name):
        words = [words_to_absorb(clip, settings) for clip in clips]
        begun = initial_tokens(pipeline, words, settings.num_tokens)
        tokens = replace(begun, rows=part_of(values, TOKENS)[ROWS])
    if spatial is None and tokens is None:
        return None
    return Absorber(spatial, tokens, _absorber_metadata(spatial, pipeline, clips, settings))


def kept_lora(
    results: Results,
    stages: Sequence[Stage],
    settings: TrainSettings,
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    steps: int,
    mark: str,
) -> LoRA:
    """What the method keeps, with the metadata of its file; without layers when no motion stage took a step.

    `mark` is the fingerprint of the run.
    """
    keeps = find_method(settings.method).keeps
    layers: dict[str, LoRALayer] = {}
    kept = [part for stage in stages if stage.name in results for part in stage.parts if part.name in keeps]
    for stage in stages:
        for part in kept:
            alpha = part_settings(part, settings).alpha
            values = part_of(results.get(stage.name, {}), part.name)
            layers.update(lora_from(values, alpha, pipeline.backbone.name).layers)
    lora = LoRA(layers, backbone=pipeline.backbone.name)
    if not kept:
        return lora
    return _described(lora, _provenance(kept, settings, pipeline, clips, steps, mark))


def spatial_loras(
    results: Results,
    stages: Sequence[Stage],
    settings: TrainSettings,
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    steps: int,
    mark: str,
) -> tuple[LoRA, ...]:
    """The spatial LoRAs of a dual path, one per clip: each clip's appearance, with the metadata of its file."""
    found = []
    parts = [(stage, part) for stage in stages if stage.name in results for part in stage.parts if part.per_clip]
    for stage, part in parts:
        alpha = part_settings(part, settings).alpha
        for clip, name in zip(clips, adapter_names_of(part, len(clips)), strict=True):
            lora = lora_from(part_of(results[stage.name], name), alpha, pipeline.backbone.name)
            found.append(_described(lora, _provenance([part], settings, pipeline, [clip], steps, mark)))
    return tuple(found)


def _described(lora: LoRA, source: Provenance) -> LoRA:
    return LoRA(lora.layers, build_metadata(source, lora, layers_text(lora)), lora.backbone)


def _provenance(
    kept: Sequence[Part],
    settings: TrainSettings,
    pipeline: VideoPipeline,
    clips: Sequence[Clip],
    steps: int,
    mark: str,
) -> Provenance:
    first = clips[0]
    chosen = [part_settings(part, settings) for part in kept]
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
    )


def _absorber_metadata(
    spatial: LoRA | None, pipeline: VideoPipeline, clips: Sequence[Clip], settings: TrainSettings
) -> dict[str, str]:
    source = Provenance(
        method=settings.method,
        target_preset=ABSORB_BY_SPATIAL_LORA.parts[0].targets if spatial else "",
        base=pipeline.identity,
        alpha=settings.absorber_alpha if spatial else None,
        captions=[clip.caption for clip in clips],
        appearance_captions=[clip.appearance_caption for clip in clips],
        seed=settings.seed,
        settings=settings.with_effect(),
        clips=[clip.fingerprint() for clip in clips],
    )
    lora = spatial or LoRA({}, backbone=pipeline.backbone.name)
    return build_metadata(source, lora, layers_text(lora))
