"""Several processes, one training: each takes its share of a step's micro-batches, and gradients are summed.

Started by `accelerate launch`; the processes, their backend and their devices are Accelerate's. A step's micro-batches
are counted over all processes (`gradient_accumulation`), so the same settings give the same LoRA, to rounding, in one
process or in many, and a checkpoint goes on with another number of them. Process 0 reports, answers and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base.placement import pick_device
from ..core.errors import SettingsError

_COUNT, _LOCAL, _ON_CPU = "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU"


class Processes:
    """One process alone: nothing is exchanged."""

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def share(self, micro_batches: int) -> Iterator[int]:
        """The numbers of this process's micro-batches of a step. Raises SettingsError where they cannot be shared."""
        if micro_batches % self.count:
            raise SettingsError(
                f"gradient_accumulation is {micro_batches}, which {self.count} processes cannot share evenly; it "
                f"counts the clips of a step over all processes: make it a multiple of {self.count}."
            )
        yield from range(self.rank, micro_batches, self.count)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients; a parameter that none has one of stays without."""

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return value

    def agreed(self, answer: int) -> int:
        """The first process's number, in all of them."""
        return answer


class Launched(Processes):
    """One of several processes under Accelerate."""

    def __init__(self) -> None:
        state, self._reduce, self._broadcast = _accelerate()
        # Accelerate joins processes without a card only where it is told that there is none.
        told = os.environ.get(_ON_CPU, "").lower() in ("1", "true", "yes", "on")
        self._state = state(cpu=told or pick_device().type == "cpu")
        self.rank, self.count = int(self._state.process_index), int(self._state.num_processes)
        if self.count != _launched():
            raise SettingsError(
                f"{_launched()} processes were launched ({_COUNT}), and Accelerate joined {self.count}; see what its "
                "launcher says, or start a single process."
            )

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = list(parameters)
        with torch.no_grad():
            has = torch.tensor([float(p.grad is not None) for p in trained], device=self._state.device)
            anywhere = self._reduce(has, reduction="sum").tolist()
            moved = [p for p, found in zip(trained, anywhere, strict=True) if found]
            for parameter in moved:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            _scatter(self.summed(_gathered(moved)), moved)

    def summed(self, value: Tensor) -> Tensor:
        total: Tensor = self._reduce(value.to(self._state.device), reduction="sum")
        return total.to(value.device)

    def agreed(self, answer: int) -> int:
        told = torch.tensor([answer], device=self._state.device)
        return int(self._broadcast(told, from_process=0).item())


def processes() -> Processes:
    """What this process is one of. Raises SettingsError where it was launched as one of many without Accelerate."""
    return Launched() if _launched() > 1 else Processes()


def device_name(wanted: str) -> str:
    """The device of this process: "auto" is a card of its own where several were launched on one machine."""
    several = _launched() > 1 and torch.cuda.is_available()
    return (
        f"cuda:{int(os.environ.get(_LOCAL, '0')) % torch.cuda.device_count()}"
        if wanted == "auto" and several
        else wanted
    )


def _launched() -> int:
    return int(os.environ.get(_COUNT, "1"))


def _accelerate() -> tuple[Any, Any, Any]:
    try:
        from accelerate import PartialState
        from accelerate.utils import broadcast, reduce
    except ImportError as error:
        raise SettingsError(
            f"This is one of {os.environ.get(_COUNT)} processes ({_COUNT}), and accelerate, which joins them, is not "
            "installed: pip install accelerate, or start a single process."
        ) from error
    return PartialState, reduce, broadcast


def _gathered(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients as one vector: one exchange instead of hundreds."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


def _scatter(vector: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    for parameter, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(piece.view_as(parameter))
