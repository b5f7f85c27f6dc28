"""One decoder for every family that we run: a flat pass over new tokens of any sequences.

The decoder knows nothing about caches. For each layer it hands rotated queries and keys, and values, to the caller's
`attend`, which puts keys and values where they belong and returns what each query reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from outlay import kernels
from outlay.models.config import DecoderConfig, RelativeBias
from outlay.models.embedding import Embedding
from outlay.models.experts import ExpertMlp
from outlay.models.linear import Linear, NativeLinear
from outlay.models.mlp import Mlp, Sparsification
from outlay.models.norm import Norm, RMSNorm
from outlay.models.rope import rotate

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [n, num_heads, head_dim], k and v [n, num_kv_heads, head_dim]) -> [n, num_heads, head_dim]."""
Read = Callable[[int, Tensor], Tensor]
"""(layer, q [n, num_heads, head_dim]) -> what the rows read of their memories, [n, num_heads, head_dim]."""
Resting = Callable[[int], Tensor | None]
"""layer -> rows [n] whose attention adds nothing there, not even the bias of its output; None: there is none."""
Watch = Callable[[Tensor], None]
"""Called with the first layer's input and each layer's output, [n, hidden_size]."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines of the rows, each [n, 1, rope dim]."""


class InputsEmbeds(NamedTuple):
    """Input embeddings that some rows of a pass come with."""

    rows: Sequence[int]
    """Rows of the pass that have an input embedding, [r]."""
    embeds: Sequence[Tensor]
    """Their input embeddings, r of [hidden_size]."""
    alone: Sequence[bool]
    """Whether a row has no token beside its input embedding, [r]."""

    def stacked(self, like: Tensor) -> Tensor:
        """Returns the input embeddings [r, hidden_size] in the dtype and on the device of another tensor."""
        return torch.stack([embed.to(like) for embed in self.embeds])


@dataclass(frozen=True)
class Cross:
    """The weights by which a layer reads the output of an encoder.

    `norm` precedes it, or follows its residual sum (`DecoderConfig.sum_norms`); `post_norm` follows it.
    """

    norm: Norm | None
    q: Linear
    kv: Linear
    out: Linear
    post_norm: Norm | None = None


@dataclass(frozen=True)
class Layer:
    """The weights of one layer.

    `attn_norm` and `mlp_norm` precede attention and MLP, or follow their residual sums (`DecoderConfig.sum_norms`);
    `post_*` follow attention and MLP.
    """

    attn_norm: Norm | None
    qkv: Linear
    out: Linear
    mlp_norm: Norm | None
    mlp: Mlp | ExpertMlp | Sparsification
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    post_attn_norm: Norm | None = None
    post_mlp_norm: Norm | None = None
    cross: Cross | None = None

    @property
    def norms(self) -> list[Norm]:
        """The norms that this layer has."""
        norms = [self.attn_norm, self.mlp_norm, self.q_norm, self.k_norm, self.post_attn_norm, self.post_mlp_norm]
        if self.cross is not None:
            norms += [self.cross.norm, self.cross.post_norm]
        return [norm for norm in norms if norm is not None]

    @property
    def linears(self) -> list[Linear]:
        """The linear layers of a pass but the MLP's: not those that make keys and values of a memory, once."""
        cross = [] if self.cross is None else [self.cross.q, self.cross.out]
        return [self.qkv, self.out, *cross]


