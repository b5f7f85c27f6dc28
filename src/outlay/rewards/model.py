"""Reward models as scorers: each run has a tree of its own at the model, in which every prefix is read once."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.models.load import Model
from outlay.rewards.forms import Form, Place, form_of
from outlay.rewards.likelihood import LikelihoodRunScorer
from outlay.rewards.scorer import RunScorer, Scorer, TextRunScorer, check_reduce, count_scores, reduced
from outlay.rewards.trie import Trie
from outlay.tree.token_tree import Node

MOST = 700.0  # the largest exponent whose power is a float


@dataclass(frozen=True, eq=False)
class RewardModel(Scorer):
    """A reward model, of any form in `rewards.forms`. Between its tokens and the target's, text crosses as text."""

    model: Model
    """The model."""
    form: str | None = None
    """Its form; None: what the model tells by its head or its name."""
    reduce: str | None = None
    """How the rewards of a text's steps become one: last, min or prod; None: as the form has it."""

    def __post_init__(self) -> None:
        form = form_of(self.model, self.form)
        check_reduce(self.reduce or form.reduce)

    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        form = form_of(self.model, self.form)
        reduce = self.reduce or form.reduce
        if form.place is None:
            return LikelihoodRunScorer(run, self.model, reduce, step)
        return _ModelRunScorer(run, self.model, form.place, form, reduce, step)


class _ModelRunScorer(TextRunScorer):
    def __init__(self, run: TreeRun, model: Model, place: Place, form: Form, reduce: str, step: str) -> None:
        super().__init__(run)
        self._model, self._place, self._form, self._reduce, self._step = model, place, form, reduce, step
        self._words = form.words(model.tokenizer) if form.words is not None else None
        self._tries: list[Trie] = []
        self._found: dict[Node, float] = {}  # rewards by the nodes at which they are read

    def rate(self, texts: Sequence[str]) -> Generator[Request | list[Request], Any, Sequence[float]]:
        prompt = self.run.submission.asked
        placed = [self._place(self._model.tokenizer, prompt, self._steps(text)) for text in texts]
        marks = [[self._node(tokens) for tokens in places] for places in placed]
        fresh = [node for node in dict.fromkeys(node for row in marks for node in row) if node not in self._found]
        yield count_scores(self.run, len(texts))
        yield from self._ask(fresh)
        return [reduced([self._found[node] for node in row], self._reduce) for row in marks]

    def _steps(self, text: str) -> list[str]:
        """Returns the steps of a text, without the marks between them; the text is one step where there are none."""
        if self._form.outcome or not self._step:
            return [text.strip()]
        return [step.strip() for step in text.split(self._step) if step.strip()] or [text.strip()]

    def _node(self, tokens: list[int]) -> Node:
        """Returns the node at the end of `tokens`, grown where it isn't there yet."""
        trie = next((trie for trie in self._tries if tokens[: len(trie.begin)] == trie.begin), None)
        if trie is None:
            trie = Trie(self.run.seat(self._model, tokens[: self._shared(tokens)], "score"), tokens)
            self._tries.append(trie)
        return trie.grow(tokens)

    def _shared(self, tokens: list[int]) -> int:
        """Returns how many of the first tokens any other text would share, as two texts that differ at once tell."""
        tokenizer, prompt = self._model.tokenizer, self.run.submission.asked
        probes = [self._place(tokenizer, prompt, [probe])[0] for probe in ("a", "1")]
        same = 0
        for place in zip(tokens, *probes, strict=False):
            if len(set(place)) > 1:
                break
            same += 1
        return max(1, same)

    def _ask(self, nodes: Sequence[Node]) -> Generator[Request | list[Request], Any, None]:
        """Asks for the rewards at `nodes`, in one pass of each tree."""
        by_trie = [(trie, [node for node in nodes if node in trie.nodes]) for trie in self._tries]
        for trie, own in by_trie:
            if not own:
                continue
            if self._words is not None:
                right, wrong = self._words
                rows = yield trie.seat.logprobs_of(own, [(right, wrong)] * len(own))
                for node, row in zip(own, rows, strict=True):
                    self._found[node] = _share(row.logprobs[right], row.logprobs[wrong])
            else:
                first = yield trie.seat.forward(own)
                assert self._model.head is not None
                assert self._form.of_outputs is not None
                rewards = self._form.of_outputs(self._model.head(first)).tolist()
                self._found.update(zip(own, rewards, strict=True))


def _share(right: float, wrong: float) -> float:
    """Returns the probability of one of two tokens, given that it is one of them."""
    return 1 / (1 + math.exp(min(MOST, wrong - right)))
