"""Trains a tiny reasoner and its verifier: two checkpoints of one training run on generated chains of arithmetic.

The earlier checkpoint gets about three steps in four right, which leaves room for a search: it is the reasoner. The
later one, which gets nearly all right, verifies: the probability that it gives to a step is the step's reward.

Both are models of the Llama family, written as folders in the hub's layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from outlay.errors import FailureError, UsageError
from outlay.models.reward_head import FORM_KEY
from outlay.problems import arithmetic, chains
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint
from outlay.train.draft_head import bfloat16_is_faster
from outlay.train.schedule import schedule
from outlay.train.small_llama import WEIGHTS, SmallLlama, write_small_llama
from outlay.train.word_tokenizer import SPACE, word_tokenizer, words_of

END = "<end>"
IGNORED = -100  # a place where nothing is learned, as `cross_entropy` knows it
SEED = 1 << 32  # seeds of problems from here on are for training; those that a user types are smaller
TEMPERATURE = 0.8  # at which the searches draw, and the share of right steps is measured
POSITIONS = 256
HELD_OUT = 200  # problems on which the share of right steps is measured
MEASURE_EVERY = 25  # training steps
SHARE = "right_steps"
REASONER, VERIFIER = "tiny-reasoner", "tiny-verifier"


@dataclass(frozen=True)
class ReasonerRecipe:
    """How both are trained."""

    layers: int = 3
    """Decoder layers."""
    hidden: int = 128
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads."""
    inner: int = 320
    """Width within an MLP."""
    batch: int = 32
    """Problems of a training step."""
    steps: int = 2600
    """Training steps at most; the learning rate falls over them."""
    lr: float = 3e-3
    """The highest learning rate."""
    warmup: float = 0.02
    """Share of the steps over which it rises."""
    reasoner: float = 0.7
    """Share of right steps, at temperature 0.8, with which the reasoner is kept."""
    verifier: float = 0.98
    """Share of right steps with which the verifier is kept and the training ends."""
    seed: int = 0
    """Fixes the weights at the start and the problems."""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"hidden must be a multiple of {2 * self.heads}, for {self.heads} heads, not {self.hidden}"
            )
        if not self.reasoner < self.verifier:
            raise UsageError(
                "the verifier must get more steps right than the reasoner: --reasoner P below --verifier P"
            )


@dataclass(frozen=True)
class Problems:
    """Problems with their solutions as tokens, padded."""

    tokens: Tensor
    """int64 [batch, time]."""
    targets: Tensor
    """int64 [batch, time]: the next token, where it is of the solution, else `IGNORED`."""
    lines: Tensor
    """int64 [batch, time]: the number of the line that the next token is of, from 0 on."""


