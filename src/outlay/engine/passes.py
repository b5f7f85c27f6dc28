"""How a planned pass is run: in one native call where the kernels have all that the model needs, layer by layer
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outlay import kernels
from outlay.kernels import FusedDecoder, FusedLayer, FusedLinear, FusedNorm, FusedWeights, PassInputs, Top
from outlay.models.decoder import Decoder, Given, Layer
from outlay.models.graphed import CudaGraphs, GraphedForward, graphed
from outlay.models.linear import Linear, NativeLinear
from outlay.models.mlp import Mlp
from outlay.models.norm import LayerNorm, Norm
from outlay.models.quantized import QuantizedWeight
from outlay.tree.attention import TreeAttention
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.plan import Piece, Plan


class Want(NamedTuple):
    """What is wanted of the head's rows: all logits, the `top` largest, the log-sum-exp that goes with them, and the
    log-probabilities of the tokens `named` for each row (none where it is empty)."""

    logits: bool = True
    top: int = 0
    lse: bool = False
    named: Sequence[Sequence[int]] = ()


LOGITS = Want()


class NamedLogprobs(NamedTuple):
    """What a row says of tokens that may follow: the most probable of all, and the log-probabilities of those named."""

    best: int
    logprobs: dict[int, float]


class Output(NamedTuple):
    """What a pass gives: `logits` float32 [rows, vocab], `top` with [rows, k] of them, and `named` of the rows
    for which tokens were named."""

    logits: Tensor | None
    top: Top | None
    named: Sequence[NamedLogprobs] = ()

    def rows(self, begin: int, end: int, top: int) -> Tensor | Top:
        """Returns rows [begin, end): the `top` largest logits of each, or all of them where that is 0."""
        if not top:
            assert self.logits is not None, "the pass was not asked for logits"
            return self.logits[begin:end]
        assert self.top is not None, "the pass was not asked for the largest logits"
        if (end - begin, top) == self.top.tokens.shape:
            return self.top
        lse = self.top.lse if self.top.lse is None else self.top.lse[begin:end]
        return Top(self.top.tokens[begin:end, :top], self.top.logits[begin:end, :top], lse)


def join(parts: Sequence[Tensor | Top]) -> Tensor | Top:
    """Puts rows of several passes below each other."""
    tops = [part for part in parts if isinstance(part, Top)]
    if not tops:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    sums = [top.lse for top in tops if top.lse is not None]
    lse = torch.cat(sums) if len(sums) == len(tops) else None
    return Top(torch.cat([top.tokens for top in tops]), torch.cat([top.logits for top in tops]), lse)


def _picks(want: Want) -> Tensor | None:
    """Returns the named tokens, int64 [rows, most of a row], filled up with zeros."""
    if not want.named:
        return None
    width = max(map(len, want.named))
    return torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in want.named], dtype=torch.int64)


def _named(want: Want, best: Tensor, logprobs: Tensor) -> list[NamedLogprobs]:
    """Puts together the best token of each row [rows] and the log-probabilities of `_picks`."""
    rows = zip(want.named, best.tolist(), logprobs.tolist(), strict=True)
    return [NamedLogprobs(token, dict(zip(tokens, values, strict=False))) for tokens, token, values in rows]


class LayeredPass:
    """Runs the decoder's own layers with attention over the tree in torch: any model, any device; the reference."""

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        self._decoder, self._cache = decoder, cache
        native = any(isinstance(layer.out, NativeLinear) for layer in decoder.layers)
        self.name = f"torch with native {kernels.isa()} products" if native else "torch"
        self._graphed = GraphedForward(decoder, CudaGraphs()) if graphed(decoder) else None

    def __call__(self, plan: Plan, heads: list[int], want: Want = LOGITS) -> Output:
        """Computes all rows of the plan and returns what is wanted of the logits of the rows `heads`."""
        decoder, device = self._decoder, self._decoder.device
        attend = TreeAttention(self._cache, plan, decoder.config, decoder.dtype)
        tokens, positions = _first_inputs(plan, device)
        if self._graphed is not None and not plan.vectors:
            x = self._graphed(tokens, positions, attend)
        else:
            x = decoder.hidden(decoder.inputs(tokens, positions, _given(plan)), positions, attend)
        if self._cache.features is not None:
            self._cache.features[torch.tensor(plan.slots, device=device)] = decoder.features(x).float()
        rows = None if len(heads) == len(plan.keys_seen) else torch.tensor(heads, dtype=torch.int64, device=device)
        logits = decoder.logits(x if rows is None else x[rows])
        picks, named = _picks(want), []
        if picks is not None:  # the float32 sum of `log_softmax`, and no better one, is what others compare with
            named = _named(want, logits.argmax(1), logits.log_softmax(1).gather(1, picks.to(device)))
        return Output(logits if want.logits else None, _top(logits, want) if want.top else None, named)


