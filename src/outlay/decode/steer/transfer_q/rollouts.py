"""Roll-outs of the baseline behind each candidate: all of them together, one pass a token, over one shared prefix."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.engine.request import Request
from outlay.engine.sampling import draw_tokens
from outlay.engine.seat import Seat
from outlay.engine.tree_run import TreeRun
from outlay.kernels import TokenDraw, Truncation
from outlay.tree.token_tree import Node

Asked = Generator[Request | list[Request], Any, None]
ROLL_OUTS = 1 << 35  # a stream of random numbers that no text uses
MODEL_ITSELF = Truncation(1.0)


class Choices(NamedTuple):
    """The most probable tokens after a node, by falling logits."""

    tokens: list[int]
    """Their ids, [k]."""
    logits: Tensor
    """Float32 [k], with penalties, edits and the constraint's mask."""
    logprobs: Tensor
    """Float32 [k], log-probabilities of the model itself: by its raw logits, at temperature 1."""


@dataclass(eq=False)
class Branch:
    """A candidate with one roll-out behind it.

    `nodes` are its tokens at the baseline, the candidate first, `texts` the same tokens in the target's tree, which
    scorers read: the same nodes where the target is the baseline. `after` is what may follow each of them, as far as it
    was computed: all but the last. `logprob` is the log-probability of the roll-out under the baseline.
    """

    nodes: list[Node]
    texts: list[Node]
    stream: tuple[int, int] = (0, 0)
    after: list[Choices] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False


