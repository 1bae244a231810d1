"""VideoPipeline: a loaded base model, and what it can do apart from denoising: read prompts, encode and decode frames.

A loaded base is immutable. Whoever needs a changed network takes a `replica`: its own module objects over the same
parameter storage, so that it costs next to no memory, and its hooks, adapters, `requires_grad` and patched methods
never reach the base or another replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone, Text
from ..backbones.faster import use_fast_layers
from ..backbones.registry import of_network
from ..core.errors import ClipError, ModelError, SettingsError
from ..core.identity import BaseIdentity
from ..core.process import HIGH_NOISE, LOW_NOISE, UNIFORM
from . import codec, text
from .composed import read_composed
from .given import GivenTexts, check_given, given_hash, require_encoder, text_of
from .identity import identify
from .loading import Parts, read_folder
from .noise import Process, noise_schedule, prediction_type
from .placement import (
    AnyModule,
    EncoderPlace,
    Residence,
    copied,
    moved,
    no_gradients,
    pick_device,
    pick_dtype,
    share_parameters,
)
from .schedulers import make_scheduler
from .video_transformer import is_transformer_folder, read_files, read_transformer_folder

_MODULES = ("unet", "vae", "text_encoder")


@dataclass(frozen=True, eq=False)
class VideoPipeline:
    """A base text-to-video model. Treat it as immutable; change a `replica()`, or copy it with `dataclasses.replace`.

    All modules are frozen, in evaluation mode, on `device` and in `dtype`. Shapes are those of `axes.py`. With `texts`
    there is no text encoder: what was given is all that it can be told.
    A base of two networks, each for a part of the noise, has one as its `unet`, which is what training changes, named
    by `expert`; the other, its `partner`, waits in main memory and is there for sampling.
    `fast_layers`: replicas compute with the layers of `backbones.faster`, equal to diffusers' by rounding.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: Mapping[str, Any]
    identity: BaseIdentity
    device: torch.device
    dtype: torch.dtype
    default_num_frames: int = 16
    default_fps: float = 8.0
    default_guidance_scale: float = 9.0
    texts: GivenTexts | None = None
    fast_layers: bool = True
    expert: str = ""
    partner: Any = None
    _place: EncoderPlace = field(default_factory=EncoderPlace, repr=False)
    _text_place: EncoderPlace = field(default_factory=EncoderPlace, repr=False)
    _home: Residence = field(default_factory=Residence, repr=False)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        motion_module: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        variant: str | None = None,
        expert: str = HIGH_NOISE,
    ) -> VideoPipeline:
        """Load a diffusers folder with unet/ or transformer/, vae/, text_encoder/, tokenizer/ and scheduler/.

        With `motion_module` (AnimateDiff's file, or a diffusers MotionAdapter folder) `folder` is Stable Diffusion 1.5:
        a checkpoint file or a diffusers folder; `tokenizer` is CLIP's folder of words, see `composed.find_tokenizer`.
        `device` is "auto" or a torch device name, `dtype` one of "auto", "fp32", "fp16", "bf16"; `variant` picks
        weight files such as `*.fp16.safetensors`, None takes what there is; `expert` is which of Wan 2.2 A14B's
        networks is taken, "high" or "low" noise, or "both": the former to train, both to sample. Raises ModelError for
        a folder that is no such model, SettingsError for a device or dtype that is not there.
        """
        folder = Path(folder).expanduser()
        module = None if motion_module is None else Path(motion_module).expanduser()
        target, precision = pick_device(device), pick_dtype(dtype, pick_device(device))
        # A host such as ComfyUI may run this in inference mode; weights made there could never be trained around.
        with torch.inference_mode(False):
            if expert != HIGH_NOISE and not is_transformer_folder(folder):
                raise ModelError(f"expert is {expert!r}, and {folder} is no Wan 2.2 A14B: leave it out.")
            if module is not None:
                parts = read_composed(folder, module, precision, variant, tokenizer)
            elif is_transformer_folder(folder):
                parts = read_transformer_folder(folder, precision, variant, expert)
            else:
                parts = read_folder(folder, precision, variant)
            return cls._of_parts(parts, _folder_name(folder), target, precision)

    @classmethod
    def from_files(
        cls,
        network: str | Path,
        vae: str | Path,
        texts: GivenTexts,
        *,
        flow_shift: float = 3.0,
        partner: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> VideoPipeline:
        """A video transformer and its autoencoder from ComfyUI's files, with text embeddings that were made elsewhere.

        `texts` are embeddings (tokens, dim) or (1, tokens, dim) by prompt: the caption, the appearance caption, "" and
        whatever is to be sampled. `flow_shift` is no part of such files. `partner` is the other expert of Wan 2.2
        A14B, for sampling with both. Raises ModelError, SettingsError.
        """
        target, precision = pick_device(device), pick_dtype(dtype, pick_device(device))
        with torch.inference_mode(False):
            other = None if partner is None else Path(partner).expanduser()
            parts = read_files(Path(network).expanduser(), Path(vae).expanduser(), precision, flow_shift, other)
            return cls._of_parts(parts, Path(network).stem, target, precision).with_texts(texts)

    def with_texts(self, texts: GivenTexts) -> VideoPipeline:
        """The same base, told these embeddings by their prompts in place of a text encoder."""
        with torch.inference_mode(False):
            own = {prompt: tensor.detach().clone() for prompt, tensor in texts.items()}
        return replace(self, text_encoder=None, tokenizer=None, texts=own)

    @classmethod
    def _of_parts(cls, parts: Parts, name: str, device: torch.device, dtype: torch.dtype) -> VideoPipeline:
        of_network(parts.unet).prepare(parts.unet)
        if parts.partner is not None:
            of_network(parts.partner).prepare(parts.partner)
        identity = identify(parts.unet, str(parts.about.get("name", name)))
        return cls(
            unet=moved(parts.unet, device),
            vae=moved(parts.vae, device),
            text_encoder=None if parts.text_encoder is None else moved(parts.text_encoder, device),
            tokenizer=parts.tokenizer,
            scheduler_config=dict(parts.scheduler_config),
            identity=identity,
            device=device,
            dtype=dtype,
            expert=parts.expert,
            partner=parts.partner,
            default_num_frames=int(parts.about.get("num_frames", 16)),
            default_fps=float(parts.about.get("fps", 8.0)),
            default_guidance_scale=float(parts.about.get("guidance_scale", 9.0)),
        )

    def replica(self, *, unet: bool = True, text_encoder: bool = False) -> VideoPipeline:
        """The same base with own module objects for the UNet and, if asked, the text encoder with its tokenizer."""
        changes: dict[str, Any] = {}
        if unet:
            changes["unet"] = share_parameters(self.unet)
            use_fast_layers(changes["unet"], self.fast_layers)
        if text_encoder:
            require_encoder(self.texts, self.identity.name, "changes of the text encoder")
            changes["text_encoder"] = share_parameters(self.text_encoder)
            changes["tokenizer"] = text.copied(self.tokenizer)
            # It is nobody else's: another training that makes room must not take it away between two passes.
            changes["_text_place"] = EncoderPlace()
        return replace(self, **changes)

    def partner_replica(self) -> Any:
        """The other expert on the device, over the weights that wait in main memory."""
        network = share_parameters(self.partner)
        use_fast_layers(network, self.fast_layers)
        return moved(network, self.device)

    def expert_at(self, timestep: float) -> str:
        """Which expert a base of two has for a timestep, at its boundary that of high noise; "" for one network."""
        if not self.expert:
            return ""
        entry = "sigma_low" if self.expert == HIGH_NOISE else "sigma_high"
        boundary = float(self.scheduler_config[entry]) * self.num_train_timesteps
        return HIGH_NOISE if timestep >= boundary else LOW_NOISE

    def copied_to(self, device: str) -> VideoPipeline:
        """The same base on another device, in memory of its own. Raises SettingsError for one that is not there."""
        target = pick_device(device)
        with torch.inference_mode(False):
            changes: dict[str, Any] = {part: copied(getattr(self, part), target) for part in _MODULES}
        changes |= {"_place": EncoderPlace(), "_text_place": EncoderPlace(), "_home": Residence()}
        return replace(self, **changes, device=target)

    @property
    def backbone(self) -> Backbone:
        """The family of networks that the UNet is of: everything that is particular to it."""
        return of_network(self.unet)

    # Noise schedule

    @property
    def prediction_type(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", or "flow_prediction" in flow matching."""
        return prediction_type(self.scheduler_config)

    def noise_schedule(self, spread: str = UNIFORM) -> Process:
        """The process by which the network is trained; `spread` is how timesteps are drawn. Raises ModelError."""
        return noise_schedule(self.scheduler_config, spread)

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
        return self.backbone.size_multiple(self.unet, self.vae)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along each side."""
        return self.backbone.pixels_per_latent(self.vae)

    @property
    def default_height(self) -> int:
        return self.backbone.default_size(self.unet, self.vae)[0]

    @property
    def default_width(self) -> int:
        return self.backbone.default_size(self.unet, self.vae)[1]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """(1, c, f, h, w) of the latents of a clip; height and width in pixels."""
        return self.backbone.latent_shape(self.unet, self.vae, num_frames, height, width)

    def clip_shape(self, latents: Tensor) -> tuple[int, int, int]:
        """Frames, height and width in pixels of the clip that latents (b, c, f, h, w) are of."""
        frames, height, width = (int(side) for side in latents.shape[2:])
        return self.backbone.num_frames(self.vae, frames), height * self.vae_factor, width * self.vae_factor

    def frames_fault(self, num_frames: int) -> str | None:
        """Why the UNet cannot take so many frames, or None."""
        return self.backbone.frames_fault(self.unet, num_frames) or None

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
        embeddings: Tensor = next(iter(self.read_prompts(prompts, gradients=gradients).tensors.values()))
        return embeddings

    def read_prompts(self, prompts: Sequence[str], *, gradients: bool = False) -> Text:
        """What the network takes of the prompts, as an opaque value for `backbone.predict`; see `encode_prompt`."""
        if self.texts is not None:
            with no_gradients():
                return text_of(self.texts, prompts, self.device)
        ids = self.tokenize(prompts).to(self.device)
        with self._encoder(self.text_encoder) as encoder, nullcontext() if gradients else no_gradients():
            return self.backbone.read(encoder, ids)

    def given_hash(self, prompts: Sequence[str]) -> str:
        """Of what decides a training on these prompts beside the weights; empty for a base with a text encoder."""
        if self.texts is None:
            return ""
        return given_hash(self.texts, prompts, float(self.scheduler_config.get("flow_shift", 1.0)))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers (b, tokens) on CPU, padded to the text encoder's length."""
        return text.tokenize(self.tokenizer, prompts, self.max_tokens)

    def prompt_remarks(self, prompts: Sequence[str]) -> list[str]:
        """What of the prompts is read otherwise than their writer may think: words beyond the end, weights.

        Raises ClipError for one that a base without a text encoder was not given.
        """
        if self.texts is not None:
            check_given(self.texts, prompts)
            return []
        return [said for prompt in prompts for said in text.remarks(self.tokenizer, prompt, self.max_tokens)]

    @property
    def max_tokens(self) -> int:
        """Tokens that the text encoder reads, its start and end tokens included."""
        return text.max_tokens(self.tokenizer, self.text_encoder)

    def encode_frames(self, frames: Tensor, *, generator: torch.Generator | None = None, chunk: int = 8) -> Tensor:
        """Frames (f, h, w, 3) or (b, f, h, w, 3) in [0, 1] -> scaled latents (b, c, f, h, w), float32 on the device.

        With a (CPU) generator the VAE's posterior is sampled, else its mode is taken; `chunk` frames are encoded at a
        time, which does not change the result. Raises SettingsError for a size that the UNet cannot take.
        """
        if frames.ndim not in (4, 5) or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ClipError(f"frames have shape {tuple(frames.shape)}; they must be (f, h, w, 3) or (b, f, h, w, 3).")
        self.check_size(frames.shape[-3], frames.shape[-2])
        with no_gradients(), self._encoder(self.vae) as vae:
            return codec.encode(self.backbone, vae, frames, self.device, self.dtype, generator, chunk)

    def decode_latents(self, latents: Tensor, *, chunk: int = 8) -> Tensor:
        """Scaled latents (b, c, f, h, w) -> frames (b, f, h, w, 3) in [0, 1], float32 on CPU, `chunk` at a time."""
        if latents.ndim != 5:
            raise SettingsError(f"latents have shape {tuple(latents.shape)}; they must be (b, c, f, h, w).")
        with no_gradients(), self._encoder(self.vae) as vae:
            return codec.decode(self.backbone, vae, latents, self.device, self.dtype, chunk)

    def scaled(self, latents: Tensor) -> Tensor:
        """The VAE's own latents (b, c, f, h, w) as the network takes them, of about unit variance."""
        return self.backbone.scale(self.vae, latents)

    def unscaled(self, latents: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return self.backbone.unscale(self.vae, latents)

    # Where it is

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside the context all modules are on the device and stay there, wherever `send_away` has put them."""
        with self._home.lock:
            self._home.users += 1
        try:
            with self._home.lock:
                self._settle()
            yield
        finally:
            with self._home.lock:
                self._home.users -= 1
                self._settle()

    @property
    def is_away(self) -> bool:
        """Whether it waits in main memory, or will as soon as nobody works with it."""
        return self._home.away

    def send_away(self) -> None:
        """Wait in main memory: at once, or, while somebody works with it, from when they are done."""
        with self._home.lock:
            self._home.away = True
            self._settle()

    def call_back(self) -> None:
        """Back to the device, to stay."""
        with self._home.lock:
            self._home.away = False
            self._settle()

    def _settle(self) -> None:
        moved(self.unet, torch.device("cpu") if self._home.absent else self.device)
        for module in self._encoders:
            with self._place_of(module).lock:
                self._park(module)

    @contextmanager
    def offload_encoders(self) -> Iterator[None]:
        """Inside the context the text encoder and the VAE wait in main memory and visit the device only when used."""
        self._shift_offloaders(+1)
        try:
            yield
        finally:
            self._shift_offloaders(-1)

    def _shift_offloaders(self, change: int) -> None:
        for module in self._encoders:
            place = self._place_of(module)
            with place.lock:
                place.offloaders += change
                self._park(module)

    @property
    def _encoders(self) -> list[nn.Module]:
        """Text encoder, where it has one, and VAE."""
        return [module for module in (self.text_encoder, self.vae) if module is not None]

    @contextmanager
    def _encoder(self, module: AnyModule) -> Iterator[AnyModule]:
        """The module on the device, for one use."""
        with self._place_of(module).lock:
            moved(module, self.device)
            try:
                yield module
            finally:
                self._park(module)

    def _park(self, module: nn.Module) -> None:
        waits = self._place_of(module).offloaders or self._home.absent
        moved(module, torch.device("cpu") if waits else self.device)

    def _place_of(self, module: nn.Module) -> EncoderPlace:
        return self._text_place if module is self.text_encoder else self._place


def _folder_name(folder: Path) -> str:
    """The folder's own name; of a hub cache (models--owner--name/snapshots/<commit>) the model's name."""
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots":
        return resolved.parent.parent.name.removeprefix("models--").replace("--", "/")
    return resolved.name