class FusedPass:
    """Runs the whole pass in one call of the native kernels. What a row gets has the same bits in a pass of any
    width.
    """

    def __init__(self, decoder: Decoder, cache: Cache, weights: FusedWeights) -> None:
        self._decoder, self._cache, self._weights = decoder, cache, weights
        self.name = f"native {kernels.isa()}"
        windows = decoder.config.windows
        self._kinds = list(dict.fromkeys(windows))
        self._plan_of_layer = [self._kinds.index(window) for window in windows]
        self._fused = self._bind()

    def __call__(self, plan: Plan, heads: list[int], want: Want = LOGITS) -> Output:
        """As `LayeredPass`."""
        if self._bound != (self._cache.capacity, self._cache.features is None):
            self._fused = self._bind()
        inputs: Tensor | PassInputs = PassInputs(plan.tokens, plan.vectors)
        if self._weights.embed is None:
            inputs = self._decoder.inputs(*_first_inputs(plan, self._decoder.device), _given(plan))
        rows = len(plan.tokens)
        plans = [
            kernels.AttentionPlan([_span(piece, rows) for piece in plan.pieces[window]], rows) for window in self._kinds
        ]
        chosen = None if len(heads) == rows else heads
        picks, named = _picks(want), []
        most, lse = (want.top, want.lse) if picks is None else (max(want.top, 1), True)
        logits, top = self._fused.run(
            inputs,
            plan.positions,
            plan.slots,
            plans,
            chosen,
            logits=want.logits,
            top_k=most,
            lse=lse,
            picks=picks,
        )
        if top is not None and top.picked is not None and top.lse is not None:
            named = _named(want, top.tokens[:, 0], top.picked - top.lse[:, None])
        return Output(logits, top, named)

    def _bind(self) -> FusedDecoder:
        """The kernels hold the cache's addresses, which change when it grows and when it begins to keep features."""
        self._bound = self._cache.capacity, self._cache.features is None
        return FusedDecoder(self._weights, self._cache.layers, self._plan_of_layer, self._cache.features)


Pass = LayeredPass | FusedPass


def pass_for(decoder: Decoder, cache: Cache) -> Pass:
    """Returns the fastest way to run this decoder's passes over this cache."""
    weights = _fused_weights(decoder) if kernels.available() and cache.dtype in KV_DTYPES.values() else None
    return FusedPass(decoder, cache, weights) if weights is not None else LayeredPass(decoder, cache)


def _top(logits: Tensor, want: Want) -> Top:
    """As the native head: in descending order, the lower token first among equals."""
    least = logits.topk(want.top).values[:, -1:] if want.top < logits.shape[1] else logits.amin(1, keepdim=True)
    rows = []
    for row, limit in zip(logits, least, strict=True):
        tokens = (row >= limit).nonzero()[:, 0]
        rows.append(tokens[row[tokens].sort(descending=True, stable=True).indices[: want.top]])
    tokens = torch.stack(rows) if rows else torch.empty(0, want.top, dtype=torch.int64, device=logits.device)
    return Top(tokens, logits.gather(1, tokens), logits.logsumexp(1) if want.lse else None)


