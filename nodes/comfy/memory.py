"""Bases among ComfyUI's own models: they leave the device when it needs room, and come back when a node works.

ComfyUI keeps a list of models that it may unload, each behind a ModelPatcher. A base stands in it behind one of its
own, which moves the base as a whole: its replicas share its weights, so that half a base would be no gain.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from torch import nn

if TYPE_CHECKING:
    from ...motion_lora.base.pipeline import VideoPipeline

# Of ComfyUI's own estimate for networks of Stable Diffusion's kind: bytes for a value of the latents at a time.
_NETWORK = 0.02 * 2**20
# And for a value of the VAE's latents while a frame is decoded.
_DECODER = 2178 * 64
_FRAMES_AT_ONCE = 8

_patchers: weakref.WeakKeyDictionary[VideoPipeline, Any] = weakref.WeakKeyDictionary()


@contextmanager
def at_work(base: VideoPipeline, room: float = 0) -> Iterator[None]:
    """The base on its device, with so many bytes free beside it; ComfyUI may unload other models for both.

    Only from the thread that runs prompts. What else works with the base keeps it on the device by itself.
    """
    if shares_device(base):
        mm.load_models_gpu([patcher_of(base)], memory_required=room)
    with base.at_work():
        yield


def sampling_room(base: VideoPipeline, num_frames: int, height: int, width: int, videos: int = 1) -> float:
    """Bytes that sampling takes beside the weights, guidance included, by ComfyUI's own rule for such networks."""
    _, _, frames, rows, columns = base.latent_shape(num_frames, height, width)
    size = base.dtype.itemsize
    network = 2 * videos * frames * rows * columns * size * _NETWORK
    return max(network, decoding_room(base, num_frames, height, width))


def decoding_room(base: VideoPipeline, num_frames: int, height: int, width: int) -> float:
    """Bytes that encoding or decoding takes beside the weights."""
    _, _, frames, rows, columns = base.latent_shape(num_frames, height, width)
    return min(frames, _FRAMES_AT_ONCE) * rows * columns * base.dtype.itemsize * _DECODER


def make_room_for_training(base: VideoPipeline) -> None:
    """Ask ComfyUI to move its other models off the device; they come back when a prompt needs them."""
    if shares_device(base):
        with at_work(base):
            kept = [model for model in mm.current_loaded_models if model.model is patcher_of(base)]
            mm.free_memory(mm.get_total_memory(base.device), base.device, kept)


def shares_device(base: VideoPipeline) -> bool:
    """Whether ComfyUI's models and the base compete for a device's memory."""
    return base.device.type != "cpu"


def patcher_of(base: VideoPipeline) -> Any:
    """The one by which ComfyUI knows a base, a ModelPatcher."""
    if base not in _patchers:
        _patchers[base] = _patcher_class()(base)
    return _patchers[base]


class _Modules(nn.Module):
    """All networks of a base, for ComfyUI to measure."""

    def __init__(self, base: VideoPipeline) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = base.unet, base.vae, base.text_encoder


@lru_cache(maxsize=1)
def _patcher_class() -> type[Any]:
    """Made when it is first asked for: its module loads all of ComfyUI's samplers."""
    from comfy.model_patcher import ModelPatcher

    class BasePatcher(ModelPatcher):  # type: ignore[misc,unused-ignore]
        """Moves a base for ComfyUI. Holds it weakly: it must not outlive the nodes that use it."""

        def __init__(self, base: VideoPipeline) -> None:
            super().__init__(_Modules(base), load_device=base.device, offload_device=torch.device("cpu"))
            self._base = weakref.ref(base)

        def loaded_size(self) -> int:
            base = self._base()
            return 0 if base is None or base.is_away else int(self.model_size())

        def current_loaded_device(self) -> torch.device:
            return self.load_device if self.loaded_size() else self.offload_device

        def model_dtype(self) -> torch.dtype | None:
            base = self._base()
            return None if base is None else base.dtype

        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            before = self.loaded_size()
            if (base := self._base()) is not None:
                base.call_back()
            return self.loaded_size() - before

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, **unused: Any) -> int:
            # Nothing in part: ComfyUI then asks for all of it.
            return 0

        def detach(self, unpatch_all: bool = True) -> nn.Module:
            # Not unpatched is how ComfyUI takes a patcher that it is about to load again, or that is gone.
            if unpatch_all and (base := self._base()) is not None:
                base.send_away()
            modules: nn.Module = self.model
            return modules

    return BasePatcher
