"""What the U-Nets of Stable Diffusion's line have in common: blocks, image autoencoder, cross-attention to one text.

Frames stand one by one in the latents, each encoded as an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..core.axes import fold_frames, unfold_frames
from ..core.lora import SPATIAL, TEMPORAL, Layer
from .base import Backbone, Layout, Selection, Skip, Text

_BLOCKS = ("down_blocks", "up_blocks")
_ORDER = ("conv_in", "time_embedding", "transformer_in", "down_blocks", "mid_block", "up_blocks", "conv_out")
_SKIPS = "res_hidden_states_tuple"
_ATTENTIONS = {"first": "attn1", "second": "attn2"}
_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_LINEAR = re.compile(r".*\.(?:to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|time_emb_proj)")
_TEXT_PROJECTION = re.compile(r"(?:^|\.)attentions\.\d+\..*attn2\.to_[kv]$")
WORDS = (
    "down_blocks", "up_blocks", "mid_block", "conv_in", "conv_out", "time_embedding", "linear_1", "linear_2", "resnets",
    "attentions", "downsamplers", "upsamplers", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in",
    "proj_out", "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj",
)  # fmt: skip
ARCHITECTURE = (
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


class UNetBackbone(Backbone):
    """A U-Net of spatial layers with temporal ones between them."""

    vae_class = AutoencoderKL

    temporal_words: ClassVar[frozenset[str]]
    """Parts of a dotted name that make a module temporal."""
    temporal_transformer: ClassVar[type[nn.Module]]
    temporal_convolution: ClassVar[type[nn.Module] | None] = None

    def layer_of(self, module: str) -> Layer:
        return TEMPORAL if self.temporal_words.intersection(module.split(".")) else SPATIAL

    def block_of(self, module: str) -> str:
        """ "transformer_in", "down_blocks.1", "mid_block", "up_blocks.2", "conv_in", ..."""
        parts = module.split(".")
        return ".".join(parts[:2]) if parts[0] in _BLOCKS else parts[0]

    def block_place(self, block: str) -> tuple[Any, ...]:
        kind = block.split(".")[0]
        return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), block)

    def describe(self, network: nn.Module) -> Layout:
        config: Any = network.config
        convolution = self.temporal_convolution
        return Layout(
            name=self.name,
            spatial_transformers=_names(network, Transformer2DModel),
            temporal_transformers=_names(network, self.temporal_transformer),
            temporal_convolutions=_names(network, convolution) if convolution else (),
            residual_blocks=_names(network, ResnetBlock2D),
            skips=_skips(network, self.producers(network)),
            cross_attention_dim=int(config["cross_attention_dim"]),
            in_channels=int(config["in_channels"]),
        )

    def producers(self, network: nn.Module) -> list[tuple[str | None, str | None]]:
        """Temporal and spatial transformer behind each residual, in the order in which the network gathers them."""
        raise NotImplementedError

    def select(self, network: nn.Module, selection: Selection) -> tuple[str, ...]:
        if selection.layer not in (SPATIAL, TEMPORAL):
            return ()
        layout, temporal = self.describe(network), selection.layer == TEMPORAL
        transformers = layout.temporal_transformers if temporal else layout.spatial_transformers
        blocks = layout.temporal_convolutions if temporal else layout.residual_blocks
        endings = _endings(selection)
        found = {name for host in transformers for name in _projections(network, host, endings)}
        if selection.convolutions:
            found |= {f"{host}.{n}" for host in blocks for n in _modules(network.get_submodule(host), _CONVOLUTIONS)}
        return tuple(name for name, _ in network.named_modules() if name in found)

    def temporal_layers(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        kinds = tuple(kind for kind in (self.temporal_transformer, self.temporal_convolution) if kind is not None)
        return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        temporal = {id(module) for _, module in self.temporal_layers(network)}
        kinds = (Transformer2DModel, ResnetBlock2D)
        return [module for module in network.modules() if isinstance(module, kinds) or id(module) in temporal]

    def sequence_layers(self, network: nn.Module) -> list[nn.Module]:
        """Transformer blocks: their sequences are the frames, or the places."""
        return [module for module in network.modules() if isinstance(module, BasicTransformerBlock)]

    def frame_axis(self, module: nn.Module, hidden: Tensor) -> int | None:
        """Tokens of a temporal transformer (b * h * w, f, c), maps of a temporal convolution (b, c, f, h, w)."""
        if isinstance(module, nn.Linear):
            return 1 if hidden.ndim == 3 else None
        return 2 if hidden.ndim == 5 else None

    def skips_of(self, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(kwargs[_SKIPS])

    def with_skips(self, kwargs: Mapping[str, Any], skips: tuple[Tensor, ...]) -> dict[str, Any]:
        return {**kwargs, _SKIPS: skips}

    def transformer_output(self, output: Any) -> Tensor:
        hidden: Tensor = output[0]
        return hidden

    def latent_frames(self, vae: nn.Module, num_frames: int) -> int:
        return num_frames

    def num_frames(self, vae: nn.Module, latent_frames: int) -> int:
        return latent_frames

    def latent_multiple(self, network: nn.Module) -> int:
        return 1

    def frames_fault(self, network: nn.Module, num_frames: int) -> str:
        return ""

    def pixels_per_latent(self, vae: nn.Module) -> int:
        config: Any = vae.config
        return int(2 ** (len(config["block_out_channels"]) - 1))

    def size_multiple(self, network: nn.Module, vae: nn.Module) -> int:
        """Each level but the last halves the latents, which must come out even."""
        config: Any = network.config
        return self.pixels_per_latent(vae) * int(2 ** (len(config["block_out_channels"]) - 1))

    def default_size(self, network: nn.Module, vae: nn.Module) -> tuple[int, int]:
        config: Any = network.config
        sides = config["sample_size"] or 32
        height, width = (sides, sides) if isinstance(sides, int) else sides
        factor = self.pixels_per_latent(vae)
        return int(height) * factor, int(width) * factor

    def encode(
        self, vae: Any, pixels: Tensor, device: torch.device, dtype: torch.dtype, chunk: int
    ) -> tuple[Tensor, Tensor]:
        parts = pixels.flatten(0, 1).split(chunk)
        posteriors = [vae.encode(part.to(device, dtype)).latent_dist for part in parts]
        mean = torch.cat([posterior.mean for posterior in posteriors]).float()
        deviation = torch.cat([posterior.std for posterior in posteriors]).float()
        return unfold_frames(mean, len(pixels)), unfold_frames(deviation, len(pixels))

    def decode(self, vae: Any, latents: Tensor, device: torch.device, dtype: torch.dtype, chunk: int) -> Tensor:
        images = fold_frames(latents)
        decoded = [vae.decode(part.to(device, dtype)).sample.float().cpu() for part in images.split(chunk)]
        return torch.cat(decoded).unflatten(0, (latents.shape[0], -1))

    def scale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        config: Any = vae.config
        return latents * float(config["scaling_factor"])

    def unscale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        config: Any = vae.config
        return latents / float(config["scaling_factor"])

    def read(self, encoder: nn.Module, ids: Tensor) -> Text:
        return Text({"encoder_hidden_states": encoder(ids)[0]})

    def predict(self, network: Callable[..., Any], noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        predicted: Tensor = network(noisy, timesteps, **text.tensors, return_dict=False)[0]
        return predicted

    def module_named(self, name: str) -> str:
        return name

    def is_linear(self, module: str) -> bool:
        return _LINEAR.fullmatch(f".{module}") is not None

    def reads_text(self, module: str) -> bool:
        return _TEXT_PROJECTION.search(module) is not None


def levels(blocks: Any) -> Iterator[tuple[int, Any]]:
    """The blocks with their number; `Any`, for torch types the attributes of a module as modules or tensors."""
    yield from enumerate(blocks)


def _names(network: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(_modules(network, kind))


def _modules(network: nn.Module, kinds: Any) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def _endings(selection: Selection) -> frozenset[str]:
    """Module names relative to a transformer block."""
    chosen = {f"{_ATTENTIONS[a]}.{_PROJECTIONS[p]}" for a in selection.attentions for p in selection.projections}
    return frozenset(chosen.union(_FEED_FORWARD if selection.feed_forward else ()))


def _projections(network: nn.Module, host: str, endings: frozenset[str]) -> list[str]:
    """Linear modules of a transformer whose name after transformer_blocks.<number> is one of `endings`."""
    linear = _modules(network.get_submodule(host), nn.Linear)
    return [f"{host}.{name}" for name in linear if name.split(".", 2)[2:] and name.split(".", 2)[2] in endings]


def _skips(network: nn.Module, producers: list[tuple[str | None, str | None]]) -> tuple[Skip, ...]:
    """The UNet hands out its residuals last in, first out: each up block takes as many as it has resnets."""
    skips: list[Skip] = []
    end = len(producers)
    for level, block in levels(network.up_blocks):
        start = end - len(block.resnets)
        for index in range(start, end):
            skips.append(Skip(index, f"up_blocks.{level}", index - start, *producers[index]))
        end = start
    return tuple(sorted(skips, key=lambda skip: skip.index))
