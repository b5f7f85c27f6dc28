"""A decoder whose whole pass, all layers, is one native call."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from ctypes import Array, byref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.kernels.attention import AttentionPlan, KeyValues, weight_addresses
from outlay.kernels.functions import ACTIVATIONS, Table
from outlay.kernels.native import (
    AttentionPlanStruct,
    KVCacheStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    PassStruct,
    StackStruct,
    TableStruct,
    address,
    check,
    library,
)
from outlay.kernels.packing import PackedLinear
from outlay.kernels.sampling import TokenDraw, draw_structs

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

    attn_norm: FusedNorm | None
    """None: attention reads the residual stream as it is."""

    qkv: FusedLinear
    """Rows: all of q, then k, then v."""

    out: FusedLinear

    mlp_norm: FusedNorm | None
    """None: the MLP reads the residual stream as it is."""

    gate_up: FusedLinear
    """Rows: all of gate, if the model is gated, then up."""

    down: FusedLinear

    q_norm: Tensor | None = None
    """float32 [head_dim]: RMSNorm of each query head before its rotation; [num_heads * head_dim]: of all at once."""

    k_norm: Tensor | None = None
    """float32 [head_dim] or [num_kv_heads * head_dim], as `q_norm`."""

    post_attn_norm: FusedNorm | None = None
    """Norm of the attention output before it joins the residual stream."""

    post_mlp_norm: FusedNorm | None = None
    """Norm of the MLP output before it joins the residual stream."""

    cos: Tensor | None = None
    """float32 [positions, rope_dim / 2]: dimension i of a head is rotated with i + rope_dim / 2. None: none is."""

    sin: Tensor | None = None
    """As `cos`."""


@dataclass(frozen=True)
class FusedWeights:
    """A whole decoder, apart from learned positions."""

    layers: Sequence[FusedLayer]

    final_norm: FusedNorm | None

    lm_head: PackedLinear
    """Of one part."""

    num_heads: int

    num_kv_heads: int

    head_dim: int

    eps: float

    attention_scale: float

    attention_softcap: float | None = None

    logit_softcap: float | None = None

    activation: str = "silu"

    gated: bool = True

    embed: Table | None = None
    """The token embeddings; without them passes take no tokens, only the input of the first layer."""

    embed_scale: float = 1.0
    """Factor on the rows of `embed`."""

    residual_scale: float = 1.0
    """Factor on the outputs of attention and MLP before they join the residual stream."""

    logit_scale: float = 1.0
    """Factor on logits, before their softcap."""

    fuse: FusedLinear | None = None
    """A draft head's layer [2 hidden_size] -> [hidden_size], of a hidden state beside its token's embedding."""


class PassInputs(NamedTuple):
    """The rows of a pass as tokens and input embeddings.

    An input embedding replaces its token's. Where the weights have a `fuse`, both are fused: a token alone with zeros,
    and an embedding without a token stays as it is.
    """

    tokens: Sequence[int]
    """A negative number stands for no token."""

    inputs_embeds: Sequence[Tensor | None] = ()
    """float32 [hidden_size] or None for each row; empty: None for all."""


class Top(NamedTuple):
    """The largest logits of each row, in descending order, the lower token first among equals."""

    tokens: Tensor
    """int64 [rows, k]"""

    logits: Tensor
    """float32 [rows, k]"""

    lse: Tensor | None = None
    """float32 [rows], the log-sum-exp of all of a row's logits, if wanted."""

    picked: Tensor | None = None
    """float32 [rows, n], the logits of tokens that were asked for by name."""


class PassResults(NamedTuple):
    """What a pass computed of its rows' logits; None, or no tokens, for what is not wanted."""

    logits: Tensor | None
    """float32 [m, vocabulary]"""

    top: Top | None

    drawn: Sequence[int] = ()
    """A token for each draw."""


