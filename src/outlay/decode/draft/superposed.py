"""Superposed decoding: k short completions for the passes of one.

Each step reads one weighted mean of the embeddings of all drafts' last tokens; what follows it is combined with every
draft, weighed by n-grams of the draft's own words, and the k best go on (Shen et al. 2024). Approximate: it rests on
models being nearly linear in such mixtures for a few tokens. Its use is a choice of short completions, as an editor
shows.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.speculation.ngrams import NgramTable
from outlay.speculation.tables import open_table
from outlay.tree.token_tree import Node

ORIGIN = "superposed"
Text = tuple[int, ...]


@dataclass(frozen=True)
class Draft:
    """A completion: its tokens and its score S, a sum of tempered and interpolated log-probabilities."""

    tokens: Text = ()
    score: float = 0.0
    ended: bool = False

    @property
    def mean(self) -> float:
        """S by the token: minus the logarithm of the perplexity by which drafts are ranked."""
        return self.score / max(len(self.tokens), 1)


@dataclass
class Stream:
    """Drafts that share one stream of positions, the node that it has come to, and those of them that have ended."""

    node: Node
    drafts: list[Draft]
    finished: list[Draft] = field(default_factory=list)


@dataclass(frozen=True)
class Superposed(Method):
    """Superposed decoding (Shen et al. 2024, algorithm 1)."""

    k: int = 3
    """Drafts that share a pass; k in the paper."""

    length: int = 10
    """Tokens of a draft."""

    temperature: float = 0.06
    """Temperature of the model's distribution in the drafts' scores; tau in the paper."""

    top_n: int = 9
    """Most probable tokens of a pass that each draft is extended by."""

    ngram: str = "none"
    """A file of n-grams (`outlay train table --order 6`), "default", or "none"."""

    alpha: float = 0.54
    """Weight of the n-grams beside the model, from 0 to 1."""

    lambdas: tuple[float, ...] = (0.01, 0.04, 0.15, 0.18, 0.12)
    """Weights of the n-grams with contexts of 1, 2, ... tokens."""

    penalty: float = 200.0
    """What a draft loses that the n-grams know no continuation of, in nats."""

    backoff: float = 0.0
    """The probability of what the n-grams don't know; above 0 it replaces the penalty."""

    rescore: bool = True
    """Whether the drafts are ranked by their true probabilities, in one more pass."""

    reset_every: int | None = None
    """Tokens after which the drafts become streams of their own; None: never."""

    about: ClassVar[About] = About(
        name="superposed",
        summary="k short completions for the passes of one",
        paper="Shen et al. 2024, https://arxiv.org/abs/2405.18400",
        family="speculation",
        spends="one position a token for all drafts together, and their tokens once more to rank them",
        saves="passes and positions, against k completions",
        exact=False,
    )

    def __post_init__(self) -> None:
        for name in ("k", "length"):
            if getattr(self, name) < 1:
                raise UsageError(f"superposed needs a {name} of 1 or more, not {getattr(self, name)}")
        if not self.temperature > 0:
            raise UsageError(f"superposed needs a temperature above 0, not {self.temperature}; the paper's is 0.06")
        if self.top_n < 2 * self.k:
            raise UsageError(f"superposed needs a top_n of {2 * self.k} or more for {self.k} drafts, not {self.top_n}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"superposed needs an alpha from 0 to 1, not {self.alpha}")
        if self.reset_every is not None and self.reset_every < 1:
            raise UsageError(f"superposed needs a reset_every of 1 or more, not {self.reset_every}")

    def check(self, submission: Submission) -> None:
        if not submission.greedy:
            raise UsageError(
                "superposed has a temperature of its own, superposed:temperature=0.06; leave that of the request at 0"
            )
        if submission.options.logprobs is not None:
            raise UsageError("superposed gives no log-probabilities of tokens; leave logprobs out")
        open_table(self.ngram, submission.model)

    def decode(self, run: TreeRun) -> Work:
        table, length = open_table(self.ngram, run.model), min(self.length, run.max_tokens)
        first = yield run.target.forward([run.tip])
        best = first.topk(min(self.top_n, first.shape[1]))
        rows = list(zip(best.indices, best.values, strict=True))
        streams, ended, offered = [Stream(run.tip, [Draft()])], list[Draft](), list[Node]()
        for step in range(1, length + 1):
            for stream, (tokens, logits) in zip(streams, rows, strict=True):
                self._advance(run, stream, tokens, logits, table, last=step == length)
            ended = self._best([*ended, *(draft for stream in streams for draft in stream.finished)])
            streams = [stream for stream in streams if stream.drafts]
            drafts = self._best([*ended, *(draft for stream in streams for draft in stream.drafts)])
            offered = _offer(run, drafts[0], offered)
            if not streams:
                break
            if self.reset_every is not None and step % self.reset_every == 0:
                streams = [_restart(run, draft) for draft in drafts if not draft.ended]
            top = yield run.target.topk([self._superpose(run, stream) for stream in streams], self.top_n)
            rows = list(zip(top.tokens, top.logits, strict=True))
        yield from self._choose(run, first[0], drafts)

    def _advance(
        self, run: TreeRun, stream: Stream, tokens: Tensor, logits: Tensor, table: NgramTable | None, *, last: bool
    ) -> None:
        """Extends every draft by each of the most probable tokens, and keeps the k best (algorithm 1)."""
        logprobs = (logits.double() / self.temperature).log_softmax(-1).tolist()
        ids = tokens.tolist()
        grown = []
        for draft in stream.drafts:
            scores = self.scores(logprobs, self._grams(run, draft, ids, table))
            for token, score in zip(ids, scores, strict=True):
                ended = last or token in run.eos_token_ids
                grown.append(Draft((*draft.tokens, token), draft.score + score, ended))
        best = sorted(grown, key=lambda draft: -draft.score)[: 2 * self.k]
        stream.finished = [draft for draft in best if draft.ended]
        stream.drafts = [draft for draft in best if not draft.ended][: self.k]

    def scores(self, logprobs: Sequence[float], grams: Sequence[float] | None) -> list[float]:
        """Returns what each token adds to a draft's score: its log-probability, with the n-grams' mixed in."""
        if grams is None:
            return list(logprobs)
        grams = [max(gram, self.backoff) for gram in grams]
        scores = [
            (1 - self.alpha) * logprob + (self.alpha * math.log(gram) if gram > 0 else -math.inf)
            for logprob, gram in zip(logprobs, grams, strict=True)
        ]
        if all(score == -math.inf for score in scores):
            return [(1 - self.alpha) * logprob - self.penalty for logprob in logprobs]
        return scores

    def _grams(self, run: TreeRun, draft: Draft, tokens: Sequence[int], table: NgramTable | None) -> list[float] | None:
        """Returns the interpolated n-gram probability of each token after a draft; None without n-grams."""
        if table is None or self.alpha == 0:
            return None
        text = [*run.prompt[-len(self.lambdas) :], *draft.tokens]
        found = [0.0] * len(tokens)
        for length, weight in enumerate(self.lambdas[: len(text)], 1):
            known = dict(table.successors(text[-length:]))
            for place, token in enumerate(tokens):
                found[place] += weight * known.get(token, 0.0)
        return found

    def _superpose(self, run: TreeRun, stream: Stream) -> Node:
        """Returns the stream's next node, which reads the mean of the drafts' last tokens, weighed by softmax(S)."""
        gamma = torch.tensor([draft.score for draft in stream.drafts], dtype=torch.float64).softmax(-1).float()
        last = torch.tensor([draft.tokens[-1] for draft in stream.drafts])
        embeds = run.model.decoder.embeddings(last).float()
        mixed = (gamma[:, None].to(embeds.device) * embeds).sum(0)
        [stream.node] = run.tree.extend([stream.node], [int(last[gamma.argmax()])], ORIGIN, inputs_embeds=[mixed])
        return stream.node

    def _best(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Returns the k drafts with the lowest perplexities."""
        return sorted(dict.fromkeys(drafts), key=lambda draft: -draft.mean)[: self.k]

    def _choose(self, run: TreeRun, first: Tensor, drafts: Sequence[Draft]) -> Generator[Request, Any, None]:
        """Ranks the drafts, by their true probabilities if that is wanted, and commits the best. `first` are the logits
        [vocab] of the first token.
        """
        nodes = plant(run, drafts)
        ranked = [(draft.mean, draft) for draft in drafts]
        if self.rescore:
            inner = list(dict.fromkeys(draft.tokens[:at] for draft in drafts for at in range(1, len(draft.tokens))))
            rows: dict[Text, Tensor] = {(): first.log_softmax(-1)}
            if inner:
                logits = yield run.target.forward([nodes[text] for text in inner])
                rows |= dict(zip(inner, logits.log_softmax(-1), strict=True))
            ranked = [(_mean_logprob(draft.tokens, rows), draft) for draft in drafts]
        ranked.sort(key=lambda pair: -pair[0])
        run.suggest([(draft.tokens, score) for score, draft in ranked])
        run.accept(nodes[ranked[0][1].tokens])


def plant(run: TreeRun, drafts: Sequence[Draft]) -> dict[Text, Node]:
    """Grows the drafts' real tokens below the tip, what they begin with alike once; returns the node of each text."""
    nodes: dict[Text, Node] = {(): run.tip}
    for draft in drafts:
        for at in range(1, len(draft.tokens) + 1):
            text = draft.tokens[:at]
            if text not in nodes:
                [nodes[text]] = run.tree.extend([nodes[text[:-1]]], [text[-1]], ORIGIN)
    return nodes


def _offer(run: TreeRun, draft: Draft, before: Sequence[Node]) -> list[Node]:
    """Offers the best draft so far in place of the one before; returns its nodes."""
    if before:
        run.tree.free(before[0])
    nodes = plant(run, [draft])
    run.offer(nodes[draft.tokens])
    return [nodes[draft.tokens[:at]] for at in range(1, len(draft.tokens) + 1)]


def _restart(run: TreeRun, draft: Draft) -> Stream:
    """Returns a stream that begins behind a draft's real tokens; they are computed when it goes on."""
    above = Draft(draft.tokens[:-1])
    return Stream(plant(run, [above])[above.tokens], [draft])


def _mean_logprob(tokens: Text, rows: dict[Text, Tensor]) -> float:
    return sum(float(rows[tokens[:at]][token]) for at, token in enumerate(tokens)) / len(tokens)
