"""The network of a draft head as it is trained: plain torch, with gradients.

EAGLE (Li et al. 2024, section 4.1): what the target's head read for a token, f_t, and the embedding of the next token,
e_{t+1}, are fused to one vector, which goes through D decoder layers; what comes out stands for f_{t+1}, and the
target's own head, cut down to the tokens that are drafted, makes logits of it.

Drafting feeds what came out back in place of the features that are not known yet, so training does, too, for `unroll`
steps (the training-time test of EAGLE-3, Li et al. 2025, section 3.1). In step s a position reads the keys of step 0
up to s positions before it, and one key of each later step on the diagonal.

The head also guesses several tokens ahead in one pass, at prompt tokens behind the newest token (PPD, Chen et al. 2024,
applied to the draft): learned vectors in place of what would be fused. They read keys as later steps do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.models.config import DecoderConfig

Keys = tuple[Tensor, Tensor]  # and values


class _Layer(nn.Module):
    """A decoder layer of the Llama family, at one step of the unrolled head."""

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

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], past: list[Keys]) -> Tensor:
        """x [batch, time, hidden]; `past` holds the keys and values of the steps before and gets those of this one. The
        steps after the first may stand for the last places only.
        """
        x = x + self.out(self._attend(self.attn_norm(x), rotation, past))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], past: list[Keys]) -> Tensor:
        config, (batch, time, _) = self.config, x.shape
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = self.qkv(x).view(batch, time, heads + 2 * kv_heads, head_dim).transpose(1, 2)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        q, k = _rotated(q, *rotation) * config.attention_scale, _rotated(k, *rotation)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        past.append((k, v))
        step = len(past) - 1
        places = torch.arange(past[0][0].shape[2])
        hidden = places[-time:, None] - step < places
        scores = (q @ past[0][0].transpose(2, 3)).masked_fill(hidden, -torch.inf)
        diagonals = [(q * _later(past[j][0], step - j)).sum(-1, keepdim=True) for j in range(1, step + 1)]
        weights = torch.cat([scores, *diagonals], dim=-1)
        # The first positions of a later step see nothing of it; they are not counted, but must not be NaN.
        weights = weights.masked_fill((weights == -torch.inf).all(-1, keepdim=True), 0.0).softmax(-1)
        attended = weights[..., : len(places)] @ past[0][1]
        for j in range(1, step + 1):
            own = weights[..., len(places) + j - 1, None]
            attended = attended + own * _later(past[j][1], step - j)
        return attended.transpose(1, 2).reshape(batch, time, heads * head_dim)


class HeadNet(nn.Module):
    """`config` describes the layers; the frozen embedding and head are the target's and are given to `forward`.

    `prompts` [ahead, hidden] are what stands in place of the fused vector of a token that is not known yet.
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
        self, features: Tensor, embeddings: Tensor, unroll: int, ahead: int, begin: int = 0
    ) -> tuple[list[Tensor], list[Tensor]]:
        """features, embeddings [batch, time, hidden]: f_{t-1} and e_t at place t.

        Returns what stands for f_t after each of `unroll` steps, fed back one after the other, and at each of `ahead`
        prompt tokens behind the first step, at the places from `begin` on: [batch, time - begin, hidden]. Step s, and
        prompt token s from 1 on, start from tokens known up to s places before.
        """
        rotation = (self.cos[: features.shape[1]], self.sin[: features.shape[1]])
        later = (rotation[0][begin:], rotation[1][begin:])
        first: list[list[Keys]] = [[] for _ in self.layers]
        steps = [self._step(self.fuse(torch.cat([features, embeddings], dim=-1)), rotation, first)[:, begin:]]
        guesses, past = [], [list(memory) for memory in first]
        for prompt in self.prompts.unbind()[:ahead]:
            guesses.append(self._step(prompt.expand_as(steps[0]), later, past))
        for _ in range(unroll - 1):
            x = self.fuse(torch.cat([_later(steps[-1], 1), embeddings[:, begin:]], dim=-1))
            steps.append(self._step(x, later, first))
        return steps, guesses

    def _step(self, x: Tensor, rotation: tuple[Tensor, Tensor], past: list[list[Keys]]) -> Tensor:
        for layer, memory in zip(self.layers, past, strict=True):
            x = layer(x, rotation, memory)
        normed: Tensor = self.final_norm(x)
        return normed


def _later(x: Tensor, places: int) -> Tensor:
    """Moves x [..., time, size] `places` later in time, with zeros before it."""
    return x if places == 0 else F.pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, time, head_dim], cos and sin [time, rope_dim / 2]: dimension i turns with i + rope_dim / 2."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
