"""A two-layer decoder whose every weight is random, for tests of the tree: attention is all it has."""

from __future__ import annotations

import torch

from outlay.models.config import DecoderConfig
from outlay.tree.attention import TreeAttention
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass

VOCAB = 11


def toy_config(windows=(None, None), softcap=None, layers=2):
    return DecoderConfig(
        architecture="toy", vocab_size=VOCAB, hidden_size=24, num_layers=layers, num_heads=4, num_kv_heads=2,
        head_dim=8, intermediate_size=1, max_positions=512, windows=windows, attention_scale=8**-0.5,
        attention_softcap=softcap,
    )  # fmt: skip


class Toy:
    def __init__(self, config=None, seed=0):
        self.config = config or toy_config()
        generator = torch.Generator().manual_seed(seed)
        c = self.config

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        self.embed, self.place = random(VOCAB, c.hidden_size), random(c.max_positions, c.hidden_size)
        self.q = [random(c.hidden_size, c.num_heads * c.head_dim) for _ in range(c.num_layers)]
        self.kv = [random(c.hidden_size, 2 * c.num_kv_heads * c.head_dim) for _ in range(c.num_layers)]
        self.out = [random(c.num_heads * c.head_dim, c.hidden_size) * 0.2 for _ in range(c.num_layers)]

    def forward(self, tokens, positions, attend, rows=None):
        c = self.config
        hidden = self.embed[tokens] + 0.5 * self.place[positions]
        for layer in range(c.num_layers):
            normed = torch.nn.functional.layer_norm(hidden, (c.hidden_size,))
            k, v = (normed @ self.kv[layer]).view(len(tokens), 2, c.num_kv_heads, c.head_dim).unbind(1)
            q = (normed @ self.q[layer]).view(len(tokens), c.num_heads, c.head_dim)
            hidden = hidden + attend(layer, q, k, v).reshape(len(tokens), -1) @ self.out[layer]
        logits = hidden @ self.embed.T / c.hidden_size  # of the order of 1, like the tolerances
        return logits if rows is None else logits[rows]

    def fresh(self, tokens):
        """Logits after the last of `tokens`, by a dense forward pass that knows nothing of trees."""
        c, n = self.config, len(tokens)
        at = torch.arange(n)

        def attend(layer, q, k, v):
            group = c.num_heads // c.num_kv_heads
            scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * c.attention_scale
            if c.attention_softcap:
                scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
            hidden = at[None] > at[:, None]
            if c.windows[layer]:
                hidden = hidden | (at[None] <= at[:, None] - c.windows[layer])
            probs = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            return torch.einsum("hqk,khd->qhd", probs, v.repeat_interleave(group, 1))

        return self.forward(torch.tensor(tokens), at, attend)[-1]

    def cache(self, **options):
        return Cache(self.config, torch.float32, torch.device("cpu"), **({"limit": 4096, "capacity": 64} | options))

    def compute(self, cache, work):
        """One pass over [(tree, nodes)]; returns each node's logits."""
        plan = plan_pass(work, cache.positions, self.config.windows)
        logits = self.forward(
            torch.tensor(plan.tokens), torch.tensor(plan.positions), TreeAttention(cache, plan, self.config)
        )
        nodes = [node for _, group in work for node in group]
        for node in nodes:
            node.computed = True
        return dict(zip(nodes, logits, strict=True))
