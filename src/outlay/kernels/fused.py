"""A decoder whose whole pass, all layers, is one native call."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import byref, c_float
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.kernels.attention import KeyValues, Plan
from outlay.kernels.functions import ACTIVATIONS, Table
from outlay.kernels.native import (
    BiasedStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    PassStruct,
    PlanStruct,
    TableStruct,
    address,
    check,
    library,
)
from outlay.kernels.packing import PackedLinear

Indices = Tensor | Sequence[int]  # int64 [n]


@dataclass(frozen=True)
class FusedNorm:
    """RMSNorm, or LayerNorm where there is a bias; both float32 [size]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class FusedLinear:
    """A linear layer with its bias, float32 [out_features]."""

    packed: PackedLinear
    bias: Tensor | None = None


@dataclass(frozen=True)
class FusedLayer:
    """The weights of one layer."""

    attn_norm: FusedNorm
    qkv: FusedLinear  # rows: all of q, then k, then v
    out: FusedLinear
    mlp_norm: FusedNorm
    gate_up: FusedLinear  # rows: all of gate, if the model is gated, then up
    down: FusedLinear
    q_norm: Tensor | None = None  # float32 [head_dim]: RMSNorm of each query head before its rotation
    k_norm: Tensor | None = None
    post_attn_norm: FusedNorm | None = None  # of what attention adds to the residual stream
    post_mlp_norm: FusedNorm | None = None


@dataclass(frozen=True)
class FusedWeights:
    """A whole decoder, apart from learned positions. Without `embed` its passes take no tokens, only what the first
    layer reads. `embed_scale` multiplies the rows of `embed`; `fuse` is a draft head's layer [2 hidden_size] ->
    [hidden_size], of a vector beside its token's row.
    """

    layers: Sequence[FusedLayer]
    final_norm: FusedNorm | None
    head: PackedLinear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    attention_scale: float
    cos: Tensor | None = (
        None  # float32 [positions, rope_dim / 2]; dimension i of a head is rotated with i + rope_dim / 2
    )
    sin: Tensor | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    activation: str = "silu"
    gated: bool = True
    embed: Table | None = None
    embed_scale: float = 1.0
    fuse: FusedLinear | None = None


class Rows(NamedTuple):
    """The rows of a pass as `tokens`, negative for none, and `vectors`, float32 [hidden_size] or None for each row (or
    none for all). A vector stands in place of its token's row of the table; where the weights have a `fuse`, both are
    fused, zeros in place of a vector that lacks, and a vector without a token stands as it is.
    """

    tokens: Sequence[int]
    vectors: Sequence[Tensor | None] = ()


class Top(NamedTuple):
    """The largest logits of each row, in descending order, the lower token first among equals.

    `tokens` is int64 and `logits` float32, both [rows, k]; `lse` [rows] is the log-sum-exp of all of a row's logits,
    where it was asked for. `picked` [rows, n] has the logits of tokens that were asked for by name.
    """

    tokens: Tensor
    logits: Tensor
    lse: Tensor | None = None
    picked: Tensor | None = None


