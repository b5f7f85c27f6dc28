"""How a planned pass runs: in one native call if the kernels support the model, else layer by layer in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outlay import kernels
from outlay.engine.sampling import draw_tokens
from outlay.kernels import (
    FusedDecoder,
    FusedLayer,
    FusedLinear,
    FusedNorm,
    FusedWeights,
    PackedLinear,
    PassInputs,
    TokenDraw,
    Top,
)
from outlay.models.decoder import Attend, Decoder, InputsEmbeds, Resting
from outlay.models.encoder import Encoder
from outlay.models.graphed import CudaGraphs, GraphedForward, graphed
from outlay.models.linear import Linear, NativeLinear
from outlay.models.mlp import Mlp
from outlay.models.norm import LayerNorm, Norm
from outlay.models.quantized import QuantizedWeight
from outlay.tree.attention import attention_of, span_for_kernels
from outlay.tree.attention_rows import AttentionRows
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.memory import Memories
from outlay.tree.plan import PassPlan


class LogitsWanted(NamedTuple):
    """What a pass computes of its rows' logits."""

    logits: bool = True
    """All logits."""
    top: int = 0
    """How many of the largest logits."""
    lse: bool = False
    """The log-sum-exp of all logits, beside the largest ones."""
    named: Sequence[Sequence[int]] = ()
    """The tokens of each row whose log-probabilities are wanted; empty if there are none at all."""
    layer_states: bool = False
    """The hidden states after every layer."""
    draws: Sequence[Sequence[TokenDraw]] = ()
    """The tokens to draw after each row; empty if there are none at all."""
    attention: Sequence[bool] = ()
    """Of each row, whether what it reads in each layer is wanted; empty if of none."""


ALL_LOGITS = LogitsWanted()


class NamedLogprobs(NamedTuple):
    """The most probable token after a row, and the log-probabilities of its named tokens."""

    best: int
    logprobs: dict[int, float]


class PassOutput(NamedTuple):
    """What a pass computed of its rows' logits, as `LogitsWanted` asked."""

    logits: Tensor | None
    """Float32 [rows, vocab_size]."""
    top: Top | None
    """The k largest of each row, [rows, k]."""
    named: Sequence[NamedLogprobs] = ()
    """One for each row, if tokens were named."""
    layer_states: Tensor | None = None
    """Float32 [rows, layers + 1, hidden_size]: the first layer's input, then what each layer gives to the next, before
    the final norm."""
    drawn: Sequence[Mapping[TokenDraw, int]] = ()
    """The drawn tokens of each row, if any were to be drawn."""
    attention: Sequence[Tensor | None] = ()
    """What each row reads in each layer, float32 [layers, keys] (`AttentionRows.means`), None where nobody asked."""

    def rows(self, begin: int, end: int, top: int) -> Tensor | Top:
        """Returns rows [begin, end): the `top` largest logits of each, or all of them if that is 0."""
        if not top:
            assert self.logits is not None, "the pass was not asked for logits"
            return self.logits[begin:end]
        assert self.top is not None, "the pass was not asked for the largest logits"
        if (end - begin, top) == self.top.tokens.shape:
            return self.top
        lse = self.top.lse if self.top.lse is None else self.top.lse[begin:end]
        return Top(self.top.tokens[begin:end, :top], self.top.logits[begin:end, :top], lse)


def join(parts: Sequence[Tensor | Top]) -> Tensor | Top:
    """Concatenates rows of several passes."""
    tops = [part for part in parts if isinstance(part, Top)]
    if not tops:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    sums = [top.lse for top in tops if top.lse is not None]
    lse = torch.cat(sums) if len(sums) == len(tops) else None
    return Top(torch.cat([top.tokens for top in tops]), torch.cat([top.logits for top in tops]), lse)


