"""Sparse training of any torch module: `sparsify` puts N:M masks on its weights and returns what steers them.

A layer stays what it is, with the same parameter; what reads its `weight` gets the masked one. Masks are made of the
dense weight at every forward pass, so that a pruned weight can come back.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from outlay.budget import Ledger
from outlay.errors import OutlayWarning, UsageError
from outlay.shrink.nm.packed import PackedNM, save_packed
from outlay.shrink.nm.pattern import nm_mask, to_groups
from outlay.shrink.nm.schedule import NMSparse, Schedule

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEED_FORWARD = (
    r"(gate|up|down|gate_up)_proj|fc_?[12]|c_fc|w[123]|wi(_[01])?|wo|linear_?[12]|lin[12]|dense_h_to_4h|dense_4h_to_h"
    r"|ff_proj|ff_out|up|down|gate|ffn?_(in|out|up|down|gate)"
)
_MLP = r"(mlp|ffn?|feed_forward|feedforward)"
_Q = r"(.*\.)?(q|query|wq|q_proj|q_lin|to_q|query_proj)"
_K = r"(.*\.)?(k|key|wk|k_proj|k_lin|to_k|key_proj)"
_V = r"(.*\.)?(v|value|wv|v_proj|v_lin|to_v|value_proj)"
PLACES = {
    "ff": rf"(.*\.)?{_MLP}\..*|(.*\.)?({_FEED_FORWARD})|(.*\.)?(intermediate|(?<!attention\.)output)\.dense",
    "q": _Q,
    "k": _K,
    "v": _V,
    "qk": f"{_Q}|{_K}",
    "qkv": rf"{_Q}|{_K}|{_V}|(.*\.)?(qkv|qkv_proj|c_attn|in_proj)",
    "conv": r".*",
    "all": r".*",
}
"""Patterns of the names of layers, by what a user calls the place."""
TRAINING_PASSES = 3  # a forward pass and the two products of a backward pass


class _MaskedWeight(torch.autograd.Function):
    """W (m + (1 - m) beta), with the gradient of a recipe."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, beta: float, decay: float, scaled: bool) -> Tensor:
        ctx.save_for_backward(mask, weight if decay else None)
        ctx.beta, ctx.decay, ctx.scaled = beta, decay, scaled
        return torch.where(mask, weight, beta * weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        mask, weight = ctx.saved_tensors
        if ctx.scaled:
            grad = torch.where(mask, grad, ctx.beta * grad)
        if ctx.decay:
            grad = torch.where(mask, grad, grad + ctx.decay * weight)
        return grad, None, None, None, None


def masked_weight(weight: Tensor, mask: Tensor, beta: float, *, decay: float = 0.0, scaled: bool = False) -> Tensor:
    """Returns W (m + (1 - m) beta), whose gradient reaches the dense weight as the recipe says.

    With g the gradient of the result, the weight's is g, or with `scaled` g (m + (1 - m) beta); SR-STE adds
    decay (1 - m) W.

    Args:
        weight: [out, in, ...], dense.
        mask: bool, of the same shape.
        beta: Value of the mask on pruned weights.
        decay: SR-STE's lambda.
        scaled: Whether the gradient of pruned weights is scaled by beta.
    """
    masked: Tensor = _MaskedWeight.apply(weight, mask, beta, decay, scaled)
    return masked


class _Clock:
    """The step that all layers of a training are at."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps, self.step, self.is_set = total_steps, 0, False
        self.passes, self.as_trained = 0, False


class _Masked(nn.Module):
    """Stands between a layer and its dense weight."""

    mask: Tensor | None

    def __init__(self, schedule: Schedule, clock: _Clock) -> None:
        super().__init__()
        self.schedule, self.clock = schedule, clock
        self.register_buffer("mask", None, persistent=False)  # found again in the weights, see `freeze_mask`

    def forward(self, weight: Tensor) -> Tensor:
        options, step = self.schedule.options, self.clock.step
        if options.recipe == "dense" or options.n == options.m:
            return weight
        if self.mask is not None:
            return masked_weight(weight, self.mask, 0.0, scaled=True)
        if not (self.training or self.clock.as_trained):
            return masked_weight(weight, nm_mask(weight.detach(), options.pattern, options.dim), 0.0)
        beta = self.schedule.beta(step)
        if beta == 1.0:
            return weight
        mask = nm_mask(weight.detach(), self.schedule.pattern(step), options.dim)
        decay = options.decay if options.recipe == "srste" else 0.0
        return masked_weight(weight, mask, beta, decay=decay, scaled=options.backward == "scaled")


@dataclass(frozen=True)
class SparseLayer:
    """A layer of a module in sparse training."""

    name: str
    """Its name in the module."""
    module: nn.Module
    """The layer."""
    weight: nn.Parameter
    """Its dense weight, the parameter that is trained."""
    schedule: Schedule
    """What is done at each step."""

    @property
    def options(self) -> NMSparse:
        """The recipe."""
        return self.schedule.options

    @property
    def masked(self) -> _Masked:
        """What stands between the layer and its weight."""
        found = self.module.parametrizations["weight"][0]  # type: ignore[index]
        assert isinstance(found, _Masked)
        return found


class Sparsified:
    """Steers a module in sparse training.

    In training mode the module computes with what the recipe makes of its weights at the present step; in evaluation
    mode always with the final binary mask, as `export` will write it.
    """

    def __init__(self, module: nn.Module, layers: Sequence[SparseLayer], clock: _Clock) -> None:
        """Takes over layers that `sparsify` prepared."""
        self.module, self.layers, self._clock = module, tuple(layers), clock
        self._flops = 0.0
        self._counters = {layer.name: layer.module.register_forward_hook(self._count) for layer in layers}
        self._watcher = module.register_forward_pre_hook(self._watch)

    @property
    def step(self) -> int:
        """The present step."""
        return self._clock.step

    def set_step(self, step: int) -> None:
        """Tells all layers the optimizer step that comes next; call it once before each, from 0 on.

        Raises:
            UsageError: It is before the present step, or beyond the last.
        """
        clock = self._clock
        if not clock.step <= step < clock.total_steps:
            raise UsageError(f"step {step} must be from {clock.step}, the present one, to {clock.total_steps - 1}")
        clock.step, clock.is_set = step, True
        for layer in self.layers:
            if layer.masked.mask is not None:
                _keep(layer)

    def freeze_mask(self) -> None:
        """Fixes the mask as it is now in its final pattern: pruned weights become 0 and stay so.

        A checkpoint of the dense weights then holds the mask too: frozen after loading, it is the same.
        """
        for layer in self.layers:
            if layer.options.recipe != "dense":
                layer.masked.mask = nm_mask(layer.weight.detach(), layer.options.pattern, layer.options.dim)
                _keep(layer)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Lets evaluation compute as training does at the present step: with its decayed mask, its stage's pattern."""
        self._clock.as_trained = True
        try:
            yield
        finally:
            self._clock.as_trained = False

    def weights(self) -> dict[str, Tensor]:
        """Returns the final weights of the sparse layers by name, each N:M in all of its groups."""
        return {layer.name: _final(layer) for layer in self.layers}

    def packed(self) -> dict[str, PackedNM]:
        """Returns the final weights of the sparse layers by name, packed.

        Raises:
            UsageError: Groups lie along output channels, which no kernel reads.
        """
        return {layer.name: _packed(layer) for layer in self.layers if layer.options.recipe != "dense"}

    def export(self) -> nn.Module:
        """Returns a copy of the module in evaluation mode, of plain layers with the final weights."""
        held = copy.deepcopy(self.module)
        del held._forward_pre_hooks[self._watcher.id]
        for layer in self.layers:
            plain = held.get_submodule(layer.name)
            del plain._forward_hooks[self._counters[layer.name].id]
            _replace_by_plain(plain, _final(layer))
        return held.eval()

    def save(self, path: Path) -> None:
        """Writes the exported module's tensors to a safetensors file, those of sparse layers packed."""
        tensors: dict[str, Tensor | PackedNM] = dict(self.export().state_dict())
        for name, packed in self.packed().items():
            tensors[f"{name}.weight"] = packed
        save_packed(path, tensors)

    def ledger(self) -> Ledger:
        """Returns what the sparse layers spent on training so far.

        A multiply-add is 2 FLOPs and a step is a forward pass and two such products backwards: 6 x multiply-adds x
        density. Weights count while they aren't zero, so a decaying mask counts as dense. What checkpointing computes
        again is not counted.
        """
        return Ledger(flops=round(self._flops))

    def _count(self, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if not (layer.training and torch.is_grad_enabled()) or _in_backward():
            return
        sparse = next(each for each in self.layers if each.module is layer)
        channels = sparse.weight.shape[0]
        macs = out.numel() // channels * sparse.weight.numel()
        density = (
            sparse.options.pattern.density if sparse.masked.mask is not None else sparse.schedule.density(self.step)
        )
        self._flops += 2 * TRAINING_PASSES * macs * density

    def _watch(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        clock = self._clock
        if not module.training or clock.is_set or not torch.is_grad_enabled():
            return
        clock.passes += 1
        if clock.passes > 1:
            raise UsageError("the second pass of a training without a step: call set_step(step) before each step")


def sparsify(module: nn.Module, options: NMSparse | Sequence[NMSparse], total_steps: int) -> Sparsified:
    """Prepares a module for sparse training: linear layers and convolutions that `where` names are masked.

    ```python
    handle = sparsify(model, NMSparse(1, 16, recipe="mdgf-exp"), total_steps=2000)
    for step, batch in enumerate(data):
        handle.set_step(step)
        loss(model, batch).backward()
        ...
    sparse = handle.export()
    ```

    Args:
        module: Any module; its parameters stay the same objects, so the optimizer may be there already.
        options: The recipe, or one for each of several places; the first that names a layer holds.
        total_steps: Optimizer steps of the whole training.

    Returns:
        What steers it.

    Raises:
        UsageError: No layer has such a name, or a group size doesn't divide a layer.
    """
    every = [options] if isinstance(options, NMSparse) else list(options)
    clock, layers = _Clock(total_steps), list[SparseLayer]()
    schedules = [Schedule(each, total_steps) for each in every]
    found = [(name, layer, _first(name, layer, schedules)) for name, layer in module.named_modules()]
    chosen = [(name, layer, schedule) for name, layer, schedule in found if schedule is not None]
    for each in every:
        if not any(schedule.options is each for _, _, schedule in chosen):
            raise UsageError(f"no linear layer or convolution of this module is {each.where!r}; {_known(module)}")
    for name, layer, schedule in chosen:
        _check(name, layer, schedule.options)
    for name, layer, schedule in chosen:
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        masked = _Masked(schedule, clock).train(layer.training)
        parametrize.register_parametrization(layer, "weight", masked, unsafe=True)
        layers.append(SparseLayer(name, layer, weight, schedule))
    return Sparsified(module, layers, clock)


def _first(name: str, layer: nn.Module, schedules: Sequence[Schedule]) -> Schedule | None:
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        return None
    # What reads its weight without calling it, as torch's attention does its output's, is no layer of its own.
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None
    return next((each for each in schedules if _matches(each.options.where, name, layer)), None)


def _matches(where: str, name: str, layer: nn.Module) -> bool:
    if where in PLACES and (where == "conv") != isinstance(layer, CONVOLUTIONS):
        return False
    try:
        return re.fullmatch(PLACES.get(where, where), name) is not None
    except re.error as error:
        raise UsageError(f"where is {', '.join(PLACES)} or a regular expression, not {where!r}: {error}") from error


def _known(module: nn.Module) -> str:
    names = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS))]
    return f"it has {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" if names else "it has none at all"


