"""Layers that compute what diffusers' do in fewer and larger operations; a network is switched to them and back.

A layer is exchanged by its class: parameters, names, hooks, adapters and state dict stay as they are. What differs:

    attention           query, key and value in one product where they are small; short sequences share an attention
                        call, apart by a mask; more sequences than a GPU's grid holds go in several calls
    feed-forward        the two halves of the gated unit are computed apart, so neither is cut out of the other
    temporal layers     a (3, 1, 1) convolution is three products, each over the frames that have such a neighbour
    all                 channels last on CPUs: what is a token to one layer is a place to the next, without a copy

Results differ from diffusers' by rounding. Whatever is not the plain case (masks, dropout, hooks on a projection) takes
the stock path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

MERGED = "merged_weight"
"""Attribute in which whoever adapts a network leaves the weight that a layer is to use in place of its own."""
SMALL = 140_000
"""Weights of no more numbers are put side by side for one product: the copy costs less than the calls."""
LAID_OUT = "weight_channels_last"
"""Attribute in which a convolution keeps a copy of its weight, with channels last."""
# CUDA's grids take no more sequences in one attention call.
_MOST_SEQUENCES = 65_535
# Short sequences are attended to together, this many tokens at a time (measured best for 8 frames on AVX-512).
_TOKENS_TOGETHER = 32
_SHORT = 16


def use_fast_layers(network: nn.Module, enabled: bool = True) -> None:
    """Exchange the layers of `network` in place, or put the stock ones back; a network of another kind stays."""
    exchange = _FAST if enabled else {fast: stock for stock, fast in _FAST.items()}
    for module in network.modules():
        if type(module) in exchange and (not enabled or _is_plain(module)):
            module.__class__ = exchange[type(module)]
            module.__dict__.pop(LAID_OUT, None)


def mergeable(network: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """Where a fast layer takes a `MERGED` weight: (name of the layer, layer, names of the modules it is of, in order).

    Of an attention over its own tokens that is (query, key, value) on the attention itself, else one module alone.
    """
    for name, module in network.named_modules():
        if isinstance(module, _Attention):
            qkv = tuple(f"{name}.{part}" for part in ("to_q", "to_k", "to_v"))
            yield from ([(name, module, qkv)] if module.is_fused else [])
            yield _single(network, f"{name}.to_out.0")
        elif isinstance(module, _FeedForward):
            yield _single(network, f"{name}.proj")
            yield _single(network, f"{name.removesuffix('.0')}.2")
        elif isinstance(module, _TemporalConvolution):
            for number, block in enumerate(_blocks(module), 1):
                yield _single(network, f"{name}.conv{number}.{len(block) - 1}")


def _single(network: nn.Module, name: str) -> tuple[str, nn.Module, tuple[str, ...]]:
    return name, network.get_submodule(name), (name,)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias with which a product can be made without calling the module; None where it has to be called."""
    merged = module.__dict__.get(MERGED)
    if merged is not None:
        base: Any = getattr(module, "base_layer", module)
        return merged, base.bias
    plain = type(module) in (nn.Linear, nn.Conv3d) and "forward" not in module.__dict__
    if not plain or module._forward_hooks or module._forward_pre_hooks:
        return None
    return module.weight, module.bias  # type: ignore[return-value]


def _linear(module: nn.Module, hidden: Tensor) -> Tensor:
    weights = _weights(module)
    return module(hidden) if weights is None else functional.linear(hidden, *weights)