class LayeredPass:
    """Runs the decoder's own layers, with attention over the tree by kernels or in torch: any model, any device."""

    def __init__(self, decoder: Decoder, cache: Cache, memories: Memories | None = None) -> None:
        self._decoder, self._cache, self._memories = decoder, cache, memories
        self.name = decoder.runs_on
        self._graphed = GraphedForward(decoder, CudaGraphs()) if graphed(decoder) else None

    def __call__(self, plan: PassPlan, logit_rows: list[int], wanted: LogitsWanted = ALL_LOGITS) -> PassOutput:
        """Runs a pass.

        Args:
            plan: the rows of the pass.
            logit_rows: the rows that go through the LM head.
            wanted: what is computed of their logits.
        """
        decoder = self._decoder
        watched = _watched(plan, logit_rows, wanted, decoder)
        attend = attention_of(
            self._cache, plan, decoder.config, decoder.dtype, decoder.sinks, decoder.relative, watched
        )
        return self.run(plan, logit_rows, wanted, attend)._replace(attention=_means(wanted, watched))

    def run(
        self,
        plan: PassPlan,
        logit_rows: list[int],
        wanted: LogitsWanted,
        attend: Attend,
        resting: Resting | None = None,
    ) -> PassOutput:
        """Runs a pass whose attention is given; what rows read is not in its output.

        Args:
            plan: The rows of the pass.
            logit_rows: The rows that go through the LM head.
            wanted: What is computed of their logits.
            attend: Called once a layer, in order.
            resting: Tells which rows take nothing from the attention of a layer.
        """
        decoder, device = self._decoder, self._decoder.device
        every_row = len(logit_rows) == len(plan.keys_seen)
        rows = slice(None) if every_row else torch.tensor(logit_rows, dtype=torch.int64, device=device)
        states: list[Tensor] = []
        watch = (lambda x: states.append(x[rows].clone().float())) if wanted.layer_states else None
        x = self._hidden(plan, attend, watch, resting)
        if self._cache.hidden_states is not None and plan.slots:
            self._cache.hidden_states[torch.tensor(plan.slots, device=device)] = decoder.hidden_states(x).float()
        return output_of(decoder.logits(x[rows]), wanted, torch.stack(states, 1) if states else None)

    def _hidden(
        self, plan: PassPlan, attend: Attend, watch: Callable[[Tensor], None] | None, resting: Resting | None
    ) -> Tensor:
        """Returns the last layer's output, [n, hidden_size]; `watch` is called with what each layer reads and gives."""
        decoder = self._decoder
        tokens, positions = _tokens_and_positions(plan, decoder.device)
        read = None
        if self._memories is not None:
            read = attention_of(self._memories.cache, plan.of_memory, self._memories.config, decoder.dtype).read
        if self._graphed is not None and not plan.inputs_embeds and watch is None and resting is None:
            return self._graphed(tokens, positions, attend)
        return decoder.last_hidden(tokens, positions, attend, _inputs_embeds(plan), watch, read, resting)


class FusedPass:
    """Runs the whole pass in one call of the native kernels. A row gets the same bits in a pass of any width."""

    def __init__(self, decoder: Decoder, cache: Cache, weights: FusedWeights) -> None:
        self._decoder, self._cache, self._weights = decoder, cache, weights
        self.name = f"native {kernels.isa()}"
        windows = decoder.config.windows
        self._windows = list(dict.fromkeys(windows))
        self._plan_of_layer = [self._windows.index(window) for window in windows]
        self._bound_to = self._memory()
        self._fused = self._bind()

    def __call__(self, plan: PassPlan, logit_rows: list[int], wanted: LogitsWanted = ALL_LOGITS) -> PassOutput:
        """As `LayeredPass`."""
        if self._bound_to != self._memory():
            self._bound_to, self._fused = self._memory(), self._bind()
        inputs: Tensor | PassInputs = PassInputs(plan.tokens, plan.inputs_embeds)
        if self._weights.embed is None or wanted.layer_states:
            inputs = self._decoder.inputs(*_tokens_and_positions(plan, self._decoder.device), _inputs_embeds(plan))

        n, layers, states = len(plan.tokens), (0, len(self._plan_of_layer)), list[Tensor]()
        plans = [
            kernels.AttentionPlan([span_for_kernels(span, n) for span in plan.kv_spans[window]], n)
            for window in self._windows
        ]
        watched = _watched(plan, logit_rows, wanted, self._decoder)
        weights = None if watched is None else watched.weights
        if wanted.layer_states:
            assert isinstance(inputs, Tensor)
            states, layers = self._run_layers(plan, inputs, plans, logit_rows, weights), (layers[1], layers[1])
        named_tokens, named = _named_tokens(wanted), []
        top_k, lse = (wanted.top, wanted.lse) if named_tokens is None else (max(wanted.top, 1), True)
        logits, top, drawn = self._fused.run(
            inputs,
            plan.positions,
            plan.slots,
            plans,
            None if len(logit_rows) == n else logit_rows,
            logits=wanted.logits,
            top_k=top_k,
            lse=lse,
            picks=named_tokens,
            layers=layers,
            draws=_row_draws(wanted),
            weights=weights,
        )
        if top is not None and top.picked is not None and top.lse is not None:
            named = _named_logprobs(wanted, top.tokens[:, 0], top.picked - top.lse[:, None])
        layer_states, attention = torch.stack(states, 1) if states else None, _means(wanted, watched)
        return PassOutput(logits, top, named, layer_states, _by_row(wanted, drawn), attention)

    def _run_layers(
        self,
        plan: PassPlan,
        x: Tensor,
        plans: Sequence[kernels.AttentionPlan],
        rows: Sequence[int],
        weights: Mapping[int, Tensor] | None,
    ) -> list[Tensor]:
        """Runs one layer after the other, in place of x [n, hidden_size]; returns the rows before and after each."""
        at, states = torch.tensor(rows), [x[rows]]
        for layer in range(len(self._plan_of_layer)):
            layers = layer, layer + 1
            self._fused.run(x, plan.positions, plan.slots, plans, logits=False, layers=layers, weights=weights)
            states.append(x[at])
        return states

    def _memory(self) -> tuple[int, bool]:
        """Returns what decides where the cache's memory lies: its capacity, and whether it keeps hidden states."""
        return self._cache.capacity, self._cache.hidden_states is not None

    def _bind(self) -> FusedDecoder:
        """Returns the kernels' decoder, which holds the addresses of the cache's memory as it lies now."""
        return FusedDecoder(self._weights, self._cache.layers, self._plan_of_layer, self._cache.hidden_states)