class Decoder:
    """A network: `forward` computes logits; `pass_weight_bytes` and `linear_flops` say what a pass costs."""

    code = "native"
    """Whose code the layers are: ours, or that of `transformers`."""
    sinks: Sequence[Tensor | None] = ()
    """Each layer's attention sinks, float32 [num_heads]: the score of a key of value 0. Empty: no layer has any."""
    relative: Tensor | None
    """The bias of attention scores by distance, float32 [num_heads, 2 * longest + 1] (`by_distance`), if any."""
    reads_hidden_states = False
    """Whether this is a draft head: with each token it reads the target's hidden state before the token."""
    fuse: Linear | None = None
    """Makes a draft head's input, [hidden_size], of a hidden state and a token's embedding."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Layer],
        embed: Embedding,
        lm_head: Linear,
        *,
        final_norm: Norm | None,
        positions: Tensor | None = None,
        embed_norm: Norm | None = None,
        relative: Tensor | None = None,
        project_in: Linear | None = None,
        project_out: Linear | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.layers, self.embed, self.lm_head = config, tuple(layers), embed, lm_head
        self.final_norm, self.positions, self.embed_norm = final_norm, positions, embed_norm
        self.relative = relative
        self.project_in, self.project_out = project_in, project_out
        self.dtype, self.device = dtype, torch.device(device)
        ropes = list(dict.fromkeys(rope for rope in config.ropes if rope is not None))
        self.rope_tables = [rope.tables(config.max_positions, self.device) for rope in ropes]
        self.table_of_layer = [None if rope is None else ropes.index(rope) for rope in config.ropes]
        self._fixed_bytes = self._count_fixed_bytes()
        self._pass_bytes: dict[int, int] = {}  # by tokens
        self._row_multiplies, self._lm_head_multiplies = self._count_multiplies()

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Computes the logits of n new tokens, of any sequences, flat.

        Args:
            tokens: int64 [n].
            positions: int64 [n].
            attend: called once a layer, in order.
            rows: int64 [r], the rows whose logits are wanted (None: all n).

        Returns:
            Logits, float32 [r or n, vocab_size].
        """
        x = self.last_hidden(tokens, positions, attend)
        return self.logits(x if rows is None else x[rows])

    def last_hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        inputs_embeds: InputsEmbeds | None = None,
        watch: Watch | None = None,
        read: Read | None = None,
        resting: Resting | None = None,
    ) -> Tensor:
        """Returns the last layer's output of n new tokens, [n, hidden_size], as `logits` takes it.

        Args:
            tokens: int64 [n].
            positions: int64 [n].
            attend: called once a layer, in order.
            inputs_embeds: what some rows read in place of their tokens' embeddings.
            watch: as in `hidden`.
            read: as in `hidden`.
            resting: as in `hidden`.
        """
        return self.hidden(self.inputs(tokens, positions, inputs_embeds), positions, attend, watch, read, resting)

    @torch.inference_mode()
    def hidden(
        self,
        x: Tensor,
        positions: Tensor,
        attend: Attend,
        watch: Watch | None = None,
        read: Read | None = None,
        resting: Resting | None = None,
    ) -> Tensor:
        """Runs all layers.

        Args:
            x: the first layer's input, [n, hidden_size].
            positions: int64 [n].
            attend: called once a layer, in order.
            watch: called with the first layer's input and each layer's output, [n, hidden_size].
            read: called once a layer, in order, where layers read a memory.
            resting: asked once a layer, after its attention.

        Returns:
            The last layer's output, [n, hidden_size], before the final norm.
        """
        rotations = self.rotations(positions)
        if watch is not None:
            watch(x)
        for index in range(len(self.layers)):
            attended = attend(index, *self.before_attention(index, x, rotations))
            x = self.after_attention(index, x, attended, read, None if resting is None else resting(index))
            if watch is not None:
                watch(x)
        return x

    def inputs(self, tokens: Tensor, positions: Tensor, inputs_embeds: InputsEmbeds | None = None) -> Tensor:
        """Returns the first layer's input, [n, hidden_size]: embeddings, with learned positions if any.

        Args:
            tokens: int64 [n].
            positions: int64 [n].
            inputs_embeds: what some rows read in place of their tokens' embeddings.
        """
        x = self.embeddings(tokens)
        if inputs_embeds is not None:
            x[torch.tensor(inputs_embeds.rows, device=x.device)] = inputs_embeds.stacked(x)
        if self.positions is not None:
            x = x + self.positions[positions + self.config.position_offset]
        return x if self.embed_norm is None else self.embed_norm(x)

    def embeddings(self, tokens: Tensor) -> Tensor:
        """Returns the input embeddings of tokens, before positions are added, [n, hidden_size]."""
        x = self.embed(tokens)
        return x if self.project_in is None else self.project_in(x)

    def rotations(self, positions: Tensor) -> list[Rotation]:
        """Returns the rotations of queries and keys, one for each of `rope_tables`."""
        found = []
        for table in self.rope_tables:
            cos, sin = (part[positions].unsqueeze(1) for part in table)
            found.append((torch.cat((cos, cos), dim=-1).to(self.dtype), torch.cat((-sin, sin), dim=-1).to(self.dtype)))
        return found

    def before_attention(self, index: int, x: Tensor, rotations: Sequence[Rotation]) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's input x [n, hidden_size] -> its queries, keys and values, as `Attend` takes them."""
        config, layer = self.config, self.layers[index]
        heads, kv_heads = config.num_heads, config.num_kv_heads
        normed = layer.attn_norm(x) if config.pre_norm and layer.attn_norm is not None else x
        if config.shared_qkv:
            shared = layer.qkv(normed).view(-1, heads, config.head_dim)
            return shared, shared, shared
        qkv = layer.qkv(normed).view(-1, heads + 2 * kv_heads, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            for norm, part in ((layer.q_norm, qkv[:, :heads]), (layer.k_norm, qkv[:, heads : heads + kv_heads])):
                part[:] = norm(part.flatten(1)).view(part.shape) if config.wide_qk_norms else norm(part)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        table = self.table_of_layer[index]
        if table is not None:
            q, k = rotate(qkv[:, : heads + kv_heads], *rotations[table]).split((heads, kv_heads), dim=1)
        return q, k, v

    def after_attention(
        self, index: int, x: Tensor, attended: Tensor, read: Read | None = None, resting: Tensor | None = None
    ) -> Tensor:
        """A layer's input x and its attention's output -> the next layer's input, [n, hidden_size].

        Args:
            index: the layer.
            x: [n, hidden_size].
            attended: [n, num_heads, head_dim].
            read: what the layer reads a memory by, if it has `cross`.
            resting: rows whose attention adds nothing, bool [n].
        """
        layer = self.layers[index]
        change = layer.out(attended.reshape(x.shape[0], -1))
        if resting is not None:
            change[resting] = 0
        x = self._added(x, change, layer.attn_norm, layer.post_attn_norm)
        if layer.cross is not None:
            x = self._with_memory(index, x, read)
        change = layer.mlp(x if self.config.sum_norms or layer.mlp_norm is None else layer.mlp_norm(x))
        return change if self.config.ista is not None else self._added(x, change, layer.mlp_norm, layer.post_mlp_norm)

    def _with_memory(self, index: int, x: Tensor, read: Read | None) -> Tensor:
        """Adds what a layer reads of the rows' memories to its stream x [n, hidden_size]."""
        cross, config = self.layers[index].cross, self.config
        assert cross is not None, "the layer reads a memory"
        assert read is not None, "rows of an encoder-decoder have a memory"
        q = cross.q(x if config.sum_norms or cross.norm is None else cross.norm(x))
        change = cross.out(read(index, q.view(-1, config.num_heads, config.head_dim)).reshape(x.shape[0], -1))
        return self._added(x, change, cross.norm, cross.post_norm)

    def _added(self, x: Tensor, change: Tensor, norm: Norm | None, post_norm: Norm | None) -> Tensor:
        """Returns the residual sum of x and a change, [n, hidden_size], with the norms that follow."""
        if self.config.sum_norms and norm is not None:
            return norm(x + change)
        change = change if post_norm is None else post_norm(change)
        return x.add(change, alpha=self.config.residual_scale)

    def memory_of(self, index: int, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """An encoder's output [m, cross_size] -> a layer's keys and values of it, [m, num_kv_heads, head_dim] each."""
        cross, config = self.layers[index].cross, self.config
        assert cross is not None, "this decoder reads no memory"
        k, v = cross.kv(encoded).view(-1, 2, config.num_kv_heads, config.head_dim).unbind(1)
        return k, v

    @property
    def memory_linears(self) -> list[Linear]:
        """The linear layers that make keys and values of a memory, one of each layer."""
        return [layer.cross.kv for layer in self.layers if layer.cross is not None]

    def hidden_states(self, x: Tensor) -> Tensor:
        """The last layer's output x -> what the LM head reads, both [n, hidden_size]."""
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """The last layer's output x [n, hidden_size] -> logits, float32 [n, vocab_size]."""
        x = self.hidden_states(x)
        if self.project_out is not None:
            x = self.project_out(x)
        logits = self.lm_head(x).float()
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def runs_on(self) -> str:
        """Says whose code computes a pass layer by layer."""
        native = any(isinstance(layer.out, NativeLinear) for layer in self.layers)
        return f"torch with native {kernels.isa()} products" if native else "torch"

    @property
    def weight_bytes_per_pass(self) -> int:
        """Bytes of weights that a pass over one token reads."""
        return self.pass_weight_bytes(1)

    def pass_weight_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads, if no two rows share an expert."""
        if tokens not in self._pass_bytes:
            lookups = self.embed.row_bytes
            if self.positions is not None:
                lookups += self.positions.shape[1] * self.positions.element_size()
            inner = sum(layer.mlp.pass_bytes(tokens) for layer in self.layers)
            self._pass_bytes[tokens] = self._fixed_bytes + tokens * lookups + inner
        return self._pass_bytes[tokens]

    def linear_flops(self, n_rows: int, n_lm_head_rows: int) -> int:
        """Returns the FLOPs of the linear layers, two a multiply-add, without attention's.

        Args:
            n_rows: rows of the pass.
            n_lm_head_rows: rows whose logits are computed.
        """
        return 2 * (n_rows * self._row_multiplies + n_lm_head_rows * self._lm_head_multiplies)

    def _count_fixed_bytes(self) -> int:
        linears = [self.lm_head, self.project_in, self.project_out]
        norms = [self.final_norm, self.embed_norm] + [norm for layer in self.layers for norm in layer.norms]
        linears += [linear for layer in self.layers for linear in layer.linears]
        return sum(part.nbytes for part in (*linears, *norms) if part is not None)

    def _count_multiplies(self) -> tuple[int, int]:
        row = sum(sum(map(_size, layer.linears)) + layer.mlp.multiplies for layer in self.layers)
        return row + _size(self.project_in), _size(self.lm_head) + _size(self.project_out)


def _size(linear: Linear | None) -> int:
    return linear.in_features * linear.out_features if linear is not None else 0


def by_distance(table: Tensor, form: RelativeBias) -> Tensor:
    """Returns a relative bias for each distance (Raffel et al. 2020, section 2.1).

    Args:
        table: a bias for each bucket, [buckets, num_heads].
        form: how distances fall into buckets.

    Returns:
        Float32 [num_heads, 2 * longest + 1]: for the position of a key minus that of its query, from -longest to
        longest, beyond which it stays the same.
    """
    distances = torch.arange(-form.longest, form.longest + 1)
    buckets, behind = form.buckets, torch.zeros_like(distances)
    if form.both_ways:
        buckets //= 2
        behind = (distances > 0) * buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = buckets // 2
    steps = torch.log(distances.clamp(min=1).float() / exact) / math.log(form.longest / exact) * (buckets - exact)
    wide = (exact + steps.long()).clamp(max=buckets - 1)
    return table.float()[behind + torch.where(distances < exact, distances, wide)].T.contiguous()
