"""Makes the logits of a receipt again, and tells at which token the first bit differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from outlay import kernels
from outlay.engine.handle import Handle
from outlay.engine.method import About, Method, Work
from outlay.engine.receipt import Receipt
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.digest import weights_digest

FORCED = "forced"
"""Names the method that commits a receipt's own tokens, computed in wide passes."""
WIDE = 64  # rows of a pass
_OTHERS = "Beside it, another request is at work on text of its own, number {}."


class Forced(Method):
    """Commits given tokens, computed in wide passes. It is for programs, so the catalogue does not list it."""

    about: ClassVar[About] = About(
        name=FORCED,
        summary="given tokens, computed in wide passes",
        paper="",
        family="scoring",
        spends="one position for each token",
        saves="passes",
    )

    def __init__(self, tokens: Sequence[int], rows: int = WIDE) -> None:
        self._tokens, self._rows = list(tokens), rows

    def decode(self, run: TreeRun) -> Work:
        """Computes some tokens at a time and commits them."""
        for begin in range(0, len(self._tokens), self._rows):
            tokens = self._tokens[begin : begin + self._rows]
            nodes = run.tree.extend(range(-1, len(tokens) - 1), tokens)
            yield run.target.forward([run.tip, *nodes[:-1]])
            run.accept(nodes[-1])


@dataclass(frozen=True)
class Replayed:
    """What came of making a receipt's logits again."""

    receipt: Receipt
    """That of the new run."""
    difference: tuple[int, str] | None
    """The first token that differs and what of it, "token" or "logits"; None: every bit is the same."""


def replay(lm: LM, receipt: Receipt, *, method: str | Method | None = None, draft: str | None = None,
           beside: int = 0) -> Replayed:  # fmt: skip
    """Makes a receipt's logits again.

    Args:
        lm: The model, with keys and values held as the receipt says.
        receipt: What a run was asked and what its logits were.
        method: A method that writes the same tokens; "forced" commits those of the receipt. None: the receipt's own.
        draft: What drafts, for methods that take one.
        beside: How many other requests share its passes.

    Raises:
        UsageError: For another model, format or arithmetic, where bits can't be the same.
    """
    refuse_other(lm, receipt)
    request = dict(receipt.request)
    chosen = Forced(receipt.tokens) if method == FORCED else method or receipt.method
    others: list[Handle] = []
    with lm.engine.together():
        for number in range(beside):
            prompt = lm.encode(_OTHERS.format(number), chat=False)
            others.append(lm.submit(prompt, max_tokens=len(receipt.tokens) + 8, ignore_eos=True, method="greedy"))
        handle = lm.submit(receipt.prompt, method=chosen, draft=draft, receipt=True, **request)
    result = handle.result()
    for other in others:
        other.cancel()
    assert result.receipt is not None
    return Replayed(result.receipt, receipt.first_difference(result.receipt.tokens, result.receipt.links))


def refuse_other(lm: LM, receipt: Receipt) -> None:
    """Raises `UsageError`, in one line, where a model's bits can't be those of a receipt."""
    here = weights_digest(lm.model).hex()
    if here != receipt.weights:
        raise UsageError(
            f"the receipt is of {receipt.model} (SHA-256 {receipt.weights[:16]}), and the weights of {lm.model.name} "
            f"are others ({here[:16]}); name that model with --model"
        )
    if receipt.arithmetic != kernels.ARITHMETIC:
        raise UsageError(
            f"the receipt was written with arithmetic {receipt.arithmetic} ({receipt.writer}), and "
            f"{kernels.ARITHMETIC} is used here; replay it with that version"
        )
    if receipt.format != lm.model.format:
        raise UsageError(f"the receipt's weights were held in {receipt.format}, not {lm.model.format}; load them so")
