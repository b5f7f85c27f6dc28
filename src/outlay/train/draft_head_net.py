"""The network of a draft head as it is trained: plain torch, with gradients.

EAGLE (Li et al. 2024, section 4.1): the target's hidden state of a token, f_t, and the input embedding of the next
token, e_{t+1}, are fused to one vector, which goes through D decoder layers. The output predicts f_{t+1}; the target's
LM head, cut down to the drafted vocabulary, makes logits of it.

Drafting feeds outputs back in place of hidden states that are not known yet. Training does the same for `unroll` steps
(the training-time test of EAGLE-3, Li et al. 2025, section 3.1), in chains that start at some of the places. Step s of
a chain stands s places after its start, reads the keys of step 0 up to the start, and its own later keys.

The draft head also guesses several tokens ahead in one pass, at prompt tokens behind the newest token (PPD, Chen et al.
2024, applied to the draft): learned vectors in place of fused ones. They read keys as later steps do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.models.config import DecoderConfig
from outlay.train.frozen import rotated

KeysValues = tuple[Tensor, Tensor]


class _Layer(nn.Module):
    """A decoder layer of the Llama family, at one step of the unrolled draft head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.config = config
        self.attn_norm = nn.RMSNorm(hidden, eps=config.norm_eps)
        self.mlp_norm = nn.RMSNorm(hidden, eps=config.norm_eps)
        width = config.num_heads * config.head_dim
        self.qkv = nn.Linear(hidden, width + 2 * config.num_kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(width, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], past: list[KeysValues], starts: Tensor) -> Tensor:
        """Computes one step of some chains.

        Args:
            x: [batch, chains, hidden].
            rotation: cos and sin at the positions of this step.
            past: Keys and values of the steps before; those of this step are appended.
            starts: [chains], where the chains begin. In step 0 a chain begins at every place.
        """
        x = x + self.out(self._attend(self.attn_norm(x), rotation, past, starts))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], past: list[KeysValues], starts: Tensor) -> Tensor:
        config, (batch, chains, _) = self.config, x.shape
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = self.qkv(x).view(batch, chains, heads + 2 * kv_heads, head_dim).transpose(1, 2)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        q, k = rotated(q, *rotation) * config.attention_scale, rotated(k, *rotation)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        past.append((k, v))

        (keys, values), later = past[0], past[1:]
        time = keys.shape[2]
        scores = (q @ keys.transpose(2, 3)).masked_fill(torch.arange(time) > starts[:, None], -torch.inf)
        own = [(q * own_keys).sum(-1, keepdim=True) for own_keys, _ in later]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1)

        attended = weights[..., :time] @ values
        for step, (_, own_values) in enumerate(later):
            attended = attended + weights[..., time + step, None] * own_values
        return attended.transpose(1, 2).reshape(batch, chains, heads * head_dim)


class DraftHeadNet(nn.Module):
    """What is trained of a draft head; the target's embedding and LM head are frozen and stay outside.

    `prompts` [ahead, hidden] are the draft head's prompt tokens.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig, ahead: int) -> None:
        super().__init__()
        assert config.rope is not None
        self.config = config
        self.fuse = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=True)
        self.prompts = nn.Parameter(torch.zeros(ahead, config.hidden_size))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        cos, sin = config.rope.tables(config.max_positions, torch.device("cpu"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, before: Tensor, embeddings: Tensor, starts: Tensor, unroll: int, ahead: int
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Predicts hidden states at all places, in unrolled chains, and at prompt tokens.

        Args:
            before: [batch, time, hidden], the hidden state f_{t-1} at place t.
            embeddings: [batch, time, hidden], the input embedding e_t at place t.
            starts: [chains], the places where chains begin; `unroll - 1` and `ahead` places follow each.
            unroll: Steps of a chain.
            ahead: Prompt tokens that are computed.

        Returns:
            The prediction of f_t at all places, [batch, time, hidden]; and [batch, chains, hidden] after each of
            `unroll` steps, the first at the starts; and at each of `ahead` prompt tokens.
        """
        time = before.shape[1]
        past: list[list[KeysValues]] = [[] for _ in self.layers]
        first = self._step(self._fused(before, embeddings), past, torch.arange(time), 0)
        steps, guesses = [first[:, starts]], []

        behind = [list(memory) for memory in past]
        for depth, prompt in enumerate(self.prompts.unbind()[:ahead], 1):
            guesses.append(self._step(prompt.expand_as(steps[0]), behind, starts, depth))

        for depth in range(1, unroll):
            x = self._fused(steps[-1], embeddings[:, starts + depth])
            steps.append(self._step(x, past, starts, depth))
        return first, steps, guesses

    def _fused(self, before: Tensor, embeddings: Tensor) -> Tensor:
        fused: Tensor = self.fuse(torch.cat([before, embeddings], dim=-1))
        return fused.float()  # the residual stream stays float32 where products are of bfloat16

    def _step(self, x: Tensor, past: list[list[KeysValues]], starts: Tensor, depth: int) -> Tensor:
        rotation = self.cos[starts + depth], self.sin[starts + depth]
        for layer, memory in zip(self.layers, past, strict=True):
            x = layer(x, rotation, memory, starts)
        normed: Tensor = self.final_norm(x)
        return normed
