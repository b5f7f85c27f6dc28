"""MEC-B: a text that carries a message in its draws, and is distributed as the model's own texts are.

In each step the tokens' distribution is coupled with what a reader who has seen the text so far believes of a block of
the message: the token then tells as much of the block as it can, through a code of bounded entropy, and whoever has
the model, the prompt and the options repeats the passes and reads it. Ebrahimi, Chen and Khisti 2024 (arXiv
2410.21666), Algorithm 1; the coupling is `outlay.coupling`. It is the Markov coding game of Sokota et al. 2022 with the
tokens of a language model for a player's actions, which the paper doesn't try.

Exact for messages that are drawn uniformly, as any message is over keys that are drawn: the marginals of the coupling
are the model's own to 1e-12 in each step. No claim of secrecy is made: who has the model and the key reads the message.
Reading needs the same bits of the logits, which the engine gives at any batch width, and of the coupling, which is
computed in float64 by numpy: on one kind of processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from outlay.coupling import Bottleneck, bottleneck, entropy
from outlay.coupling.entropy import Probs, drawn
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError, UsageError

MOST = 255  # bytes of a message: its length is a byte
CERTAIN = 1e-6  # bits of entropy below which a block is known: its most probable value has 1 - 1e-7 or more
# The most probable tokens that have a column each; all others make as many columns of about equal mass. To couple
# 49,152 tokens one by one took about half a second each time, many times a pass of the default model.
ALONE = 1024


@dataclass(frozen=True)
class MECB(Method):
    """Draws tokens that carry a message."""

    message: str | None = None
    """The message, up to 255 bytes of UTF-8; without one, tokens are drawn as by `sample`."""
    key: str = "outlay"
    """What the reader has to know besides prompt and options; it makes the bits of any message look drawn."""
    rate: float = 1.0
    """The most entropy of the code of a block in a step, as a share of the block's bits; at 1 or more the coupling has
    no bottleneck."""
    block_bits: int = 8
    """Bits of the message that are coupled at once: 1, 2, 4 or 8."""

    about: ClassVar[About] = About(
        name="mecb",
        summary="texts that carry a message and are distributed as the model's own",
        paper="Ebrahimi, Chen and Khisti 2024, https://arxiv.org/abs/2410.21666",
        family="steering",
        spends="one target pass a token, and a coupling of the vocabulary until the message is told",
        saves="tokens that a message takes, against codes that look at no probabilities",
        counts={"message_bits": "bits"},
        texts=("message", "key"),
    )

    def __post_init__(self) -> None:
        if self.block_bits not in (1, 2, 4, 8):
            raise UsageError(f"mecb couples blocks of 1, 2, 4 or 8 bits, not {self.block_bits}")
        if not self.rate > 0:
            raise UsageError(f"mecb needs a rate above 0, a share of a block's bits, not {self.rate}")
        size = len((self.message or "").encode())
        if size > MOST:
            raise UsageError(f"mecb carries at most {MOST} bytes; the message has {size}")

    def check(self, submission: Submission) -> None:
        if self.message is not None and submission.options.sampling.temperature == 0:
            raise UsageError(
                "mecb carries its message in draws, and at temperature 0 there are none; try temperature=1"
            )

    def decode(self, run: TreeRun) -> Work:
        node = run.tip
        if self.message is not None:
            belief = self.belief(run.text_prompt)
            blocks = self.blocks(run.text_prompt)
            run.facts["message"] = {"bits": 8 * len(self.message.encode()), "told": belief.certain}
            while not belief.certain:
                logits = yield run.target.forward([node])
                step = belief.step(float64(run.sampler.probs(logits[0], node)))
                value = blocks[step.place] if step.place < len(blocks) else 0
                token = step.draw(value, [run.random.uniform(node.position, stream) for stream in range(3)])
                run.count(message_bits=belief.update(step, token))
                run.facts["message"] |= {"told": belief.certain}
                node = run.commit(token)
        while True:
            node = run.commit((yield from run.next_token(node)))

    def belief(self, prompt: Sequence[int]) -> Belief:
        """Returns what is believed of the message before the text begins."""
        return Belief(self.block_bits, self.rate, self._stream(prompt))

    def blocks(self, prompt: Sequence[int]) -> list[int]:
        """Returns the values of the message's blocks: those of its length first, all of them under the key's stream."""
        data = (self.message or "").encode()
        return _split(_xor(bytes([len(data)]) + data, self._stream(prompt)), self.block_bits)

    def _stream(self, prompt: Sequence[int]) -> bytes:
        """Returns bytes that look drawn, of the key and the prompt: SHAKE-256."""
        ids = np.asarray(prompt, dtype="<u4").tobytes()
        return hashlib.shake_256(self.key.encode() + b"\0" + ids).digest(1 + MOST)


class Columns(NamedTuple):
    """The vocabulary in fewer columns: the most probable tokens alone, the others together."""

    of: npt.NDArray[np.int64]
    """The column of each token, [vocab]."""
    probs: Probs
    """Of the tokens, [vocab]."""

    def draw(self, column: int, number: float) -> int:
        """Returns a token of a column; `number` is from [0, 1)."""
        tokens = np.flatnonzero(self.of == column)
        return int(tokens[drawn(self.probs[tokens], number)])


def columns_of(probs: Probs) -> Columns:
    """Returns the columns of a distribution [vocab]."""
    order = np.argsort(-probs, kind="stable")
    rest = np.cumsum(probs[order[ALONE:]])
    of = np.empty(len(probs), dtype=np.int64)
    of[order[:ALONE]] = np.arange(len(order[:ALONE]))
    if len(rest):
        of[order[ALONE:]] = ALONE + np.minimum(rest / max(rest[-1], CERTAIN) * ALONE, ALONE - 1).astype(np.int64)
    return Columns(of, probs)


class Step(NamedTuple):
    """A block and how it is coupled with the next token."""

    place: int
    coupling: Bottleneck
    columns: Columns

    def draw(self, value: int, numbers: Sequence[float]) -> int:
        """Returns a token that tells of the block's value; the three numbers are from [0, 1)."""
        return self.columns.draw(self.coupling.draw(value, (numbers[0], numbers[1])), numbers[2])