class FusedDecoder:
    """The weights bound to one KV cache, ready to run.

    A row's results have the same bits however many rows share the pass, in any order, on any number of threads.
    """

    def __init__(
        self,
        weights: FusedWeights,
        kv: Sequence[KeyValues],
        plans: Sequence[int] | None = None,
        hidden_states: Tensor | None = None,
    ) -> None:
        """Binds the weights to a KV cache.

        Args:
            weights: The decoder.
            kv: The cache of each layer, owned by the caller, written in place.
            plans: Index of each layer's plan among those of a pass (sliding windows); None: all use the first.
            hidden_states: float32 [slots, hidden_size], receives the LM head's input of each row, in the row's slot.

        Raises:
            ValueError: Where the shapes of the weights do not fit each other.
        """
        self.weights = weights
        self._kv, self._hidden_states = tuple(kv), hidden_states  # the structures hold bare pointers
        self._library = library()
        self._vocab, self._hidden_size = weights.lm_head.out_features, weights.lm_head.in_features
        self._positions = min((len(layer.cos) for layer in weights.layers if layer.cos is not None), default=None)
        self._capacity = min(layer.capacity for layer in kv)
        self._n_plans = 1 + max(plans or [0])
        _check_weights(weights, self._hidden_size)
        _check_hidden_states(hidden_states, self._capacity, self._hidden_size)
        self._hidden_states_address = address(hidden_states)
        structs = [
            _layer_struct(layer, kv[i].struct(), plans[i] if plans else 0) for i, layer in enumerate(weights.layers)
        ]
        self._layers = (LayerStruct * len(structs))(*structs)
        self._model = _model_struct(weights, self._layers, self._hidden_size)

    def run(
        self,
        inputs: Tensor | PassInputs,
        positions: Indices,
        slots: Indices,
        plan: AttentionPlan | Sequence[AttentionPlan],
        lm_head_rows: Indices | None = None,
        *,
        logits: bool = True,
        top_k: int = 0,
        lse: bool = False,
        picks: Tensor | None = None,
        draws: Sequence[tuple[int, TokenDraw]] = (),
        layers: tuple[int, int] | None = None,
        weights: Mapping[int, Tensor] | None = None,
    ) -> PassResults:
        """Runs one pass.

        Args:
            inputs: The first layer's input, float32 [n, hidden_size], overwritten with the residual stream after the
                last layer that ran; or the tokens and input embeddings that make it.
            positions: int64 [n], each row's position in its text.
            slots: int64 [n], the slots for the rows' keys and values.
            plan: The keys that the rows see, their own included; or one plan for each kind of layer.
            lm_head_rows: int64 [m], the rows that go through the LM head, if logits are wanted; None: all.
            logits: Whether all logits are wanted.
            top_k: How many of each row's largest logits are wanted.
            lse: Whether the log-sum-exp is wanted with the largest.
            picks: int64 [m, p], tokens whose logits are wanted with the largest.
            draws: Tokens to draw, each with its row among those that go through the LM head.
            layers: Run only layers begin..end-1.
            weights: For rows whose attention weights are wanted, what receives them: float32 [layers, num_heads,
                stride], as in `attend`.

        Returns:
            The logits, the largest of each row, and the drawn tokens, as far as they are wanted.

        Raises:
            ValueError: Where shapes or indices do not fit: the kernels would read and write wherever they point.
        """
        plans = (plan,) if isinstance(plan, AttentionPlan) else tuple(plan)
        rows = self._rows(inputs, positions, slots, lm_head_rows)
        self._check_plans(plans, rows.n)
        begin, end = self._checked_layers(layers)
        m = (rows.n if lm_head_rows is None else len(lm_head_rows)) if logits or top_k or draws else 0
        outputs = self._outputs(m, logits, top_k, lse, picks, draws)
        heads = len(self._layers), self.weights.num_heads
        receivers, stride = weight_addresses(weights or {}, rows.n, heads, *plans[: self._n_plans])
        task = PassStruct(
            n_plans=len(plans),
            plans=(AttentionPlanStruct * len(plans))(*(each.struct for each in plans)),
            layer_begin=begin, layer_end=end, n_draws=len(draws), draws=draw_structs(draws),
            hidden_states=self._hidden_states_address, weights=_address(receivers), weight_stride=stride,
        )  # fmt: skip
        rows.fill(task)
        outputs.fill(task)
        check(self._library.outlay_pass(byref(self._model), byref(task)))
        return outputs.results()

    def _rows(
        self, inputs: Tensor | PassInputs, positions: Indices, slots: Indices, lm_head_rows: Indices | None
    ) -> _Rows:
        """Returns the rows of a pass, checked."""
        if isinstance(inputs, Tensor):
            residual, tokens, embeds, n = inputs, None, None, len(inputs)
            self._check_residual(residual, n)
        else:
            residual, n = None, len(inputs.tokens)
            tokens, embeds = self._checked_inputs(inputs)
        return _Rows(
            n,
            residual,
            tokens,
            embeds,
            _indices(positions, n, self._positions),
            _indices(slots, n, self._capacity),
            None if lm_head_rows is None else _indices(lm_head_rows, len(lm_head_rows), n),
        )

    def _outputs(
        self,
        m: int,
        logits: bool,
        top_k: int,
        lse: bool,
        picks: Tensor | None,
        draws: Sequence[tuple[int, TokenDraw]],
    ) -> _Outputs:
        """Returns the memory for what is wanted of the m rows that go through the LM head."""
        if not 0 <= top_k <= self._vocab:
            raise ValueError(f"expected the top 0..{self._vocab} logits, not {top_k}")
        if draws:
            _indices([row for row, _ in draws], len(draws), m)
        return _Outputs(
            m,
            torch.empty(m, self._vocab) if logits else None,
            _empty_top(m, top_k, lse, picks) if top_k else None,
            None if picks is None or not top_k else self._checked_picks(picks, m),
            array("q", bytes(8 * len(draws))),
        )

    def _checked_layers(self, layers: tuple[int, int] | None) -> tuple[int, int]:
        if layers is None:
            return 0, len(self._layers)
        begin, end = layers
        if not 0 <= begin <= end <= len(self._layers):
            raise ValueError(f"expected layers within 0..{len(self._layers)}")
        return begin, end

    def _checked_inputs(self, inputs: PassInputs) -> tuple[array[int], array[int] | None]:
        """Returns the tokens and the addresses of the input embeddings."""
        tokens, embeds = inputs
        table, size = self.weights.embed, self._hidden_size
        if table is None:
            raise ValueError("these weights have no table of token embeddings")
        if max(tokens, default=0) >= len(table.q):
            raise ValueError(f"expected tokens below {len(table.q)}, not {max(tokens)}")
        if embeds and len(embeds) != len(tokens):
            raise ValueError(f"expected an embedding or None for each of {len(tokens)} tokens, not {len(embeds)}")
        for embed in embeds:
            if embed is not None and (
                embed.shape != (size,) or embed.dtype != torch.float32 or not embed.is_contiguous()
            ):
                raise ValueError(f"expected contiguous embeddings of float32 [{size}], not {embed.dtype} {embed.shape}")
        if any(token < 0 and not (embeds and embeds[row] is not None) for row, token in enumerate(tokens)):
            raise ValueError("a row has a token or an embedding, or both")
        addresses = array("Q", [0 if embed is None else embed.data_ptr() for embed in embeds]) if embeds else None
        return array("q", tokens), addresses

    def _check_residual(self, residual: Tensor | None, n: int) -> None:
        if residual is not None and (
            residual.shape != (n, self._hidden_size) or residual.dtype != torch.float32 or not residual.is_contiguous()
        ):
            raise ValueError(f"expected hidden states to be contiguous float32 [n, {self._hidden_size}]")

    def _check_plans(self, plans: Sequence[AttentionPlan], n: int) -> None:
        if len(plans) < self._n_plans or any(plan.n != n for plan in plans):
            raise ValueError(f"expected {self._n_plans} plan(s) for {n} rows")
        if any(plan.end_slot > self._capacity for plan in plans):
            raise ValueError(f"a plan reads beyond the cache's {self._capacity} slots")

    def _checked_picks(self, picks: Tensor, m: int) -> array[int]:
        if picks.dim() != 2:
            raise ValueError(f"expected picks to be int64 [{m}, n], not {list(picks.shape)}")
        return _indices(picks.flatten(), m * picks.shape[1], self._vocab)


