"""A small decoder of the Llama family in plain torch, to be trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from outlay.errors import FailureError
from outlay.models.rope import Rope
from outlay.train.frozen import rotated

THETA, EPS = 10000.0, 1e-5
WEIGHTS = "model.safetensors"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"  # a prompt is a line, or lines, and a newline


class Shape(Protocol):
    """Layers and widths, as recipes have them."""

    @property
    def layers(self) -> int:
        """Decoder layers."""

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""

    @property
    def heads(self) -> int:
        """Attention heads."""

    @property
    def inner(self) -> int:
        """Width within an MLP."""


class SmallLlama(nn.Module):
    """A decoder of the Llama family whose LM head is its embedding; its parameters have their names in the hub."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, vocab: int, max_positions: int, *, causal: bool = True) -> None:
        """Draws the weights.

        Args:
            shape: Layers and widths.
            vocab: Tokens.
            max_positions: Tokens of the longest text.
            causal: Whether a position sees those before it alone, or all of them.
        """
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape, causal) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=EPS)
        nn.init.normal_(self.embed_tokens.weight, std=shape.hidden**-0.5)
        cos, sin = Rope(theta=THETA, dim=shape.hidden // shape.heads).tables(max_positions, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Returns hidden states after the final norm, [batch, time, hidden].

        Args:
            tokens: The texts, [batch, time].
            seen: Which positions are no padding, bool [batch, time]; None: all.
        """
        return self.decode(self.embed_tokens(tokens), seen)

    def decode(self, inputs_embeds: Tensor, seen: Tensor | None = None) -> Tensor:
        """Returns hidden states after the final norm of input embeddings; both are [batch, time, hidden]."""
        x = inputs_embeds
        rotation = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, rotation, seen)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of hidden states, [..., vocab]."""
        return F.linear(hidden, self.embed_tokens.weight)


class _Attention(nn.Module):
    def __init__(self, shape: Shape, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, causal
        hidden = shape.hidden
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.v_proj, self.o_proj = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        batch, time, hidden = x.shape
        q, k, v = (
            project(x).view(batch, time, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = rotated(q, *rotation) @ rotated(k, *rotation).transpose(2, 3) * q.shape[-1] ** -0.5
        # Backwards, torch's own fused attention takes twice as long at this size.
        if self.causal:
            scores = scores.masked_fill(torch.ones(time, time, dtype=torch.bool).triu(1), -torch.inf)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        attended = scores.softmax(-1) @ v
        out: Tensor = self.o_proj(attended.transpose(1, 2).reshape(batch, time, hidden))
        return out


class _Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, shape: Shape, causal: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=EPS)
        self.self_attn = _Attention(shape, causal)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=EPS)
        self.mlp = _Mlp(shape)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, seen)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def write_small_llama(
    folder: Path,
    net: SmallLlama,
    shape: Shape,
    tokenizer: tokenizers.Tokenizer,
    end: str,
    *,
    positions: int,
    recorded: Mapping[str, str],
    changes: Mapping[str, Any],
    template: str = TEMPLATE,
) -> None:
    """Writes a trained decoder in bfloat16, as a folder in the hub's layout.

    Args:
        folder: The folder.
        net: The decoder.
        shape: Its layers and widths.
        tokenizer: Its tokenizer.
        end: The token that ends a text.
        positions: Tokens of the longest text.
        recorded: What the weights' file says of them.
        changes: What `config.json` says beside the shape.
        template: Its chat template.

    Raises:
        FailureError: The folder can't be written.
    """
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads, "rms_norm_eps": EPS,
        "rope_theta": THETA, "max_position_embeddings": positions, "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id(end), "bos_token_id": None, "hidden_act": "silu",
        "torch_dtype": "bfloat16", **changes,
    }  # fmt: skip
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "chat_template": template}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n")
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        weights = {f"model.{name}": weight.bfloat16() for name, weight in net.named_parameters()}
        save_file(weights, folder / WEIGHTS, {"format": "pt", **recorded})
    except OSError as error:
        raise FailureError(f"can't write {folder}: {error.strerror}") from error
