"""The varying part of a stack: a branch beside each module whose strength changes over steps or frames.

The strength of a frame is that of the change of the module's output in that frame, for a projection as for a temporal
convolution, which reads the frames beside it: what a neighbour adds to a frame counts with the frame's own strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.errors import SettingsError
from .merging import AppliedLayer

# Which axis of a module's output counts the frames: `Backbone.frame_axis`.
FrameAxis = Callable[[nn.Module, Tensor], int | None]


class Branch:
    """The varying change of one module: all its layers side by side, one gain per rank (and per frame)."""

    def __init__(self, name: str, module: nn.Module, parts: Sequence[AppliedLayer], frame_axis: FrameAxis) -> None:
        weight = module._parameters["weight"]
        assert weight is not None  # `require_fit` has seen it
        self.name = name
        self._frame_axis = frame_axis
        self._dtype, self._device = weight.dtype, weight.device
        self._down = self._placed(torch.cat([part.layer.down.float() for part in parts]))
        ups = [part.layer.scale * part.layer.up.float() for part in parts]
        self._up = self._placed(torch.cat(ups, dim=1))
        self._ranks = torch.tensor([part.layer.rank for part in parts])
        self._schedules = [part.steps for part in parts]
        self._strengths = _strength_table(parts).repeat_interleave(self._ranks, dim=1)
        self._gains: Tensor | None = None
        self._frames: list[int] | None = None
        self._position = 0.0
        self._refresh()

    def set_step(self, position: float) -> None:
        if any(schedule is not None for schedule in self._schedules):
            self._position = position
            self._refresh()

    def set_frames(self, frames: Sequence[int]) -> None:
        """Which of the frames come next, where the network does not see all of them at once."""
        if len(self._strengths) > 1:
            self._frames = list(frames)
            self._refresh()

    def _refresh(self) -> None:
        factors = torch.tensor([1.0 if s is None else s.value(self._position) for s in self._schedules])
        strengths = self._strengths if self._frames is None else self._strengths[self._frames]
        gains = strengths * factors.repeat_interleave(self._ranks)
        self._gains = self._placed(gains) if bool(gains.any()) else None

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=self._device, dtype=self._dtype)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._gains is None:
            return None
        if isinstance(module, nn.Linear):
            hidden = functional.linear(args[0], self._down)
            return output + functional.linear(hidden * self._spread(module, hidden, self._gains, -1), self._up)
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            convolve = functional.conv2d if isinstance(module, nn.Conv2d) else functional.conv3d
            hidden = convolve(args[0], self._down, None, module.stride, module.padding, module.dilation)
            return output + convolve(hidden * self._spread(module, hidden, self._gains, 1), self._up)
        raise SettingsError(f"{self.name} is a {type(module).__name__}: a strength that varies cannot act on it")

    def _spread(self, module: nn.Module, hidden: Tensor, gains: Tensor, rank_axis: int) -> Tensor:
        """Gains (frames or 1, ranks) in the shape of `hidden`, whose ranks are at `rank_axis`."""
        shape = [1] * hidden.ndim
        shape[rank_axis] = gains.shape[1]
        if len(gains) == 1:
            return gains[0].view(shape)
        axis = self._frame_axis(module, hidden)
        if axis is None or hidden.shape[axis] != len(gains):
            raise SettingsError(self._frames_text(hidden, gains))
        shape[axis] = len(gains)
        return (gains if axis < rank_axis % hidden.ndim else gains.T).reshape(shape)

    def _frames_text(self, hidden: Tensor, gains: Tensor) -> str:
        return f"{self.name} got {tuple(hidden.shape)}, but the strength over frames was made for {len(gains)} frames"


def _strength_table(parts: Sequence[AppliedLayer]) -> Tensor:
    """(frames, parts), or (1, parts) where no part varies over frames."""
    frames = max((len(part.frames) for part in parts if part.frames is not None), default=1)
    columns = [[part.strength * value for value in part.frames or (1.0,) * frames] for part in parts]
    return torch.tensor(columns).T