class _Rows(NamedTuple):
    """What a pass reads of its rows; the structures hold bare pointers to it."""

    n: int
    residual: Tensor | None
    tokens: array[int] | None
    embeds: array[int] | None
    """Addresses."""
    positions: array[int]
    slots: array[int]
    lm_head_rows: array[int] | None

    def fill(self, task: PassStruct) -> None:
        """Sets the fields of the native call's structure."""
        task.n, task.residual = self.n, address(self.residual)
        task.tokens, task.inputs_embeds = _address(self.tokens), _address(self.embeds)
        task.positions, task.slots = _address(self.positions), _address(self.slots)
        task.lm_head_rows = _address(self.lm_head_rows)


class _Outputs(NamedTuple):
    """What a pass writes of its m rows that go through the LM head; the structures hold bare pointers to it."""

    m: int
    logits: Tensor | None
    top: Top | None
    picks: array[int] | None
    drawn: array[int]

    def fill(self, task: PassStruct) -> None:
        """Sets the fields of the native call's structure."""
        task.n_lm_head_rows, task.logits, task.drawn = self.m, address(self.logits), _address(self.drawn)
        top = self.top
        if top is not None:
            task.top_k, task.lse = top.tokens.shape[1], address(top.lse)
            task.top_tokens, task.top_logits = address(top.tokens), address(top.logits)
            if top.picked is not None:
                task.n_picks = top.picked.shape[1]
                task.picks, task.picked = _address(self.picks), address(top.picked)

    def results(self) -> PassResults:
        """Returns what was written."""
        return PassResults(self.logits, self.top, self.drawn.tolist())


