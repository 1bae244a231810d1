"""diffusers' `WanTransformer3DModel`: Wan 2.1 and 2.2 text-to-video, transformers whose attention joins space and time.

There are no temporal layers: every token sees all others, and rotary positions tell it how far in time and in both
directions they are. Without time each frame of the latents is a clip of its own. The autoencoder is causal: its first
latent is that of one frame, each later one of four (or as many as its config says), so a clip has 4 n + 1 frames.
Names of Wan's own files, as ComfyUI has them, are others than diffusers'; `native_name` and `module_named` translate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from ..core.lora import JOINT, Layer
from ..core.process import FLOW
from .base import Backbone, Layout, Selection, Text

# How many frames its causal convolutions take at once, after the first.
_AT_ONCE = 4

WAN_1_3B_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "WanTransformer3DModel",
        "patch_size": (1, 2, 2),
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 8960,
        "num_layers": 30,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
)
"""Wan 2.1 text-to-video, 1.3B."""
WAN_14B_CONFIG: Mapping[str, Any] = MappingProxyType(
    {**WAN_1_3B_CONFIG, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
)
"""Wan 2.1 text-to-video 14B, and each of the two experts of Wan 2.2 A14B."""
WAN_5B_CONFIG: Mapping[str, Any] = MappingProxyType(
    {**WAN_1_3B_CONFIG, "num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
)
"""Wan 2.2 TI2V-5B, with the autoencoder of 48 channels."""

_ATTENTIONS = {"first": "attn1", "second": "attn2"}
_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
_FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
_ORDER = ("patch_embedding", "condition_embedder", "blocks", "norm_out", "proj_out")
# Parts of dotted names, diffusers' and Wan's own: what holds for modules holds for their parameters.
_NAMES = (
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
)
_BLOCK_NAMES = (
    ("attn1.to_q", "self_attn.q"),
    ("attn1.to_k", "self_attn.k"),
    ("attn1.to_v", "self_attn.v"),
    ("attn1.to_out.0", "self_attn.o"),
    ("attn1.norm_q", "self_attn.norm_q"),
    ("attn1.norm_k", "self_attn.norm_k"),
    ("attn2.to_q", "cross_attn.q"),
    ("attn2.to_k", "cross_attn.k"),
    ("attn2.to_v", "cross_attn.v"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("attn2.norm_q", "cross_attn.norm_q"),
    ("attn2.norm_k", "cross_attn.norm_k"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    # The same norms, counted in another order.
    ("norm2", "norm3"),
    ("norm3", "norm2"),
    ("scale_shift_table", "modulation"),
)
_NATIVE: Mapping[str, str] = dict((*_NAMES, *_BLOCK_NAMES))
_DIFFUSERS = {theirs: ours for ours, theirs in (*_NAMES, *_BLOCK_NAMES)}
_BLOCK = re.compile(r"(?P<block>blocks\.\d+)\.(?P<rest>.+)")


class Wan(Backbone):
    """See the module. `attn1` of a block is the attention over the clip, `attn2` the one to the text."""

    name = "wan"
    network_class = WanTransformer3DModel
    models = "Wan 2.1 or 2.2 text-to-video"
    reference_config = WAN_1_3B_CONFIG
    sizes = MappingProxyType({"wan": WAN_1_3B_CONFIG, "wan-14b": WAN_14B_CONFIG, "wan-5b": WAN_5B_CONFIG})
    architecture = (
        "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "ffn_dim",
        "num_layers", "image_dim", "added_kv_proj_dim",
    )  # fmt: skip
    process = FLOW
    prediction_types = ("flow_prediction",)
    network_part = "transformer"
    vae_class = AutoencoderKLWan
    text_models = ("t5", "clip")
    frames_alone = False
    key_words = (
        "blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ffn", "net", "proj", "self_attn", "cross_attn",
        "q", "k", "v", "o", "text_embedding", "time_embedding", "time_projection", "head", "patch_embedding",
        "condition_embedder", "text_embedder", "time_embedder", "time_proj", "linear_1", "linear_2", "proj_out",
    )  # fmt: skip
    own_keys = re.compile(r"(?:^|\.|lora_unet_{1,2})blocks[._]\d+[._](?:self_attn|cross_attn|attn[12]|ffn)[._]")
    recommended_method = "joint-customize-a-video"
    refusal = "a LoRA for Wan, a diffusion transformer: its layers are others than this network's"
    takes = "LoRAs for Wan text-to-video of the same size"
    text_width = 4096
    native_format = "comfyui"
    native_suffixes = (".lora_A.weight", ".lora_B.weight")

    def config_fault(self, config: Mapping[str, Any]) -> str:
        if (
            config.get("image_dim")
            or config.get("added_kv_proj_dim")
            or config["in_channels"] != config["out_channels"]
        ):
            return "Wan image-to-video or Fun Control, which take a picture or a control video beside the text"
        return ""

    def prepare(self, network: Any) -> None:
        """Positions are in no file: a network that was built on the meta device has none yet."""
        if network.rope.freqs_cos.is_meta:
            config = network.config
            sizes = config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"]
            network.rope = type(network.rope)(*sizes)

    # Layers

    def layer_of(self, module: str) -> Layer:
        """Every layer sees space and time together."""
        return JOINT

    def block_of(self, module: str) -> str:
        """ "blocks.3", "condition_embedder", ..."""
        parts = module.split(".")
        return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]

    def block_place(self, block: str) -> tuple[Any, ...]:
        kind, _, number = block.partition(".")
        place = _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
        return (place, int(number) if number.isdecimal() else 0, block)

    def describe(self, network: nn.Module) -> Layout:
        config: Any = network.config
        return Layout(
            name=self.name,
            spatial_transformers=(),
            temporal_transformers=(),
            temporal_convolutions=(),
            residual_blocks=(),
            skips=(),
            cross_attention_dim=int(config["text_dim"]),
            in_channels=int(config["in_channels"]),
            joint_transformers=tuple(f"blocks.{number}" for number in range(int(config["num_layers"]))),
        )

    def select(self, network: nn.Module, selection: Selection) -> tuple[str, ...]:
        if selection.layer != JOINT:
            return ()
        endings = {f"{_ATTENTIONS[a]}.{_PROJECTIONS[p]}" for a in selection.attentions for p in selection.projections}
        endings |= set(_FEED_FORWARD if selection.feed_forward else ())
        names = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
        return tuple(name for name in names if (found := _BLOCK.fullmatch(name)) and found["rest"] in endings)

    def temporal_layers(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        return []

    def bypass(self, layer: nn.Module) -> Callable[..., Any]:
        raise NotImplementedError("no layer of Wan is temporal")

    def bypassed(self, network: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """The whole network, given each frame of the latents as a clip of one frame."""
        return [(network, _frame_by_frame(network))]

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        blocks: Any = network.blocks
        return list(blocks)

    def frame_axis(self, module: nn.Module, hidden: Tensor) -> int | None:
        return None

    # Skip connections: it has none

    def skips_of(self, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return ()

    def with_skips(self, kwargs: Mapping[str, Any], skips: tuple[Tensor, ...]) -> dict[str, Any]:
        return dict(kwargs)

    def transformer_output(self, output: Any) -> Tensor:
        hidden: Tensor = output
        return hidden

    # Frames and latents

    def latent_frames(self, vae: nn.Module, num_frames: int) -> int:
        return (num_frames - 1) // _config(vae, "scale_factor_temporal", 4) + 1

    def num_frames(self, vae: nn.Module, latent_frames: int) -> int:
        return (latent_frames - 1) * _config(vae, "scale_factor_temporal", 4) + 1

    def frames_fault(self, network: nn.Module, num_frames: int) -> str:
        """The autoencoder takes one frame, then four at a time."""
        if num_frames % _AT_ONCE == 1:
            return ""
        fewer = max(1, (num_frames - 1) // _AT_ONCE * _AT_ONCE + 1)
        return f"num_frames is {num_frames}, and this base takes 4 n + 1: take {fewer} or {fewer + _AT_ONCE}"

    def pixels_per_latent(self, vae: nn.Module) -> int:
        return _config(vae, "scale_factor_spatial", 8)

    def latent_multiple(self, network: nn.Module) -> int:
        config: Any = network.config
        return int(max(config["patch_size"][1:]))

    def size_multiple(self, network: nn.Module, vae: nn.Module) -> int:
        return self.pixels_per_latent(vae) * self.latent_multiple(network)

    def latent_shape(
        self, network: nn.Module, vae: nn.Module, num_frames: int, height: int, width: int
    ) -> tuple[int, int, int, int, int]:
        config: Any = network.config
        factor = self.pixels_per_latent(vae)
        return 1, int(config["in_channels"]), self.latent_frames(vae, num_frames), height // factor, width // factor

    def default_size(self, network: nn.Module, vae: nn.Module) -> tuple[int, int]:
        """480 x 832, of the 5B 704 x 1280; a network that is no release's is at home where its positions end."""
        config: Any = network.config
        if int(config["in_channels"]) == 48:
            return 704, 1280
        if int(config["text_dim"]) == self.text_width:
            return 480, 832
        side = min(480, int(config["rope_max_seq_len"]))
        return side, side

    def encode(
        self, vae: Any, pixels: Tensor, device: torch.device, dtype: torch.dtype, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Whole clips: frames cannot be encoded apart. Clips of one frame go `chunk` at a time."""
        clips = pixels.transpose(1, 2).split(max(1, chunk // pixels.shape[1]))
        posteriors = [vae.encode(part.to(device, dtype)).latent_dist for part in clips]
        mean = torch.cat([posterior.mean for posterior in posteriors]).float()
        return mean, torch.cat([posterior.std for posterior in posteriors]).float()

    def decode(self, vae: Any, latents: Tensor, device: torch.device, dtype: torch.dtype, chunk: int) -> Tensor:
        decoded = [vae.decode(one.to(device, dtype)).sample.float().cpu() for one in latents.split(1)]
        return torch.cat(decoded).transpose(1, 2)

    def scale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return (latents - mean) / deviation

    def unscale(self, vae: nn.Module, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return latents * deviation + mean

    # Text and prediction

    def read(self, encoder: Any, ids: Tensor) -> Text:
        """T5's states, zero behind the end of the text as Wan was trained; a CLIP text model's as they are."""
        if "t5" not in str(encoder.config.model_type):
            return Text({"encoder_hidden_states": encoder(ids)[0]})
        said = ids != encoder.config.pad_token_id
        states = encoder(ids, attention_mask=said.long())[0]
        return Text({"encoder_hidden_states": states * said[..., None].to(states.dtype)})

    def predict(self, network: Callable[..., Any], noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        each = timesteps.to(noisy.device).expand(len(noisy))
        predicted: Tensor = network(noisy, each, **text.tensors, return_dict=False)[0]
        return predicted

    # LoRA files

    def module_named(self, name: str) -> str:
        return diffusers_name(name)

    def native_key(self, module: str) -> str | None:
        """What ComfyUI's own loader applies, with `native_suffixes`."""
        found = _BLOCK.fullmatch(module)
        if found is None or found["rest"] not in _NATIVE:
            return None
        return f"diffusion_model.{native_name(module)}"

    def is_linear(self, module: str) -> bool:
        return not module.endswith("patch_embedding")

    def reads_text(self, module: str) -> bool:
        """Its attention to the text reads what `text_embedder` has brought to the network's own width."""
        return module.endswith("text_embedder.linear_1")


WAN = Wan()


def native_name(name: str) -> str:
    """Wan's own name, as in ComfyUI's files, of a module or parameter that diffusers names; unknown ones stay."""
    return _translated(name, _NATIVE, ("scale_shift_table", "head.modulation"))


def diffusers_name(name: str) -> str:
    """The inverse of `native_name`; diffusers' own names stay, but for the norms, whose names are both's."""
    return _translated(name, _DIFFUSERS, ("head.modulation", "scale_shift_table"))


def _translated(name: str, table: Mapping[str, str], top: tuple[str, str]) -> str:
    if name == top[0]:
        return top[1]
    found = _BLOCK.fullmatch(name)
    head, rest = (f"{found['block']}.", found["rest"]) if found else ("", name)
    for old, new in table.items():
        if rest == old or rest.startswith(f"{old}."):
            return f"{head}{new}{rest[len(old) :]}"
    return name


def _frame_by_frame(network: nn.Module) -> Callable[..., Any]:
    inner = network.forward

    def forward(hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        frames = hidden_states.shape[2]
        if frames == 1:
            return inner(hidden_states, timestep, encoder_hidden_states, **kwargs)
        each = hidden_states.transpose(1, 2).flatten(0, 1)[:, :, None]
        texts, times = (t.repeat_interleave(frames, dim=0) for t in (encoder_hidden_states, timestep))
        made = inner(each, times, texts, **{**kwargs, "return_dict": False})[0]
        return (made[:, :, 0].unflatten(0, (-1, frames)).transpose(1, 2),)

    return forward


def _config(module: Any, name: str, default: int) -> int:
    value = module.config.get(name)
    return default if value is None else int(value)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the autoencoder's latents, for (b, c, f, h, w)."""
    names = ("latents_mean", "latents_std")
    mean, deviation = (like.new_tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in names)
    return mean, deviation
