"""AdaDec: greedy decoding that looks ahead where the model is uncertain.

Code goes wrong mostly at steps of high entropy, where the right token is often among the first few but not the first.
So a step pauses where the Shannon entropy of the next token reaches a threshold that was learned for the model, extends
each of the best candidates greedily by a few tokens, all in one pass a token, and takes the candidate whose
continuation has the highest mean log-probability (He et al. 2025, "Towards Better Code Generation: Adaptive Decoding
with Uncertainty Guidance", arXiv 2506.08980). It is a search, not exact; what is exact is that the tokens looked ahead
are committed where greedy decoding would write them, which changes no text.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError, UsageError
from outlay.models import fitted
from outlay.models.load import Model
from outlay.tree.token_tree import Node

KIND = "threshold"
ORIGIN = "lookahead"
NEWLINE, INDENT, WHITE = ord("\n"), b" \t", b" \t\r\f\v"
BLANK_LINES = 4  # in a row, behind which a function's body is over; the official evaluation on HumanEval and MBPP


class Following(NamedTuple):
    """What follows a node."""

    entropy: float
    """Shannon entropy of the next token under the raw logits, in nats."""
    tokens: tuple[int, ...]
    """The most probable tokens that are allowed, the best first; none where nothing is."""
    logprobs: tuple[float, ...]
    """Their log-probabilities, in nats."""


@dataclass
class Branch:
    """A candidate and its greedy continuation: `following[i]` is what follows `nodes[i]`, `places[i]` where it is."""

    nodes: list[Node]
    places: list[Place]
    logprob: float
    following: list[Following] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean log-probability of its tokens, the candidate's own included."""
        return self.logprob / len(self.nodes)

    def add(self, node: Node, place: Place, following: Following) -> None:
        """Takes the most probable token after the last one."""
        self.nodes.append(node)
        self.places.append(place)
        self.following.append(following)
        self.logprob += following.logprobs[0]


