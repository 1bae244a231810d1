"""Where a base's modules are and in which precision: devices, dtypes, replicas that share weights."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ..core.errors import SettingsError

_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = ("auto", *_DTYPES)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
# A driver takes so few numbers with the call itself.
_STAGED = 4096
# Below so many bytes a copy over the bus takes longer to start than to make.
_WORTH_SENDING = 2**17
# Devices to and from which nothing is copied beside the work.
_WITHOUT_STREAMS = ("cpu", "meta", "mps")


class EncoderPlace:
    """Whether text encoder and VAE wait in main memory between uses; shared by a base and its replicas.

    The lock keeps one thread from moving a module that another is using.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.offloaders = 0


class Residence:
    """Whether a base is on its device; shared by the base and its replicas.

    A host that needs the device for other things sends the base away; it goes when nobody works with it, and comes
    back for whoever does.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.away = False

    @property
    def absent(self) -> bool:
        """Whether modules that are not in use belong into main memory."""
        return self.away and not self.users


def _accelerator() -> torch.device | None:
    """The machine's accelerator, or None. Before torch 2.6 the question is there but not public."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    private: Any = torch._C
    device: torch.device = private._get_accelerator()
    return None if device.type == "cpu" else device


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the machine's accelerator, else the CPU. Raises SettingsError if absent."""
    if name == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = pick_device()
        raise SettingsError(
            f"device is {name!r}, which is not on this machine; use 'auto' ({here}) or 'cpu'."
        ) from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype of that name: "fp32", "fp16", "bf16" or "auto". Raises SettingsError for another name.

    "auto" is fp32 on CPU; elsewhere bf16, whose range survives training, or fp16 where bf16 is not native (fp32 on
    Macs without it).
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise SettingsError(f"dtype is {name!r}; it must be one of: {', '.join(DTYPES)}.")
    if device.type == "cpu":
        return torch.float32
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        # Training in fp16 needs a loss scaler, which torch has for Macs only since 2.8.
        return torch.bfloat16 if _knows_bf16(device) else torch.float32
    return torch.float16 if emulated else torch.bfloat16


def _knows_bf16(device: torch.device) -> bool:
    """Macs before macOS 14 do not."""
    try:
        torch.ones(1, device=device, dtype=torch.bfloat16).add_(1).item()
    except (RuntimeError, TypeError):
        return False
    return True


def share_parameters(module: AnyModule) -> AnyModule:
    """A structural copy: own module objects, own frozen `nn.Parameter`s and buffers over the same storage."""
    with torch.inference_mode(False):
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
        shared.update({id(buffer): buffer.detach() for buffer in module.buffers()})
        return copy.deepcopy(module, shared)


def copied(module: AnyModule | None, device: torch.device) -> AnyModule | None:
    """The module with copies of its weights on a device, made without another copy on the one they come from."""
    if module is None:
        return None
    made: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(device, copy=True), requires_grad=False) for p in module.parameters()
    }
    made.update({id(buffer): buffer.detach().to(device, copy=True) for buffer in module.buffers()})
    return copy.deepcopy(module, made)


@contextmanager
def no_gradients() -> Iterator[None]:
    """No autograd graph, yet ordinary tensors: what is made inside can take part in training later.

    Inference mode would be as fast; but its tensors are refused by autograd for ever, and it hands them on to whoever
    reuses a result.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def moved(module: AnyModule, device: torch.device) -> AnyModule:
    """The module on that device; nothing is called where it is there already."""
    where = next(module.parameters()).device
    if where.type == device.type and device.index in (None, where.index):
        return module
    # What a host moves in its inference mode could never be trained around again.
    with torch.inference_mode(False), torch.no_grad():
        return nn.Module.to(module, device)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device, without waiting for it: through pinned memory where the driver would wait."""
    if device.type in _WITHOUT_STREAMS:
        return tensor.to(device)
    if tensor.numel() > _STAGED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """A scalar on its way from its device, copied beside the work where there are streams, else read when asked for."""

    def __init__(self, scalar: torch.Tensor) -> None:
        self._scalar = scalar.detach()
        self._event: Any = None
        if scalar.device.type not in _WITHOUT_STREAMS:
            host = torch.empty(scalar.shape, dtype=scalar.dtype, pin_memory=True)
            self._scalar = host.copy_(self._scalar, non_blocking=True)
            self._event = torch.get_device_module(scalar.device).Event()
            self._event.record()

    @property
    def is_here(self) -> bool:
        """Whether `value` would wait for nobody, as far as is known."""
        return self._event is None or bool(self._event.query())

    def value(self) -> float:
        """The number."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._scalar)


@contextmanager
def saved_tensors_away(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """Inside the context what forward passes keep for their backward passes waits in main memory, large tensors only.

    `weights` stay where they are. Of tensors without numbers, on which a step is counted, nothing is kept at all.
    """
    stay = {weight.untyped_storage()._cdata for weight in weights}

    def pack(tensor: torch.Tensor) -> torch.Tensor | _Away:
        small = tensor.numel() * tensor.element_size() < _WORTH_SENDING
        return tensor if small or tensor.untyped_storage()._cdata in stay else _Away(tensor)

    def unpack(kept: torch.Tensor | _Away) -> torch.Tensor:
        return kept.back() if isinstance(kept, _Away) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


class _Away:
    """A tensor that left its device; the copies go beside the work where memory can be pinned."""

    def __init__(self, tensor: torch.Tensor) -> None:
        extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        # As it was laid out, unless that has gaps or repeats itself.
        self._order = tensor.stride() if extent == tensor.numel() else _contiguous(tensor.shape)
        self._device, self._shape, self._dtype = tensor.device, tensor.shape, tensor.dtype
        self._kept: torch.Tensor | None = None
        if not isinstance(tensor, FakeTensor):
            pinned = tensor.device.type not in _WITHOUT_STREAMS
            # Not on the device, it is nothing to whoever counts there.
            with _disable_current_modes():
                self._kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._kept.copy_(tensor, non_blocking=pinned)

    def back(self) -> torch.Tensor:
        there = torch.empty_strided(self._shape, self._order, dtype=self._dtype, device=self._device)
        return there if self._kept is None else there.copy_(self._kept, non_blocking=True)