def _span(piece: Piece, rows: int) -> kernels.AttentionSpan:
    return kernels.AttentionSpan(
        piece.start,
        piece.length,
        rows=None if len(piece.rows) == rows else piece.rows,
        mask=piece.mask,
        limits=piece.limits,
        slots=piece.slots,
    )


def _first_inputs(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns tokens, 0 where there are none, and positions of a plan's rows, int64 [n]."""
    tokens = [max(token, 0) for token in plan.tokens]
    return torch.tensor(tokens, device=device), torch.tensor(plan.positions, device=device)


def _given(plan: Plan) -> Given | None:
    found = [(row, vector) for row, vector in enumerate(plan.vectors) if vector is not None]
    if not found:
        return None
    rows, vectors = zip(*found, strict=True)
    return Given(rows, vectors, [plan.tokens[row] < 0 for row in rows])


def _fused_weights(decoder: Decoder) -> FusedWeights | None:
    """Returns the weights as the kernels take them, or None where the model has a part that they lack."""
    config, head, embed = decoder.config, decoder.head, decoder.embed
    # Whether the kernels can make the first layer's inputs. A head has its fused layer besides.
    tabled = embed.dtype == torch.float32 and decoder.positions is None and decoder.project_in is None
    tabled = tabled and (decoder.fuse is None or _fused_linear(decoder.fuse) is not None)
    plain = (
        decoder.device.type == "cpu"
        and config.pre_norm
        and config.head_dim % 8 == 0
        and config.embedding_size == 0
        and isinstance(head, NativeLinear)
        and head.bias is None
    )
    known = [fused for layer in decoder.layers if (fused := _fused_layer(layer)) is not None]
    if not plain or not known or len(known) < len(decoder.layers):
        return None
    assert isinstance(head, NativeLinear)
    return FusedWeights(
        layers=known,
        final_norm=_fused_norm(decoder.final_norm),
        lm_head=head.packed,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        eps=config.norm_eps,
        attention_scale=config.attention_scale,
        cos=decoder.cos if config.rope else None,
        sin=decoder.sin if config.rope else None,
        attention_softcap=config.attention_softcap,
        logit_softcap=config.logit_softcap,
        activation=config.activation,
        gated=config.gated,
        embed=embed.table.table if tabled and isinstance(embed.table, QuantizedWeight) else None,
        embed_scale=embed.scale,
        fuse=None if decoder.fuse is None else _fused_linear(decoder.fuse),
    )


def _fused_layer(layer: Layer) -> FusedLayer | None:
    mlp = layer.mlp
    if not isinstance(mlp, Mlp):
        return None
    qkv, out, gate_up, down = map(_fused_linear, (layer.qkv, layer.out, mlp.gate_up, mlp.down))
    attn_norm, mlp_norm = _fused_norm(layer.attn_norm), _fused_norm(layer.mlp_norm)
    if qkv is None or out is None or gate_up is None or down is None or attn_norm is None or mlp_norm is None:
        return None
    return FusedLayer(
        attn_norm=attn_norm,
        qkv=qkv,
        out=out,
        mlp_norm=mlp_norm,
        gate_up=gate_up,
        down=down,
        q_norm=layer.q_norm.weight if layer.q_norm else None,
        k_norm=layer.k_norm.weight if layer.k_norm else None,
        post_attn_norm=_fused_norm(layer.post_attn_norm),
        post_mlp_norm=_fused_norm(layer.post_mlp_norm),
    )


def _fused_linear(linear: Linear) -> FusedLinear | None:
    return FusedLinear(linear.packed, linear.bias) if isinstance(linear, NativeLinear) else None


def _fused_norm(norm: Norm | None) -> FusedNorm | None:
    if norm is None:
        return None
    return FusedNorm(norm.weight, norm.bias if isinstance(norm, LayerNorm) else None)
