"""Prompt tokens: trained vectors behind the newest token, at which a model guesses the tokens after the next one (PPD,
Chen et al. 2024, section 3).

The i-th prompt token after a node stands where the i-th token after it will stand, so its logits predict the one after
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

from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.kernels import Top
from outlay.models import fitted
from outlay.models.load import Model
from outlay.speculation.rounds import ROOT, Drafter, DraftTree, TopTokens
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


def open_prompt_tokens(name: str, model: Model) -> PromptTokens:
    """Returns the prompt tokens that `name` means for a model: a file, or "default", those trained for it.

    Raises:
        UsageError: Where there are none, for what is no such file, and for another model's.
    """
    path = fitted.find("ppd", model) if name == "default" else Path(name)
    if path is None:
        raise fitted.missing("ppd", model)
    return load_prompt_tokens(path, model)


def load_prompt_tokens(path: Path, target: Model) -> PromptTokens:
    """Returns the prompt tokens in a file. Raises `UsageError` for what is none, and for another model's."""
    tensors, about = fitted.read(path, KIND, target)
    vectors, accuracy = tensors["vectors"].float(), tuple(tuple(row) for row in about["accuracy"])
    if vectors.shape[2] != target.decoder.config.hidden_size or len(accuracy) != len(vectors):
        raise UsageError(f"{path} is damaged; `outlay train ppd --model {target.name}` makes another")
    return PromptTokens(vectors, accuracy)


class PromptDrafter(Drafter):
    """Drafts from the guesses that the last pass made at the prompt tokens of the last accepted node.

    The distribution of a guess is the same after whatever was guessed before it.

    Args:
        run: The run.
        prompts: The prompt tokens.
        use: How many of them to work with (None: all).
    """

    name = ORIGIN

    def __init__(self, run: TreeRun, prompts: PromptTokens, use: int | None = None) -> None:
        self._run, self._vectors = run, prompts.vectors[: use or len(prompts)]
        self.wanted_topk = min(RANKS, run.model.decoder.config.vocab_size)
        self._guesses: Tensor | Top | None = None
        self._spans: list[tuple[int, int]] = []  # of each node, the root first: where its rows begin, how many guesses
        self.needs_logits = self._vectors.shape[1] > 1  # which are averaged

    @property
    def max_depth(self) -> int:
        """How many guesses there are: the deepest that can be drafted."""
        if self._guesses is None:
            return 0
        return len(self._guesses if isinstance(self._guesses, Tensor) else self._guesses.tokens)

    def sync(self) -> bool:
        """There is nothing to catch up with: guesses come with the pass before."""
        return self.max_depth > 0

    def topk(self, tree: DraftTree, places: Sequence[int], k: int) -> Generator[Request, Any, TopTokens]:
        yield from ()
        tokens, logits = self.ranked()
        rows = [0 if place == ROOT else tree.depths[place] for place in places]
        return TopTokens(tokens[rows, :k], logits[rows, :k])

    def ranked(self) -> tuple[Tensor, Tensor]:
        """Returns the best tokens of each guess and their logits, both [guesses, RANKS], in descending order."""
        guesses = self._guesses
        assert guesses is not None, "there are no guesses"
        if isinstance(guesses, Tensor):
            best = guesses.topk(min(RANKS, guesses.shape[1]))
            return best.indices, best.values
        return guesses.tokens, guesses.logits

    def probs(self, tree: DraftTree, places: Sequence[int]) -> Generator[Request, Any, Tensor]:
        yield from ()
        assert isinstance(self._guesses, Tensor), "a distribution takes all logits"
        rows = [0 if place == ROOT else tree.depths[place] for place in places]
        pairs = zip(rows, places, strict=True)
        return torch.stack(
            [self._run.sampler.probs(self._guesses[row], then=tree.path_tokens(at)) for row, at in pairs]
        )

    def attach(self, tree: DraftTree, nodes: Sequence[Node]) -> list[Node]:
        """Hangs all prompt tokens from the root and from every node."""
        return self.hang(nodes, (len(self._vectors),) * (1 + len(nodes)))

    def hang(self, nodes: Sequence[Node], counts: Sequence[int]) -> list[Node]:
        """Hangs `counts` prompt tokens from the root and from each of `nodes`, as far as the context has room."""
        copies = self._vectors.shape[1]
        last = self._run.model.decoder.config.max_positions - 1
        attached: list[Node] = []
        self._spans, self._guesses = [], None
        for node, wanted in zip([self._run.tip, *nodes], counts, strict=True):
            count = min(wanted, last - node.position)
            self._spans.append((len(attached), count))
            tips = [node] * copies
            for vectors in self._vectors[:count]:
                tips = self._run.tree.extend(tips, [NO_TOKEN] * copies, ORIGIN, inputs_embeds=list(vectors))
                attached += tips
        return attached

    def observe(self, path: Sequence[int], rows: Tensor | Top) -> None:
        """Keeps the guesses of the last accepted node."""
        begin, count = self._spans[path[-1] + 1 if path else 0]
        copies = self._vectors.shape[1]
        if isinstance(rows, Tensor):
            self._guesses = rows[begin : begin + count * copies].unflatten(0, (count, copies)).mean(1)
        else:
            self._guesses = Top(rows.tokens[begin : begin + count], rows.logits[begin : begin + count])
