"""The backbone protocol: everything that is particular to one family of networks, behind one class.

A backbone is recognised by its class, its config or its tensors' names. It says where its layers are and of what kind,
what "without time" means on it, which shapes its latents have, what it reads of a prompt, how it is called, by which
process it is trained, and in which words LoRA files name its modules. No other package knows any of this.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.lora import Layer
from ..core.process import DIFFUSION


@dataclass(frozen=True)
class Skip:
    """One skip connection: entry `index` of the UNet's residuals, taken by `up_block` at `position` of its tuple.

    `temporal` is the temporal transformer whose output it carries, `spatial` the spatial transformer of the same
    layer; both are None for a skip that starts at a convolution; one of them alone where the layer has no other.
    """

    index: int
    up_block: str
    position: int
    temporal: str | None
    spatial: str | None


@dataclass(frozen=True)
class Layout:
    """Where the layers of one network are, each tuple in `named_modules` order; empty where it has none of a kind.

    A network whose attention joins space and time in one layer names its transformers in `joint_transformers`.
    """

    name: str
    spatial_transformers: tuple[str, ...]
    temporal_transformers: tuple[str, ...]
    temporal_convolutions: tuple[str, ...]
    residual_blocks: tuple[str, ...]
    skips: tuple[Skip, ...]
    cross_attention_dim: int
    in_channels: int
    joint_transformers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """What of a network is to be adapted, in words that every backbone understands.

    `attentions` are "first" and "second" of a transformer block, `projections` "query", "key", "value" and "output".
    """

    layer: Layer
    attentions: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    feed_forward: bool = False
    convolutions: bool = False


@dataclass(frozen=True, eq=False)
class Text:
    """What a network reads of prompts: tensors by the name of its argument, their first axis counts the prompts.

    Only the backbone that made it looks inside; everybody else moves, repeats and casts it.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def to(self, dtype: torch.dtype) -> Text:
        """Every tensor of real numbers in another precision."""
        return self._each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def expand(self, count: int) -> Text:
        """The text of one prompt for `count` clips, without copying it."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def part(self, start: int, stop: int) -> Text:
        """The text of these prompts alone."""
        return self._each(lambda tensor: tensor[start:stop])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Text:
        return Text({name: change(tensor) for name, tensor in self.tensors.items()})


class Backbone(ABC):
    """One family of networks. Stateless: there is one object of each class, in `registry.BACKBONES`."""

    name: ClassVar[str]
    """How LoRA files name it."""
    network_class: ClassVar[type[nn.Module]]
    """diffusers' class of the network; its `from_config` builds one from a `config.json`."""
    models: ClassVar[str]
    """The models that have it, for messages."""
    reference_config: ClassVar[Mapping[str, Any]]
    """The network that files mean which name no other: of ModelScope, of Stable Diffusion 1.5 with a v3 module."""
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Configs of its released sizes by the name that a command line gives them, to count and to check files."""
    architecture: ClassVar[tuple[str, ...]]
    """Config entries that make two networks the same network; others differ between library versions."""
    process: ClassVar[str] = DIFFUSION
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    network_part: ClassVar[str] = "unet"
    """The part of a diffusers folder that holds the network."""
    vae_class: ClassVar[type[nn.Module]]
    """diffusers' class of its autoencoder."""
    text_models: ClassVar[tuple[str, ...]] = ("clip",)
    """Kinds of text encoder that it is used with, as found in the `model_type` of their configs."""
    frames_alone: ClassVar[bool] = True
    """Whether the latents of a clip are those of its frames one by one; if not, one of them is no frame's latent."""

    def prepare(self, network: nn.Module) -> None:
        """Change a network that was just loaded so that it computes as the tools do which take its LoRAs."""
        return

    # Layers by their name alone ---------------------------------------------------------------------------------------

    @abstractmethod
    def layer_of(self, module: str) -> Layer:
        """Which path a module or parameter belongs to, by its dotted name: "temporal", "spatial" or "joint"."""

    @abstractmethod
    def block_of(self, module: str) -> str:
        """The block that a module belongs to, the unit of block strengths."""

    @abstractmethod
    def block_place(self, block: str) -> tuple[Any, ...]:
        """A sorting key: blocks in the order in which the network runs them."""

    def config_fault(self, config: Mapping[str, Any]) -> str:
        """What a network of this class with such a config is, where it is another kind of model; empty where not."""
        return ""

    # Layers of a network ----------------------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, network: nn.Module) -> Layout:
        """Where the layers and skips of `network` are."""

    @abstractmethod
    def select(self, network: nn.Module, selection: Selection) -> tuple[str, ...]:
        """Dotted names of the modules of a selection, in `named_modules` order; empty where there are none.

        `network` must be without adapters, whose hosts have other names.
        """

    @abstractmethod
    def temporal_layers(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        """Every module that mixes frames, by name, in `named_modules` order."""

    @abstractmethod
    def bypass(self, layer: nn.Module) -> Callable[..., Any]:
        """What stands in for the forward method of a temporal layer: its input comes out as its output."""

    def bypassed(self, network: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """The modules that change in the network without time, each with what stands in for its forward method."""
        return [(layer, self.bypass(layer)) for _, layer in self.temporal_layers(network)]

    @abstractmethod
    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        """The layers whose activations gradient checkpointing drops, each a pure function of its inputs."""

    def swappable_blocks(self, network: nn.Module) -> list[nn.Module]:
        """Blocks of equal kind that run one after another, whose weights may wait elsewhere; see `swapping`."""
        return []

    def sequence_layers(self, network: nn.Module) -> list[nn.Module]:
        """The layers for which the entries of the first axis of all they take, sequences, are nothing to each other."""
        return []

    @abstractmethod
    def frame_axis(self, module: nn.Module, hidden: Tensor) -> int | None:
        """Which axis of a temporal module's output counts the frames; None where no axis does so alone."""

    def attention_of(self, module: str) -> str:
        """The attention over whole clips among whose heads the rows of a module's output are split; "" for others."""
        return ""

    def head_masses(self, network: nn.Module, frames: int, run: Callable[[], object]) -> Mapping[str, Tensor]:
        """(heads, 2) by attention: how much each head looks over time and how much inside a frame, while `run` runs.

        `frames` are those of the latents. Nothing where no attention looks over both.
        """
        return {}

    # Skip connections (appearance highway) ----------------------------------------------------------------------------

    @abstractmethod
    def skips_of(self, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The skips among the keyword arguments of an up block."""

    @abstractmethod
    def with_skips(self, kwargs: Mapping[str, Any], skips: tuple[Tensor, ...]) -> dict[str, Any]:
        """The keyword arguments of an up block with other skips."""

    @abstractmethod
    def transformer_output(self, output: Any) -> Tensor:
        """What a spatial transformer hands on, in the shape of a skip."""

    # Frames and latents -----------------------------------------------------------------------------------------------

    @abstractmethod
    def latent_frames(self, vae: nn.Module, num_frames: int) -> int:
        """How many frames the latents of a clip of `num_frames` have."""

    @abstractmethod
    def num_frames(self, vae: nn.Module, latent_frames: int) -> int:
        """How many frames come out of latents of so many."""

    @abstractmethod
    def frames_fault(self, network: nn.Module, num_frames: int) -> str:
        """Why `network` cannot take a clip of so many frames, with the way out; empty where it can."""

    @abstractmethod
    def latent_multiple(self, network: nn.Module) -> int:
        """Height and width of a patch cut out of latents must be multiples of this."""

    @abstractmethod
    def pixels_per_latent(self, vae: nn.Module) -> int:
        """How many pixels one latent spans along each side of a frame."""

    @abstractmethod
    def size_multiple(self, network: nn.Module, vae: nn.Module) -> int:
        """Height and width in pixels must be multiples of this."""

    def latent_shape(
        self, network: nn.Module, vae: nn.Module, num_frames: int, height: int, width: int
    ) -> tuple[int, int, int, int, int]:
        """(1, c, f, h, w) of the latents of one clip; height and width in pixels."""
        config: Any = network.config
        factor = self.pixels_per_latent(vae)
        return 1, int(config["in_channels"]), self.latent_frames(vae, num_frames), height // factor, width // factor

    @abstractmethod
    def default_size(self, network: nn.Module, vae: nn.Module) -> tuple[int, int]:
        """Height and width in pixels that `network` is at home with."""

    @abstractmethod
    def encode(
        self, vae: nn.Module, pixels: Tensor, device: torch.device, dtype: torch.dtype, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Pixels (b, f, 3, h, w) in [-1, 1] -> mean and deviation of the VAE's own latents, (b, c, f, h, w) each, fp32.

        The VAE is on `device` and in `dtype`, where `pixels` need not be; about `chunk` frames are encoded at a time.
        """

    @abstractmethod
    def decode(self, vae: nn.Module, latents: Tensor, device: torch.device, dtype: torch.dtype, chunk: int) -> Tensor:
        """The VAE's own latents (b, c, f, h, w) -> pixels (b, f, 3, h, w) in about [-1, 1], fp32 on the CPU."""

    @abstractmethod
    def scale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """The VAE's own latents (b, c, f, h, w) as the network takes them, of about unit variance."""

    @abstractmethod
    def unscale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """The inverse of `scale`."""

    # Text and prediction ----------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, encoder: nn.Module, ids: Tensor) -> Text:
        """Token numbers (b, tokens) as what the network takes of them; keeps the graph if one is recorded."""

    @abstractmethod
    def predict(self, network: Callable[..., Any], noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """One call of the network, or of its compiled form: noisy latents (b, c, f, h, w) -> prediction, same shape.

        `timesteps` is one for all or (b,); `text` is of `b` prompts. What is predicted says the base's noise schedule.
        """

    # LoRA files -------------------------------------------------------------------------------------------------------

    key_words: ClassVar[tuple[str, ...]]
    """The words that its module names are made of, some with underscores: kohya's keys are read back with them."""
    list_targets: ClassVar[tuple[str, ...]] = ()
    """Target presets whose lists of tensors without names are read, the most likely first."""
    own_keys: ClassVar[re.Pattern[str] | None] = None
    """Found in keys of no other backbone's files."""
    refusal: ClassVar[str]
    """What a file of this backbone is, where another network is at hand."""
    recommended_method: ClassVar[str] = "customize-a-video"
    """The row of the methods' table that it is trained by where nothing else is said."""
    takes: ClassVar[str]
    """What fits this backbone, for the end of a refusal."""
    text_width: ClassVar[int]
    """Width of the text embeddings of the models that have it, to tell files by, where no network is at hand."""

    @abstractmethod
    def module_named(self, name: str) -> str:
        """diffusers' name of a module, from the name that a LoRA file of another tool gives it."""

    native_format: ClassVar[str] = ""
    """The row of files.formats.FORMATS that the family's own tools exchange; "" where there is none."""
    native_suffixes: ClassVar[tuple[str, str]] = (".down.weight", ".up.weight")

    def native_key(self, module: str) -> str | None:
        """The stem of a module's two keys in the files that the family's own tools exchange, before `native_suffixes`.

        None for a module that such files cannot hold, or where the family has no files of its own.
        """
        return None

    @abstractmethod
    def is_linear(self, module: str) -> bool:
        """Whether a module is linear by its name, though some tools write its factors as 1x1 convolutions."""

    @abstractmethod
    def reads_text(self, module: str) -> bool:
        """Whether a module's input is the text embedding."""

    def recognises_keys(self, names: Collection[str]) -> bool:
        """Whether names of tensors, of a checkpoint or a LoRA, are of this backbone and no other."""
        return self.own_keys is not None and any(self.own_keys.search(name) for name in names)
