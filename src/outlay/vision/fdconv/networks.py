"""Networks whose convolutions adapt: made of any network, frozen to plain ones, and read again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.vision import networks
from outlay.vision.fdconv.layer import FDConv2d, FDLinear
from outlay.vision.fdconv.options import FDConv


@dataclass(frozen=True)
class Converted:
    """A layer that was converted, or why it was left."""

    name: str
    """The layer."""

    left: str = ""
    """Why it was left as it is; empty if it was converted."""

    added: int = 0
    """Parameters that it has more than before."""

    added_bytes: int = 0
    """Bytes that these take."""


def paper_layers(name: str, layer: nn.Module) -> bool:
    """The rule of the authors' code: more than 16 channels on both sides, kernels of 1x1 and 3x3; no linear layers."""
    return (
        isinstance(layer, nn.Conv2d)
        and min(layer.in_channels, layer.out_channels) > 16
        and layer.kernel_size in ((1, 1), (3, 3))
    )


def convert_fdconv(
    net: nn.Module, where: Callable[[str, nn.Module], bool] = paper_layers, how: FDConv | None = None
) -> tuple[nn.Module, list[Converted]]:
    """Returns a copy whose layers adapt, which computes what the network does until it is trained.

    Args:
        net: any network.
        where: says of a convolution or a linear layer, by its name and itself, whether to convert it.
        how: the method's options.

    Returns:
        the copy, and a line for each layer that `where` chose.
    """
    how = how or FDConv()
    made = copy.deepcopy(net)
    chosen = [
        (name, layer)
        for name, layer in made.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and where(name, layer)
    ]
    report = []
    for name, layer in chosen:
        left = _why_left(layer, how)
        if left:
            report.append(Converted(name, left))
            continue
        fresh = FDConv2d.of(layer, how)
        added = _parameters(fresh) - _parameters(layer)
        report.append(Converted(name, "", added, added * fresh.coefficients.element_size()))
        if not name:
            return fresh, report
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, fresh)
    return made, report


def _why_left(layer: nn.Conv2d | nn.Linear, how: FDConv) -> str:
    if isinstance(layer, nn.Linear):
        rows, columns = layer.out_features, layer.in_features
        return "" if type(layer) is nn.Linear else "a linear layer of its own kind"
    if layer.groups != 1:
        return f"{layer.groups} groups: its channels don't share a kernel"
    pointwise = layer.kernel_size == layer.stride == (1, 1)
    if type(layer) is not nn.Conv2d and not pointwise:
        return f"{type(layer).__name__} may pad in its own way"
    rows, columns = layer.out_channels * layer.kernel_size[0], layer.in_channels * layer.kernel_size[1]
    coefficients = int(rows * (columns // 2 + 1) * how.param_reduction)
    return f"{coefficients} coefficients, fewer than {how.groups} groups" if how.groups > coefficients else ""


def _parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def freeze_fdconv(net: nn.Module, *inputs: Any) -> nn.Module:
    """Returns a copy with plain convolutions, each for the average statistics of what it reads in one call.

    Args:
        net: a network with `FDConv2d` layers.
        inputs: what it is called with: pictures like those to come.
    """
    means: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, FDConv2d)}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: FDConv2d, given: tuple[Tensor]) -> None:
            x = given[0]
            means[name] = x.flatten(0, -2).mean(0) if isinstance(layer, FDLinear) else x.mean((0, 2, 3))

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    with torch.no_grad():
        net(*inputs)
    for hook in hooks:
        hook.remove()
    made = copy.deepcopy(net)
    for name, layer in layers.items():
        plain: nn.Module = layer.freeze(means[name])
        if isinstance(layer, FDLinear):
            plain = _linear(plain)
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, plain)
    return made


def _linear(conv: Any) -> nn.Linear:
    made = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None, conv.weight.device, conv.weight.dtype)
    made.weight, made.bias = nn.Parameter(conv.weight.flatten(1)), conv.bias
    return made


def rebuild(net: nn.Module, saved: Mapping[str, Any]) -> nn.Module:
    """Makes the layers of an adapted network again from what its folder says."""
    layers = set(saved["layers"])
    made, report = convert_fdconv(net, lambda name, _: name in layers, FDConv(**saved["options"]))
    if missing := layers - {line.name for line in report if not line.left}:
        raise UsageError(f"the folder was adapted at {', '.join(sorted(missing)[:4])}, which the network lacks")
    return made


networks.ADAPTERS["fdconv"] = rebuild
