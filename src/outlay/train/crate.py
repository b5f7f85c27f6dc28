"""Trains a small CRATE over the bytes of a text, and its twin: a GPT-2 of the same width, depth and heads.

Both are written as folders in the hub's layout. The twin has four times the parameters a block, and twice the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn

from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint
from outlay.train.draft_head import bfloat16_is_faster
from outlay.train.schedule import schedule
from outlay.vision.crate.blocks import Blocks, EncoderBlock, check_heads

END = "<end>"
KEEP_EVERY = 100  # training steps between checkpoints
HELD_OUT = 0.05  # share of the text, its end, on which bits a byte are measured
MEASURED = 64  # passages of the held-out part that are measured
POSITION_STD, TWIN_STD = 0.1, 0.02  # deviations at the start: of positions beside tokens' 1, of the twin's embeddings


@dataclass(frozen=True)
class CrateRecipe:
    """How a byte-level CRATE, or its twin, is trained."""

    layers: int = 6
    """Blocks."""
    hidden: int = 256
    """Width of a token."""
    heads: int = 8
    """Subspaces, or attention heads."""
    eta: float = 0.1
    """Step size of the sparsification."""
    lam: float = 0.1
    """Its weight of the L1 norm."""
    positions: int = 512
    """Bytes of the longest context, and of the passages of every eighth step."""
    passage: int = 128
    """Bytes of the passages of the other steps, which lie anywhere in the context."""
    batch: int = 2048
    """Bytes of a training step."""
    steps: int = 300
    """Training steps."""
    lr: float = 1.5e-3
    """The highest learning rate."""
    warmup: float = 0.05
    """Share of the steps over which it rises."""
    net: Literal["crate", "gpt2"] = "crate"
    """What is trained: the model, or its twin."""
    seed: int = 0
    """Fixes the weights at the start and the passages."""


class CrateLM(nn.Module):
    """A causal CRATE. No residual carries its tokens past a block, so embeddings start wide and are not its LM head.

    Args:
        vocab: Tokens.
        dim: Width of a token.
        heads: Subspaces; 2 or more.
        depth: Blocks.
        positions: Tokens of the longest context.
        eta: The step size of the sparsification.
        lam: Its weight of the L1 norm.
        causal: Whether a token attends to itself and those before it; else to all, as a model that fills masks does.
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        heads: int,
        depth: int,
        positions: int,
        eta: float = 0.1,
        lam: float = 0.1,
        *,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.eta, self.lam, self.causal = heads, eta, lam, causal
        self.token_embedding = nn.Embedding(vocab, dim)
        self.position_embedding = nn.Embedding(positions, dim)
        self.transformer = Blocks([EncoderBlock(dim, heads, eta, lam) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.position_embedding.weight, std=POSITION_STD)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Takes tokens [batch, n] from position `first` on; returns logits [batch, n, vocab]."""
        n = tokens.shape[-1]
        x = self.token_embedding(tokens) + self.position_embedding.weight[first : first + n]
        mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril() if self.causal else None
        out: Tensor = self.lm_head(self.norm(self.transformer(x, mask)))
        return out

    def config(self) -> dict[str, Any]:
        """Returns what `config.json` says of its shape."""
        positions = self.position_embedding
        return {
            "architectures": ["CrateForCausalLM"], "model_type": "crate", "hidden_size": positions.embedding_dim,
            "num_hidden_layers": len(self.transformer.layers), "num_attention_heads": self.heads,
            "max_position_embeddings": positions.num_embeddings, "ista_eta": self.eta, "ista_lambda": self.lam,
            "layer_norm_eps": self.norm.eps,
            "tie_word_embeddings": False,
        }  # fmt: skip


class TwinAttention(nn.Module):
    """GPT-2's attention, with its weights as [in, out]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.c_attn, self.c_proj = heads, Transposed(dim, 3 * dim), Transposed(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [batch, n, dim]."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(attended.transpose(1, 2).flatten(2))
        return out


class Transposed(nn.Module):
    """A linear layer as GPT-2 stores it, [in, out]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c_in, c_out) * c_in**-0.5), nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Takes [..., c_in] and returns [..., c_out]."""
        return x @ self.weight + self.bias


class TwinBlock(nn.Module):
    """GPT-2's block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(dim), TwinAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"c_fc": Transposed(dim, 4 * dim), "c_proj": Transposed(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [batch, n, dim]."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))
        return out


class TwinLayers(nn.Module):
    """Embeddings, blocks and the last norm of a GPT-2."""

    def __init__(self, vocab: int, dim: int, heads: int, depth: int, positions: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, dim), nn.Embedding(positions, dim)
        self.h = nn.Sequential(*(TwinBlock(dim, heads) for _ in range(depth)))
        self.ln_f = nn.LayerNorm(dim)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=TWIN_STD)

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        """Takes tokens [batch, n] from position `first` on; returns [batch, n, dim]."""
        out: Tensor = self.ln_f(self.h(self.wte(tokens) + self.wpe.weight[first : first + tokens.shape[-1]]))
        return out


class TwinLM(nn.Module):
    """A GPT-2 of the same width, depth and heads; its parameters have their names in the hub.

    Args:
        vocab: Tokens.
        dim: Width of a token.
        heads: Attention heads.
        depth: Blocks.
        positions: Tokens of the longest context.
    """

    def __init__(self, vocab: int, dim: int, heads: int, depth: int, positions: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.transformer = heads, TwinLayers(vocab, dim, heads, depth, positions)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Takes tokens [batch, n] from position `first` on; returns logits [batch, n, vocab]."""
        return F.linear(self.transformer(tokens, first), self.transformer.wte.weight)

    def config(self) -> dict[str, Any]:
        """Returns what `config.json` says of its shape."""
        positions = self.transformer.wpe
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": positions.embedding_dim,
            "n_layer": len(self.transformer.h), "n_head": self.heads, "n_positions": positions.num_embeddings,
            "activation_function": "gelu_new", "layer_norm_epsilon": self.transformer.ln_f.eps,
            "tie_word_embeddings": True,
        }  # fmt: skip