class Chains:
    """Generated chains as tokens: `prompt`, a newline, the steps a line each, and the end."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        (self._end,), (self._newline,) = (tokenizer.encode(text).ids for text in (END, "\n"))

    def batches(self, size: int, seed: int, begin: int = 0) -> Iterator[Problems]:
        """Yields batches without end, from number `begin` on."""
        for number in itertools.count(begin):
            yield self.encode(arithmetic.make(size, SEED * (seed + 1) + number, chains.OPERATIONS))

    def encode(self, rows: Sequence[dict[str, Any]]) -> Problems:
        """Returns rows of problems as tokens."""
        prompts = self._tokenizer.encode_batch([row["prompt"] + "\n" for row in rows])
        solutions = self._tokenizer.encode_batch(["\n".join(row["steps"]) for row in rows])
        time = max(len(p.ids) + len(s.ids) for p, s in zip(prompts, solutions, strict=True))
        tokens = torch.full((len(rows), time), self._end)
        targets = torch.full_like(tokens, IGNORED)
        for row, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
            ids = torch.tensor([*prompt.ids, *solution.ids, self._end])
            tokens[row, : len(ids) - 1] = ids[:-1]
            targets[row, len(prompt.ids) - 1 : len(ids) - 1] = ids[len(prompt.ids) :]
        begins = (tokens == self._newline) & (targets != IGNORED)  # the prompt ends in a newline too
        return Problems(tokens, targets, begins.cumsum(1).sub(1).clamp_min(0))


class ReasonerTraining:
    """One training run that writes two checkpoints.

    Args:
        recipe: How it is trained.
        out: The folder in which the folders of both are made.
    """

    def __init__(self, recipe: ReasonerRecipe, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.tokenizer = recipe, out, reasoner_tokenizer()
        self.chains = Chains(self.tokenizer)
        self.net = SmallLlama(recipe, self.tokenizer.get_vocab_size(), POSITIONS)
        self._held = self.chains.encode(chains.make(HELD_OUT, SEED * (recipe.seed + 1) - 1))

    def fit(self, progress: ShowProgress) -> dict[str, float]:
        """Trains until the verifier is good enough, and writes both.

        What was stopped goes on from its last checkpoint, which lies in `out`.

        Returns:
            The share of right steps of each, by name.

        Raises:
            FailureError: The share that a checkpoint is kept at was not reached.
        """
        recipe, reached, share = self.recipe, dict[str, float](), 0.0
        wanted = {REASONER: recipe.reasoner, VERIFIER: recipe.verifier}
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.out.mkdir(parents=True, exist_ok=True)
        kept = Checkpoint(self.out / "reasoner.checkpoint", recipe, self.net.state_dict(), optimizer)
        begin = kept.resume()
        if begin and (before := self._share_of(self.out / REASONER)) is not None:
            reached[REASONER] = before
        for step, batch in enumerate(self.chains.batches(recipe.batch, recipe.seed, begin), begin):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step, recipe.steps, recipe.warmup)
            loss = self.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(f"training, loss {loss.item():.3f}, right steps {share:.0%}", step + 1, recipe.steps)
            if (step + 1) % MEASURE_EVERY and step + 1 < recipe.steps:
                continue
            share = self.right_steps(self._held)
            for name in [name for name, least in wanted.items() if share >= least and name not in reached]:
                reached[name] = share
                self.save(self.out / name, share, {} if name == REASONER else {FORM_KEY: "likelihood"})
            if VERIFIER in reached or step + 1 >= recipe.steps:
                break
            kept.save(step + 1)
        if VERIFIER not in reached:
            raise FailureError(f"after {recipe.steps} steps {share:.0%} of the lines are right; give more --steps")
        kept.remove()
        return reached

    def loss(self, batch: Problems) -> Tensor:
        """Returns the cross-entropy of the solutions' tokens."""
        own = batch.targets != IGNORED
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_faster()):
            logits = self.net.logits(self.net(batch.tokens)[own])
        return F.cross_entropy(logits.float(), batch.targets[own])

    @torch.no_grad()
    def right_steps(self, problems: Problems) -> float:
        """Returns the probability that a line drawn after a right beginning is right, the mean over all lines."""
        own = problems.targets != IGNORED
        logits = self.net.logits(self.net(problems.tokens)) / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, problems.targets.clamp_min(0)[..., None])[..., 0] * own
        sums = torch.zeros(len(own), chains.OPERATIONS[1]).scatter_add(1, problems.lines, logprobs)
        lines = torch.zeros_like(sums).scatter_add(1, problems.lines, own.float()) > 0
        return float(sums.exp()[lines].mean())

    def _share_of(self, folder: Path) -> float | None:
        """Returns the share of right steps of a model that was written before; None where there is none."""
        if not (folder / WEIGHTS).exists():
            return None
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return float((file.metadata() or {}).get(SHARE, self.recipe.reasoner))

    def save(self, folder: Path, share: float, changes: Mapping[str, Any]) -> None:
        """Writes the model as it is now, in bfloat16, as a folder in the hub's layout.

        Args:
            folder: The folder.
            share: Its share of right steps, which the weights' file records.
            changes: What its `config.json` says beside the shape.
        """
        write_small_llama(
            folder, self.net, self.recipe, self.tokenizer, END, positions=POSITIONS, recorded={SHARE: f"{share:.4f}"},
            changes=changes,
        )  # fmt: skip


def reasoner_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer with a token for each word of the chains and for each number from 0 to 99."""
    texts = [text for row in arithmetic.make(500, 0, chains.OPERATIONS) for text in (row["prompt"], *row["steps"])]
    words = [word for word in words_of(texts) if not word.lstrip(SPACE).isdecimal()]
    numbers = [f"{space}{number}" for space in (SPACE, "") for number in range(arithmetic.LARGEST + 1)]
    return word_tokenizer([*numbers, *words], [END])
