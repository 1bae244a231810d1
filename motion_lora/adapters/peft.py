"""Adapters on a network: the one door to PEFT, which is imported nowhere else.

An adapter is a set of low-rank factors under one name, hosted by the modules it changes. Factors are kept in fp32
whatever the network runs in, and are cast where they are used: a rank's worth of numbers, while PEFT's own way casts
the activations up and autocast casts every frozen weight again in each pass. Adapters are put on replicas only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.registry import of_network
from ..core.errors import ModelError, SettingsError
from ..core.lora import LoRA, LoRALayer
from .broken import shield_peft
from .fit import CONVOLUTIONS, check_modules, find_module, max_rank, weight_of
from .packing import PACKING, Packing

_Product = Callable[[Tensor, Tensor], Tensor]
_LOW = 0xFFFFFFFF


class _Factor(nn.Module):
    """One of the two factors: an fp32 weight that is applied in the dtype of its input, then dropout.

    Dropout draws from a generator of its own: recomputing a checkpointed layer drops the same numbers, and the host's
    global random state is neither used nor changed. A compiled network, which cannot seed a generator within its graph,
    takes a hash of the place and of the seed as a tensor: other numbers of the same kind, and no new graph for a seed.
    """

    def __init__(self, weight: Tensor, product: _Product, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.product = product
        self.scale = scale
        self.dropout = dropout
        self.seed = 0
        self.seed_tensor = torch.zeros((), dtype=torch.int64, device=weight.device)

    def forward(self, hidden: Tensor) -> Tensor:
        output = self.product(hidden, self.weight.to(hidden.dtype))
        return self._drop(output) if self.dropout and self.training else output

    def _drop(self, output: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return output * (hashed(output, self.seed_tensor) >= self.dropout) / (1 - self.dropout)
        generator = torch.Generator(output.device).manual_seed(self.seed)
        kept = torch.empty_like(output).bernoulli_(1 - self.dropout, generator=generator)
        return output * kept / (1 - self.dropout)


class Adapter:
    """Handle on one adapter of one network.

    It keeps the list of its layers, so that switching the adapter in the middle of a step walks no module tree.
    """

    def __init__(self, unet: nn.Module, name: str) -> None:
        """Raises SettingsError when `unet` has no adapter of that name."""
        self.name = name
        self.seeded_tensors = False
        """Whether `seed_dropout` keeps the seeds as tensors too, which a compiled network reads."""
        self._network = unet
        self._hosts = {module: host for module, host in _hosts(unet) if name in host.lora_A}
        if not self._hosts:
            there = ", ".join(adapter_names(unet)) or "none"
            raise SettingsError(f"The network has no adapter named {name!r}; it has: {there}.")
        self.parameters: dict[str, nn.Parameter] = {
            f"{module}.{part}": factor.weight
            for module, host in self._hosts.items()
            for part, factor in zip(("down", "up"), self._factors(host), strict=True)
        }

    def _factors(self, host: LoraLayer) -> tuple[_Factor, _Factor]:
        return _factors(host, self.name)

    @property
    def strength(self) -> float:
        """The strength that was set last; 1 after the adapter was added."""
        host = next(iter(self._hosts.values()))
        scale = self._factors(host)[1].scale
        return float(host.scaling[self.name] / scale) if scale else 0.0

    def set_strength(self, value: float) -> None:
        """Multiply the adapter's change by `value`; at 0 its layers are skipped: the network is exactly without it."""
        for host in self._hosts.values():
            host.scaling[self.name] = value * self._factors(host)[1].scale
            _activate(host)
        _packing(self._network).changed()

    def set_trainable(self, trainable: bool) -> None:
        """Whether gradients flow into the factors. Dropout is on only while they do."""
        for host in self._hosts.values():
            for factor in self._factors(host):
                factor.weight.requires_grad_(trainable)
                factor.train(trainable)
        _packing(self._network).changed()

    def seed_dropout(self, seed: int) -> None:
        """Choose what the next forward passes drop, differently in each layer; backward passes belong to them."""
        for index, host in enumerate(self._hosts.values()):
            # Knuth's multiplier keeps neighbouring layers, and neighbouring seeds, apart.
            self._factors(host)[1].seed = (seed + index * 2_654_435_761) % 2**63
        if self.seeded_tensors:
            for host in self._hosts.values():
                up = self._factors(host)[1]
                up.seed_tensor.fill_(up.seed)

    def read(self) -> LoRA:
        """The factors as a value: fp32 copies on the CPU at full strength, whatever strength is set."""
        layers = {}
        for module, host in self._hosts.items():
            down, up = self._factors(host)
            layers[module] = LoRALayer(_copy(down.weight), _copy(up.weight), up.scale)
        return LoRA(layers, backbone=of_network(self._network).name)


