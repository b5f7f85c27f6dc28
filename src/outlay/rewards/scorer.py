"""What a scorer is: it rates the texts of a run, step by step or whole, by rewards from 0 to 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

from outlay.engine.functions import FunctionWorker
from outlay.engine.request import Request
from outlay.engine.text import TextStream
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError, UsageError, one_line
from outlay.tree.token_tree import Node

Rewards = Generator[Request | list[Request], Any, list[float]]
SHOWN = 40  # characters of a text that an error names

REDUCE = ("last", "min", "prod")


class Scorer(ABC):
    """Rates texts; given to a method as `scorer=`."""

    @abstractmethod
    def begin(self, run: TreeRun, step: str = "") -> RunScorer:
        """Returns what rates the texts of one run.

        Args:
            run: Whose texts are rated.
            step: The text that ends a step; "" where texts are rated whole.
        """


class RunScorer(ABC):
    """Rates the texts of one run. Each text is rated once, however often it is asked for."""

    reads_logprobs: ClassVar[bool] = False
    """Whether `wrote` has to be called for every token."""

    def __init__(self, run: TreeRun) -> None:
        self.run = run

    def wrote(self, node: Node, logprob: float) -> None:  # noqa: B027 - most scorers read texts alone
        """Is told of a token that the target wrote, and of its log-probability under the target's raw logits."""

    @abstractmethod
    def rewards(self, nodes: Sequence[Node]) -> Rewards:
        """Rates the texts from the end of the prompt to each of `nodes`: `found = yield from scorer.rewards(nodes)`.

        Returns:
            A reward from 0 to 1 for each.

        Raises:
            FailureError: Where the scorer gives something else.
        """


class TextRunScorer(RunScorer):
    """Rates texts by what they say, whichever nodes spell them."""

    def __init__(self, run: TreeRun) -> None:
        super().__init__(run)
        self._known: dict[str, float] = {}

    def rewards(self, nodes: Sequence[Node]) -> Rewards:
        texts = [self._text(node) for node in nodes]
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, checked((yield from self.rate(fresh)), fresh), strict=True))
        return [self._known[text] for text in texts]

    def _text(self, node: Node) -> str:
        """Returns the text up to a node as the caller would get it: without a stop string, and what comes after it."""
        stream = TextStream(self.run.model.tokenizer, self.run.options.stop)
        for token in self.run.text_tokens(node):
            stream.push(token)
        stream.flush()
        return stream.text

    @abstractmethod
    def rate(self, texts: Sequence[str]) -> Generator[Request | list[Request], Any, Sequence[float]]:
        """Rates texts that were not rated before."""


def count_scores(run: TreeRun, amount: int) -> Request:
    """Returns the request that counts rated texts, and ends the run where its budget has no room for them."""
    counter = run.service("scores", lambda wake: FunctionWorker(_nothing, counts="scores", role="score"))
    return counter.call(run, amount=amount)


def _nothing() -> None:
    pass


def checked(rewards: Any, texts: Sequence[str]) -> list[float]:
    """Returns rewards as floats. Raises `FailureError` unless there is one from 0 to 1 for each text."""
    try:
        found = [float(reward) for reward in rewards]
    except (TypeError, ValueError) as error:
        raise FailureError(f"a scorer returns a number from 0 to 1 for each text; {one_line(error)}") from error
    if len(found) != len(texts):
        raise FailureError(
            f"the scorer gave {len(found)} rewards for {len(texts)} texts, the first of them {_named(texts[0])}"
        )
    for reward, text in zip(found, texts, strict=True):
        if math.isnan(reward) or not 0 <= reward <= 1:
            raise FailureError(f"the scorer gave {reward:g} for {_named(text)}; a reward is a number from 0 to 1")
    return found


def check_reduce(reduce: str) -> str:
    """Returns how rewards of steps become one. Raises `UsageError` for an unknown way."""
    if reduce not in REDUCE:
        raise UsageError(f"rewards of steps are reduced by {', '.join(REDUCE)}, not {reduce!r}")
    return reduce


def reduced(rewards: Sequence[float], reduce: str) -> float:
    """Returns the reward of a text from those of its steps; 1 where there are none."""
    if not rewards:
        return 1.0
    return rewards[-1] if reduce == "last" else min(rewards) if reduce == "min" else math.prod(rewards)


def _named(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
