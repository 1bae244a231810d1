"""VideoPipeline: a loaded base model, and what it can do apart from denoising: read prompts, encode and decode frames.

A loaded base is immutable. Whoever needs a changed network takes a `replica`: its own module objects over the same
parameter storage, so that it costs next to no memory, and its hooks, adapters, `requires_grad` and patched methods
never reach the base or another replica.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .axes import fold_frames, frames_to_pixels, pixels_to_frames, unfold_frames
from .backbones import size_multiple, vae_factor
from .errors import ClipError, SettingsError
from .loading import read_folder
from .schedulers import make_scheduler

logger = logging.getLogger(__name__)

_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = ("auto", *_DTYPES)

# What makes two networks the same network; other entries of a config differ between library versions.
_ARCHITECTURE = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "norm_num_groups",
)
_SIGNS_PER_TENSOR = 256

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model it is: a name for people, hashes of the UNet's architecture and of a sample of its weights."""

    name: str
    config_hash: str
    weights_hash: str


class EncoderPlace:
    """Whether text encoder and VAE wait in main memory between uses; shared by a base and its replicas.

    The lock keeps one thread from moving a module that another is using.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.offloaders = 0


@dataclass(frozen=True, eq=False)
class VideoPipeline:
    """A base text-to-video model. Treat it as immutable; change a `replica()`, or copy it with `dataclasses.replace`.

    All modules are frozen, in evaluation mode, on `device` and in `dtype`. Shapes are those of `axes.py`.
    """

    unet: UNet3DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    identity: BaseIdentity
    device: torch.device
    dtype: torch.dtype
    default_num_frames: int = 16
    default_fps: float = 8.0
    _place: EncoderPlace = field(default_factory=EncoderPlace, repr=False)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto", variant: str | None = None
    ) -> VideoPipeline:
        """Load a diffusers folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/.

        `device` is "auto" or a torch device name, `dtype` one of "auto", "fp32", "fp16", "bf16"; `variant` picks
        weight files such as `*.fp16.safetensors`, None takes what there is. Raises ModelError for a folder that is
        no such model, SettingsError for a device or dtype that is not there.
        """
        folder = Path(folder).expanduser()
        target, precision = pick_device(device), pick_dtype(dtype, pick_device(device))
        # A host such as ComfyUI may run this in inference mode; weights made there could never be trained around.
        with torch.inference_mode(False):
            parts = read_folder(folder, precision, variant)
            identity = identify(parts.unet, str(parts.about.get("name", _folder_name(folder))))
            return cls(
                unet=_moved(parts.unet, target),
                vae=_moved(parts.vae, target),
                text_encoder=_moved(parts.text_encoder, target),
                tokenizer=parts.tokenizer,
                scheduler_config=dict(parts.scheduler_config),
                identity=identity,
                device=target,
                dtype=precision,
                default_num_frames=int(parts.about.get("num_frames", 16)),
                default_fps=float(parts.about.get("fps", 8.0)),
            )

    def replica(self, *, unet: bool = True, text_encoder: bool = False) -> VideoPipeline:
        """The same base with own module objects for the UNet and, if asked, the text encoder with its tokenizer."""
        changes: dict[str, Any] = {}
        if unet:
            changes["unet"] = share_parameters(self.unet)
        if text_encoder:
            changes["text_encoder"] = share_parameters(self.text_encoder)
            changes["tokenizer"] = copy.deepcopy(self.tokenizer)
        return replace(self, **changes)

    # Noise schedule

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def num_train_timesteps(self) -> int:
        return int(self.scheduler_config.get("num_train_timesteps", 1000))

    @property
    def max_inference_steps(self) -> int:
        """The most steps a sampler can take; an offset of its timesteps must not lead beyond the last one."""
        return self.num_train_timesteps - int(self.scheduler_config.get("steps_offset", 0))

    def make_scheduler(self, name: str) -> Any:
        """A fresh diffusers scheduler of that name (see `schedulers.SCHEDULERS`) over this base's noise schedule."""
        return make_scheduler(name, self.scheduler_config)

    # Sizes

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return size_multiple(self.vae, self.unet)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along each side."""
        return vae_factor(self.vae)

    @property
    def default_height(self) -> int:
        return self._default_side(0)

    @property
    def default_width(self) -> int:
        return self._default_side(1)

    def _default_side(self, axis: int) -> int:
        sides = self.unet.config["sample_size"] or 32
        side = sides if isinstance(sides, int) else sides[axis]
        return int(side) * self.vae_factor

    def size_fault(self, height: int, width: int) -> str | None:
        """What is wrong with a frame size in pixels, with the nearest one that fits, or None."""
        step = self.size_multiple
        if height >= step and width >= step and height % step == 0 and width % step == 0:
            return None
        near = [max(step, round(side / step) * step) for side in (height, width)]
        return (
            f"height x width is {height} x {width}; {self.identity.name} takes multiples of {step} pixels, "
            f"the nearest size is {near[0]} x {near[1]}"
        )

    def check_size(self, height: int, width: int) -> None:
        """Raise SettingsError unless the UNet can take frames of that many pixels; names the nearest legal size."""
        if fault := self.size_fault(height, width):
            raise SettingsError(f"{fault}.")

    # Encoding and decoding

    def encode_prompt(self, prompts: Sequence[str], *, gradients: bool = False) -> Tensor:
        """Text embeddings (b, tokens, dim) on the device, in the text encoder's dtype.

        `gradients` keeps the graph, for training placeholder tokens; otherwise the result is a plain tensor even in
        inference mode. Words beyond the encoder's length are dropped with a warning in the log.
        """
        ids = self.tokenize(prompts).to(self.device)
        with self._encoder(self.text_encoder) as encoder, nullcontext() if gradients else no_gradients():
            embeddings: Tensor = encoder(ids)[0]
        return embeddings

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers (b, tokens) on CPU, padded to the text encoder's length."""
        length = self.max_tokens
        self._warn_truncated(prompts, length)
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = batch["input_ids"]
        return ids

    @property
    def max_tokens(self) -> int:
        """Tokens that the text encoder reads, its start and end tokens included."""
        # A tokenizer whose config names no length reports a huge one.
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    def _warn_truncated(self, prompts: Sequence[str], length: int) -> None:
        for prompt in prompts:
            count = len(self.tokenizer(prompt)["input_ids"])
            if count > length:
                logger.warning("The prompt %r has %d tokens; the last %d are not read.", prompt, count, count - length)

    def encode_frames(self, frames: Tensor, *, generator: torch.Generator | None = None, chunk: int = 8) -> Tensor:
        """Frames (f, h, w, 3) or (b, f, h, w, 3) in [0, 1] -> scaled latents (b, c, f, h, w), float32 on the device.

        With a (CPU) generator the VAE's posterior is sampled, else its mode is taken; `chunk` frames are encoded at a
        time, which does not change the result. Raises SettingsError for a size that the UNet cannot take.
        """
        if frames.ndim not in (4, 5) or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ClipError(f"frames have shape {tuple(frames.shape)}; they must be (f, h, w, 3) or (b, f, h, w, 3).")
        self.check_size(frames.shape[-3], frames.shape[-2])
        with no_gradients():
            pixels = frames_to_pixels(frames)
            batch = pixels.shape[0]
            images = pixels.flatten(0, 1)
            with self._encoder(self.vae) as vae:
                posteriors = [vae.encode(self._to_compute(part)).latent_dist for part in images.split(chunk)]
            latents = torch.cat([posterior.mean for posterior in posteriors]).float()
            if generator is not None:
                deviation = torch.cat([posterior.std for posterior in posteriors]).float()
                noise = torch.randn(latents.shape, generator=generator)
                latents = latents + deviation * noise.to(latents.device)
            return unfold_frames(latents, batch) * self.scaling_factor

    def decode_latents(self, latents: Tensor, *, chunk: int = 8) -> Tensor:
        """Scaled latents (b, c, f, h, w) -> frames (b, f, h, w, 3) in [0, 1], float32 on CPU, `chunk` at a time."""
        if latents.ndim != 5:
            raise SettingsError(f"latents have shape {tuple(latents.shape)}; they must be (b, c, f, h, w).")
        with no_gradients(), self._encoder(self.vae) as vae:
            images = fold_frames(latents / self.scaling_factor)
            decoded = [vae.decode(self._to_compute(part)).sample.float().cpu() for part in images.split(chunk)]
            pixels = torch.cat(decoded).unflatten(0, (latents.shape[0], -1))
            return pixels_to_frames(pixels)

    @property
    def scaling_factor(self) -> float:
        """What the VAE's own latents are multiplied by, so that the UNet sees about unit variance."""
        return float(self.vae.config["scaling_factor"])

    def _to_compute(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype)

    @contextmanager
    def offload_encoders(self) -> Iterator[None]:
        """Inside the context the text encoder and the VAE wait in main memory and visit the device only when used."""
        self._shift_offloaders(+1)
        try:
            yield
        finally:
            self._shift_offloaders(-1)

    def _shift_offloaders(self, change: int) -> None:
        with self._place.lock:
            self._place.offloaders += change
            self._park(self.text_encoder)
            self._park(self.vae)

    @contextmanager
    def _encoder(self, module: AnyModule) -> Iterator[AnyModule]:
        """The module on the device, for one use."""
        with self._place.lock:
            _moved(module, self.device)
            try:
                yield module
            finally:
                self._park(module)

    def _park(self, module: nn.Module) -> None:
        _moved(module, torch.device("cpu") if self._place.offloaders else self.device)


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

    "auto" is fp32 on CPU; elsewhere bf16, whose range survives training, or fp16 where bf16 is not native.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise SettingsError(f"dtype is {name!r}; it must be one of: {', '.join(DTYPES)}.")
    if device.type == "cpu":
        return torch.float32
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if emulated or device.type == "mps" else torch.bfloat16