class _Attention(Attention):
    """Multi-head attention (b, tokens, c) over its own tokens or those of a text."""

    @property
    def is_fused(self) -> bool:
        """Whether one product makes query, key and value."""
        same = self.to_q.weight.shape == self.to_k.weight.shape == self.to_v.weight.shape
        return bool(same and not self.is_cross_attention and self.to_q.weight.numel() <= SMALL)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if attention_mask is not None or kwargs or hidden_states.ndim != 3 or not _is_plain(self):
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        batch, tokens, _ = hidden_states.shape
        query, key, value = self._projected(hidden_states, encoder_hidden_states)
        out = _attend(query, key, value).transpose(1, 2).reshape(batch, tokens, -1)
        return _linear(self.to_out[0], out)

    def _projected(self, hidden: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (b, heads, tokens, d) each."""
        fused = self._fused_weights() if text is None else None
        if fused is not None:
            # Taken apart where the gradients of the three are put together again in one copy.
            parts = functional.linear(hidden, *fused).unflatten(-1, (3, self.heads, -1)).unbind(2)
            query, key, value = (part.transpose(1, 2) for part in parts)
            return query, key, value
        source = hidden if text is None else text
        made = _linear(self.to_q, hidden), _linear(self.to_k, source), _linear(self.to_v, source)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        return query, key, value

    def _fused_weights(self) -> tuple[Tensor, Tensor | None] | None:
        merged = self.__dict__.get(MERGED)
        if merged is not None:
            return merged, None
        if not self.is_fused:
            return None
        found = [_weights(module) for module in (self.to_q, self.to_k, self.to_v)]
        parts = [part for part in found if part is not None]
        if len(parts) < 3 or any(bias is not None for _, bias in parts):
            return None
        return torch.cat([weight for weight, _ in parts]), None


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over (b, heads, tokens, d), for any number of sequences."""
    batch, _, tokens, _ = query.shape
    together = _TOKENS_TOGETHER // tokens
    if query.device.type == "cpu" and tokens == key.shape[2] <= _SHORT and together > 1 and batch % together == 0:
        return _attend_together(query, key, value, together)
    if batch <= _MOST_SEQUENCES:
        return functional.scaled_dot_product_attention(query, key, value)
    pieces = zip(*(part.split(_MOST_SEQUENCES) for part in (query, key, value)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*piece) for piece in pieces])


def _attend_together(query: Tensor, key: Tensor, value: Tensor, together: int) -> Tensor:
    """`together` neighbouring sequences as one, in which each sees itself alone."""
    batch, heads, tokens, width = query.shape
    shape = (batch // together, together * tokens, heads, width)
    long = [part.transpose(1, 2).reshape(shape).transpose(1, 2) for part in (query, key, value)]
    mask = _apart(tokens, together, query.dtype)
    query, key, value = long
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).reshape(batch, tokens, heads, width).transpose(1, 2)


