"""Trains a tiny coder: a small decoder that writes a MiniList program after examples of what it does.

It learns from programs that are generated as they are needed, each seen once, and is written as a folder in the hub's
layout. The programs that it finds most probable are often not the right ones, which leaves room for a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.problems import minilist
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint
from outlay.train.draft_head import bfloat16_is_faster
from outlay.train.schedule import schedule
from outlay.train.small_llama import SmallLlama, write_small_llama
from outlay.train.word_tokenizer import SPACE, word_tokenizer, words_of

END = "<end>"
IGNORED = -100  # a place where nothing is learned, as `cross_entropy` knows it
SEED = 1 << 32  # seeds of problems from here on are for training; those that a user types are smaller
POSITIONS = 160
HELD_OUT = 256  # problems on which the loss is measured
KEEP_EVERY = 100  # training steps
LOSS = "held_out_nats"


@dataclass(frozen=True)
class CoderRecipe:
    """How it is trained."""

    layers: int = 3
    """Decoder layers."""
    hidden: int = 128
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads."""
    inner: int = 320
    """Width within an MLP."""
    batch: int = 64
    """Problems of a training step."""
    steps: int = 1600
    """Training steps."""
    lr: float = 3e-3
    """The highest learning rate."""
    warmup: float = 0.02
    """Share of the steps over which it rises."""
    seed: int = 0
    """Fixes the weights at the start and the problems."""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"hidden must be a multiple of {2 * self.heads}, for {self.heads} heads, not {self.hidden}"
            )


class CoderTraining:
    """A training run.

    Args:
        recipe: How it is trained.
        out: The model's folder.
    """

    def __init__(self, recipe: CoderRecipe, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.tokenizer = recipe, out, coder_tokenizer()
        self.net = SmallLlama(recipe, self.tokenizer.get_vocab_size(), POSITIONS)
        self._bfloat16 = bfloat16_is_faster()

    def fit(self, progress: ShowProgress) -> float:
        """Trains and writes the model. What was stopped goes on from its last checkpoint, beside `out`.

        Returns:
            The cross-entropy of a token of a program, in nats, on held-out problems.
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
            loss = self.loss(minilist.make(recipe.batch, SEED * (recipe.seed + 1) + step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(f"training, loss {loss.item():.3f}", step + 1, recipe.steps)
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        with torch.no_grad():
            held_out = float(self.loss(minilist.make(HELD_OUT, SEED * (recipe.seed + 1) - 1)))
        write_small_llama(
            self.out, self.net, recipe, self.tokenizer, END, positions=POSITIONS, recorded={LOSS: f"{held_out:.4f}"},
            changes={},
        )  # fmt: skip
        kept.remove()
        return held_out

    def loss(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Returns the cross-entropy of the programs' tokens, the end included."""
        tokens, targets = encode(self.tokenizer, rows)
        own = targets != IGNORED
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            logits = self.net.logits(self.net(tokens)[own])
        return F.cross_entropy(logits.float(), targets[own])


def encode(tokenizer: tokenizers.Tokenizer, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Returns prompts with their programs as tokens, and what is learned from them.

    Args:
        tokenizer: The tokenizer.
        rows: Problems.

    Returns:
        Tokens, int64 [batch, time], and at each place the next token where it is of the program, else `IGNORED`.
    """
    (end,) = tokenizer.encode(END).ids
    prompts = tokenizer.encode_batch([row["prompt"] + "\n" for row in rows])
    answers = tokenizer.encode_batch([row["answer"] for row in rows])
    time = max(len(prompt.ids) + len(answer.ids) for prompt, answer in zip(prompts, answers, strict=True))
    tokens = torch.full((len(rows), time), end)
    targets = torch.full_like(tokens, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = torch.tensor([*prompt.ids, *answer.ids, end])
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt.ids) - 1 : len(ids) - 1] = ids[len(prompt.ids) :]
    return tokens, targets


def coder_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer with a token for each word of the programs and for each number from 0 to 99."""
    texts = (f"{stage}{minilist.BAR}{stage}{minilist.ARROW}" for stage in minilist.STAGES)
    words = [word for word in words_of(texts) if not word.lstrip(SPACE).isdecimal()]
    numbers = [f"{space}{number}" for space in (SPACE, "") for number in range(minilist.MODULUS)]
    spaced_first = sorted(words, key=lambda word: not word.startswith(SPACE))  # or the merges of the bare word go first
    return word_tokenizer([*numbers, *spaced_first], [END])