@dataclass(frozen=True)
class AdaDec(Method):
    """Greedy decoding with pauses at steps of high entropy, where candidates are ranked by a short lookahead."""

    threshold: float | str = "default"
    """The entropy in nats from which a step pauses, a file of `outlay train threshold`, or "default": the file that was
    trained for the model. inf never pauses, -inf always does."""

    candidates: int = 3
    """The most probable tokens that are compared in a pause; B in the paper."""

    lookahead: int = 5
    """Tokens by which each candidate is extended at most; L in the paper."""

    line: bool = False
    """Whether a continuation also ends with its line: the lookahead of dynamic length, for which `lookahead` was 10."""

    body: bool = False
    """Whether the text is the body of a Python function: it ends before a line that isn't indented, and behind four
    blank lines."""

    reuse: bool = True
    """Whether what was looked ahead is committed where greedy decoding would write it, which changes the cost alone."""

    about: ClassVar[About] = About(
        name="adadec",
        summary="greedy, but candidates are ranked by a short lookahead at steps of high entropy",
        paper="He et al. 2025, https://arxiv.org/abs/2506.08980",
        family="search",
        spends="up to `lookahead` passes of `candidates` positions at each uncertain step",
        saves="positions, against beam search",
        needs=("threshold",),
        takes=("constraint",),
        exact=False,
        counts={"pauses": "steps", "lookahead_tokens": "tokens", "reused_tokens": "tokens"},
    )

    def __post_init__(self) -> None:
        if isinstance(self.threshold, float) and math.isnan(self.threshold):
            raise UsageError("adadec needs a threshold in nats, such as 1.5, or a file, not nan")
        if self.candidates < 1:
            raise UsageError(f"adadec needs candidates of 1 or more, not {self.candidates}; the paper's are 3")
        if self.lookahead < 0:
            raise UsageError(f"adadec needs a lookahead of 0 or more, not {self.lookahead}; the paper's is 5")

    def check(self, submission: Submission) -> None:
        if not submission.greedy:
            raise UsageError("adadec draws no tokens; leave temperature at 0")
        open_threshold(self.threshold, submission.model)

    def decode(self, run: TreeRun) -> Work:
        threshold, ends = open_threshold(self.threshold, run.model), Ends(run, self.body)
        place, following = ends.after_all(ends.beginning, run.tokens), None
        while True:
            if following is None:
                [following] = yield from self._read(run, [run.tip])
            if not following.tokens:
                run.give_up(run.tip)
                return
            if self.uncertain(following.entropy, threshold, run.tip.position) and self._affordable(run):
                branch = yield from self._look_ahead(run, ends, place, following)
            else:
                [branch] = self._grow(run, ends, place, following, 1)
            count = self._settled(branch, threshold) if self.reuse else 1
            place = branch.places[count - 1]
            written = branch.nodes[: count - place.outside]
            run.count(reused_tokens=max(0, len(written) - 1))
            if written and branch.following and not self.reuse:
                run.commit(written[0].token)  # a node of its own, which the next pass computes again
            elif written:
                run.accept(written[-1])
            if place.outside or run.finish_reason is not None:
                return
            following = branch.following[count - 1] if self.reuse and count <= len(branch.following) else None

    def uncertain(self, entropy: float, threshold: float, position: int) -> bool:
        """Tells whether the step behind a position of the text pauses, by the entropy of its next token."""
        return entropy >= threshold

    def _affordable(self, run: TreeRun) -> bool:
        """Tells whether the budget pays for a whole pause: a run that can't look ahead decodes greedily."""
        cost = self.candidates * self.lookahead
        enough = run.left("target_tokens") >= cost and run.left("lookahead_tokens") >= cost
        return enough and run.left("target_passes") >= self.lookahead and run.left("pauses") >= 1

    def _read(self, run: TreeRun, nodes: Sequence[Node]) -> Generator[Request, Any, list[Following]]:
        """Asks for what follows each node, in one pass."""
        logits = yield run.target.forward(nodes)
        found = []
        for node, row, nats in zip(nodes, logits, entropy(logits).tolist(), strict=True):
            if math.isnan(nats):
                raise FailureError(f"{run.model.name} gave logits that are no numbers")
            allowed = row if run.sampler.raw else run.sampler.penalized(row, node)
            found.append(Following(nats, *best_tokens(allowed, self.candidates)))
        return found

    def _grow(self, run: TreeRun, ends: Ends, place: Place, following: Following, count: int) -> list[Branch]:
        """Begins a branch below the tip with each of the best tokens."""
        tokens = following.tokens[:count]
        nodes = run.tree.extend([run.tip] * len(tokens), tokens)
        return [
            Branch([node], [ends.after(place, node.token)], logprob)
            for node, logprob in zip(nodes, following.logprobs, strict=False)
        ]

    def _look_ahead(
        self, run: TreeRun, ends: Ends, place: Place, following: Following
    ) -> Generator[Request, Any, Branch]:
        """Extends each candidate greedily, all of them together; returns the branch with the highest score.

        A branch that has ended keeps its sum and its length. One that could not win any more is left alone.
        """
        branches, last = self._grow(run, ends, place, following, self.candidates), run.submission.context - 1
        run.count(pauses=1)
        for _ in range(self.lookahead):
            going = [each for each in branches if not self._ended(each, last)]
            best = max((each.score for each in branches if self._ended(each, last)), default=-math.inf)
            going = [each for each in going if each.logprob / (self.lookahead + 1) >= best]
            if not going:
                break
            run.count(lookahead_tokens=len(going))
            found = yield from self._read(run, [each.nodes[-1] for each in going])
            for branch, after in zip(going, found, strict=True):
                if not after.tokens:  # a constraint allows nothing behind it
                    branch.logprob = -math.inf
                    continue
                [node] = run.tree.extend([branch.nodes[-1]], after.tokens[:1], ORIGIN)
                branch.add(node, ends.after(branch.places[-1], node.token), after)
        for branch in branches:
            run.mark(branch.nodes[0], score=branch.score, entropy=following.entropy)
        winner = max(branches, key=lambda branch: branch.score)  # the more probable candidate among equals
        run.mark(winner.nodes[0], chosen="the highest mean log-probability")
        return winner

    def _ended(self, branch: Branch, last: int) -> bool:
        """Tells whether a branch goes no further; `last` is the last position of the model's context."""
        place, full = branch.places[-1], branch.nodes[-1].position >= last
        return place.ended or full or branch.logprob == -math.inf or (self.line and place.line_ended)

    def _settled(self, branch: Branch, threshold: float) -> int:
        """Returns how many of its tokens are written without another pause: the candidate, and those of low entropy."""
        for count, (node, after) in enumerate(zip(branch.nodes, branch.following, strict=False), 1):
            if self.uncertain(after.entropy, threshold, node.position):
                return count
        return len(branch.nodes)


