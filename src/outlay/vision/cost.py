"""What one call of a network costs, counted layer by layer from shapes alone, and how a ledger and a budget take it.

The network runs once on fake tensors, which have shapes and no values. Each operation is counted where it is done: its
arithmetic by `torch.utils.flop_counter`'s formulas, and for a Fourier transform of N points 5 N log2 N; the memory
access cost of Lee et al. 2019 (elements of input, output and weight), for convolutions and matrix products; the bytes
that it reads and writes, whatever it is. So one `cat` too many is seen in `moved_bytes`, though it has no arithmetic
and the paper's formula leaves it out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from outlay.budget import Account, Budget, Ledger
from outlay.errors import UsageError

COUNTS: Mapping[str, str] = {"mem_elements": "elements", "moved_bytes": "bytes", "cpu_seconds": "seconds"}
"""What networks add to the ledger beside `flops`, `weight_bytes` and `seconds`."""

aten = torch.ops.aten
FOURIER = {aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default}
CHUNKS = {aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
"""What attention is on a processor: one operation, whose products torch's formulas leave out."""
FREE = {aten.detach.default, aten.alias.default, aten.empty.memory_format, aten.empty_like.default}


@dataclass
class Amounts:
    """What some operations cost."""

    flops: int = 0
    """Arithmetic, where a multiply-add is 2."""

    mem_elements: int = 0
    """The paper's memory access cost: elements of input, output and weight, of convolutions and matrix products."""

    moved_bytes: int = 0
    """All that is read and written, weights included."""

    weight_bytes: int = 0
    """Weights that are read."""

    parameters: int = 0
    """Learned numbers; of a layer, those that it is the first to read."""

    def __iadd__(self, other: Amounts) -> Amounts:
        for name, amount in vars(other).items():
            setattr(self, name, getattr(self, name) + amount)
        return self


@dataclass
class Cost:
    """What one call of a network costs."""

    total: Amounts = field(default_factory=Amounts)
    """The sum over its layers."""

    layers: dict[str, Amounts] = field(default_factory=dict)
    """By the name of the module that does the operations itself, in the order of the first; "" is the network's own."""

    kinds: dict[str, str] = field(default_factory=dict)
    """The class of each of these modules."""

    peak_activation_bytes: int = 0
    """The most that input, output and everything between them take at one time, without weights."""

    def ledger(self) -> Ledger:
        """Returns the counts as a ledger's entries; they add up over calls."""
        counted = self.total
        extras: dict[str, float] = {"mem_elements": counted.mem_elements, "moved_bytes": counted.moved_bytes}
        return Ledger(flops=counted.flops, weight_bytes=counted.weight_bytes, extras=extras)