def identify(unet: UNet3DConditionModel, name: str) -> BaseIdentity:
    """The identity of a base: its hashes do not depend on folder, variant, dtype, device or library version."""
    architecture = {key: unet.config.get(key) for key in _ARCHITECTURE}
    encoded = json.dumps(architecture, sort_keys=True, default=list).encode()
    return BaseIdentity(name, hashlib.sha256(encoded).hexdigest(), _weights_hash(unet))


@torch.no_grad()
def _weights_hash(module: nn.Module) -> str:
    """SHA-256 over the signs of evenly spread weights of every tensor: rounding to any dtype keeps a sign."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        signs = torch.signbit(flat[:: max(1, flat.numel() // _SIGNS_PER_TENSOR)])
        digest.update(name.encode() + signs.cpu().numpy().tobytes())
    return digest.hexdigest()


def share_parameters(module: AnyModule) -> AnyModule:
    """A structural copy: own module objects, own frozen `nn.Parameter`s and buffers over the same storage."""
    with torch.inference_mode(False):
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
        shared.update({id(buffer): buffer.detach() for buffer in module.buffers()})
        return copy.deepcopy(module, shared)


@contextmanager
def no_gradients() -> Iterator[None]:
    """No autograd graph, yet ordinary tensors: what is made inside can take part in training later.

    Inference mode would be as fast; but its tensors are refused by autograd for ever, and it hands them on to whoever
    reuses a result.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def _moved(module: AnyModule, device: torch.device) -> AnyModule:
    where = next(module.parameters()).device
    if where.type == device.type and device.index in (None, where.index):
        return module
    return nn.Module.to(module, device)


def _folder_name(folder: Path) -> str:
    """The folder's own name; of a hub cache (models--owner--name/snapshots/<commit>) the model's name."""
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots":
        return resolved.parent.parent.name.removeprefix("models--").replace("--", "/")
    return resolved.name