class FusedDecoder:
    """The weights with one cache of keys and values, ready to run.

    What a row computes has the same bits however many rows share the pass, in any order, on any number of threads.
    """

    def __init__(
        self,
        weights: FusedWeights,
        cache: Sequence[KeyValues],
        plans: Sequence[int] | None = None,
        features: Tensor | None = None,
    ) -> None:
        """Binds the weights to a cache.

        cache: of each layer, kept by the caller, written in place.
        plans: which plan of a pass each layer attends by (sliding windows); None: all by the first.
        features: float32 [slots, hidden_size], where what the head reads of each row is kept, in the row's slot.
        """
        self.weights = weights
        self._cache, self._features = tuple(cache), features  # the structures hold bare pointers
        self._library = library()
        head_dim, first = weights.head_dim, weights.layers[0]
        self._vocab, self._hidden = weights.head.out_features, weights.head.in_features
        self._positions = len(weights.cos) if weights.cos is not None else None
        self._capacity = min(layer.capacity for layer in cache)
        self._plans = 1 + max(plans or [0])
        self._layers = (LayerStruct * len(weights.layers))()
        if head_dim % 8:
            raise ValueError(f"head_dim must be a multiple of 8, not {head_dim}")
        _check_norm(weights.final_norm, self._hidden)
        _check_inputs(weights, self._hidden)
        _check_features(features, self._capacity, self._hidden)
        self._features_at = address(features)
        for i, (struct, layer) in enumerate(zip(self._layers, weights.layers, strict=True)):
            _check_layer(weights, layer, self._hidden)
            for name in ("qkv", "out", "gate_up", "down"):
                linear = getattr(layer, name)
                setattr(struct, name, BiasedStruct(linear.packed.struct, address(linear.bias)))
            for name in ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm"):
                setattr(struct, name, _norm_struct(getattr(layer, name)))
            struct.q_norm, struct.k_norm = address(layer.q_norm), address(layer.k_norm)
            struct.cache = cache[i].struct()
            struct.plan = plans[i] if plans else 0
        self._model = ModelStruct(
            len(self._layers),
            self._hidden,
            weights.num_heads,
            weights.num_kv_heads,
            head_dim,
            2 * weights.cos.shape[1] if weights.cos is not None else 0,
            first.down.packed.in_features,
            ACTIVATIONS[weights.activation],
            weights.gated,
            c_float(weights.eps),
            c_float(weights.attention_scale),
            c_float(weights.attention_softcap or 0.0),
            c_float(weights.logit_softcap or 0.0),
            c_float(weights.embed_scale),
            self._layers,
            _norm_struct(weights.final_norm),
            weights.head.struct,
            address(weights.cos),
            address(weights.sin),
            TableStruct() if weights.embed is None else weights.embed.struct,
            BiasedStruct()
            if weights.fuse is None
            else BiasedStruct(weights.fuse.packed.struct, address(weights.fuse.bias)),
        )

    def run(
        self,
        rows: Tensor | Rows,
        positions: Indices,
        slots: Indices,
        plan: Plan | Sequence[Plan],
        head_rows: Indices | None = None,
        *,
        logits: bool = True,
        top: int = 0,
        lse: bool = False,
        picks: Tensor | None = None,
        layers: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, Top | None]:
        """One pass.

        rows: what the first layer reads, float32 [n, hidden_size], overwritten with the residual stream after the last
        layer that ran; or the tokens and vectors that it is made of.
        positions, slots: int64 [n], where each row stands in its text and where its keys and values are written.
        plan: what the rows read (their own slots included), or one plan for each kind of layer.
        head_rows: int64, the rows that go through the head (None: all), if `logits` or `top` are wanted.
        picks: int64 [head rows, n], tokens whose logits are wanted with the `top` largest.
        layers: run only layers begin..end-1.
        Returns the logits float32 [head rows, vocabulary] and the `top` largest of each row, with their log-sum-exp if
        `lse` and those of `picks`; None for what is not wanted.
        """
        hidden, tokens, vectors = (rows, None, None) if isinstance(rows, Tensor) else (None, *self._checked(rows))
        n = len(rows) if isinstance(rows, Tensor) else len(rows.tokens)
        plans = (plan,) if isinstance(plan, Plan) else tuple(plan)
        if hidden is not None and (
            hidden.shape != (n, self._hidden) or hidden.dtype != torch.float32 or not hidden.is_contiguous()
        ):
            raise ValueError(f"expected hidden to be contiguous float32 [n, {self._hidden}]")
        if len(plans) < self._plans or any(each.n != n for each in plans):
            raise ValueError(f"expected {self._plans} plan(s) for {n} rows")
        if any(each.reach > self._capacity for each in plans):
            raise ValueError(f"a plan reads beyond the cache's {self._capacity} slots")
        if not 0 <= top <= self._vocab:
            raise ValueError(f"expected the top 0..{self._vocab} logits, not {top}")
        positions, slots = _indices(positions, n, self._positions), _indices(slots, n, self._capacity)
        begin, end = layers or (0, len(self._layers))
        if not 0 <= begin <= end <= len(self._layers):
            raise ValueError(f"expected layers within 0..{len(self._layers)}")
        if head_rows is not None:
            head_rows = _indices(head_rows, len(head_rows), n)
        count = (n if head_rows is None else len(head_rows)) if logits or top else 0
        found = torch.empty(count, self._vocab) if logits else None
        best = None
        if top:
            sums = torch.empty(count) if lse else None
            picked, chosen = None, None
            if picks is not None:
                if picks.dim() != 2:
                    raise ValueError(f"expected picks to be int64 [{count}, n], not {list(picks.shape)}")
                picked = torch.empty(picks.shape)
                chosen = _indices(picks.flatten(), count * picks.shape[1], self._vocab)
            best = Top(torch.empty(count, top, dtype=torch.int64), torch.empty(count, top), sums, picked)
        request = PassStruct(
            n,
            address(hidden),
            _at(tokens),
            _at(vectors),
            _at(positions),
            _at(slots),
            (PlanStruct * len(plans))(*(each.struct for each in plans)),
            len(plans),
            begin,
            end,
            count,
            _at(head_rows),
            address(found),
            top,
            *((address(best.tokens), address(best.logits), address(best.lse)) if best is not None else (None,) * 3),
            0 if best is None or best.picked is None else best.picked.shape[1],
            *((_at(chosen), address(best.picked)) if best is not None else (None,) * 2),
            self._features_at,
        )
        check(self._library.outlay_pass(byref(self._model), byref(request)))
        return found, best

    def _checked(self, rows: Rows) -> tuple[array[int], array[int] | None]:
        """Returns the tokens and the addresses of the vectors of some rows, as native calls take them."""
        tokens, vectors = rows
        embed, size = self.weights.embed, self._hidden
        if embed is None:
            raise ValueError("these weights have no table of tokens' vectors")
        if max(tokens, default=0) >= len(embed.q):
            raise ValueError(f"expected tokens below {len(embed.q)}, not {max(tokens)}")
        if vectors and len(vectors) != len(tokens):
            raise ValueError(f"expected a vector or None for each of {len(tokens)} tokens, not {len(vectors)}")
        for vector in vectors:
            if vector is not None and (
                vector.shape != (size,) or vector.dtype != torch.float32 or not vector.is_contiguous()
            ):
                raise ValueError(f"expected contiguous vectors of float32 [{size}], not {vector.dtype} {vector.shape}")
        if any(token < 0 and not (vectors and vectors[row] is not None) for row, token in enumerate(tokens)):
            raise ValueError("a row has a token or a vector, or both")
        given = array("Q", [0 if vector is None else vector.data_ptr() for vector in vectors]) if vectors else None
        return array("q", tokens), given


