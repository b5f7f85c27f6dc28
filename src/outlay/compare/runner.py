"""Runs a piece of a comparison: every contender in turn on the same prompts."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.compare.contenders import Contender
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.engine.handle import Handle, Result
from outlay.errors import OutlayError, UsageError, one_line
from outlay.lm import LM

Rows = list[dict[str, Any]]
Outcome = Result | Exception


@dataclass(frozen=True)
class Piece:
    """What is run before anything else: the prompts of one batch with one seed, once by each contender."""

    number: int
    repeat: int
    seed: int
    prompts: tuple[int, ...]


Todo = tuple[Piece, set[tuple[int, int]]]


def pieces(declaration: Declaration, prompts: int) -> list[Piece]:
    """Returns all pieces in the order in which they are run: the whole of a repeat before the next."""
    batches = [
        tuple(range(start, min(start + declaration.batch, prompts))) for start in range(0, prompts, declaration.batch)
    ]
    slots = [
        (repeat, seed, batch)
        for repeat in range(declaration.repeats)
        for seed in declaration.seeds
        for batch in batches
    ]
    return [Piece(number, *slot) for number, slot in enumerate(slots)]


def turns(contenders: int, piece: int) -> list[int]:
    """Returns the order of the contenders in a piece.

    In as many pieces as there are contenders each has each place once; from one such round to the next it changes who
    comes after whom.
    """
    order = list(range(contenders))
    random.Random(piece // contenders).shuffle(order)
    shift = piece % contenders
    return order[shift:] + order[:shift]


class Runner:
    """Answers prompts with one model; nothing is shared between two turns but the loaded weights.

    Raises `UsageError` for a prompt that can't be given to the model.
    """

    def __init__(
        self, lm: LM, declaration: Declaration, contenders: Sequence[Contender], items: Sequence[Item]
    ) -> None:
        self._lm, self._declaration, self._contenders = lm, declaration, contenders
        self._prompts = [_encoded(lm, item, number, declaration) for number, item in enumerate(items, 1)]

    def encode(self, prompt: int) -> list[int]:
        """Returns the token ids of a prompt."""
        return self._prompts[prompt]

    def run_all(self, todo: Sequence[Todo]) -> Iterator[Rows]:
        """Yields the rows of each turn of each piece."""
        for piece, done in todo:
            yield from self.run(piece, done)

    def run(self, piece: Piece, done: set[tuple[int, int]]) -> Iterator[Rows]:
        """Yields a row for each run of a turn. `done` holds (contender, prompt) pairs that need not be run again."""
        for index in turns(len(self._contenders), piece.number):
            prompts = [prompt for prompt in piece.prompts if (index, prompt) not in done]
            if prompts:
                yield self._turn(self._contenders[index], prompts, piece)

    def answer(self, contender: Contender, prompts: Sequence[int], seed: int, **options: Any) -> list[Outcome]:
        """Answers prompts together, with nothing kept from the turns before; a run that fails gives its error."""
        self._lm.engine.clear()
        options = contender.options(self._declaration) | {"seed": seed} | options
        handles: list[Handle | OutlayError] = []
        try:
            with self._lm.engine.together():
                for prompt in prompts:
                    try:
                        handles.append(self._lm.submit(self._prompts[prompt], **options))
                    except OutlayError as error:
                        handles.append(error)
            return [_outcome(handle) for handle in handles]
        except KeyboardInterrupt:
            for handle in handles:
                if isinstance(handle, Handle):
                    handle.cancel()
            raise

    def _turn(self, contender: Contender, prompts: Sequence[int], piece: Piece) -> Rows:
        started = time.perf_counter()
        outcomes = self.answer(contender, prompts, piece.seed)
        seconds = time.perf_counter() - started
        speed = sum(len(outcome.tokens) for outcome in outcomes if isinstance(outcome, Result)) / seconds
        return [
            {"method": contender.name, "budget": contender.budget, "prompt": prompt, "seed": piece.seed,
             "repeat": piece.repeat, **self._row(outcome, speed)}
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
        return lm.encode(item.prompt, chat=not declaration.raw)
    except UsageError as error:
        raise UsageError(f"prompt {number}: {error}") from error


def _outcome(handle: Handle | OutlayError) -> Outcome:
    if isinstance(handle, OutlayError):
        return handle
    try:
        return handle.result()
    except Exception as error:  # whatever a method raises fails its run and no other
        return error
