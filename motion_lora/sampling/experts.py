"""Which network predicts a step: the only one, or of two experts the one that is there for the step's noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..adapters.apply import AppliedStack, applied
from ..adapters.highway import appearance_highway
from ..base.pipeline import VideoPipeline
from ..core.metadata import expert_of
from ..core.stack import AdapterStack


class Experts:
    """The networks of one sampling with their LoRAs. The second comes to the device when it is first asked for."""

    def __init__(
        self, pipeline: VideoPipeline, network: Any, stack: AdapterStack, frames: int, contexts: ExitStack
    ) -> None:
        self._pipeline, self._stack, self._frames, self._contexts = pipeline, stack, frames, contexts
        own = stack_of(stack, pipeline.expert) if pipeline.partner is not None else stack
        self._own = network, contexts.enter_context(applied(network, own, frames))
        contexts.enter_context(appearance_highway(network, stack.highway))
        self._other: tuple[Any, AppliedStack] | None = None

    def at(self, timestep: Tensor) -> tuple[Any, AppliedStack]:
        """The network for this timestep and the LoRAs that are on it."""
        if self._pipeline.partner is None:
            return self._own
        expert = self._pipeline.expert_at(float(timestep))
        if expert == self._pipeline.expert:
            return self._own
        if self._other is None:
            network = self._pipeline.partner_replica()
            stack = stack_of(self._stack, expert)
            self._other = network, self._contexts.enter_context(applied(network, stack, self._frames))
        return self._other


@contextmanager
def experts_at_work(pipeline: VideoPipeline, network: Any, stack: AdapterStack, frames: int) -> Iterator[Experts]:
    """Inside the context the networks have the stack's LoRAs; `network` is a replica, `frames` are of latents."""
    with ExitStack() as contexts:
        yield Experts(pipeline, network, stack, frames, contexts)


def stack_of(stack: AdapterStack, expert: str) -> AdapterStack:
    """The entries for one expert: those that name it, and those that name none."""
    kept = tuple(entry for entry in stack.entries if expert_of(entry.lora.metadata) in ("", expert))
    return replace(stack, entries=kept)