class CrateTraining:
    """One training run on the bytes of a text.

    Args:
        recipe: How it is trained.
        text: What it is trained on; its end is held out.
        out: The folder that is written.

    Raises:
        UsageError: Where the text is too short for the recipe.
    """

    def __init__(self, recipe: CrateRecipe, text: str, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.tokenizer = recipe, out, byte_tokenizer()
        tokens = torch.tensor(self.tokenizer.encode(text).ids)
        held = int(len(tokens) * HELD_OUT)
        if held <= recipe.positions:
            raise UsageError(
                f"the text has {len(tokens):,} bytes; passages of {recipe.positions} need "
                f"{int(recipe.positions / HELD_OUT) + 1:,} or more, for {HELD_OUT:.0%} are held out"
            )
        self._tokens, self._held = tokens[:-held], tokens[-held:]
        vocab = self.tokenizer.get_vocab_size()
        shape = (vocab, recipe.hidden, recipe.heads, recipe.layers, recipe.positions)
        twin = recipe.net == "gpt2"
        self.net: CrateLM | TwinLM = TwinLM(*shape) if twin else CrateLM(*shape, recipe.eta, recipe.lam)
        self._narrow = bfloat16_is_faster()

    def fit(self, progress: ShowProgress) -> float:
        """Trains and writes the model. What was stopped goes on from its last checkpoint, which lies beside `out`.

        Returns:
            The bits a byte on the held-out text.
        """
        recipe = self.recipe
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        kept = Checkpoint(self.out.with_name(f"{self.out.name}.checkpoint"), recipe, self.net.state_dict(), optimizer)
        for step in range(kept.resume(), recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step, recipe.steps, recipe.warmup)
            loss = self._loss(*self._passages(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(f"training, {loss.item() / log(2):.3f} bits a byte", step + 1, recipe.steps)
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        bits = self.bits()
        self.save(bits)
        kept.remove()
        return bits

    @torch.no_grad()
    def bits(self) -> float:
        """Returns the bits a byte on passages of the held-out text."""
        length = self.recipe.positions + 1
        passages = self._held[: len(self._held) // length * length].view(-1, length)[:MEASURED]
        return sum(self._loss(passage[None]).item() for passage in passages) / len(passages) / log(2)

    def _passages(self, step: int) -> tuple[Tensor, int]:
        """Returns the passages of a step, int64 [batch, n + 1], and the position of their first bytes."""
        recipe, draw = self.recipe, torch.Generator().manual_seed((self.recipe.seed << 32) + step)
        n = recipe.positions if step % 8 == 7 else min(recipe.passage, recipe.positions)
        first = int(torch.randint(recipe.positions - n + 1, (), generator=draw))
        starts = torch.randint(len(self._tokens) - n, (max(1, recipe.batch // n),), generator=draw)
        return self._tokens[starts[:, None] + torch.arange(n + 1)], first

    def _loss(self, passages: Tensor, first: int = 0) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._narrow):
            logits = self.net(passages[:, :-1], first)
        return F.cross_entropy(logits.float().flatten(0, 1), passages[:, 1:].flatten())

    def save(self, bits: float) -> None:
        """Writes the model in bfloat16 as a folder in the hub's layout, with its bits a byte."""
        end = self.tokenizer.token_to_id(END)
        config = self.net.config() | {
            "vocab_size": self.tokenizer.get_vocab_size(), "eos_token_id": end,
            "bos_token_id": None, "torch_dtype": "bfloat16",
        }  # fmt: skip
        options = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            (self.out / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n")
            self.tokenizer.save(str(self.out / "tokenizer.json"), pretty=False)
            weights = {name: weight.bfloat16() for name, weight in self.net.named_parameters()}
            save_file(weights, self.out / "model.safetensors", {"format": "pt", "bits_a_byte": f"{bits:.4f}"})
        except OSError as error:
            raise FailureError(f"can't write {self.out}: {error.strerror}") from error


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer whose tokens are the 256 bytes, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({piece: token for token, piece in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(END, special=True)])
    return inner