def _empty_top(m: int, k: int, lse: bool, picks: Tensor | None) -> Top:
    """Returns the memory for the top k of m rows."""
    return Top(
        tokens=torch.empty(m, k, dtype=torch.int64),
        logits=torch.empty(m, k),
        lse=torch.empty(m) if lse else None,
        picked=None if picks is None else torch.empty(picks.shape),
    )


def _layer_struct(layer: FusedLayer, kv: KVCacheStruct, plan: int) -> LayerStruct:
    return LayerStruct(
        attn_norm=_norm_struct(layer.attn_norm),
        qkv=_linear_struct(layer.qkv),
        q_norm=address(layer.q_norm),
        k_norm=address(layer.k_norm),
        out=_linear_struct(layer.out),
        post_attn_norm=_norm_struct(layer.post_attn_norm),
        mlp_norm=_norm_struct(layer.mlp_norm),
        gate_up=_linear_struct(layer.gate_up),
        down=_linear_struct(layer.down),
        post_mlp_norm=_norm_struct(layer.post_mlp_norm),
        kv=kv,
        plan=plan,
        cos=address(layer.cos),
        sin=address(layer.sin),
    )


def _model_struct(weights: FusedWeights, layers: Array[LayerStruct], hidden_size: int) -> ModelStruct:
    """Returns the model as native calls take it."""
    return ModelStruct(
        n_layers=len(layers),
        hidden_size=hidden_size,
        n_heads=weights.num_heads,
        n_kv_heads=weights.num_kv_heads,
        head_dim=weights.head_dim,
        rope_dim=max((2 * layer.cos.shape[1] for layer in weights.layers if layer.cos is not None), default=0),
        intermediate_size=weights.layers[0].down.packed.in_features,
        activation=ACTIVATIONS[weights.activation],
        gated=weights.gated,
        eps=weights.eps,
        attention_scale=weights.attention_scale,
        attention_softcap=weights.attention_softcap or 0.0,
        logit_softcap=weights.logit_softcap or 0.0,
        embed_scale=weights.embed_scale,
        residual_scale=weights.residual_scale,
        logit_scale=weights.logit_scale,
        wide_qk_norms=_wide_qk_norms(weights),
        layers=layers,
        final_norm=_norm_struct(weights.final_norm),
        lm_head=weights.lm_head.parts[0].struct,
        embed=TableStruct() if weights.embed is None else weights.embed.struct,
        fuse=_linear_struct(weights.fuse),
    )


def _norm_struct(norm: FusedNorm | None) -> NormStruct:
    return NormStruct() if norm is None else NormStruct(weight=address(norm.weight), bias=address(norm.bias))


def _linear_struct(linear: FusedLinear | None) -> StackStruct:
    return StackStruct() if linear is None else linear.packed.struct(linear.bias)


def _indices(values: Indices, n: int, end: int | None) -> array[int]:
    """Returns n indices, checked to be below `end` (None: any)."""
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