def _check(name: str, layer: nn.Module, options: NMSparse) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if parametrize.is_parametrized(layer):
        raise UsageError(f"layer {name} is parametrized already")
    for pattern in {pattern for _, pattern in options.stages}:
        try:
            to_groups(weight.detach(), pattern.m, options.dim)
        except UsageError as error:
            raise UsageError(f"layer {name}: pattern {pattern} doesn't fit, {error}") from None
    if weight.dtype in (torch.bfloat16, torch.float16):
        dtype = str(weight.dtype).removeprefix("torch.")
        warnings.warn(
            OutlayWarning(f"layer {name} is {dtype}, in which many weights are equal: train masks in float32"),
            stacklevel=3,
        )


def _final(layer: SparseLayer) -> Tensor:
    weight = layer.weight.detach()
    if layer.options.recipe == "dense":
        return weight.clone()
    mask = layer.masked.mask
    kept = nm_mask(weight, layer.options.pattern, layer.options.dim) if mask is None else mask
    return weight.masked_fill(~kept, 0)


def _replace_by_plain(layer: nn.Module, weight: Tensor) -> None:
    """Makes a layer what it was, with another weight. Torch's own removal would change the copied layer's class too."""
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer.weight = nn.Parameter(weight)
    layer._parameters.update(others)


def _packed(layer: SparseLayer) -> PackedNM:
    if layer.options.dim != "in":
        raise UsageError("groups along output channels have no packed form; train with dim='in'")
    return PackedNM.pack(_final(layer), layer.options.pattern)


@torch.no_grad()
def _keep(layer: SparseLayer) -> None:
    mask = layer.masked.mask
    assert mask is not None
    layer.weight.masked_fill_(~mask, 0)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
