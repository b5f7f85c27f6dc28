"""One decoder for every family that we run: a flat pass over new tokens of any sequences.

The decoder knows nothing about caches. For each layer it hands rotated queries and keys, and values, to the caller's
`attend`, which puts keys and values where they belong and returns what each query reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from outlay.models.config import DecoderConfig
from outlay.models.embedding import Embedding
from outlay.models.experts import ExpertMlp
from outlay.models.linear import Linear
from outlay.models.mlp import Mlp
from outlay.models.norm import Norm, RMSNorm
from outlay.models.rope import rotate

# (layer, q [n, num_heads, head_dim], k [n, num_kv_heads, head_dim], v like k) -> [n, num_heads, head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# Cosines and signed sines of the rows, each [n, 1, rope dim].
Rotation = tuple[Tensor, Tensor]


class Given(NamedTuple):
    """Rows of a pass that come with a vector; the vectors, [hidden_size] each; and which of them have no token beside
    it.
    """

    rows: Sequence[int]
    vectors: Sequence[Tensor]
    alone: Sequence[bool]


def stacked(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Returns vectors, wherever they are, as rows of the dtype and on the device of another tensor."""
    return torch.stack([vector.to(like) for vector in vectors])


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. Norms before the parts, after them (`pre_norm=False`), or both (`post_*`)."""

    attn_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    mlp: Mlp | ExpertMlp
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    post_attn_norm: Norm | None = None
    post_mlp_norm: Norm | None = None

    @property
    def norms(self) -> list[Norm]:
        """The norms that this layer has."""
        norms = (self.attn_norm, self.mlp_norm, self.q_norm, self.k_norm, self.post_attn_norm, self.post_mlp_norm)
        return [norm for norm in norms if norm is not None]


class Decoder:
    """A network: `forward` computes logits; `pass_weight_bytes` and `linear_flops` say what a pass costs.

    One that `reads_features` is a draft head: what it reads with a token is what another model's head read before it.
    """

    reads_features = False
    fuse: Linear | None = None  # of such a head: makes one vector of a feature and a token's

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Layer],
        embed: Embedding,
        head: Linear,
        *,
        final_norm: Norm | None,
        positions: Tensor | None = None,
        project_in: Linear | None = None,
        project_out: Linear | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.layers, self.embed, self.head = config, tuple(layers), embed, head
        self.final_norm, self.positions = final_norm, positions
        self.project_in, self.project_out = project_in, project_out
        self.dtype, self.device = dtype, torch.device(device)
        if config.rope is not None:
            self.cos, self.sin = config.rope.tables(config.max_positions, self.device)
        self._fixed_bytes = self._count_fixed_bytes()
        self._pass_bytes: dict[int, int] = {}  # by tokens
        self._row_multiplies, self._head_multiplies = self._count_multiplies()

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Returns the logits of n new tokens, of any sequences, flat.

        tokens, positions: int64 [n]; rows: int64 [r], the rows whose logits are wanted (None: all n).
        Returns float32 [r or n, vocab_size].
        """
        x = self.hidden(self.inputs(tokens, positions), positions, attend)
        return self.logits(x if rows is None else x[rows])

    @torch.inference_mode()
    def hidden(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """What the first layer reads -> what the last layer writes, both [n, hidden_size]; positions int64 [n]."""
        rotation = self.rotation(positions)
        for index in range(len(self.layers)):
            x = self.after_attention(index, x, attend(index, *self.before_attention(index, x, rotation)))
        return x

    def inputs(self, tokens: Tensor, positions: Tensor, given: Given | None = None) -> Tensor:
        """Returns what the first layer reads, [n, hidden_size]: the tokens' vectors, with learned positions if any.

        The vectors of the rows that `given` names stand in place of their tokens'.
        """
        x = self.vectors(tokens)
        if given is not None:
            x[torch.tensor(given.rows, device=x.device)] = stacked(given.vectors, x)
        if self.positions is not None:
            x = x + self.positions[positions + self.config.position_offset]
        return x

    def vectors(self, tokens: Tensor) -> Tensor:
        """Returns the vectors that stand for tokens in the first layer's input, before positions, [n, hidden_size]."""
        x = self.embed(tokens)
        return x if self.project_in is None else self.project_in(x)

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Returns what turns the queries and keys of every layer; None where positions are learned."""
        if self.config.rope is None:
            return None
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        return torch.cat((cos, cos), dim=-1).to(self.dtype), torch.cat((-sin, sin), dim=-1).to(self.dtype)

    def before_attention(self, index: int, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [n, hidden_size], what a layer reads -> its queries, keys and values, as `Attend` takes them."""
        config, layer = self.config, self.layers[index]
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = layer.qkv(layer.attn_norm(x) if config.pre_norm else x).view(-1, heads + 2 * kv_heads, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            qkv[:, :heads] = layer.q_norm(qkv[:, :heads])
            qkv[:, heads : heads + kv_heads] = layer.k_norm(qkv[:, heads : heads + kv_heads])
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if rotation is not None:
            q, k = rotate(qkv[:, : heads + kv_heads], *rotation).split((heads, kv_heads), dim=1)
        return q, k, v

    def after_attention(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """x, what a layer read, and what attention returned -> what the next layer reads, [n, hidden_size]."""
        layer = self.layers[index]
        change = layer.out(attended.reshape(x.shape[0], -1))
        if not self.config.pre_norm:
            x = layer.attn_norm(x + change)
            return layer.mlp_norm(x + layer.mlp(x))
        x = x + (change if layer.post_attn_norm is None else layer.post_attn_norm(change))
        change = layer.mlp(layer.mlp_norm(x))
        return x.add_(change if layer.post_mlp_norm is None else layer.post_mlp_norm(change))

    def features(self, x: Tensor) -> Tensor:
        """x [n, hidden_size], what the last layer wrote -> what the head reads, of the same shape."""
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """x [n, hidden_size], what the last layer wrote -> float32 [n, vocab_size]"""
        x = self.features(x)
        if self.project_out is not None:
            x = self.project_out(x)
        logits = self.head(x).float()
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def weight_bytes_per_pass(self) -> int:
        """The bytes of weights that a pass over one token reads."""
        return self.pass_weight_bytes(1)

    def pass_weight_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads; of the experts, at most those chosen."""
        if tokens not in self._pass_bytes:
            lookups = self.embed.row_bytes
            if self.positions is not None:
                lookups += self.positions.shape[1] * self.positions.element_size()
            inner = sum(layer.mlp.pass_bytes(tokens) for layer in self.layers)
            self._pass_bytes[tokens] = self._fixed_bytes + tokens * lookups + inner
        return self._pass_bytes[tokens]

    def linear_flops(self, n_rows: int, n_head_rows: int) -> int:
        """Returns the FLOPs of the linear layers, two for each multiply-add; attention's own are the caller's."""
        return 2 * (n_rows * self._row_multiplies + n_head_rows * self._head_multiplies)

    def _count_fixed_bytes(self) -> int:
        linears = [self.head, self.project_in, self.project_out]
        norms = [self.final_norm] + [norm for layer in self.layers for norm in layer.norms]
        linears += [linear for layer in self.layers for linear in (layer.qkv, layer.out)]
        return sum(part.nbytes for part in (*linears, *norms) if part is not None)

    def _count_multiplies(self) -> tuple[int, int]:
        row = sum(_size(layer.qkv) + _size(layer.out) + layer.mlp.multiplies for layer in self.layers)
        return row + _size(self.project_in), _size(self.head) + _size(self.project_out)


def _size(linear: Linear | None) -> int:
    return linear.in_features * linear.out_features if linear is not None else 0