class Belief:
    """What a reader believes of the message: for each block the probabilities of its values.

    The blocks of the length are told first. Of the others the one is next that is least known.

    Args:
        block_bits: Bits of a block.
        rate: Of the code, as a share of the block's bits.
        stream: Of the key.
    """

    def __init__(self, block_bits: int, rate: float, stream: bytes) -> None:
        self._bits, self._rate, self._stream = block_bits, rate * block_bits, stream
        self._head = 8 // block_bits
        self._of: list[Probs] = []
        self._unknown: list[float] = []
        self._add(self._head)

    @property
    def certain(self) -> bool:
        """Whether the whole message is known."""
        return max(self._unknown) < CERTAIN

    @property
    def bits_left(self) -> float:
        """The entropy of what is not known yet, as far as the number of blocks is known."""
        return sum(self._unknown)

    def message(self) -> str:
        """Returns the most probable message."""
        values = [int(np.argmax(each)) for each in self._of]
        return _xor(_joined(values, self._bits), self._stream)[1:].decode(errors="replace")

    def step(self, probs: Probs) -> Step:
        """Returns the block that is next, coupled with the distribution of the next token [vocab]."""
        place, columns = int(np.argmax(self._unknown)), columns_of(probs)
        masses: Probs = np.bincount(columns.of, probs).astype(np.float64)
        return Step(place, bottleneck(self._of[place], masses, self._rate), columns)

    def update(self, step: Step, token: int) -> int:
        """Takes in a token; returns how many bits are certain by it that were not.

        Raises:
            FailureError: If the token could not have been drawn.
        """
        found = step.coupling.posterior(int(step.columns.of[token]))
        if found is None or step.columns.probs[token] == 0:
            raise FailureError(
                f"token {token} is never drawn here: the text is of another model, prompt, key, or other options"
            )
        self._of[step.place], self._unknown[step.place] = found, entropy(found)
        told = self._bits if self._unknown[step.place] < CERTAIN else 0
        if len(self._of) == self._head and self.certain:
            values = [int(np.argmax(each)) for each in self._of]
            length = _xor(_joined(values, self._bits), self._stream)[0]
            self._add(length * self._head)
        return told

    def _add(self, blocks: int) -> None:
        size = 2**self._bits
        self._of += [np.full(size, 1 / size)] * blocks
        self._unknown += [float(self._bits)] * blocks


def float64(probs: Tensor) -> Probs:
    """Returns a distribution in float64 [vocab], so that its masses sum to 1 there."""
    found: Probs = probs.double().cpu().numpy()
    return found / found.sum()


def _xor(data: bytes, stream: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def _split(data: bytes, bits: int) -> list[int]:
    """Returns the blocks of bytes, the highest bits first."""
    return [byte >> shift & (1 << bits) - 1 for byte in data for shift in range(8 - bits, -1, -bits)]


def _joined(blocks: Sequence[int], bits: int) -> bytes:
    """Returns the bytes of whole blocks."""
    size = 8 // bits
    return bytes(
        sum(value << 8 - bits * (place + 1) for place, value in enumerate(blocks[start : start + size]))
        for start in range(0, len(blocks), size)
    )