def _address(values: array[int] | None) -> int | None:
    """Returns where the integers lie, as the structures hold it."""
    return None if values is None else values.buffer_info()[0]


def _check_weights(weights: FusedWeights, hidden_size: int) -> None:
    """Raises `ValueError` where shapes do not fit: the kernels would read past what is too short."""
    if weights.head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8, not {weights.head_dim}")
    _check_norm(weights.final_norm, hidden_size)
    if len(weights.lm_head.parts) != 1:
        raise ValueError(f"expected an LM head of one part, not {len(weights.lm_head.parts)}")
    if weights.embed is not None and weights.embed.q.shape[1] != hidden_size:
        raise ValueError(f"expected rows of {hidden_size} in the table of token embeddings")
    if weights.fuse is not None:
        _check_linear("fuse", weights.fuse, (hidden_size, 2 * hidden_size))
    for layer in weights.layers:
        _check_layer(weights, layer, hidden_size)


def _check_layer(weights: FusedWeights, layer: FusedLayer, hidden_size: int) -> None:
    q_size, inner = weights.num_heads * weights.head_dim, weights.layers[0].down.packed.in_features
    _check_linear("qkv", layer.qkv, (q_size + 2 * weights.num_kv_heads * weights.head_dim, hidden_size))
    _check_linear("out", layer.out, (hidden_size, q_size))
    _check_linear("gate_up", layer.gate_up, (inner * (2 if weights.gated else 1), hidden_size))
    _check_linear("down", layer.down, (hidden_size, inner))
    for norm in (layer.attn_norm, layer.mlp_norm, layer.post_attn_norm, layer.post_mlp_norm):
        _check_norm(norm, hidden_size)
    wide = _wide_qk_norms(weights)
    for vector, heads in ((layer.q_norm, weights.num_heads), (layer.k_norm, weights.num_kv_heads)):
        _check_vector(vector, weights.head_dim * (heads if wide else 1))
    if (layer.cos is None) != (layer.sin is None) or (wide and None in (layer.q_norm, layer.k_norm)):
        raise ValueError("a layer has cosines and sines, and norms of queries and keys, in pairs")
    for table in (layer.cos, layer.sin):
        _check_table(table, weights)


def _wide_qk_norms(weights: FusedWeights) -> bool:
    """Tells whether queries and keys are normed over all heads at once."""
    q_norm = weights.layers[0].q_norm if weights.layers else None
    return q_norm is not None and len(q_norm) == weights.num_heads * weights.head_dim > weights.head_dim


def _check_table(table: Tensor | None, weights: FusedWeights) -> None:
    """Checks the cosines or sines of a layer: all layers rotate equally many dimensions."""
    if table is None:
        return
    width = max(layer.cos.shape[1] for layer in weights.layers if layer.cos is not None)
    if table.dtype != torch.float32 or not table.is_contiguous() or table.shape[1:] != (width,):
        raise ValueError(f"expected cosines and sines to be contiguous float32 [positions, {width}]")


def _check_linear(name: str, linear: FusedLinear, shape: tuple[int, int]) -> None:
    if (linear.packed.out_features, linear.packed.in_features) != shape:
        raise ValueError(f"expected {name} to be {list(shape)}")
    _check_vector(linear.bias, shape[0])


def _check_hidden_states(hidden_states: Tensor | None, capacity: int, size: int) -> None:
    if hidden_states is not None and (
        hidden_states.dtype != torch.float32
        or hidden_states.shape != (len(hidden_states), size)
        or len(hidden_states) < capacity
        or not hidden_states.is_contiguous()
    ):
        raise ValueError(f"expected hidden_states to be contiguous float32 [{capacity}, {size}]")


def _check_norm(norm: FusedNorm | None, size: int) -> None:
    if norm is not None:
        _check_vector(norm.weight, size)
        _check_vector(norm.bias, size)


def _check_vector(tensor: Tensor | None, size: int) -> None:
    if tensor is not None and (tensor.shape != (size,) or tensor.dtype != torch.float32 or not tensor.is_contiguous()):
        raise ValueError(f"expected a vector of float32 [{size}], not {tensor.dtype} {list(tensor.shape)}")