@lru_cache(maxsize=32)
def _apart(tokens: int, together: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores so that none of `together` sequences sees another, (n, n)."""
    with torch.inference_mode(False), _disable_current_modes():
        number = torch.arange(tokens * together) // tokens
        return torch.zeros(len(number), len(number), dtype=dtype).masked_fill(number[:, None] != number, -torch.inf)


class _FeedForward(GEGLU):
    """Gated unit: x W_h * gelu(x W_g), tokens (..., c) -> (..., 4 c)."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = _weights(self.proj)
        if weights is None or weights[1] is None:
            return super().forward(hidden_states, *args, **kwargs)
        (wide, gate), (wide_bias, gate_bias) = (tensor.chunk(2) for tensor in weights)  # type: ignore[union-attr]
        gated = functional.gelu(functional.linear(hidden_states, gate, gate_bias))
        return functional.linear(hidden_states, wide, wide_bias) * gated


class _Block(BasicTransformerBlock):
    """Attention, attention, feed-forward, each beside its residual; (b, tokens, c) -> the same."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        if attention_mask is not None or encoder_attention_mask is not None or cross_attention_kwargs:
            stock: Any = super().forward
            return stock(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, class_labels, added_cond_kwargs,
            )  # fmt: skip
        # What a product returns is nobody else's and no gradient needs it: the residual is added in its place.
        first = self.attn1(self._normed(self.norm1, hidden_states))
        hidden_states = first.add_(hidden_states)
        second = self.attn2(self._normed(self.norm2, hidden_states), encoder_hidden_states)
        hidden_states = second.add_(hidden_states)
        return self._fed(self.norm3(hidden_states)).add_(hidden_states)

    def _normed(self, norm: nn.Module, hidden: Tensor) -> Tensor:
        normed: Tensor = norm(hidden)
        return normed if self.pos_embed is None else self.pos_embed(normed)

    def _fed(self, hidden: Tensor) -> Tensor:
        size: Any = self._chunk_size
        if size is not None:
            pieces = hidden.split(size, self._chunk_dim)
            return torch.cat([self._fed_piece(piece) for piece in pieces], self._chunk_dim)
        return self._fed_piece(hidden)

    def _fed_piece(self, hidden: Tensor) -> Tensor:
        return _linear(self.ff.net[2], self.ff.net[0](hidden))


class _SpatialTransformer(Transformer2DModel):
    """Frames one by one, (b * f, c, h, w); with channels last its tokens are the frames as they are."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        unusual = attention_mask is not None or encoder_attention_mask is not None or cross_attention_kwargs
        if unusual or return_dict or not _channels_last(hidden_states):
            stock: Any = super().forward
            return stock(
                hidden_states, encoder_hidden_states, timestep, added_cond_kwargs, class_labels,
                cross_attention_kwargs, attention_mask, encoder_attention_mask, return_dict,
            )  # fmt: skip
        _, _, height, width = hidden_states.shape
        tokens = self._read(self.norm(hidden_states))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        if self.use_linear_projection:
            return (_places(_linear(self.proj_out, tokens), height, width).add_(hidden_states),)
        return (self.proj_out(_places(tokens, height, width)) + hidden_states,)

    def _read(self, normed: Tensor) -> Tensor:
        if self.use_linear_projection:
            return _linear(self.proj_in, _tokens(normed))
        return _tokens(self.proj_in(normed))


class _TemporalTransformer(TransformerTemporalModel):
    """Every place over its frames, (b * f, c, h, w) -> the same."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        if cross_attention_kwargs or return_dict or not _channels_last(hidden_states):
            stock: Any = super().forward
            return stock(
                hidden_states, encoder_hidden_states, timestep, class_labels, num_frames, cross_attention_kwargs,
                return_dict,
            )  # fmt: skip
        _, _, height, width = hidden_states.shape
        # Statistics of all frames of a clip together.
        plane = self.norm(_plane(hidden_states, num_frames, width))
        # (b, c, f * h, w) -> (b * h * w, f, c)
        tokens = plane.permute(0, 2, 3, 1).unflatten(1, (num_frames, height)).flatten(2, 3).transpose(1, 2)
        tokens = _linear(self.proj_in, tokens.flatten(0, 1))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        tokens = _linear(self.proj_out, tokens).unflatten(0, (-1, height * width)).transpose(1, 2)
        return (_places(tokens.flatten(0, 1), height, width).add_(hidden_states),)


class _TemporalConvolution(TemporalConvLayer):
    """Four convolutions over frames beside a residual, (b * f, c, h, w) -> the same."""

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        blocks = _blocks(self)
        kernels = [_weights(block[-1]) for block in blocks]
        if self.training or not _channels_last(hidden_states) or None in kernels:
            return super().forward(hidden_states, num_frames)
        _, _, height, width = hidden_states.shape
        plane = _plane(hidden_states, num_frames, 1)
        for block, (weight, bias) in zip(blocks, kernels, strict=True):  # type: ignore[misc]
            rows = _tokens(functional.silu(block[0](plane)))
            kernel = weight.reshape(len(weight), -1, 3).permute(2, 0, 1).contiguous()
            plane = _places(_products_over_frames(rows, kernel, bias, height * width), rows.shape[1], 1)
        made = _tokens(plane).unflatten(1, (num_frames, height, width)).flatten(0, 1)
        return made.permute(0, 3, 1, 2) + hidden_states


class _FrameProducts(torch.autograd.Function):
    """A convolution over frames, padded with zeros: rows (b, f * n, c) of n places, kernel (3, out, in)."""

    @staticmethod
    def forward(context: Any, rows: Tensor, kernel: Tensor, bias: Tensor, places: int) -> Tensor:
        context.save_for_backward(rows, kernel)
        context.places = places
        before, same, after = (matrix.t() for matrix in kernel)
        out = torch.addmm(bias, rows.flatten(0, 1), same).view(*rows.shape[:2], -1)
        _add_product(out[:, places:], rows[:, :-places], before)
        _add_product(out[:, :-places], rows[:, places:], after)
        return out

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, kernel = context.saved_tensors
        places, (for_rows, for_kernel, for_bias, _) = context.places, context.needs_input_grad
        grad = grad.contiguous()
        to_rows = to_kernel = None
        if for_rows:
            to_rows = torch.mm(grad.flatten(0, 1), kernel[1]).view(rows.shape)
            _add_product(to_rows[:, :-places], grad[:, places:], kernel[0])
            _add_product(to_rows[:, places:], grad[:, :-places], kernel[2])
        if for_kernel:
            pairs = (grad[:, places:], rows[:, :-places]), (grad, rows), (grad[:, :-places], rows[:, places:])
            to_kernel = torch.stack([torch.bmm(one.transpose(1, 2), two).sum(0) for one, two in pairs])
        return to_rows, to_kernel, grad.sum((0, 1)) if for_bias else None, None


_products_over_frames: Any = _FrameProducts.apply


def _add_product(into: Tensor, rows: Tensor, matrix: Tensor) -> None:
    """into (b, m, out) += rows (b, m, in) @ matrix, without a copy of either."""
    if len(rows) == 1:
        into[0].addmm_(rows[0], matrix)
    else:
        into.baddbmm_(rows, matrix.expand(len(rows), -1, -1))


class _ResidualBlock(ResnetBlock2D):
    """Two convolutions of each frame beside a residual, (b * f, c, h, w)."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.training or temb is None:
            return super().forward(input_tensor, temb, *args, **kwargs)  # type: ignore[arg-type]
        if input_tensor.device.type == "cpu":
            # Upsampling of many frames hands on its channels first.
            input_tensor = input_tensor.contiguous(memory_format=torch.channels_last)
        hidden = self.conv1(functional.silu(self.norm1(input_tensor)))
        # The product is by row: added in place it is the last use of the convolution's output.
        hidden = hidden.add_(self.time_emb_proj(functional.silu(temb))[:, :, None, None])
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        kept = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return hidden.add_(kept)


class _Convolution(nn.Conv2d):
    """A convolution that hands its channels on last, on CPUs; a frozen small weight is laid out so once."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or self.padding_mode != "zeros":
            return super().forward(input)
        input = input.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(input, self._laid_out(), self.bias)

    def _laid_out(self) -> Tensor:
        weight = self.weight
        if weight.requires_grad or weight.numel() > SMALL or self.kernel_size == (1, 1):
            return weight
        of, version, made = self.__dict__.get(LAID_OUT, (None, 0, weight))
        if of is not weight or version != weight._version:
            # For whoever comes after one who only counts, too.
            with _disable_current_modes():
                made = weight.detach().contiguous(memory_format=torch.channels_last)
            self.__dict__[LAID_OUT] = weight, weight._version, made
        return made


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    Attention: _Attention,
    GEGLU: _FeedForward,
    BasicTransformerBlock: _Block,
    Transformer2DModel: _SpatialTransformer,
    TransformerTemporalModel: _TemporalTransformer,
    TemporalConvLayer: _TemporalConvolution,
    ResnetBlock2D: _ResidualBlock,
    nn.Conv2d: _Convolution,
}


def _is_plain(module: Any) -> bool:
    """Whether a module is the common case of its class, the only one that is written again here."""
    kind: Any = type(module)
    if issubclass(kind, Attention):
        extras = (module.group_norm, module.spatial_norm, module.norm_q, module.norm_k, module.norm_cross)
        scaled = module.rescale_output_factor != 1.0 or module.residual_connection
        dropped = module.training and module.to_out[1].p > 0
        processor: Any = type(module.processor)
        return processor is AttnProcessor2_0 and not any(extras) and not scaled and not dropped
    if issubclass(kind, BasicTransformerBlock):
        gated = type(module.ff.net[0]) in (GEGLU, _FeedForward) and module.ff.net[1].p == 0
        return (
            module.norm_type == "layer_norm" and module.attn2 is not None and gated and not module.only_cross_attention
        )
    if issubclass(kind, Transformer2DModel):
        return bool(module.is_input_continuous)
    if issubclass(kind, ResnetBlock2D):
        stays = module.upsample is None and module.downsample is None
        usual = module.time_embedding_norm == "default" and not module.skip_time_act
        silu = isinstance(module.nonlinearity, nn.SiLU) and module.time_emb_proj is not None
        return stays and usual and silu and module.output_scale_factor == 1.0
    return True


def _blocks(convolution: Any) -> tuple[nn.Sequential, ...]:
    return convolution.conv1, convolution.conv2, convolution.conv3, convolution.conv4


def _channels_last(hidden: Tensor) -> bool:
    return hidden.is_contiguous(memory_format=torch.channels_last)


def _tokens(places: Tensor) -> Tensor:
    """(b, c, h, w), channels last -> (b, h * w, c), the same memory."""
    return places.permute(0, 2, 3, 1).flatten(1, 2)


def _places(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `_tokens`."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _plane(hidden: Tensor, num_frames: int, width: int) -> Tensor:
    """(b * f, c, h, w), channels last -> (b, c, f * h * w / width, width), the same memory."""
    _, channels, height, wide = hidden.shape
    rows = num_frames * height * wide // width
    return hidden.permute(0, 2, 3, 1).reshape(-1, rows, width, channels).permute(0, 3, 1, 2)