Pass = LayeredPass | FusedPass


def output_of(logits: Tensor, wanted: LogitsWanted, layer_states: Tensor | None = None) -> PassOutput:
    """Returns what is wanted of logits [rows, vocab], beside the hidden states of the rows."""
    named_tokens, named = _named_tokens(wanted), []
    if named_tokens is not None:  # the float32 sum of `log_softmax`, and no better one, is what others compare with
        logprobs = logits.log_softmax(1).gather(1, named_tokens.to(logits.device))
        named = _named_logprobs(wanted, logits.argmax(1), logprobs)
    top = _top(logits, wanted) if wanted.top else None
    draws = _row_draws(wanted)
    drawn = draw_tokens(logits[[row for row, _ in draws]], [each for _, each in draws]) if draws else []
    return PassOutput(logits if wanted.logits else None, top, named, layer_states, _by_row(wanted, drawn))


def pass_for(decoder: Decoder, cache: Cache, memories: Memories | None = None) -> Pass:
    """Returns the fastest way to run this decoder's passes over this cache, and the memories that it reads, if any."""
    weights = _fused_weights(decoder) if kernels.available() and cache.dtype in KV_DTYPES.values() else None
    return FusedPass(decoder, cache, weights) if weights is not None else LayeredPass(decoder, cache, memories)


def runs_whole(decoder: Decoder) -> bool:
    """Tells whether the native kernels run this decoder's passes whole, so that they have the same bits everywhere."""
    return kernels.available() and _fused_weights(decoder) is not None


def _watched(plan: PassPlan, rows: Sequence[int], wanted: LogitsWanted, decoder: Decoder) -> AttentionRows | None:
    """Returns what receives the attention weights of the rows that want them; None where none does."""
    asked = [row for row, is_asked in zip(rows, wanted.attention, strict=False) if is_asked]
    return AttentionRows(plan, asked, decoder.config, decoder.device) if asked else None


def _means(wanted: LogitsWanted, watched: AttentionRows | None) -> list[Tensor | None]:
    """Returns the attention of each row, None where it is not wanted; empty where there is none."""
    means = iter(() if watched is None else watched.means())
    return [next(means) if asked else None for asked in wanted.attention]


def _named_tokens(wanted: LogitsWanted) -> Tensor | None:
    """Returns the named tokens, int64 [rows, most of a row], padded with zeros; None if there are none."""
    if not wanted.named:
        return None
    width = max(map(len, wanted.named))
    return torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in wanted.named], dtype=torch.int64)


def _named_logprobs(wanted: LogitsWanted, best: Tensor, logprobs: Tensor) -> list[NamedLogprobs]:
    """Pairs the best token of each row [rows] with the log-probabilities of `_named_tokens`."""
    rows = zip(wanted.named, best.tolist(), logprobs.tolist(), strict=True)
    return [NamedLogprobs(token, dict(zip(tokens, values, strict=False))) for tokens, token, values in rows]


def _row_draws(wanted: LogitsWanted) -> list[tuple[int, TokenDraw]]:
    """Returns the tokens to draw, each with its row."""
    return [(row, each) for row, draws in enumerate(wanted.draws) for each in draws]


def _by_row(wanted: LogitsWanted, drawn: Sequence[int]) -> list[dict[TokenDraw, int]]:
    """Returns the tokens of `_row_draws` by row."""
    tokens = iter(drawn)
    return [{each: next(tokens) for each in draws} for draws in wanted.draws]