def _norm_struct(norm: FusedNorm | None) -> NormStruct:
    return NormStruct() if norm is None else NormStruct(address(norm.weight), address(norm.bias))


def _indices(values: Indices, n: int, end: int | None) -> array[int]:
    """Checks n indices below `end` (None: any): the kernels would read and write wherever they point."""
    if isinstance(values, Tensor):
        if values.dtype != torch.int64 or values.ndim != 1:
            raise ValueError(f"expected int64 [{n}], not {values.dtype} {list(values.shape)}")
        values = values.tolist()
    if len(values) != n:
        raise ValueError(f"expected int64 [{n}], not [{len(values)}]")
    if n and end is not None:
        low, high = min(values), max(values)
        if low < 0 or high >= end:
            raise ValueError(f"expected indices in 0..{end - 1}, not {low}..{high}")
    return array("q", values)


def _at(values: array[int] | None) -> int | None:
    """Where the integers lie, as the structures hold it."""
    return None if values is None else values.buffer_info()[0]


def _check_layer(weights: FusedWeights, layer: FusedLayer, hidden: int) -> None:
    """Raises `ValueError` where the shapes of a layer don't fit: the kernels would read past what is too short."""
    q_size, inner = weights.num_heads * weights.head_dim, layer.down.packed.in_features
    qkv = q_size + 2 * weights.num_kv_heads * weights.head_dim
    shapes = {
        "qkv": (qkv, hidden),
        "out": (hidden, q_size),
        "gate_up": (inner * (2 if weights.gated else 1), hidden),
        "down": (hidden, weights.layers[0].down.packed.in_features),
    }
    for name, shape in shapes.items():
        linear: FusedLinear = getattr(layer, name)
        if (linear.packed.out_features, linear.packed.in_features) != shape:
            raise ValueError(f"expected {name} to be {list(shape)}")
        _check_vector(linear.bias, shape[0])
    for norm in (layer.attn_norm, layer.mlp_norm, layer.post_attn_norm, layer.post_mlp_norm):
        _check_norm(norm, hidden)
    for vector in (layer.q_norm, layer.k_norm):
        _check_vector(vector, weights.head_dim)


def _check_inputs(weights: FusedWeights, hidden: int) -> None:
    if weights.embed is not None and weights.embed.q.shape[1] != hidden:
        raise ValueError(f"expected rows of {hidden} in the table of tokens' vectors")
    if weights.fuse is not None:
        if (weights.fuse.packed.out_features, weights.fuse.packed.in_features) != (hidden, 2 * hidden):
            raise ValueError(f"expected fuse to be {[hidden, 2 * hidden]}")
        _check_vector(weights.fuse.bias, hidden)


def _check_features(features: Tensor | None, capacity: int, hidden: int) -> None:
    if features is not None and (
        features.dtype != torch.float32
        or features.shape != (len(features), hidden)
        or len(features) < capacity
        or not features.is_contiguous()
    ):
        raise ValueError(f"expected features to be contiguous float32 [{capacity}, {hidden}]")


def _check_norm(norm: FusedNorm | None, size: int) -> None:
    if norm is not None:
        _check_vector(norm.weight, size)
        _check_vector(norm.bias, size)


def _check_vector(tensor: Tensor | None, size: int) -> None:
    if tensor is not None and (tensor.shape != (size,) or tensor.dtype != torch.float32 or not tensor.is_contiguous()):
        raise ValueError(f"expected a vector of float32 [{size}], not {tensor.dtype} {list(tensor.shape)}")
