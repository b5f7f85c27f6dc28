"""The Mu network in torch: trained here, run by the engine; its parameters have the names of the released code.

Encoder blocks are pre-norm, bidirectional; decoder blocks add cross-attention, in which nothing is rotated. Input
embeddings and LM head are one matrix.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.models.rope import Rope
from outlay.train.frozen import rotated

EPS = 1e-6
INIT_STD = 0.02  # of the released code
Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each decoder layer, [batch, kv_heads, time, head_dim] each."""


@dataclass(frozen=True)
class MuConfig:
    """The shape of a network, by the names of its `config.json`; the defaults are those of the released 330M model."""

    n_encoder_layer: int = 20
    """Encoder blocks: two thirds of all."""
    n_decoder_layer: int = 10
    """Decoder blocks."""
    n_embd: int = 1024
    """Width of the hidden states."""
    qkv_embd: int = 384
    """Width of all query heads together."""
    n_head: int = 6
    """Query heads."""
    n_kv_head: int = 3
    """Heads of keys and values."""
    hidden_dim: int = 4096
    """Width within an MLP."""
    vocab_size: int = 32128
    """Entries of the vocabulary."""
    block_size: int = 1024
    """The longest input, and the longest output."""
    dropout: float = 0.1
    """Share of attention probabilities and MLP outputs that is dropped in training."""
    is_interleaved: bool = False
    """Whether query head i reads kv head i // group, else i mod n_kv_head."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies of self-attention."""

    def __post_init__(self) -> None:
        """Checks that heads divide their dimensions.

        Raises:
            UsageError: They don't, or a size is below 1.
        """
        for name, value in asdict(self).items():
            if name not in ("dropout", "is_interleaved") and value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")
        if self.qkv_embd % (2 * self.n_head):
            raise UsageError(f"{self.n_head} heads of an even width can't share {self.qkv_embd} dimensions evenly")
        if self.n_head % self.n_kv_head:
            raise UsageError(f"{self.n_head} query heads can't share {self.n_kv_head} kv heads evenly")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.qkv_embd // self.n_head

    def as_json(self) -> dict[str, Any]:
        """Returns what `config.json` says of the shape."""
        return {"architectures": ["Mu"], "model_type": "mu", **asdict(self), "tie_word_embeddings": True}


class Mu(nn.Module):
    """An encoder-decoder.

    Args:
        config: Its shape.
        init_std: Deviation of the weights at the start; 0: one over the square root of a matrix's inputs. The released
            0.02 is that of a wide network: one of width 128 starts with activations near 0, and stays on a plateau.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: MuConfig, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.config = config
        self.transformer = _Transformer(config)
        cos, sin = Rope(dim=config.head_dim, theta=config.rope_theta).tables(
            config.block_size, torch.get_default_device()
        )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=init_std or parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, source: Tensor, source_mask: Tensor, tokens: Tensor) -> Tensor:
        """Returns logits, [batch, time, vocab].

        Args:
            source: int64 [batch, source_time], what the encoder reads, padded on the right.
            source_mask: bool [batch, source_time], True where it is no padding; each row has some.
            tokens: int64 [batch, time], what the decoder reads, padded on the right: a row's padding is after all that
                its logits rest on.
        """
        return self.decode(tokens, self.encode(source, source_mask), source_mask)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """Returns the memory, [batch, source_time, n_embd]; rows of padding hold nothing of use."""
        x, mask = self.transformer.wte(source), source_mask[:, None, None]
        rotation = self.cos[: source.shape[1]], self.sin[: source.shape[1]]
        for block in self.transformer.e:
            x = block(x, mask, rotation)
        memory: Tensor = self.transformer.ln_e(x)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Returns logits, [batch, time, vocab], of tokens above a memory."""
        logits, _ = self.step(tokens, self.cross(memory), source_mask, None)
        return logits

    def cross(self, memory: Tensor) -> Cache:
        """Returns each decoder layer's keys and values of a memory, made once."""
        return [block.cross_attn.keys_and_values(memory) for block in self.transformer.blocks]

    def step(self, tokens: Tensor, cross: Cache, source_mask: Tensor, own: Cache | None) -> tuple[Tensor, Cache]:
        """Returns the logits of further tokens, [batch, time, vocab], and the keys and values of all so far.

        Args:
            tokens: int64 [batch, time].
            cross: What `cross` returned.
            source_mask: bool [batch, source_time].
            own: Keys and values of the tokens before; None: there are none.
        """
        begin = 0 if own is None else own[0][0].shape[2]
        end = begin + tokens.shape[1]
        x, rotation = self.transformer.wte(tokens), (self.cos[begin:end], self.sin[begin:end])
        causal = torch.ones(tokens.shape[1], end, dtype=torch.bool, device=tokens.device).tril(begin)
        kept: Cache = []
        for place, block in enumerate(self.transformer.blocks):
            before = None if own is None else own[place]
            x, held = block(x, cross[place], source_mask[:, None, None], causal, rotation, before)
            kept.append(held)
        return F.linear(self.transformer.ln_f(x), self.transformer.wte.weight), kept

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_mask: Tensor,
        begin: int,
        end: int,
        most: int,
        temperature: float = 0.0,
        top_k: int = 0,
        draw: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Returns what the network writes for each source, without `begin`, and up to and with `end`.

        The encoder runs once; keys and values of the memory and of the tokens are kept.

        Args:
            source: int64 [batch, source_time].
            source_mask: bool [batch, source_time].
            begin: Token that the decoder starts with.
            end: Token that ends a text.
            most: Tokens of a text, at most.
            temperature: 0: the most probable token.
            top_k: Tokens that are drawn from; 0: all.
            draw: Random numbers.
        """
        was_training = self.training
        self.eval()
        cross, own = self.cross(self.encode(source, source_mask)), None
        tokens = torch.full((len(source), 1), begin, device=source.device)
        written: list[list[int]] = [[] for _ in range(len(source))]
        going = [True] * len(source)
        for _ in range(most):
            logits, own = self.step(tokens, cross, source_mask, own)
            tokens = _picked(logits[:, -1].float(), temperature, top_k, draw)
            for row, token in enumerate(tokens[:, 0].tolist()):
                if going[row]:
                    written[row].append(token)
                    going[row] = token != end
            if not any(going):
                break
        self.train(was_training)
        return written


def _picked(logits: Tensor, temperature: float, top_k: int, draw: torch.Generator | None) -> Tensor:
    """Returns a token of each row, int64 [batch, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)