def open_threshold(threshold: float | str, model: Model) -> float:
    """Returns a threshold in nats: the number itself, or what a file holds for a model.

    Raises:
        UsageError: Where none was trained for the model, for what is no such file, and for another model's.
    """
    if not isinstance(threshold, str):
        return float(threshold)
    path = fitted.find(KIND, model) if threshold == "default" else Path(threshold)
    if path is None:
        raise fitted.missing(KIND, model)
    _, about = fitted.read(path, KIND, model)
    learned = about.get("threshold")
    if isinstance(learned, bool) or not isinstance(learned, int | float) or math.isnan(learned):
        raise UsageError(f"{path} is damaged: its threshold is {learned!r}, no number of nats")
    return float(learned)


def entropy(logits: Tensor) -> Tensor:
    """Returns the Shannon entropy of the softmax of logits [n, vocab], in nats, float32 [n]."""
    return torch.special.entr(logits.float().softmax(-1)).sum(-1)


def best_tokens(logits: Tensor, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Returns the most probable tokens of logits [vocab], the lowest id first among equals, with log-probabilities.

    Args:
        logits: Float32 [vocab]; -inf is left out.
        count: How many at most.
    """
    least = logits.topk(min(count, len(logits))).values[-1]
    ids = (logits >= least).nonzero()[:, 0]  # more than `count` where the last ones are equal
    ids = ids[logits[ids].argsort(descending=True, stable=True)[:count]]
    logprobs = logits[ids] - logits.logsumexp(-1)
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    allowed = [(token, logprob) for token, logprob in pairs if math.isfinite(logprob)]
    return tuple(token for token, _ in allowed), tuple(logprob for _, logprob in allowed)


@dataclass(frozen=True)
class Lines:
    """A function's body so far: `blank` lines right before its last one, and what that one has.

    `indented` says that the last line began with a space or a tab, `begun` that it isn't blank, `over` that the body is
    over.
    """

    blank: int = 0
    indented: bool = False
    begun: bool = False
    over: bool = False

    def read(self, data: bytes) -> Lines:
        """Returns the body behind some more bytes of the text."""
        lines = self
        for byte in data:
            if byte == NEWLINE:
                lines = Lines(0 if lines.begun else lines.blank + 1, over=lines.over)
            elif byte not in WHITE:
                lines = replace(lines, begun=True, over=lines.over or not lines.indented)
            elif byte in INDENT and not lines.begun:
                lines = replace(lines, indented=True)
            if not lines.begun and lines.blank >= BLANK_LINES - 1:
                lines = replace(lines, over=True)
        return lines


@dataclass(frozen=True)
class Place:
    """Where a text is: `tail` holds its last bytes, in which a stop string may have begun."""

    tail: bytes = b""
    lines: Lines = Lines()
    line_ended: bool = False
    ended: bool = False
    outside: bool = False
    """Whether its last token lies outside of the function's body, and is not part of it."""


class Ends:
    """Tells where texts end: at end tokens, at stop strings, and with `body` where the body of a function is over."""

    def __init__(self, run: TreeRun, body: bool) -> None:
        self._tokenizer, self._eos, self._body = run.model.tokenizer, run.eos_token_ids, body
        self._stops = [stop.encode() for stop in run.options.stop]
        self._longest = max(map(len, self._stops), default=0)
        prompt = b"".join(map(self._tokenizer.bytes_of, run.text_prompt[-1:]))
        open_line = bool(prompt) and not prompt.endswith(b"\n")  # whose rest the text begins with
        self.beginning = Place(lines=Lines(indented=open_line, begun=open_line))

    def after_all(self, place: Place, tokens: Iterable[int]) -> Place:
        """Returns the place behind some more tokens."""
        for token in tokens:
            place = self.after(place, token)
        return place

    def after(self, place: Place, token: int) -> Place:
        """Returns the place behind one more token."""
        data = self._tokenizer.bytes_of(token)
        text = place.tail + data
        lines = place.lines.read(data) if self._body else place.lines
        stopped = token in self._eos or any(stop in text for stop in self._stops)
        tail = text[max(0, len(text) - self._longest + 1) :] if self._longest else b""
        return Place(tail, lines, data.endswith(b"\n"), stopped or lines.over, lines.over and not stopped)
