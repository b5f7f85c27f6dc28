"""The message of a text that `mecb` wrote, read back by whoever has the model, the prompt, the key and the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.decode.steer.mecb import MECB, Belief, float64
from outlay.engine.method import Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM, Prompt

WIDE = 64  # tokens whose logits are asked for at once


@dataclass(frozen=True)
class Revealed:
    """What a text tells of its message."""

    message: str
    """The most probable message."""
    certain: bool
    """Whether the text tells it whole."""
    tokens: int
    """Tokens that it took."""
    target_passes: int
    """Passes that reading took."""


class _Reader(Method):
    """Repeats the passes of a text, wide ones, and writes nothing."""

    about = MECB.about

    def __init__(self, method: MECB, tokens: Sequence[int]) -> None:
        self._method, self._tokens = method, tokens
        self.belief: Belief | None = None
        self.taken = 0

    def decode(self, run: TreeRun) -> Work:
        belief = self.belief = self._method.belief(run.text_prompt)
        path = [run.tip, *run.tree.extend(range(-1, len(self._tokens) - 1), self._tokens)]
        for start in range(0, len(self._tokens), WIDE):
            nodes = path[start : min(start + WIDE, len(self._tokens))]
            logits = yield run.target.forward(nodes)
            for node, row, token in zip(nodes, logits, self._tokens[start:], strict=False):
                if belief.certain:
                    return
                belief.update(belief.step(float64(run.sampler.probs(row, node))), token)
                self.taken += 1


def reveal(lm: LM, prompt: Prompt, tokens: Sequence[int], method: MECB | None = None, **options: Any) -> Revealed:
    """Reads the message of a text.

    Args:
        lm: The model that wrote it.
        prompt: Its prompt.
        tokens: Its token ids, `result.tokens`.
        method: With the key, the rate and the block's bits that it was written with.
        options: The sampling options that it was written with, as for `LM.generate`, such as `temperature`.

    Raises:
        FailureError: If the text can't have been written so.
    """
    reader = _Reader(method or MECB(), tokens)
    result = lm.submit(prompt, method=reader, max_tokens=1, **options).result()
    assert reader.belief is not None, "the reader has begun"
    return Revealed(reader.belief.message(), reader.belief.certain, reader.taken, result.ledger.target_passes)
