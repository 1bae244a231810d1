"""Whether a LoRA fits a network: every module there, every change of the weight's shape, made on this base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from ..core.errors import LoRAFileError, ModelError
from ..core.lora import LoRA, LoRALayer
from ..core.metadata import OWN
from ..core.stack import title_of

if TYPE_CHECKING:
    from ..core.identity import BaseIdentity

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


def check_modules(unet: nn.Module, lora: LoRA) -> None:
    """Raise LoRAFileError unless `unet` has every module that `lora` changes, with a weight of that shape."""
    if not lora.layers:
        raise LoRAFileError("The LoRA has no layers: it would change nothing.")
    for module, layer in lora.layers.items():
        try:
            weight = weight_of(find_module(unet, module))
        except ModelError as error:
            raise LoRAFileError(f"The LoRA is of another kind of network: {error}") from error
        here, there = tuple(weight.shape), delta_shape(layer)
        if here != there or layer.up.shape[1] != layer.rank:
            raise LoRAFileError(
                f"The LoRA changes a weight {there} at {module}, where this base has {here}: it is for another base."
            )


def find_module(unet: nn.Module, module: str) -> nn.Module:
    """The network's own module of that name, under its adapters."""
    try:
        found = unet.get_submodule(module)
    except AttributeError as error:
        raise ModelError(f"The network has no module {module}.") from error
    return found.get_base_layer() if isinstance(found, LoraLayer) else found


def weight_of(module: nn.Module) -> Tensor:
    """The weight that a LoRA would change; raises ModelError for a kind of module that takes none."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)) or not isinstance(weight, Tensor):
        raise ModelError(f"a {type(module).__name__} takes no LoRA.")
    if getattr(module, "groups", 1) != 1:
        raise ModelError("a grouped convolution takes no LoRA.")
    return weight


def max_rank(weight: Tensor) -> int:
    """The rank beyond which a LoRA of this weight (out, in, *kernel) gains nothing: min(out, in * kernel)."""
    return min(int(weight.shape[0]), weight[0].numel())


def delta_shape(layer: LoRALayer) -> tuple[int, ...]:
    """The shape of the change, which is that of the module's weight."""
    return (int(layer.up.shape[0]), *(int(size) for size in layer.down.shape[1:]))


@dataclass(frozen=True)
class Fit:
    """How a LoRA fits a network: all layers, or it would have been refused; `warnings` are for the user's eyes."""

    matched: int
    total: int
    warnings: tuple[str, ...] = ()


def check_fits(lora: LoRA, unet: nn.Module, identity: BaseIdentity | None = None, *, strict: bool = False) -> Fit:
    """Check names and shapes of every layer against a network, and the base it was made on against `identity`.

    A LoRA works on every base of one architecture, but says of its own base what its numbers belong to: another base
    is a warning, with `strict` an error. Raises LoRAFileError when any layer has no place or another shape.
    """
    require_fit(unet, lora)
    warning = base_warning(lora.metadata, identity)
    if warning and strict:
        raise LoRAFileError(f"{warning}: load that base, or allow another one")
    return Fit(len(lora), len(lora), (warning,) if warning else ())


def base_warning(metadata: Mapping[str, str], identity: BaseIdentity | None) -> str:
    """One sentence if the LoRA was made on another base than `identity`; empty if on the same, or if nobody knows."""
    made_on, weights = metadata.get(f"{OWN}base_name", ""), metadata.get(f"{OWN}base_weights_hash", "")
    if identity is None or not weights or weights == identity.weights_hash:
        return ""
    bases = f"{' '.join(made_on.split())[:80] or 'another base'}, not on {identity.name}"
    return f"{title_of(metadata)} was made on {bases}; its effect may be weaker or off"


def require_fit(network: nn.Module, lora: LoRA, name: str = "") -> None:
    """Raise LoRAFileError unless the LoRA has layers, every module exists and every change has the weight's shape."""
    label = name or title_of(lora.metadata)
    if not lora.layers:
        raise LoRAFileError(f"{label} holds no layers: there is nothing to apply")
    weights = weights_of(network)
    absent = [module for module in lora if module not in weights]
    if absent:
        raise LoRAFileError(
            f"{label} matches {len(lora) - len(absent)} of {len(lora)} layers; the base has no {_some(absent)}: "
            "it was made for another network"
        )
    wrong = [_mismatch(module, lora.layers[module], weights[module]) for module in lora]
    named = [text for text in wrong if text]
    if named:
        raise LoRAFileError(
            f"{label}: {len(named)} of {len(lora)} layers have other sizes than the base: {_some(named)}: "
            "it was made for another network"
        )


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every weight of a network that a stack can change, by module name."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return {name: module.weight for name, module in network.named_modules() if isinstance(module, kinds)}


def _mismatch(module: str, layer: LoRALayer, weight: Tensor) -> str:
    """Empty where the layer's change has the weight's shape and its two factors belong together."""
    up, down = tuple(layer.up.shape), tuple(layer.down.shape)
    ones = (1,) * (len(down) - 2)
    if len(down) >= 2 and up[1:] == (down[0], *ones) and (up[0], *down[1:]) == tuple(weight.shape):
        return ""
    return f"{module} (up {up} and down {down} for a weight {tuple(weight.shape)})"


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
