"""What a masked-diffusion model is trained on: texts in chunks, or answers behind their prompts, as batches."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from outlay import problems
from outlay.errors import UsageError, nearest
from outlay.prompts import decode, numbered_lines, prompt_of, read_row

END, MASK = "<end>", "<mask>"
BYTES = len(pre_tokenizers.ByteLevel.alphabet())
SEED = 1 << 32  # seeds of problems from here on are for training; those that a user types are smaller
HELD_OUT, HOLD_EVERY = 256, 50  # texts at most that are kept apart, and of how many each is one
CROPPED = 0.01  # share of batches of text that are cut to a random length (Nie et al. 2025, LLaDA)
Row = dict[str, Any]


@dataclass(frozen=True)
class MaskedBatch:
    """Texts, and what of them may be masked."""

    tokens: Tensor
    """int64 [batch, time]."""
    answer: Tensor
    """bool [batch, time]: prompts are never masked, answers and the end tokens behind them are."""
    seen: Tensor | None = None
    """bool [batch, time]: what is no padding behind a shorter text. None: all."""


class MaskedData(ABC):
    """Where batches come from; a batch depends on the seed and its number alone."""

    tokenizer: tokenizers.Tokenizer
    context: int
    """Tokens of the longest text."""
    prompted: bool
    """Whether there are prompts, which a newline ends."""

    @abstractmethod
    def batch(self, size: int, seed: int, number: int) -> MaskedBatch:
        """Returns batch `number` of a training."""

    @abstractmethod
    def held_out(self) -> MaskedBatch | None:
        """Returns texts that no batch has; None where there are too few of them."""


class Answers(MaskedData):
    """Answers behind prompts, with end tokens up to a random length of each, so that a canvas may have any.

    Args:
        rows: Returns as many rows, of the number of a batch; each has `prompt` and `answer`.
        held: Rows that are kept apart.
        tokenizer: The tokenizer.
        context: Tokens of the longest text; 0: as many as the longest row, and one more for the end.
    """

    prompted = True

    def __init__(
        self,
        rows: Callable[[int, int, int], Sequence[Row]],
        held: Sequence[Row],
        tokenizer: tokenizers.Tokenizer,
        context: int,
        longest: int,
    ) -> None:
        self._rows, self._held, self.tokenizer = rows, held, tokenizer
        end = tokenizer.token_to_id(END)
        assert end is not None, "the tokenizer was made with it"
        self._end = end
        self.context = context or longest + 1
        if longest > self.context:
            raise UsageError(f"the longest prompt with its answer has {longest} tokens; --context must be as many")

    def batch(self, size: int, seed: int, number: int) -> MaskedBatch:
        encoded = [_encode(self.tokenizer, row) for row in self._rows(size, seed, number)]
        draw = random.Random(f"length/{seed}/{number}")
        return self._padded(encoded, [draw.randint(len(p) + len(a), self.context) for p, a in encoded])

    def held_out(self) -> MaskedBatch | None:
        held = [_encode(self.tokenizer, row) for row in self._held]
        return self._padded(held, [self.context] * len(held)) if held else None

    def _padded(self, encoded: Sequence[tuple[list[int], list[int]]], lengths: Sequence[int]) -> MaskedBatch:
        tokens = torch.full((len(encoded), max(lengths)), self._end)
        places = torch.arange(max(lengths))
        seen = places < torch.tensor(lengths)[:, None]
        answer = seen & (places >= torch.tensor([len(prompt) for prompt, _ in encoded])[:, None])
        for row, (prompt, ids) in enumerate(encoded):
            tokens[row, : len(prompt) + len(ids)] = torch.tensor([*prompt, *ids])
        return MaskedBatch(tokens, answer, seen)


class Chunks(MaskedData):
    """A text cut into chunks of the context's length, all of which may be masked."""

    prompted = False

    def __init__(self, tokens: Tensor, tokenizer: tokenizers.Tokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        chunks = tokens[: len(tokens) // context * context].view(-1, context)
        if not len(chunks):
            raise UsageError(f"the text has {len(tokens)} tokens, fewer than a context of {context}; give --context")
        held = torch.zeros(len(chunks), dtype=torch.bool)
        held[HOLD_EVERY - 1 :: HOLD_EVERY] = True
        self._chunks, self._held = chunks[~held], chunks[held][:HELD_OUT]

    def batch(self, size: int, seed: int, number: int) -> MaskedBatch:
        tokens = self._chunks[
            [_place(place, len(self._chunks), seed) for place in range(number * size, (number + 1) * size)]
        ]
        draw = random.Random(f"length/{seed}/{number}")
        time = draw.randint(1, self.context) if draw.random() < CROPPED else self.context
        return MaskedBatch(tokens[:, :time], torch.ones(len(tokens), time, dtype=torch.bool))

    def held_out(self) -> MaskedBatch | None:
        return MaskedBatch(self._held, torch.ones_like(self._held, dtype=torch.bool)) if len(self._held) else None


def read_masked_data(source: str, context: int, vocabulary: int) -> MaskedData:
    """Reads what is trained on.

    Args:
        source: A file of JSON lines with `prompt` and `answer`, any other file of text, or a set of problems.
        context: Tokens of the longest text; 0: as many as the longest row needs, 256 for text.
        vocabulary: Tokens of the vocabulary: bytes, the end, the mask, and merges, fitted to a file; 0: no merges.

    Raises:
        UsageError: It can't be read, or has nothing to train on.
    """
    known = problems.problem_sets()
    if not Path(source).is_file():
        if source not in known:
            sets = ", ".join(known)
            raise UsageError(f"there is no file {source}{nearest(source, known)}; the sets of problems are {sets}")
        made = known[source].make
        held, tokenizer = made(HELD_OUT, SEED - 1), masked_tokenizer()
        longest = max(sum(map(len, _encode(tokenizer, row))) for row in made(20 * HELD_OUT, SEED))
        return Answers(
            lambda size, seed, number: made(size, SEED * (seed + 1) + number), held, tokenizer, context, longest
        )
    try:
        text = decode(Path(source).read_bytes(), source)
    except OSError as error:
        raise UsageError(f"can't read {source}: {error.strerror}") from error
    if source.endswith(".jsonl"):
        return _answers(_rows(text, source), context, vocabulary)
    tokenizer = masked_tokenizer([text], vocabulary)
    return Chunks(torch.tensor(tokenizer.encode(text).ids, dtype=torch.int64), tokenizer, context or 256)


def masked_tokenizer(texts: Sequence[str] = (), vocabulary: int = 0) -> tokenizers.Tokenizer:
    """Returns a tokenizer of bytes, the end and the mask, with merges that are fitted to texts up to a vocabulary."""
    inner = tokenizers.Tokenizer(
        models.BPE({piece: token for token, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if vocabulary:
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in (END, MASK)])
    return inner


def _answers(rows: Sequence[Row], context: int, vocabulary: int) -> Answers:
    held = rows[HOLD_EVERY - 1 :: HOLD_EVERY][:HELD_OUT]
    kept = [row for place, row in enumerate(rows) if (place + 1) % HOLD_EVERY]
    tokenizer = masked_tokenizer([text for row in rows for text in (row["prompt"] + "\n", row["answer"])], vocabulary)
    longest = max(sum(map(len, _encode(tokenizer, row))) for row in rows)

    def batch(size: int, seed: int, number: int) -> list[Row]:
        return [kept[_place(place, len(kept), seed)] for place in range(number * size, (number + 1) * size)]

    return Answers(batch, held, tokenizer, context, longest)


def _rows(text: str, source: str) -> list[Row]:
    rows = []
    for number, line in numbered_lines(text):
        where = f"line {number} of {source}"
        row = read_row(line, where)
        prompt, answer = prompt_of(row, where), row.get("answer")
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise UsageError(f'{where} must have "prompt" and "answer", both text')
        rows.append({"prompt": prompt, "answer": answer})
    if not rows:
        raise UsageError(f"there is no row in {source}")
    return rows


def _encode(tokenizer: tokenizers.Tokenizer, row: Row) -> tuple[list[int], list[int]]:
    return tokenizer.encode(row["prompt"] + "\n").ids, tokenizer.encode(row["answer"]).ids


def _place(number: int, count: int, seed: int) -> int:
    """Returns the text that comes at place `number`, where all are gone through again and again, shuffled each time."""
    epoch, place = divmod(number, count)
    return _order(count, seed, epoch)[place]


@lru_cache(2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return order