class RollOuts:
    """Rolls candidates out, and commits one of them.

    Args:
        run: The run.
        seat: Of the baseline: that of the target, or of a model beside it.
        topk: Tokens that may follow a node, at most.
        length: Tokens of a roll-out, at most.
        each: Roll-outs of each candidate.
        greedy: Whether they take the most probable tokens, or draw them.
        reuse: Whether a greedy roll-out goes on where the one before it ended.
    """

    def __init__(
        self, run: TreeRun, seat: Seat, *, topk: int, length: int, each: int, greedy: bool, reuse: bool
    ) -> None:
        self._run, self._seat, self._apart = run, seat, seat is not run.target
        self._topk = min(topk, seat.model.decoder.config.vocab_size)
        self._length, self._each, self._greedy, self._reuse = length, each, greedy, reuse
        self._kept: Branch | None = None  # the greedy roll-out behind the tip, from its first token on
        self._next: Choices | None = None  # what may follow the tip by the baseline, where a roll-out has found it
        self._rows: dict[Node, Tensor] = {}  # logits [vocab] of the target after nodes, for `log_ratios`

    def choices(self, prior: str) -> Generator[Request | list[Request], Any, tuple[Choices, Tensor]]:
        """Asks for the candidates after the tip.

        Args:
            prior: Whose they are: "baseline" or "target".

        Returns:
            The candidates, and their log-probabilities under the target, float32 [k].
        """
        run, seat, of_target = self._run, self._seat, prior == "target" or not self._apart
        if not self._apart:
            found = self._next or self._read(run.tip, run.tip, (yield seat.forward([run.tip])))
            return found, found.logprobs
        tip = seat.tree.tip
        assert tip is not None, "the seat's tree holds the prompt"
        row = self._rows.get(run.tip)
        asked: list[Request] = [run.target.forward([run.tip])] if row is None else []
        if not of_target and self._next is None:
            asked.append(seat.forward([tip]))
        rows: list[Tensor] = (yield asked) if asked else []
        if row is None:
            row = rows.pop(0)[0]
        if of_target:
            found = self._read(run.tip, run.tip, row[None])
            return found, found.logprobs
        found = self._next or self._read(tip, run.tip, rows.pop())
        return found, row.log_softmax(-1)[found.tokens]

    def begin(self, candidates: Sequence[int]) -> list[list[Branch]]:
        """Returns the branches of each candidate, which have no roll-out yet, but for one that is kept."""
        kept, tip, text = self._kept, self._seat.tree.tip, self._run.tip
        assert tip is not None, "the seat's tree holds the prompt"
        branches = []
        for token in candidates:
            if kept is not None and kept.nodes[0].token == token:
                branches.append([kept])
                continue
            (node,), (written,) = self._extend([tip], [text], [token])
            ended = self._ends(written)
            branches.append([Branch([node], [written], (token, n), ended=ended) for n in range(self._each)])
        return branches

    def grow(self, branches: Sequence[Branch]) -> Asked:
        """Rolls branches out until they end or have all their tokens, in one pass a token."""
        length = min(self._length, self._run.max_tokens - len(self._run.tokens) - 1)
        while growing := [branch for branch in branches if not branch.ended and len(branch.nodes) <= length]:
            nodes = {branch.nodes[-1]: branch.texts[-1] for branch in growing}
            logits = yield self._seat.forward(list(nodes))
            edited = self._edited(logits, list(nodes.values()))
            found = dict(zip(nodes, choices_of(logits, edited, self._topk), strict=True))
            rows = {node: row for row, node in enumerate(nodes)}
            places = [rows[branch.nodes[-1]] for branch in growing]
            for branch in growing:
                branch.after.append(found[branch.nodes[-1]])
                branch.ended = bool(branch.after[-1].logits[0] == -torch.inf)  # nothing is allowed
            going = [(branch, place) for branch, place in zip(growing, places, strict=True) if not branch.ended]
            self._append([branch for branch, _ in going], [place for _, place in going], logits, edited)

    def log_ratios(self, branches: Sequence[Branch]) -> Generator[Request | list[Request], Any, list[float]]:
        """Asks the target for log p_target(roll-out) - log p_baseline(roll-out) of each branch, in one pass."""
        nodes = list(dict.fromkeys(node for branch in branches for node in branch.texts[:-1]))
        rows = (yield self._run.target.forward(nodes)) if nodes else ()
        self._rows = dict(zip(nodes, rows, strict=True))
        totals = {node: float(row.logsumexp(-1)) for node, row in self._rows.items()}
        return [
            sum(float(self._rows[above][below.token]) - totals[above] for above, below in pairwise(branch.texts))
            - branch.logprob
            for branch in branches
        ]

    def commit(self, branch: Branch, count: int) -> None:
        """Commits the first `count` tokens of a branch, as far as it has them; all other branches are freed."""
        last = min(count, len(branch.nodes)) - 1
        keeps = self._reuse and self._greedy and last + 1 < len(branch.nodes)
        self._run.accept(branch.texts[last], behind=branch.texts[-1:] if keeps else ())
        if self._apart:
            self._seat.tree.keep(branch.nodes[last], branch.nodes[-1:] if keeps else ())
        self._next = branch.after[last] if last < len(branch.after) else None
        self._rows = {node: row for node, row in self._rows.items() if node is self._run.tip}
        self._kept = None
        if keeps:
            rest = slice(last + 1, None)
            self._kept = Branch(branch.nodes[rest], branch.texts[rest], after=branch.after[rest], ended=branch.ended)

    def _append(self, branches: Sequence[Branch], rows: Sequence[int], logits: Tensor, edited: Tensor) -> None:
        """Adds the next token to each branch, whose logits stand in these rows."""
        if self._greedy:
            tokens = [branch.after[-1].tokens[0] for branch in branches]
        else:
            written = len(self._run.tokens)
            draws = [
                self._run.random.uniform(ROLL_OUTS, written, *branch.stream, len(branch.nodes)) for branch in branches
            ]
            tokens = draw_tokens(edited[list(rows)], [TokenDraw(MODEL_ITSELF, draw) for draw in draws])
        logprobs = logits[list(rows), tokens] - logits[list(rows)].logsumexp(-1)
        last = [branch.nodes[-1] for branch in branches], [branch.texts[-1] for branch in branches]
        nodes, texts = self._extend(*last, tokens)
        for branch, node, text, logprob in zip(branches, nodes, texts, logprobs.tolist(), strict=True):
            branch.nodes.append(node)
            branch.texts.append(text)
            branch.logprob += logprob
            branch.ended = self._ends(text)

    def _extend(
        self, nodes: Sequence[Node], texts: Sequence[Node], tokens: Sequence[int]
    ) -> tuple[list[Node], list[Node]]:
        """Grows a node below each of `nodes`, and the same text below each of `texts`."""
        grown = self._seat.tree.extend(nodes, tokens)
        return grown, self._run.tree.extend(texts, tokens) if self._apart else grown

    def _read(self, node: Node, text: Node, logits: Tensor) -> Choices:
        (found,) = choices_of(logits, self._edited(logits, [text]), self._topk)
        return found

    def _edited(self, logits: Tensor, texts: Sequence[Node]) -> Tensor:
        """Returns logits [nodes, vocab] with the penalties, edits and masks of the run."""
        sampler = self._run.sampler
        if sampler.raw:
            return logits
        return torch.stack([sampler.penalized(row, text) for row, text in zip(logits, texts, strict=True)])

    def _ends(self, text: Node) -> bool:
        """Tells whether a text is finished: it has its end token, or a stop string."""
        if text.token in self._run.eos_token_ids:
            return True
        stops = self._run.options.stop
        if not stops:
            return False
        written = self._run.model.tokenizer.decode(self._run.text_tokens(text))
        return any(stop in written for stop in stops)


def choices_of(logits: Tensor, edited: Tensor, k: int) -> list[Choices]:
    """Returns the k most probable tokens of each row.

    Args:
        logits: Raw logits, float32 [rows, vocab].
        edited: The same with penalties, edits and masks, by which tokens are chosen.
        k: How many, at most the vocabulary.
    """
    top = edited.topk(k)
    logprobs = logits.gather(1, top.indices) - logits.logsumexp(-1, keepdim=True)
    return [Choices(*row) for row in zip(top.indices.tolist(), top.values, logprobs, strict=True)]
