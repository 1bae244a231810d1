"""Visits: at some steps of a running training the LoRA as it is is shown to somebody, then training goes on.

A visit happens inside the loop, between two steps, with everything where it is: nothing is written, encoded or built
again. It sees copies, and whatever it does to the random state of the process is undone, so that a training with visits
gives the same bits as one without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from ..core.lora import LoRA
from ..core.stack import AdapterStack, StackEntry
from .reports import StepReport


@dataclass(frozen=True, eq=False)
class View:
    """A training as a visitor sees it: the LoRA after `step` steps of the method's last stage, as values of its own."""

    lora: LoRA
    step: int

    @property
    def stack(self) -> AdapterStack:
        """The LoRA alone at full strength, to sample with."""
        return AdapterStack().add(StackEntry(self.lora))


class Visitor(Protocol):
    """Somebody who looks at a training now and then."""

    def due(self, report: StepReport) -> bool:
        """Whether to look after this step; asked for steps that are reported, of the method's stages."""
        ...

    def visit(self, view: View) -> str:
        """Look; "stop" ends the training with what there is, "continue" lets it go on.

        The end of a completed training is visited in any case. What a visit raises ends the training, which keeps a
        checkpoint.
        """
        ...


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Inside, the process's random state may be used as one likes: it comes back, even after an error."""
    if device.type in ("cpu", "meta", "mps"):
        with torch.random.fork_rng([]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield
