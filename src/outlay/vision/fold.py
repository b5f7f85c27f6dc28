"""Batch normalisation folded into the convolutions before it, in any network in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from outlay.errors import FailureError

TOLERANCE = 1e-3  # of the greatest output: far above rounding, far below what a wrong fold does


def fold(module: nn.Module, *inputs: Any) -> nn.Module:
    """Returns a copy for inference, in which no batch normalisation is left behind a convolution.

    A convolution is folded if it is called once and a normalisation is all that reads what it writes; which ones these
    are is found by one call. The new weights are computed in double precision.

    Args:
        module: the network, which is not changed.
        inputs: what it may be called with; they decide nothing but the shapes of the calls.

    Raises:
        FailureError: if the copy answers otherwise, since a convolution does more than its class says.
    """
    copied = copy.deepcopy(module).eval()
    pairs = _pairs(copied, inputs)
    for conv, norm in pairs:
        _fold_into(conv, norm)
    _drop(copied, [norm for _, norm in pairs])
    _check(module, copied, inputs)
    return copied


class _Readers(TorchFunctionMode):
    """Counts how many functions read each tensor; attributes such as its shape are no reading."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, int] = {}
        self._held: list[Tensor] = []  # so that no identity is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ("__get__", "size", "dim"):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self.of[id(value)] = self.of.get(id(value), 0) + 1
                    self._held.append(value)
        return func(*args, **(kwargs or {}))


def _pairs(module: nn.Module, inputs: Any) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Returns the convolutions and the normalisations that alone read their outputs."""
    wrote: list[tuple[nn.Conv2d, Tensor]] = []  # holds the tensors, so that no identity is used twice
    read: list[tuple[nn.BatchNorm2d, Tensor]] = []
    hooks = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and "weight" in part._parameters:
            hooks.append(part.register_forward_hook(lambda part, _, out: wrote.append((part, out))))
        elif type(part) is nn.BatchNorm2d and part.track_running_stats:
            hooks.append(part.register_forward_pre_hook(lambda part, given: read.append((part, given[0]))))
    readers = _Readers()
    with torch.no_grad(), readers:
        module(*inputs)
    for hook in hooks:
        hook.remove()
    writers = {id(out): conv for conv, out in wrote}
    calls = [id(part) for part, _ in [*wrote, *read]]
    return [
        (writers[id(given)], norm)
        for norm, given in read
        if id(given) in writers
        and readers.of.get(id(given)) == 1
        and calls.count(id(writers[id(given)])) == calls.count(id(norm)) == 1
    ]


def _fold_into(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            shift = shift * norm.weight.double() + norm.bias.double()
            scale = scale * norm.weight.double()
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype))


def _drop(module: nn.Module, norms: Sequence[nn.Module]) -> None:
    for parent in [*module.modules()]:
        for name, child in parent.named_children():
            if any(child is norm for norm in norms):
                setattr(parent, name, nn.Identity())


def _check(module: nn.Module, folded: nn.Module, inputs: Any) -> None:
    """Calls both on random values, and compares what they answer."""
    given = tree_map(lambda value: torch.rand(value.shape).to(value) if isinstance(value, Tensor) else value, inputs)
    training = module.training
    with torch.no_grad():
        outputs = [[*map(torch.Tensor.float, tree_leaves(net(*given)))] for net in (module.eval(), folded)]
    module.train(training)
    for before, after in zip(*outputs, strict=True):
        if not (after - before).abs().max() <= TOLERANCE * before.abs().max().clamp_min(1e-6):
            raise FailureError("folding changed the outputs: a convolution of this network is not a plain one")