def count(module: nn.Module, *inputs: Any) -> Cost:
    """Counts one call of a network without computing it.

    Args:
        module: any network whose control flow depends on shapes alone. Nothing of it is changed.
        inputs: what it is called with; of tensors only shape, dtype and device matter, so `device="meta"` will do.

    Raises:
        UsageError: if it can't be called with such inputs, or its control flow depends on values.
    """
    counter = Counter(module)
    with ExitStack() as stack:
        for context in (_kept_buffers(module), _unfused_attention(), torch.no_grad(), counter.layers_of(module)):
            stack.enter_context(context)
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        device = next((tensor.device for tensor in _tensors(module)), torch.device("cpu"))
        given = [tree_map(lambda value: _fake(fake, value, device), value) for value in inputs]
        counter.hold(given)
        try:
            with counter:
                module(*given)
        except Exception as error:  # torch names no class for what a module may come up with
            shapes = ", ".join("x".join(map(str, value.shape)) for value in tree_leaves(inputs) if _is_tensor(value))
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"{type(module).__name__} can't be counted for an input of {shapes}: {reason}") from error
    counter.cost.total.parameters = sum(parameter.numel() for parameter in module.parameters())
    return counter.cost


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Puts the buffers back as they were: normalisation in training counts its batches, on fake tensors too."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()] if module.training else []
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Keeps torch from the one operation that does all of an attention layer, which no formula knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _fake(mode: FakeTensorMode, value: Any, device: torch.device) -> Any:
    if not _is_tensor(value):
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class Counter(TorchDispatchMode):
    """Counts every operation that is done while it is on, for the module that does it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.cost = Cost()
        self._weights = {
            id(tensor): tensor for tensor in _tensors(module)
        }  # views of weights are added as they are made
        self._learned = {id(tensor) for tensor in module.parameters()}
        self._views: list[Tensor] = []  # held, so that nothing else gets their identity
        self._stack = [""]
        self._live: dict[StorageWeakRef, int] = {}

    @contextmanager
    def layers_of(self, module: nn.Module) -> Iterator[None]:
        """Follows which of the network's modules is at work."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self._stack.append(name)

        def leave(*_: Any) -> None:
            self._stack.pop()

        hooks = []
        for name, part in module.named_modules():
            self.cost.kinds[name] = type(part).__name__
            hooks.append(part.register_forward_pre_hook(enter(name)))
            hooks.append(part.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def hold(self, tensors: Any) -> None:
        """Counts tensors among what is held in memory until they are freed."""
        for tensor in tree_leaves(tensors):
            if _is_tensor(tensor) and id(tensor) not in self._weights:
                storage = tensor.untyped_storage()
                self._live.setdefault(StorageWeakRef(storage), storage.nbytes())
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
        self.cost.peak_activation_bytes = max(self.cost.peak_activation_bytes, sum(self._live.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func._overloadpacket not in flop_registry:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        result = func(*args, **kwargs)
        if func.is_view and _is_tensor(result) and id(args[0]) in self._weights:
            self._weights[id(result)] = self._weights[id(args[0])]
            self._views.append(result)
        self.hold(result)
        if not (func.is_view or func in CHUNKS or func in FREE):
            self._add(self._amounts(func, args, kwargs, result))
        return result

    def _amounts(self, func: Any, args: Any, kwargs: Any, result: Any) -> Amounts:
        read = [value for value in tree_leaves((args, kwargs)) if _is_tensor(value)]
        written = [value for value in tree_leaves(result) if _is_tensor(value)]
        weights = [value for value in read if id(value) in self._weights]
        amounts = Amounts(moved_bytes=_bytes(read) + _bytes(written), weight_bytes=_bytes(weights))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            amounts.flops = int(formula(*args, **kwargs, out_val=result))
            amounts.mem_elements = sum(_elements(value) for value in [*read, *written] if value.dim() > 1)
        elif func is CPU_ATTENTION:
            amounts.flops = sdpa_flop_count(*(value.shape for value in args[:3]))
            amounts.mem_elements = sum(_elements(value) for value in [*args[:3], written[0]])
        elif func in FOURIER:
            amounts.flops = _fourier_flops(args[0], written[0], args[1])
        for tensor in (self._weights[id(value)] for value in weights):
            if id(tensor) in self._learned:
                self._learned.remove(id(tensor))
                amounts.parameters += tensor.numel()
        return amounts

    def _add(self, amounts: Amounts) -> None:
        name = self._stack[-1]
        layer = self.cost.layers.setdefault(name, Amounts())
        layer += amounts
        self.cost.total += amounts


def _elements(tensor: Tensor) -> int:
    """Elements that lie in memory: those of an expanded tensor once."""
    if not tensor.numel():
        return 0
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_elements(tensor) * tensor.element_size() for tensor in tensors)


def _fourier_flops(read: Tensor, written: Tensor, axes: Iterable[int]) -> int:
    """5 N log2 N for each transform of N points; real ones are counted as complex ones."""
    full = read if read.numel() > written.numel() else written
    points = math.prod(full.shape[axis] for axis in axes)
    return round(5 * full.numel() * math.log2(points)) if points > 1 else 0


class Metered:
    """A network that is called under an account: each call's cost is asked for before it is done, and charged.

    Args:
        module: the network.
        account: who pays.
    """

    def __init__(self, module: nn.Module, account: Account | None = None) -> None:
        self.module = module
        self.account = account or Account(Budget(), Ledger())

    def allows(self, *inputs: Any) -> bool:
        """Tells whether the budget has room for the counts of this call, and for any more time."""
        enough_time = all(self.account.left(name) > 0 for name in ("seconds", "cpu_seconds"))
        return enough_time and not self.account.first_over(cost_of(self.module, *inputs).ledger())

    def __call__(self, *inputs: Any) -> Any:
        """Returns the network's answer, None if the budget has no room for it."""
        if not self.allows(*inputs):
            return None
        wall, cpu = time.perf_counter(), time.process_time()
        answer = self.module(*inputs)
        spent = cost_of(self.module, *inputs).ledger()
        spent.seconds = time.perf_counter() - wall
        spent.extras["cpu_seconds"] = time.process_time() - cpu
        self.account.charge(spent)
        return answer


_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Cost]] = WeakKeyDictionary()


def cost_of(module: nn.Module, *inputs: Any) -> Cost:
    """Returns what `count` finds, which it looks for once for a module, its mode and the shapes of its inputs."""
    known = _KNOWN.setdefault(module, {})
    key = (module.training, *(_key(value) for value in tree_leaves(inputs)))
    if key not in known:
        known[key] = count(module, *inputs)
    return known[key]


def _key(value: Any) -> Any:
    return (tuple(value.shape), value.dtype, value.device) if _is_tensor(value) else repr(value)