def hashed(like: Tensor, seed: Tensor) -> Tensor:
    """Numbers in [0, 1) of the shape of `like`, fp32, from a hash of place and seed (a scalar, int64).

    Two rounds of a 32-bit mixer of multiplications and shifts (Wellons's "lowbias32"), in 64-bit integers.
    """
    place = torch.arange(like.numel(), device=like.device).view(like.shape)
    mixed = _mixed(place ^ (seed & _LOW))
    return _mixed(mixed ^ (seed >> 32 & _LOW)).float() / 2.0**32


def _mixed(number: Tensor) -> Tensor:
    number = (number ^ (number >> 16)) * 0x7FEB352D & _LOW
    number = (number ^ (number >> 15)) * 0x846CA68B & _LOW
    return number ^ (number >> 16)


@torch.no_grad()
def sum_to_zero(down: Tensor) -> None:
    """Take the mean over time from kernels over frames, down (r, in, k, ...), in place; other factors stay."""
    if down.ndim == 5:
        down -= down.mean(dim=2, keepdim=True)


def add_adapter(
    unet: nn.Module,
    name: str,
    modules: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    zero_sum: bool = False,
    seed: int,
) -> None:
    """Add an adapter that changes nothing yet: up is 0, down ~ N(0, 1/rank) (the reference codes' initialisation).

    `alpha` multiplies the product directly, delta = alpha * up @ down (Customize-A-Video Eq. 2); PEFT's and kohya's
    lora_alpha would be alpha * rank. `dropout` acts on the adapter's output, as in MotionDirector's code, and not on
    its input as in PEFT. The factors are fp32, on the device of the module, frozen until `Adapter.set_trainable`.
    `zero_sum`: kernels over frames begin as `sum_to_zero` leaves them; whoever trains them keeps them so.
    Of a convolution down (rank, in, *kernel) is a convolution of its kind and up (out, rank, 1, ...) a pointwise one.
    Raises ModelError when `unet` lacks a module or it takes no LoRA, SettingsError for a rank that does not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoRALayer] = {}
    for module in modules:
        weight = _weight(unet, module)
        limit = max_rank(weight)
        if not 1 <= rank <= limit:
            raise SettingsError(f"rank is {rank}; {module} takes 1 to {limit}.")
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / rank
        if zero_sum:
            sum_to_zero(down)
        ones = (1,) * (weight.ndim - 2)
        layers[module] = LoRALayer(down, torch.zeros(weight.shape[0], rank, *ones), alpha)
    _install(unet, name, layers, dropout)


def load_adapter(unet: nn.Module, name: str, lora: LoRA, *, trainable: bool = False) -> None:
    """Add `lora` as an adapter at strength 1. Raises LoRAFileError for a module or a shape that does not fit."""
    check_modules(unet, lora)
    _install(unet, name, lora.layers, 0.0)
    Adapter(unet, name).set_trainable(trainable)


def adapter_names(unet: nn.Module) -> tuple[str, ...]:
    """Names of all adapters on `unet`, sorted."""
    return tuple(sorted({name for _, host in _hosts(unet) for name in host.lora_A}))


def set_strength(unet: nn.Module, name: str, value: float) -> None:
    """Set an adapter's strength, see `Adapter.set_strength`."""
    Adapter(unet, name).set_strength(value)