def _top(logits: Tensor, wanted: LogitsWanted) -> Top:
    """Returns the largest logits of each row in the native kernels' order: ties go to the lower token."""
    least = logits.topk(wanted.top).values[:, -1:] if wanted.top < logits.shape[1] else logits.amin(1, keepdim=True)
    rows = []
    for row, limit in zip(logits, least, strict=True):
        tokens = (row >= limit).nonzero()[:, 0]
        rows.append(tokens[row[tokens].sort(descending=True, stable=True).indices[: wanted.top]])
    tokens = torch.stack(rows) if rows else torch.empty(0, wanted.top, dtype=torch.int64, device=logits.device)
    return Top(tokens, logits.gather(1, tokens), logits.logsumexp(1) if wanted.lse else None)


def _tokens_and_positions(plan: PassPlan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the tokens, 0 for a row without one, and the positions of a plan's rows, int64 [n]."""
    tokens = [max(token, 0) for token in plan.tokens]
    return torch.tensor(tokens, device=device), torch.tensor(plan.positions, device=device)


def _inputs_embeds(plan: PassPlan) -> InputsEmbeds | None:
    found = [(row, embed) for row, embed in enumerate(plan.inputs_embeds) if embed is not None]
    if not found:
        return None
    rows, embeds = zip(*found, strict=True)
    return InputsEmbeds(rows, embeds, [plan.tokens[row] < 0 for row in rows])


def _fused_weights(decoder: Decoder) -> FusedWeights | None:
    """Returns the weights as the kernels take them, or None if the model has a part that they lack."""
    if decoder.code != "native" or decoder.sinks or decoder.relative is not None or decoder.config.cross_size:
        return None
    config, lm_head, embed = decoder.config, _fused_lm_head(decoder), decoder.embed
    layers = [fused for index in range(len(decoder.layers)) if (fused := _fused_layer(decoder, index)) is not None]
    if not layers or len(layers) < len(decoder.layers):
        return None
    if decoder.device.type != "cpu" or config.sum_norms or config.head_dim % 8 or config.embedding_size:
        return None
    if lm_head is None:
        return None
    table = embed.table.table if _looks_up(decoder) and isinstance(embed.table, QuantizedWeight) else None
    return FusedWeights(
        layers=layers,
        final_norm=_fused_norm(decoder.final_norm),
        lm_head=lm_head,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        eps=config.norm_eps,
        attention_scale=config.attention_scale,
        attention_softcap=config.attention_softcap,
        logit_softcap=config.logit_softcap,
        activation=config.activation,
        gated=config.gated,
        embed=table,
        embed_scale=embed.scale,
        residual_scale=config.residual_scale,
        logit_scale=config.logit_scale,
        fuse=None if decoder.fuse is None else _fused_linear(decoder.fuse),
    )


def _fused_lm_head(decoder: Decoder) -> PackedLinear | None:
    """Returns the LM head as the kernels take it, None if they can't; an encoder gets one that no row goes through."""
    if isinstance(decoder, Encoder):
        return kernels.pack_f32(torch.zeros(1, decoder.config.hidden_size))
    lm_head = decoder.lm_head
    return lm_head.packed if isinstance(lm_head, NativeLinear) and lm_head.bias is None else None


def _looks_up(decoder: Decoder) -> bool:
    """Tells whether the kernels can make the first layer's input from token ids."""
    plain = decoder.embed.dtype == torch.float32 and decoder.positions is None and decoder.project_in is None
    plain = plain and decoder.embed_norm is None
    return plain and (decoder.fuse is None or isinstance(decoder.fuse, NativeLinear))


def _fused_layer(decoder: Decoder, index: int) -> FusedLayer | None:
    layer, table = decoder.layers[index], decoder.table_of_layer[index]
    cos, sin = (None, None) if table is None else decoder.rope_tables[table]
    mlp = layer.mlp
    if not isinstance(mlp, Mlp):
        return None
    qkv, out, gate_up, down = map(_fused_linear, (layer.qkv, layer.out, mlp.gate_up, mlp.down))
    attn_norm, mlp_norm = _fused_norm(layer.attn_norm), _fused_norm(layer.mlp_norm)
    if qkv is None or out is None or gate_up is None or down is None:
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
        cos=cos,
        sin=sin,
    )


def _fused_linear(linear: Linear) -> FusedLinear | None:
    return FusedLinear(linear.packed, linear.bias) if isinstance(linear, NativeLinear) else None


def _fused_norm(norm: Norm | None) -> FusedNorm | None:
    if norm is None:
        return None
    return FusedNorm(norm.weight, norm.bias if isinstance(norm, LayerNorm) else None)