class _Transformer(nn.Module):
    """The parts by their released names."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.e = nn.ModuleList(_EncoderBlock(config) for _ in range(config.n_encoder_layer))
        self.ln_e = nn.RMSNorm(config.n_embd, eps=EPS)
        self.h = nn.ModuleList(_DecoderBlock(config) for _ in range(config.n_decoder_layer))
        self.ln_f = nn.RMSNorm(config.n_embd, eps=EPS)

    @property
    def blocks(self) -> list[_DecoderBlock]:
        """The decoder blocks."""
        return [block for block in self.h if isinstance(block, _DecoderBlock)]


class _Attention(nn.Module):
    """Grouped-query attention with biases."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        kv = config.n_kv_head * config.head_dim
        self.q_linear = nn.Linear(config.n_embd, config.qkv_embd)
        self.k_linear, self.v_linear = nn.Linear(config.n_embd, kv), nn.Linear(config.n_embd, kv)
        self.out_linear = nn.Linear(config.qkv_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self._heads, self._kv_heads, self._head_dim = config.n_head, config.n_kv_head, config.head_dim
        self._interleaved = config.is_interleaved

    def queries(self, x: Tensor) -> Tensor:
        """Returns [batch, n_head, time, head_dim]."""
        return self.q_linear(x).view(*x.shape[:2], self._heads, self._head_dim).transpose(1, 2)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two of [batch, n_kv_head, time, head_dim]."""
        keys, values = (
            project(x).view(*x.shape[:2], self._kv_heads, self._head_dim).transpose(1, 2)
            for project in (self.k_linear, self.v_linear)
        )
        return keys, values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Returns what the queries read, [batch, time, n_embd]; `mask` is True where a key is seen."""
        k, v = self._shared(k), self._shared(v)
        scores = (q @ k.transpose(2, 3)).float() * self._head_dim**-0.5
        # Backwards, torch's own fused attention takes twice as long at small sizes.
        probs = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        read = (self.dropout(probs).to(v) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_linear(read)
        return out

    def _shared(self, x: Tensor) -> Tensor:
        """Returns keys or values once for each query head."""
        group = self._heads // self._kv_heads
        return x.repeat_interleave(group, dim=1) if self._interleaved else x.repeat(1, group, 1, 1)


class _Mlp(nn.Module):
    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.n_embd, config.hidden_dim), nn.Linear(config.hidden_dim, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))
        return out


class _EncoderBlock(nn.Module):
    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.ln1, self.ln2 = (nn.RMSNorm(config.n_embd, eps=EPS) for _ in range(2))
        self.attn, self.mlp = _Attention(config), _Mlp(config)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        normed = self.ln1(x)
        keys, values = self.attn.keys_and_values(normed)
        x = x + self.attn.attend(rotated(self.attn.queries(normed), *rotation), rotated(keys, *rotation), values, mask)
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class _DecoderBlock(nn.Module):
    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.ln1, self.ln2, self.ln3 = (nn.RMSNorm(config.n_embd, eps=EPS) for _ in range(3))
        self.causal_attn, self.cross_attn, self.mlp = _Attention(config), _Attention(config), _Mlp(config)

    def forward(
        self,
        x: Tensor,
        cross: tuple[Tensor, Tensor],
        cross_mask: Tensor,
        causal: Tensor,
        rotation: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed = self.ln1(x)
        keys, values = self.causal_attn.keys_and_values(normed)
        keys = rotated(keys, *rotation)
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        x = x + self.causal_attn.attend(rotated(self.causal_attn.queries(normed), *rotation), keys, values, causal)
        x = x + self.cross_attn.attend(self.cross_attn.queries(self.ln2(x)), *cross, cross_mask)
        return x + self.mlp(self.ln3(x)), (keys, values)