def _hosts(unet: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((module, host) for module, host in unet.named_modules() if isinstance(host, LoraLayer))


def _weight(unet: nn.Module, module: str) -> Tensor:
    found = find_module(unet, module)
    try:
        return weight_of(found)
    except ModelError as error:
        raise ModelError(f"{module} cannot be adapted: {error}") from error


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32, copy=True)


def _install(unet: nn.Module, name: str, layers: Mapping[str, LoRALayer], dropout: float) -> None:
    """Let PEFT make the hosts, then give them factors of any rank of our own."""
    # PEFT keeps adapters as children of a ModuleDict, whose own attributes are no free names.
    if "." in name or hasattr(nn.ModuleDict, name) or name in adapter_names(unet):
        raise SettingsError(f"adapter name is {name!r}; it must be new on this network, without dots, no torch name.")
    shield_peft()
    config = LoraConfig(r=1, lora_alpha=1, target_modules=list(layers), init_lora_weights=False)
    # On the meta device: without memory, as the factors are replaced, and without drawing from the host's random state.
    # PEFT's own way to it, low_cpu_mem_usage, does that to whatever module any thread of the host is building.
    with _keep_trainable(list(unet.parameters())), torch.device("meta"):
        inject_adapter_in_model(config, unet, adapter_name=name)
    # PEFT's note that the network has an adapter; it would warn about it when the next one is added.
    unet.__dict__.pop("peft_config", None)
    for module, host in _hosts(unet):
        if module in layers:
            _fill(host, name, layers[module], dropout)
        _activate(host)
    _packing(unet).changed()


def merge_adapters(unet: nn.Module, enabled: bool) -> None:
    """Whether small adapters are merged before each forward pass (see `packing`), as they are at first, or run beside
    their modules, as a compiler has to see them."""
    packing = _packing(unet)
    packing.changed()
    packing.enabled = enabled


def _packing(unet: nn.Module) -> Packing:
    """The one of that network, made and hooked in when it is first asked for."""
    packing = unet.__dict__.get(PACKING)
    if packing is None:
        packing = unet.__dict__[PACKING] = Packing(_factors)
        unet.register_forward_pre_hook(packing)
    return packing


def _factors(host: LoraLayer, name: str) -> tuple[_Factor, _Factor]:
    down, up = host.lora_A[name], host.lora_B[name]
    assert isinstance(down, _Factor) and isinstance(up, _Factor)
    return down, up


def _fill(host: LoraLayer, name: str, layer: LoRALayer, dropout: float) -> None:
    base = host.get_base_layer()
    down, up = _products(base)
    device = weight_of(base).device
    host.lora_A[name] = _Factor(layer.down.to(device, torch.float32, copy=True), down, layer.scale).eval()
    host.lora_B[name] = _Factor(layer.up.to(device, torch.float32, copy=True), up, layer.scale, dropout).eval()
    host.r[name] = layer.rank
    host.lora_alpha[name] = layer.scale * layer.rank
    host.scaling[name] = layer.scale
    # The factors cast themselves; PEFT would copy the activations into the factors' fp32.
    host.cast_input_dtype_enabled = False


def _products(base: nn.Module) -> tuple[_Product, _Product]:
    """How the down and the up factor of a module are applied: for a convolution, down does the moving."""
    for kind, convolution in CONVOLUTIONS.items():
        if isinstance(base, kind):
            moving = functools.partial(convolution, stride=base.stride, padding=base.padding, dilation=base.dilation)
            return moving, convolution
    return functional.linear, functional.linear


def _activate(host: LoraLayer) -> None:
    """Let the host run the adapters whose strength is not 0, and only those."""
    active = [name for name in host.lora_A if host.scaling[name] != 0.0]
    if active == list(host.active_adapters):
        return
    weights = [weight for factors in (host.lora_A, host.lora_B) for weight in factors.parameters()]
    with _keep_trainable(weights):
        host.set_adapter(active)


@contextmanager
def _keep_trainable(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """PEFT decides what trains whenever it adds or activates an adapter; here `set_trainable` alone decides."""
    flags = [(weight, weight.requires_grad) for weight in weights]
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
