"""One stage made ready to train: a replica with its adapters, the clips, and what each pass of a step computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.highway import appearance_highway
from ..adapters.peft import Adapter, add_adapter, load_adapter, merge_adapters, set_strength, sum_to_zero
from ..adapters.targets import find_preset, target_modules
from ..adapters.weights import install_weights
from ..backbones.base import Text
from ..backbones.bypass import temporal_bypass
from ..backbones.faster import use_fast_layers
from ..base.pipeline import VideoPipeline
from ..base.placement import sent
from ..base.tokens import with_tokens
from ..core.absorber import Absorber
from ..core.highway import Highway
from ..methods.losses import LOSSES, LossContext
from ..methods.stages import Part, Pass, Stage
from .batches import (
    Draw,
    Material,
    Remember,
    derived_seed,
    draw_clip,
    draw_frames,
    prepare,
    restyle,
    step_generator,
)
from .heads import rows_of, temporal_heads
from .memory import GB, CountedStep, Savings, choose_savings, is_small, saving
from .recipe import Recipe

_log = logging.getLogger(__name__)
TOKENS = "tokens"
HELD = "held"
ROWS = "rows"
# Draws among which the largest is looked for: patches have random sizes.
_DRAWS = 16


def adapter_names_of(part: Part, num_clips: int) -> tuple[str, ...]:
    """One adapter for all clips, or one for each."""
    return tuple(f"{part.name}_{index}" for index in range(num_clips)) if part.per_clip else (part.name,)


class StageRun:
    """A stage on its own replica. `parameters` is everything that trains, by "<adapter>|<module>.<factor>"."""

    def __init__(
        self,
        pipeline: VideoPipeline,
        stage: Stage,
        recipe: Recipe,
        absorber: Absorber | None,
        remember: Remember | None = None,
    ) -> None:
        self.stage = stage
        self.settings = recipe.settings
        self.steps = int(getattr(recipe.settings, stage.steps))
        self._recipe = recipe
        self.device, self.dtype = pipeline.device, pipeline.dtype
        self.schedule = pipeline.noise_schedule(recipe.settings.timestep_sampling)
        self.backbone = pipeline.backbone
        self._multiple = self.backbone.latent_multiple(pipeline.unet)
        self.unet: nn.Module = pipeline.replica().unet.eval().requires_grad_(False)
        self.adapters: dict[str, Adapter] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._rates: dict[str, float] = {}
        self._zero_sum: list[nn.Parameter] = []
        self._rows: dict[str, Tensor] = {}
        self._mode: tuple[Any, ...] = ()
        self._holds_look = absorber is not None and absorber.spatial is not None
        if absorber is not None:
            self._hold(absorber)
        for part in stage.parts:
            if not part.is_tokens:
                self._add_part(pipeline, part)
        self._read_clips(pipeline, absorber, remember or (lambda _, make: make()))
        if recipe.settings.temporal_heads and stage.learns_motion:
            self._keep_to_temporal_heads(pipeline)
        self._forward: Any = self._compiled() if recipe.settings.compile else self.unet
        self._encoders = (pipeline.text_encoder, pipeline.vae)
        self.savings = self._chosen_savings()

    # Making it ready

    def _compiled(self) -> Any:
        """The network compiled: as diffusers wrote it, since the compiler packs operations by itself."""
        use_fast_layers(self.unet, False)
        merge_adapters(self.unet, False)
        for adapter in self.adapters.values():
            adapter.seeded_tensors = True
        return torch.compile(self.unet)

    def _hold(self, absorber: Absorber) -> None:
        """Put a frozen absorber into the network: foreign weights as new parameters, a LoRA as an adapter."""
        install_weights(self.unet, absorber.weights)
        if absorber.spatial is not None:
            load_adapter(self.unet, HELD, absorber.spatial)

    def _add_part(self, pipeline: VideoPipeline, part: Part) -> None:
        chosen = self._recipe.part(part)
        # On the base's UNet, whose modules have their own names still.
        modules = target_modules(pipeline.unet, chosen.targets)
        zero_sum = find_preset(chosen.targets).zero_sum
        for name in adapter_names_of(part, len(self._recipe.clips)):
            add_adapter(
                self.unet,
                name,
                modules,
                rank=chosen.rank,
                alpha=chosen.alpha,
                dropout=self.settings.dropout,
                zero_sum=zero_sum,
                seed=derived_seed(self.settings.seed, "adapter", name),
            )
            self.adapters[name] = adapter = Adapter(self.unet, name)
            self._rates[name] = chosen.learning_rate
            self.parameters.update({f"{name}|{key}": weight for key, weight in adapter.parameters.items()})
            if zero_sum:
                self._zero_sum += [weight for key, weight in adapter.parameters.items() if key.endswith(".down")]

    def _read_clips(self, pipeline: VideoPipeline, absorber: Absorber | None, remember: Remember) -> None:
        """Latents of all clips, and texts unless the tokens in them are what trains."""
        self.tokens = absorber.tokens if absorber is not None else None
        self._token_parts = [part for part in self.stage.parts if part.is_tokens]
        self.trains_tokens = bool(self._token_parts)
        if self.trains_tokens:
            self.tokens = self._recipe.new_tokens
        reader = pipeline
        if self.tokens is not None:
            reader, rows = with_tokens(pipeline, self.tokens)
            if self.trains_tokens:
                self.parameters[f"{TOKENS}|{ROWS}"] = rows
                self._rates[TOKENS] = self._recipe.part(self._token_parts[0]).learning_rate
        kinds = sorted({a_pass.caption for a_pass in self.stage.passes})
        self._materials = self._prepared(pipeline, reader, kinds, remember)
        # Kept only where it is used in every step: it would hold the text encoder on the device.
        self.reader = reader if self.trains_tokens else None
        self._texts: dict[str, Text] = {}
        if not self.trains_tokens:
            prompts = sorted({prompt for material in self._materials for prompt in material.prompts.values()})
            self._texts = {prompt: reader.read_prompts([prompt]).to(self.dtype) for prompt in prompts}

    def _keep_to_temporal_heads(self, pipeline: VideoPipeline) -> None:
        """What learns the motion changes only heads that look over time; see `heads`."""
        texts = [self._texts[material.prompts["full"]] for material in self._materials]
        clips = [(material.latents, text) for material, text in zip(self._materials, texts, strict=True)]
        generator = step_generator(self.settings.seed, "heads", 0)
        chosen = temporal_heads(pipeline, clips, self.schedule, generator)
        moving = {name for a_pass in self.stage.passes if a_pass.sees_motion for name in a_pass.trains}
        for name, parameter in self.parameters.items():
            adapter, factor = name.split("|", 1)
            attention = self.backbone.attention_of(factor.removesuffix(".up"))
            if adapter in moving and attention:
                self._rows[name] = rows_of(parameter, chosen[attention])

    def _prepared(
        self, pipeline: VideoPipeline, reader: VideoPipeline, kinds: list[str], remember: Remember
    ) -> list[Material]:
        materials = prepare(reader, self._recipe, self.tokens, kinds)
        if self.stage.learns_motion:
            materials += restyle(pipeline, self._recipe, materials, kinds, remember)
        return materials

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, one per learning rate; "base_rate" is the rate before any schedule."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(self._rates[name.split("|", 1)[0]], []).append(parameter)
        return [{"params": weights, "lr": rate, "base_rate": rate} for rate, weights in groups.items()]

    def limit_gradients(self) -> None:
        """What no step may change: rows of heads that do not look over time stay the zeros that they begin as."""
        for name, rows in self._rows.items():
            if (gradient := self.parameters[name].grad) is not None:
                gradient.mul_(rows)

    def constrain(self) -> None:
        """What a step of the optimiser may not change: kernels of zero sum over time stay so (projected descent)."""
        for down in self._zero_sum:
            sum_to_zero(down)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """What holds for all steps of the stage: what is saved and, if asked, the appearance highway."""
        with saving(self.unet, self.savings), self._routed():
            yield

    @contextmanager
    def _routed(self) -> Iterator[None]:
        chosen = self.settings
        routed = self.stage.batch == "clip" and chosen.highway != "none"
        highway = Highway(chosen.highway, chosen.highway_scale) if routed else None
        bypassed = all(a_pass.bypass for a_pass in self.stage.passes)
        with appearance_highway(self.unet, highway), temporal_bypass(self.unet, bypassed):
            yield

    # What it takes

    def _chosen_savings(self) -> Savings:
        """By the settings' word, or as much as the memory asks for."""
        chosen, every = self.settings, range(len(self.backbone.checkpointed(self.unet)))
        encoders = chosen.offload_encoders and self._may_wait()
        if chosen.memory is None:
            return Savings(encoders=encoders, recomputed=tuple(every) if chosen.gradient_checkpointing else ())
        savings, memory = choose_savings(self.counted(self.largest_draw()), int(chosen.memory * GB), encoders=encoders)
        _log.info("%s: %s; %s", self.stage.name, savings, memory)
        return savings

    def _may_wait(self) -> bool:
        """Whether the encoders can be away from the device: on a CPU there is nowhere else."""
        return self.device.type != "cpu" and not self.trains_tokens

    def largest_draw(self) -> Draw:
        """What the heaviest of some steps sees."""
        return max(map(self.draw, range(_DRAWS)), key=lambda one: (one.latents.numel(), one.with_optional))

    def counted(self, draw: Draw) -> CountedStep:
        """A step that sees `draw`, for its memory to be counted."""
        text_encoder, vae = self._encoders
        return CountedStep(
            self.unet,
            list(self.parameters.values()),
            lambda images: self._run(draw, images),
            accumulates=self.settings.gradient_accumulation > 1,
            encoders=(text_encoder if self.reader is None else self.reader.text_encoder, vae),
            idle=self._may_wait(),
            batch=len(draw.latents),
            # A part of a batch or of a layer would drop other numbers.
            divisible=self.settings.dropout == 0,
            has_bus=self.device.type not in ("cpu", "mps"),
            computed=is_small(self.unet, draw.latents),
        )

    def _run(self, draw: Draw, images: int | None) -> None:
        """All passes of a micro-batch, as they were before they were compiled."""
        forward, self._forward = self._forward, self.unet
        try:
            with self._routed():
                for a_pass in self.passes(draw):
                    self.step(a_pass, draw, images)
        finally:
            self._forward = forward

    # One step

    def draw(self, step: int) -> Draw:
        """The random choices of (micro) step `step`, and the seed of its dropout."""
        generator = step_generator(self.settings.seed, self.stage.name, step)
        for adapter in self.adapters.values() if self.settings.dropout else ():
            adapter.seed_dropout(derived_seed(self.settings.seed, self.stage.name, step, adapter.name))
        make = draw_frames if self.stage.batch == "frames" else draw_clip
        return make(self._materials, step, self.settings, self.schedule, generator, self._multiple)

    def passes(self, draw: Draw) -> list[Pass]:
        return [a_pass for a_pass in self.stage.passes if draw.with_optional or not a_pass.optional]

    @contextmanager
    def arranged(self, a_pass: Pass, draw: Draw) -> Iterator[None]:
        """The network as the pass needs it. Forward and backward pass both belong inside."""
        off = {name for p in self.stage.passes if p.optional and not draw.with_optional for name in p.trains}
        trains = {self._adapter_name(name, draw) for name in a_pass.trains}
        holds = {self._adapter_name(name, draw) for name in a_pass.holds if name not in off}
        self._switch(trains, trains | holds, draw.restyled)
        bypassed_throughout = all(p.bypass for p in self.stage.passes)
        with temporal_bypass(self.unet, a_pass.bypass and not bypassed_throughout):
            yield

    def step(
        self, a_pass: Pass, draw: Draw, images: int | None, backward: Callable[[Tensor], None] = Tensor.backward
    ) -> Tensor:
        """Forward and backward pass, so many images at a time; the loss, without its graph."""
        batch = len(draw.latents)
        size = batch if images is None else images
        parts = [draw.part(start, start + size) for start in range(0, batch, size)] if size < batch else [draw]
        total = torch.zeros((), device=self.device)
        with self.arranged(a_pass, draw):
            for part in parts:
                loss = self.loss(a_pass, part)
                if len(parts) > 1:
                    loss = loss * (len(part.latents) / batch)
                backward(loss)
                total += loss.detach()
        return total

    def loss(self, a_pass: Pass, draw: Draw) -> Tensor:
        """The loss of one pass, a scalar in fp32."""
        chosen = self.settings
        seen = draw.one_frame() if a_pass.frames == "one" else draw
        noisy = self.schedule.add_noise(seen.latents, seen.noise, seen.timesteps)
        text = self._text(draw.prompts[a_pass.caption]).expand(len(noisy))
        timesteps = sent(seen.timesteps, self.device)
        predicted = self.backbone.predict(self._forward, noisy.to(self.dtype), timesteps, text).float()
        target = self.schedule.target(seen.latents, seen.noise, seen.timesteps)
        weights = None
        if chosen.min_snr_gamma is not None:
            weights = self.schedule.min_snr_weights(seen.timesteps, chosen.min_snr_gamma).to(predicted.device)
        return LOSSES[a_pass.loss](predicted, target, LossContext(chosen, draw.anchor, weights, seen.timesteps))

    def _text(self, prompt: str) -> Text:
        """What the network takes of one prompt: computed once, or with a graph in each step while tokens train."""
        if self.reader is not None:
            return self.reader.read_prompts([prompt], gradients=True).to(self.dtype)
        return self._texts[prompt]

    def _adapter_name(self, part: str, draw: Draw) -> str:
        if any(part == tokens.name for tokens in self._token_parts):
            return TOKENS
        return part if part in self.adapters else f"{part}_{draw.clip}"

    def _switch(self, trains: set[str], active: set[str], restyled: bool) -> None:
        """Nothing that does not learn in this pass takes a gradient: no graph is kept for it."""
        if (mode := (frozenset(trains), frozenset(active), restyled)) == self._mode:
            return
        self._mode = mode
        if self._holds_look:
            set_strength(self.unet, HELD, 0.0 if restyled else 1.0)
        for name, adapter in self.adapters.items():
            adapter.set_strength(1.0 if name in active else 0.0)
            adapter.set_trainable(name in trains)
        if self.trains_tokens:
            self.parameters[f"{TOKENS}|{ROWS}"].requires_grad_(TOKENS in trains)
