"""Runs a shard of a comparison: every contender in turn on the same prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from outlay.compare.contenders import Contender
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.compare.turns import Pending, Rows, Shard, turns_left
from outlay.engine.handle import Handle, Result
from outlay.errors import OutlayError, UsageError, one_line
from outlay.lm import LM
from outlay.prompts import constraint_of_row

Outcome = Result | Exception


class Runner:
    """Answers prompts with one model; two turns share nothing but the loaded weights.

    Raises:
        UsageError: the model can't take a prompt.
    """

    def __init__(
        self, lm: LM, declaration: Declaration, contenders: Sequence[Contender], items: Sequence[Item]
    ) -> None:
        self._lm, self._declaration, self._contenders = lm, declaration, contenders
        self._constraints = [constraint_of_row(item.row, "the prompt") for item in items]
        self._items = items
        self._prompts = [_encoded(lm, item, number, declaration) for number, item in enumerate(items, 1)]

    def encode(self, prompt: int) -> list[int]:
        """Returns the token ids of a prompt."""
        return self._prompts[prompt]

    def run_all(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        """Yields the rows of each turn of each shard."""
        for shard, done in pending:
            yield from self.run(shard, done)

    def run(self, shard: Shard, done: set[tuple[int, int]]) -> Iterator[Rows]:
        """Yields the rows of each turn, a row a run. The (contender, prompt) pairs in `done` are not run again."""
        for index, prompts in turns_left(len(self._contenders), shard, done):
            yield self._turn(self._contenders[index], prompts, shard)

    def answer(self, contender: Contender, prompts: Sequence[int], seed: int, **options: Any) -> list[Outcome]:
        """Answers prompts together, with empty caches; a run that fails gives its error."""
        self._lm.engine.clear()
        handles: list[Handle | OutlayError] = []
        try:
            with self._lm.engine.together():
                for prompt in prompts:
                    try:
                        own = contender.options(self._declaration, self._items[prompt]) | {"seed": seed}
                        own |= self._constraints[prompt]
                        handles.append(self._lm.submit(self._prompts[prompt], **own | options))
                    except OutlayError as error:
                        handles.append(error)
            return [_outcome(handle) for handle in handles]
        except KeyboardInterrupt:
            for handle in handles:
                if isinstance(handle, Handle):
                    handle.cancel()
            raise

    def _turn(self, contender: Contender, prompts: Sequence[int], shard: Shard) -> Rows:
        started = time.perf_counter()
        outcomes = self.answer(contender, prompts, shard.seed)
        seconds = time.perf_counter() - started
        speed = sum(len(outcome.tokens) for outcome in outcomes if isinstance(outcome, Result)) / seconds
        return [
            {"method": contender.name, "budget": contender.budget, "prompt": prompt, "seed": shard.seed,
             "repeat": shard.repeat, **self._row(outcome, speed)}
            for prompt, outcome in zip(prompts, outcomes, strict=True)
        ]  # fmt: skip

    def _row(self, outcome: Outcome, speed: float) -> dict[str, Any]:
        if not isinstance(outcome, Result):
            return {"error": one_line(outcome)}
        spent = outcome.ledger.as_dict()
        stream = self._lm.model.tokenizer.decoder_stream()
        return {
            "text": outcome.text,
            "tokens": outcome.tokens,
            "pieces": [stream.push(token) for token in outcome.tokens],
            "origins": outcome.origins if any(outcome.origins) else [],
            "finish_reason": outcome.finish_reason,
            "ran_on": ", ".join(spent.pop("ran_on")),
            "ledger": {**spent.pop("extras"), **spent, "tokens_per_second": speed},
            "error": None,
        }


def _encoded(lm: LM, item: Item, number: int, declaration: Declaration) -> list[int]:
    try:
        return lm.encode(item.prompt, chat=not declaration.raw, **item.encoding)
    except UsageError as error:
        raise UsageError(f"prompt {number}: {error}") from error


def _outcome(handle: Handle | OutlayError) -> Outcome:
    if isinstance(handle, OutlayError):
        return handle
    try:
        return handle.result()
    except Exception as error:  # whatever a method raises fails its run and no other
        return error
