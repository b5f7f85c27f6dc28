"""Who takes part: our searches, and the particle filter of its_hub driven over our engine."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.bench.peer import peer
from outlay.bench.search.rate import rewards_of
from outlay.bench.search.report import PEER
from outlay.budget import Budget
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.search.answers import answer_of

STEP = "\n"  # the chains have a step a line
STEP_TOKENS = 24  # of a step at most
END = "<end>"  # what its_hub is told where a text has ended
TOGETHER = 16  # problems that are worked on together; each spends what it spends alone
KEPT = ("right", "tokens", "scores", "positions")


@dataclass(frozen=True)
class Setting:
    """What all contenders have in common."""

    model: str
    scorer: str
    temperature: float
    max_tokens: int
    max_steps: int
    seed: int = 0

    def lm(self, *, prefix_cache: bool = False) -> LM:
        """Returns the model with an engine of its own."""
        return LM(load_model(self.model), Engine(prefix_cache=prefix_cache))


class SearchContender(ABC):
    """Answers problems under one budget."""

    name: str
    """What it is, with its options."""
    curve: str
    """The contenders of one curve differ in how much they spend."""
    is_peer = False
    """Whether it is another library, which answers the first problems only."""

    @abstractmethod
    def answer(self, setting: Setting, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """Answers each problem.

        Returns:
            For each whether its answer is `right`, the `tokens` that were drawn, the `scores`, and the `positions` that
            the target computed.
        """


class OurSearch(SearchContender):
    """One of our methods.

    Args:
        method: The method's name with its options.
        curve: The curve on which it lies.
        scores: The cap on scores; None: it ends by itself.
        scored: Whether it asks the scorer.
    """

    def __init__(self, method: str, curve: str, scores: int | None = None, *, scored: bool = True) -> None:
        self.name = method + (f" [scores={scores}]" if scores is not None else "")
        self.curve = curve
        self._method, self._scores, self._scored = method, scores, scored

    def answer(self, setting: Setting, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        lm = setting.lm()
        asked: dict[str, Any] = {
            "method": self._method + self._steps(setting),
            "scorer": setting.scorer if self._scored else None,
            "budget": Budget(scores=self._scores) if self._scores is not None else None,
            "temperature": setting.temperature,
            "max_tokens": setting.max_tokens,
        }
        found = []
        for some in batched(rows, TOGETHER):
            with lm.engine.together():
                handles = [lm.submit(row["prompt"], seed=setting.seed, **asked) for row in some]
            found += [_counted(handle.result(), row) for handle, row in zip(handles, some, strict=True)]
        return found

    def _steps(self, setting: Setting) -> str:
        """Returns the options that say what a step is."""
        name = self._method.partition(":")[0]
        if name == "sample":
            return ""
        return ",step=\\n" + ("" if name == "best_of" else f",step_tokens={STEP_TOKENS},max_steps={setting.max_steps}")


def batched(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yields rows in groups of `size`; the last may be smaller."""
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _counted(result: Result, row: Mapping[str, Any]) -> dict[str, float]:
    return {
        "right": float(answer_of(result.text) == row["answer"]),
        "tokens": float(result.ledger.extras.get("drawn", result.ledger.tokens_out)),
        "scores": float(result.ledger.scores),
        "positions": float(result.ledger.target_tokens),
    }


class HubParticles(SearchContender):
    """The particle filter of its_hub, over our engine: each step of each particle is a request of its own.

    Args:
        n: Particles.
        prefix_cache: Whether our engine keeps what requests begin with, as a fair server does.
    """

    curve, is_peer = PEER, True

    def __init__(self, n: int, *, prefix_cache: bool) -> None:
        self._n, self._prefix_cache = n, prefix_cache
        self.name = f"its_hub particles:n={n}, prefix cache {'on' if prefix_cache else 'off'}"

    def answer(self, setting: Setting, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        import random

        filters, _ = peer("its_hub.core.algorithms.particle_gibbs", "its_hub")
        steps, _ = peer("its_hub.core.lms.step_generation", "its_hub")
        random.seed(setting.seed)  # with which it resamples
        found = []
        lm = setting.lm(prefix_cache=self._prefix_cache)
        for row in rows:
            adapter = _Adapter(lm, setting, row["prompt"])
            generation = steps.StepGeneration(
                setting.max_steps, STEP, END, setting.temperature, include_stop_str_in_output=True
            )
            algorithm = filters.ParticleFiltering(generation, adapter)
            chosen = asyncio.run(algorithm.ainfer(adapter, row["prompt"], self._n))
            right = float(answer_of(chosen["content"]) == row["answer"])
            found.append({"right": right, **adapter.spent})
        return found


class _Adapter:
    """What its_hub asks of a language model and of a process reward model, answered by our engine."""

    def __init__(self, lm: LM, setting: Setting, prompt: str) -> None:
        self._lm, self._setting = lm, setting
        self._prompt = lm.encode(prompt)
        self._question, self._seeds = prompt, itertools.count(setting.seed << 16)
        self.spent = dict.fromkeys(KEPT[1:], 0.0)

    async def agenerate(self, messages: Sequence[Any], stop: str | None = None, **_: Any) -> list[dict[str, str]]:
        """Writes a step after each of several conversations."""
        tokenizer = self._lm.model.tokenizer
        handles = []
        with self._lm.engine.together():
            for conversation in messages:
                so_far = conversation[1].content if len(conversation) > 1 else ""
                prompt = [*self._prompt, *tokenizer.encode(so_far)]
                handles.append(
                    self._lm.submit(
                        prompt, method="sample", stop=stop or (), temperature=self._setting.temperature,
                        max_tokens=STEP_TOKENS, seed=next(self._seeds),
                    )
                )  # fmt: skip
        replies = []
        for result in [handle.result() for handle in handles]:
            ended = result.tokens[-1] in tokenizer.eos_token_ids
            replies.append({"role": "assistant", "content": result.text + (END if ended else STEP)})
            self.spent["tokens"] += len(result.tokens)
            self.spent["positions"] += result.ledger.target_tokens
        return replies

    async def ascore(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Rates texts after the prompt."""
        self.spent["scores"] += len(texts)
        tokens = [self._lm.model.tokenizer.encode(text) for text in texts]
        return rewards_of(self._lm, self._question, tokens, self._setting.scorer, STEP)


def contenders(limit: int, peers: bool) -> list[SearchContender]:
    """Returns all that take part.

    Args:
        limit: The most texts that are drawn, or grown, together.
        peers: Whether its_hub takes part.
    """
    sizes = [size for size in (4, 16, 64) if size <= limit]
    few = [size for size in (4, 8, 16) if size <= limit]
    found: list[SearchContender] = [OurSearch("sample", "sample", scored=False)]
    found += [OurSearch(f"best_of:n={n},by=score", "best of, by reward") for n in sizes]
    found += [OurSearch(f"best_of:n={n},by=vote", "best of, by vote", scored=False) for n in sizes[:2]]
    found += [OurSearch(f"best_of:n={n},by=weighted", "best of, weighted vote") for n in sizes[:2]]
    found += [OurSearch(f"step_beam:n={n},width=4", "step beam") for n in few]
    found += [OurSearch(f"particles:n={n}", "particles") for n in few]
    found += [OurSearch("astar:k=4", "astar", scores) for scores in (16, 32, 64, 128)]
    found += [OurSearch("astar:k=4,reopen=0", "astar, never re-opened", 128)]
    if peers:
        found += [HubParticles(max(few), prefix_cache=cache) for cache in (False, True)]
    return found
