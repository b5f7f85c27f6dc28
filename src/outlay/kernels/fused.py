"""A decoder of the Llama family whose whole pass, all layers, is one native call."""

from collections.abc import Sequence
from ctypes import byref, c_float
from dataclasses import dataclass

import torch
from torch import Tensor

from outlay.kernels.attention import Plan, check_cache
from outlay.kernels.native import LayerStruct, ModelStruct, PassStruct, PlanStruct, address, check, library
from outlay.kernels.packing import PackedLinear


@dataclass(frozen=True)
class FusedLayer:
    """The weights of one layer. Norms and biases are float32."""

    input_norm: Tensor  # [hidden]
    qkv: PackedLinear  # rows: all of q, then k, then v
    o: PackedLinear
    post_norm: Tensor  # [hidden]
    gate_up: PackedLinear  # rows: all of gate, then up
    down: PackedLinear
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None  # [head_dim]: RMSNorm of each query head before its rotation
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class FusedWeights:
    """A whole decoder, apart from its token embedding."""

    layers: Sequence[FusedLayer]
    final_norm: Tensor  # [hidden]
    head: PackedLinear
    cos: Tensor  # float32 [positions, rope_dim / 2]; dimension i of a head is rotated with i + rope_dim / 2
    sin: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    attention_scale: float


class FusedDecoder:
    """The weights with one cache of keys and values, ready to run.

    What a row computes has the same bits however many rows share the pass, in any order, on any number of threads.
    """

    def __init__(
        self,
        weights: FusedWeights,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        plans: Sequence[int] | None = None,
    ) -> None:
        """Binds the weights to a cache.

        keys, values: float32 [num_kv_heads, capacity, head_dim] for each layer, kept by the caller, written in place.
        plans: which plan of a pass each layer attends by (sliding windows); None: all by the first.
        """
        self.weights = weights
        self._cache = (tuple(keys), tuple(values))  # the structures hold bare pointers
        self._library = library()
        hidden, head_dim = weights.final_norm.numel(), weights.head_dim
        self._vocab, self._hidden, self._positions = weights.head.out_features, hidden, len(weights.cos)
        self._capacity = min(tensor.shape[1] for tensor in keys)
        self._plans = 1 + max(plans or [0])
        self._layers = (LayerStruct * len(weights.layers))()
        if head_dim % 8 or weights.head.in_features != hidden:
            raise ValueError("head_dim must be a multiple of 8, and the head must fit the final norm")
        q_size, kv_size = weights.num_heads * head_dim, weights.num_kv_heads * head_dim
        for i, (struct, layer) in enumerate(zip(self._layers, weights.layers, strict=True)):
            check_cache(keys[i], values[i])
            expected = (q_size + 2 * kv_size, hidden, hidden, q_size, hidden, layer.gate_up.out_features // 2)
            shapes = [(p.out_features, p.in_features) for p in (layer.qkv, layer.o, layer.down)]
            if tuple(size for shape in shapes for size in shape) != expected or layer.gate_up.in_features != hidden:
                raise ValueError(f"the shapes of layer {i} do not fit each other: {shapes}")
            _check_vectors(layer, hidden, q_size + 2 * kv_size, head_dim)
            struct.input_norm, struct.post_norm = address(layer.input_norm), address(layer.post_norm)
            struct.qkv, struct.o = layer.qkv.struct, layer.o.struct
            struct.gate_up, struct.down = layer.gate_up.struct, layer.down.struct
            struct.qkv_bias, struct.q_norm, struct.k_norm = map(address, (layer.qkv_bias, layer.q_norm, layer.k_norm))
            struct.k_cache, struct.v_cache = address(keys[i]), address(values[i])
            struct.head_stride, struct.slot_stride = keys[i].stride(0), keys[i].stride(1)
            struct.plan = plans[i] if plans else 0
        self._model = ModelStruct(
            len(self._layers),
            hidden,
            weights.num_heads,
            weights.num_kv_heads,
            head_dim,
            2 * weights.cos.shape[1],
            weights.layers[0].down.in_features,
            c_float(weights.eps),
            c_float(weights.attention_scale),
            0,
            self._layers,
            address(weights.final_norm),
            weights.head.struct,
            address(weights.cos),
            address(weights.sin),
        )

    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        plan: Plan | Sequence[Plan],
        head_rows: Tensor | None = None,
        head: bool = True,
        argmax: bool = False,
        layers: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One pass.

        hidden: float32 [n, hidden_size], overwritten with the residual stream after the last layer that ran.
        positions, slots: int64 [n], where each row stands in its text and where its keys and values are written.
        plan: what the rows read (their own slots included), or one plan for each kind of layer.
        head_rows: int64, the rows that go through the head (None: all, and none if `head` is False).
        layers: run only layers begin..end-1.
        Returns the logits float32 [head rows, vocabulary] and the index of the largest of each, if asked for.
        """
        n = hidden.shape[0]
        plans = (plan,) if isinstance(plan, Plan) else tuple(plan)
        if hidden.shape != (n, self._hidden) or hidden.dtype != torch.float32 or not hidden.is_contiguous():
            raise ValueError(f"expected hidden to be contiguous float32 [n, {self._hidden}]")
        if len(plans) < self._plans or any(each.n != n for each in plans):
            raise ValueError(f"expected {self._plans} plan(s) for {n} rows")
        if any(each.reach > self._capacity for each in plans):
            raise ValueError(f"a plan reads beyond the cache's {self._capacity} slots")
        positions, slots = _indices(positions, n, self._positions), _indices(slots, n, self._capacity)
        begin, end = layers or (0, len(self._layers))
        if not 0 <= begin <= end <= len(self._layers):
            raise ValueError(f"expected layers within 0..{len(self._layers)}")
        logits = best = None
        count = 0
        if head:
            if head_rows is not None:
                head_rows = _indices(head_rows, len(head_rows), n)
            count = n if head_rows is None else len(head_rows)
            logits = torch.empty(count, self._vocab)
            best = torch.empty(count, dtype=torch.int64) if argmax else None
        request = PassStruct(
            n,
            hidden.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
            (PlanStruct * len(plans))(*(each.struct for each in plans)),
            len(plans),
            begin,
            end,
            count,
            address(head_rows),
            address(logits),
            address(best),
        )
        check(self._library.outlay_pass(byref(self._model), byref(request)))
        return logits, best


def _indices(tensor: Tensor, n: int, end: int) -> Tensor:
    """Checks n indices below `end`: the kernels would read and write wherever they point."""
    if tensor.dtype != torch.int64 or tensor.shape != (n,):
        raise ValueError(f"expected int64 [{n}], not {tensor.dtype} {list(tensor.shape)}")
    if n:
        low, high = (int(limit) for limit in tensor.aminmax())
        if low < 0 or high >= end:
            raise ValueError(f"expected indices in 0..{end - 1}, not {low}..{high}")
    return tensor.contiguous()


def _check_vectors(layer: FusedLayer, hidden: int, qkv: int, head_dim: int) -> None:
    sizes = {"input_norm": hidden, "post_norm": hidden, "qkv_bias": qkv, "q_norm": head_dim, "k_norm": head_dim}
    for name, size in sizes.items():
        tensor = getattr(layer, name)
        if tensor is not None and (tensor.shape != (size,) or tensor.dtype != torch.float32 or tensor.stride(0) != 1):
            raise ValueError(f"expected {name} to be float32 [{size}]")
