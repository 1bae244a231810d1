"""Everything that can be known to go wrong is said before work starts, all faults of a kind at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..adapters.fit import check_modules, max_rank, weight_of
from ..adapters.highway import plan_highway
from ..adapters.targets import target_modules
from ..backbones.registry import of_network
from ..base.pipeline import VideoPipeline
from ..base.tokens import check_length, check_tokens
from ..core.absorber import Absorber
from ..core.errors import ClipError, LoRAFileError, SettingsError
from ..core.highway import Highway
from ..core.identity import BaseIdentity
from ..core.lora import TEMPORAL
from ..core.metadata import OWN
from ..core.phrases import missing_phrases, split_phrases, substitute
from ..core.process import FLOW, UNIFORM
from .looks import motion_words, moving_caption
from .recipe import Recipe, setting_name
from .settings import TrainSettings, find_method

if TYPE_CHECKING:
    from ..core.clip import Clip


def fingerprint(
    identity: BaseIdentity,
    clips: Sequence[Clip],
    settings: TrainSettings,
    absorber: Absorber | None = None,
    given: str = "",
) -> str:
    """SHA-256 over all that decides a training result, on one kind of machine: the same one means the same LoRA.

    `given` is `given_hash` of a base whose texts came from outside.
    """
    content = {
        "base": [identity.config_hash, identity.weights_hash],
        "clips": [clip.fingerprint() for clip in clips],
        "settings": settings.hashed(),
        "absorber": absorber.fingerprint() if absorber is not None else "",
        **({"given": given} if given else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def run_fingerprint(
    pipeline: VideoPipeline, clips: Sequence[Clip], settings: TrainSettings, absorber: Absorber | None = None
) -> str:
    """The `fingerprint` of a training on this base."""
    prompts = [prompt for clip in clips for prompt in (clip.caption, clip.appearance_caption)]
    return fingerprint(pipeline.identity, clips, settings, absorber, pipeline.given_hash(prompts))


def check_run(pipeline: VideoPipeline, recipe: Recipe) -> None:
    """Raise SettingsError, ClipError, LoRAFileError or ModelError for whatever of a run does not fit its base."""
    _check_process(pipeline, recipe.settings)
    _check_targets(pipeline, recipe)
    _check_looks(pipeline, recipe)
    _check_heads(pipeline, recipe)
    if recipe.settings.highway != "none":
        plan_highway(pipeline.unet, Highway(recipe.settings.highway, recipe.settings.highway_scale))
    if recipe.given is not None:
        check_absorber(pipeline, recipe.given)
    faults = list(_clip_faults(pipeline, recipe))
    if faults:
        raise ClipError(" ".join(faults))


def _check_process(pipeline: VideoPipeline, settings: TrainSettings) -> None:
    pipeline.noise_schedule()
    if settings.timestep_sampling != UNIFORM and pipeline.backbone.process != FLOW:
        raise SettingsError(
            f"timestep_sampling is {settings.timestep_sampling!r}, which is for flow matching; "
            f"{pipeline.identity.name} is trained by diffusion, leave it at {UNIFORM!r}."
        )


def _check_heads(pipeline: VideoPipeline, recipe: Recipe) -> None:
    if not recipe.settings.temporal_heads:
        return
    parts = [part for stage in recipe.main for part in stage.parts if not part.is_tokens]
    targets = [recipe.part(part).targets for part in parts]
    modules = [module for preset in targets for module in target_modules(pipeline.unet, preset)]
    if not any(pipeline.backbone.attention_of(module) for module in modules):
        raise SettingsError(
            f"temporal_heads is on, and no layer of targets {', '.join(map(repr, targets))} has heads that look over "
            "space and time; leave it off."
        )


def _check_looks(pipeline: VideoPipeline, recipe: Recipe) -> None:
    settings, absorber = recipe.settings, recipe.given
    if find_method(settings.method).needs_looks and not settings.looks:
        raise SettingsError(
            f"Method {settings.method!r} learns a motion in many looks; give looks, captions of other subjects and "
            "places such as 'a robot in a desert', ten or so."
        )
    # The method's stages, not the run's: an absorber trained alone comes before the looks and does without them.
    if settings.looks and not any(stage.learns_motion for stage in find_method(settings.method).stages):
        raise SettingsError(f"looks are for learning a motion, which {settings.method!r} does not; leave them out.")
    if settings.looks and absorber is not None and absorber.weights:
        raise SettingsError(
            "looks need an absorber that can be switched off, not whole weights: take another absorber, or leave the "
            "looks out, as method 'customize-a-video' does."
        )
    if settings.looks and pipeline.texts is not None:
        raise SettingsError(
            f"looks are captions of their own, and {pipeline.identity.name} has only the texts that came from outside; "
            "leave them out, or take a base with a text encoder."
        )
    for look in settings.looks:
        for clip in recipe.clips:
            check_length(pipeline, moving_caption(look, motion_words(clip.caption, clip.appearance_caption)))


def check_absorber(pipeline: VideoPipeline, absorber: Absorber) -> None:
    """Raise LoRAFileError or SettingsError unless the absorber fits the base and leaves its temporal layers alone.

    One that says that it was trained on another base is refused; a third party's LoRA or network says no such thing.
    """
    if absorber.spatial is None and absorber.tokens is None and not absorber.weights:
        raise LoRAFileError("The absorber is empty; train one, or train with absorber 'none'.")
    made_on = absorber.metadata.get(f"{OWN}base_weights_hash", "")
    if made_on and made_on != pipeline.identity.weights_hash:
        name = absorber.metadata.get(f"{OWN}base_name", "another base")[:80]
        raise LoRAFileError(
            f"The absorber was trained on {name}, not on {pipeline.identity.name}; train one on this base."
        )
    if absorber.spatial is not None:
        check_modules(pipeline.unet, absorber.spatial)
        if temporal := [name for name in absorber.spatial if pipeline.backbone.layer_of(name) == TEMPORAL]:
            raise LoRAFileError(f"The absorber changes the temporal layer {temporal[0]}; use its spatial part alone.")
    if absorber.tokens is not None:
        check_tokens(pipeline, absorber.tokens)
    _check_weights(pipeline.unet, absorber.weights)


def _check_weights(unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
    known = dict(unet.named_parameters())
    for name, weight in weights.items():
        if name not in known or known[name].shape != weight.shape:
            here = tuple(known[name].shape) if name in known else "no such weight"
            raise LoRAFileError(f"The absorber's weight {name} is {tuple(weight.shape)}, this base has {here}.")
        if of_network(unet).layer_of(name) == TEMPORAL:
            raise LoRAFileError(f"The absorber's weight {name} is of a temporal layer; leave those out.")


def _check_targets(pipeline: VideoPipeline, recipe: Recipe) -> None:
    faults = []
    for part in (part for stage in recipe.stages for part in stage.parts if not part.is_tokens):
        chosen = recipe.part(part)
        modules = target_modules(pipeline.unet, chosen.targets)
        limit = min(max_rank(weight_of(pipeline.unet.get_submodule(module))) for module in modules)
        if chosen.rank > limit:
            name = setting_name(part, "rank")
            faults.append(f"{name} is {chosen.rank}, this base takes 1 to {limit} with targets {chosen.targets!r}")
    if faults:
        raise SettingsError("; ".join(faults) + ".")


def _clip_faults(pipeline: VideoPipeline, recipe: Recipe) -> Iterator[str]:
    if not recipe.clips:
        yield "There is no clip to learn from; give at least one."
    passes = [a_pass for stage in recipe.stages for a_pass in stage.passes]
    learns_from_clips = not all(a_pass.bypass for a_pass in passes)
    given = recipe.given.tokens if recipe.given is not None else None
    for number, (clip, words) in enumerate(zip(recipe.clips, recipe.words, strict=True), start=1):
        name = f"Clip {number}" + (f" ({clip.source})" if clip.source else "")
        if not clip.caption.strip():
            yield f"{name} has no caption; say what is seen and what moves."
        if clip.num_frames < 2 and learns_from_clips:
            yield f"{name} has one frame, and a motion needs 2 or more; for images use 'motiondirector-image'."
        if learns_from_clips and (fault := pipeline.frames_fault(clip.num_frames)):
            yield f"{name}: {fault}."
        if fault := pipeline.size_fault(clip.height, clip.width):
            yield f"{name}: {fault}."
        if any(a_pass.caption == "appearance" for a_pass in passes) and not clip.appearance_caption.strip():
            yield (
                f"{name} has no appearance caption, which absorber {recipe.settings.absorber!r} learns from; "
                "give its caption without the motion words, or set absorber to 'none'."
            )
        elif recipe.trains_tokens:
            captions = (clip.appearance_caption, clip.caption)
            yield from _token_faults(pipeline, clip, name, recipe.settings.num_tokens, words, captions)
        elif given is not None:
            yield from _token_faults(pipeline, clip, name, len(given.names_for(words)), words, (clip.caption,))


def _token_faults(
    pipeline: VideoPipeline, clip: Clip, name: str, num_tokens: int, words: str, captions: Sequence[str]
) -> Iterator[str]:
    phrases = split_phrases(words)
    if not phrases:
        yield f"{name} has no words to absorb; give words for the look that both its captions hold."
        return
    absent = False
    for caption in captions:
        for phrase in missing_phrases(caption, words):
            absent = True
            yield f"{name}: {phrase!r}, to be absorbed, is not in the caption {caption!r}; use words of both captions."
    if len(phrases) > num_tokens:
        yield f"{name}: num_tokens is {num_tokens} for the {len(phrases)} phrases of {words!r}; use one for each."
    elif not absent:
        try:
            # Any one-token word is as long as a new token.
            check_length(pipeline, substitute(clip.caption, ["a"] * num_tokens, words))
        except ClipError as error:
            yield f"{name}: {error}"
