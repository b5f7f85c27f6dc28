"""Prompt tokens: trained vectors behind the newest token, at which a model guesses the tokens after the next one (PPD,
Chen et al. 2024, section 3).

The i-th prompt token behind a node stands where the i-th token after it will stand, so its logits predict the one after
that. They see the text and the prompt tokens before them, and nothing sees them. With several copies of each (an
ensemble), a copy sees its own kind only, and the logits of all copies are averaged.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.engine.method import Request
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.kernels import Top
from outlay.models import fitted
from outlay.models.load import Model
from outlay.speculation.drafter import Best, Drafter
from outlay.speculation.tree import ROOT, DraftTree
from outlay.tree.token_tree import NO_TOKEN, Node

KIND = "ppd"
ORIGIN = "ppd"
RANKS = 10  # of a guess that are looked at


@dataclass(frozen=True)
class PromptTokens:
    """`vectors` float32 [m, copies, hidden_size]; `accuracy[i][r]`: how often guess i + 1 is right at rank r."""

    vectors: Tensor
    accuracy: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.vectors)


def load_prompts(path: Path, target: Model) -> PromptTokens:
    """Returns the prompt tokens in a file. Raises `UsageError` for what is none, and for another model's."""
    tensors, about = fitted.read(path, KIND, target)
    vectors, accuracy = tensors["vectors"].float(), tuple(tuple(row) for row in about["accuracy"])
    if vectors.shape[2] != target.decoder.config.hidden_size or len(accuracy) != len(vectors):
        raise UsageError(f"{path} is damaged; `outlay train ppd --model {target.name}` makes another")
    return PromptTokens(vectors, accuracy)


class PromptDrafter(Drafter):
    """Drafts from the guesses that the last pass made at the prompt tokens of the last node taken.

    The law of a guess is the same after whatever was guessed before it. `hang` says how many prompt tokens each drafted
    node gets, and the root; None: all of them.
    """

    name = ORIGIN

    def __init__(self, run: Run, prompts: PromptTokens, use: int | None = None) -> None:
        """`use`: how many of the prompt tokens to work with (None: all)."""
        self._run, self._vectors = run, prompts.vectors[: use or len(prompts)]
        self.wanted = min(RANKS, run.model.decoder.config.vocab_size)
        self._guesses: Tensor | Top | None = None
        self._spans: list[tuple[int, int]] = []  # of each node, the root first: where its rows begin, how many guesses
        self.needs_logits = self._vectors.shape[1] > 1  # which are averaged
        self.hang: Sequence[int] | None = None

    @property
    def reach(self) -> int:
        """How many guesses there are: the deepest that can be drafted."""
        if self._guesses is None:
            return 0
        return len(self._guesses if isinstance(self._guesses, Tensor) else self._guesses.tokens)

    def begin(self) -> bool:
        """There is nothing to catch up with: guesses come with the pass before."""
        return self.reach > 0

    def best(self, tree: DraftTree, places: Sequence[int], k: int) -> Generator[Request, Any, Best]:
        yield from ()
        tokens, logits = self.ranked()
        rows = [0 if place == ROOT else tree.depths[place] for place in places]
        return Best(tokens[rows, :k], logits[rows, :k])

    def ranked(self) -> tuple[Tensor, Tensor]:
        """Returns the best tokens of each guess and their logits, both [guesses, RANKS], in descending order."""
        guesses = self._guesses
        assert guesses is not None, "there are no guesses"
        if isinstance(guesses, Tensor):
            best = guesses.topk(min(RANKS, guesses.shape[1]))
            return best.indices, best.values
        return guesses.tokens, guesses.logits

    def laws(self, tree: DraftTree, places: Sequence[int]) -> Generator[Request, Any, Tensor]:
        yield from ()
        assert isinstance(self._guesses, Tensor), "laws are drawn from logits"
        rows = [0 if place == ROOT else tree.depths[place] for place in places]
        pairs = zip(rows, places, strict=True)
        return torch.stack([self._run.sampler.probs(self._guesses[row], then=tree.path(at)) for row, at in pairs])

    def attach(self, tree: DraftTree, nodes: Sequence[Node]) -> list[Node]:
        """Hangs prompt tokens from the root and from every node."""
        m, copies = self._vectors.shape[:2]
        hang = self.hang or (m,) * (1 + len(nodes))
        last = self._run.model.decoder.config.max_positions - 1
        attached: list[Node] = []
        self._spans, self._guesses = [], None
        for node, wanted in zip([self._run.tip, *nodes], hang, strict=True):
            count = min(wanted, last - node.position)
            self._spans.append((len(attached), count))
            tips = [node] * copies
            for vectors in self._vectors[:count]:
                tips = self._run.tree.extend(tips, [NO_TOKEN] * copies, ORIGIN, inputs_embeds=list(vectors))
                attached += tips
        return attached

    def observe(self, path: Sequence[int], rows: Tensor | Top) -> None:
        """Keeps the guesses of the last node that was taken."""
        begin, count = self._spans[path[-1] + 1 if path else 0]
        copies = self._vectors.shape[1]
        if isinstance(rows, Tensor):
            self._guesses = rows[begin : begin + count * copies].unflatten(0, (count, copies)).mean(1)
        else:
            self._guesses = Top(rows.tokens[begin : begin + count], rows.logits[begin : begin + count])


@dataclass(frozen=True)
class PromptSource:
    """Prompt tokens as the draft of any method: `draft="ppd"`."""

    prompts: PromptTokens

    def begin(self, run: Run) -> PromptDrafter:
        """Returns the run's own."""
        return PromptDrafter(run, self.prompts)
