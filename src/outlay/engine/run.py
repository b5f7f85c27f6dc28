"""One request in the engine: its tree, its sampler, its ledger, and the text that it has committed so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from outlay.budget import Budget, Ledger
from outlay.engine.method import Forward, Method, Source
from outlay.engine.random import RandomStreams
from outlay.engine.sampling import Sampling, distribution, draw, most_probable, penalize
from outlay.engine.text import TextStream
from outlay.engine.trace import Trace
from outlay.tree.token_tree import Node, Tree

if TYPE_CHECKING:
    from outlay.engine.worker import ModelWorker
    from outlay.models.load import Model

Kept = TypeVar("Kept")
RESERVE = 512  # tokens of text for which a run asks the cache for room at once; more comes when it is needed


@dataclass(frozen=True)
class RunOptions:
    """What a request asks for beside its prompt and its method."""

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token under the model's raw logits, and the most probable tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Alternative:
    """A text that a method proposes beside others, with its score, higher for better."""

    text: str
    tokens: list[int]
    score: float


class Seat:
    """A run's place at one model: its tree there, and the way to ask that model for work."""

    def __init__(self, run: Run, worker: ModelWorker, tree: Tree) -> None:
        self.run, self.worker, self.tree = run, worker, tree
        self.trees = [tree]
        worker.seated += 1

    def forward(self, nodes: Sequence[Node]) -> Forward:
        """Asks for the logits of `nodes`, float32 [len(nodes), vocab], in one pass if they fit."""
        return Forward(self.run, self, tuple(nodes))

    def top(self, nodes: Sequence[Node], k: int, *, lse: bool = False) -> Forward:
        """Asks for the k largest logits of `nodes`, as a `Top`, with their log-sum-exp if `lse`: cheaper than all."""
        return Forward(self.run, self, tuple(nodes), k, lse)

    def logprobs_of(self, nodes: Sequence[Node], tokens: Sequence[Sequence[int]]) -> Forward:
        """Asks for the log-probabilities of some `tokens` after each of `nodes`, and the best token there: a list of
        `NamedLogprobs`. Cheaper than all logits, which are never held together.
        """
        return Forward(self.run, self, tuple(nodes), named=tuple(tokens))

    def hidden_states(self, nodes: Sequence[Node]) -> list[Tensor]:
        """Returns what the model's head read for computed nodes, float32 [hidden_size] each, in the cache's own memory;
        zeros for those that were computed before anybody asked to `Cache.keep_hidden_states`.
        """
        store = self.worker.cache.hidden_states
        assert store is not None, "hidden states are kept where a draft starts from them"
        return [store[node.slot] for node in nodes]

    def fork(self, tree: Tree, node: Node | None = None) -> Tree:
        """Returns a tree that shares the path to `node` of `tree` (its tip by default); the run gives it back at its
        end.
        """
        twin = tree.fork(node)
        self.trees.append(twin)
        return twin

    def release(self) -> None:
        """Gives back everything this run holds in the model's cache, once."""
        trees, self.trees = self.trees, []
        if trees:
            self.worker.seated -= 1
        for tree in trees:
            tree.release()


class Sampler:
    """Chooses tokens from logits by the run's sampling options and its random streams."""

    def __init__(self, run: Run) -> None:
        self._run, self._options = run, run.options.sampling

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self._options.temperature == 0

    @property
    def raw(self) -> bool:
        """Whether the logits are used as they are, before temperature: without bias and penalties."""
        options = self._options
        return not options.logit_bias and options.repetition_penalty == 1 and options.presence_penalty == 0

    def penalized(self, logits: Tensor, node: Node | None = None, then: Sequence[int] = ()) -> Tensor:
        """Returns logits [vocab] after `node` (the run's tip by default) and the tokens `then` behind it, with bias and
        penalties, before temperature and truncation.
        """
        text: list[int] = []
        if self._options.repetition_penalty != 1 or self._options.presence_penalty:
            text = [*self._run.text_tokens(node or self._run.tip), *then]
        return penalize(logits, self._options, self._run.prompt, text)

    def probs(self, logits: Tensor, node: Node | None = None, then: Sequence[int] = ()) -> Tensor:
        """Returns the distribution, float32 [vocab], of the token after `node` and `then`."""
        return distribution(self.penalized(logits, node, then), self._options)

    def pick(self, logits: Tensor, node: Node | None = None, stream: int = 0) -> int:
        """Returns the token after `node`, given its logits [vocab]. Draws depend on the seed, the position and
        `stream`.
        """
        if self.greedy:
            return most_probable(self.penalized(logits, node))
        generator = self._run.random.at((node or self._run.tip).position, stream)
        return draw(self.probs(logits, node), generator)


class Run:
    """What a method sees of its request.

    `tree` is the token tree at the target model, `tip` its last decided node, `prompt` the prompt's token ids,
    `tokens` the committed ones. A method calls `commit` or `accept` with what it decides and goes on; the engine ends
    it. `model` is the target; `draft_model`, the draft model that the request gives, at which `draft` is its place;
    `source`, what it gives as a draft that is no model.
    """

    def __init__(
        self,
        method: Method,
        prompt: Sequence[int],
        options: RunOptions,
        text: TextStream,
        eos_token_ids: frozenset[int],
        context: int,
        deliver: Callable[[str, str], None],
    ) -> None:
        self.method, self.prompt, self.options = method, tuple(prompt), options
        self.ledger = Ledger()
        self.tokens: list[int] = []
        self.origins: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.random = RandomStreams(options.seed)
        self.sampler = Sampler(self)
        self.alternatives: list[Alternative] = []
        self.finish_reason: str | None = None
        self.trace: Trace | None = None
        self.target: Seat
        self.draft: Seat | None = None
        self.source: Source | None = None
        self.draft_model: Model | None = None
        self.model: Model
        self._text, self._eos, self._deliver = text, eos_token_ids, deliver
        self._offer: Node | None = None
        self._prompt_end: Node
        self._rows: dict[Node, Tensor] = {}
        room = context - len(prompt)
        # How many tokens this run can commit at most: its own limit, its budget's or the context's, the least of them.
        self.max_tokens = int(min(options.max_tokens, room, options.budget.caps.get("tokens_out", room)))
        self._ended = False
        self._started = time.perf_counter()

    @property
    def tree(self) -> Tree:
        """The token tree at the target model."""
        return self.target.tree

    @property
    def tip(self) -> Node:
        """The last decided node."""
        tip = self.tree.tip
        assert tip is not None, "a run's tree holds its prompt"
        return tip

    @property
    def text(self) -> str:
        """The text committed so far, without what a stop string may still cut."""
        return self._text.text

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end the text; empty where the request ignores them."""
        return self._eos

    def next_token(self, node: Node, stream: int = 0) -> Generator[Forward, Any, int]:
        """Asks the target for what choosing the token after `node` takes: `token = yield from run.next_token(node)`."""
        if self.sampler.greedy and self.sampler.raw:
            top = yield self.target.top([node], 1)
            return int(top.tokens)
        logits = yield self.target.forward([node])
        return self.sampler.pick(logits[0], node, stream)

    def left(self, entry: str) -> float:
        """Returns what the budget leaves of a ledger entry; infinity where it has no cap."""
        return self.options.budget.left(self.ledger, entry)

    def text_tokens(self, node: Node) -> list[int]:
        """Returns the tokens from the end of the prompt to `node`."""
        return [below.token for below in node.path(self._prompt_end)]

    def commit(self, token: int) -> Node:
        """Commits the next token and returns its node, the new tip. Frees the tentative nodes."""
        self.tree.prune(())
        self._offer = None
        if self.finish_reason is None:
            above = self.tip
            self._emit(token, above)
            self.tree.append([token])
        return self.tip

    def accept(self, node: Node) -> Node:
        """Commits the path from the tip to a tentative `node`, up to the first stop condition; returns the new tip.

        `node` may belong to another tree of this run, forked below the tip.
        """
        last, self._offer = self.tip, None
        for below in node.path(last):
            if self.finish_reason is not None:
                break
            self._emit(below.token, last, below.origin)
            last = below
        if last.tree is self.tree:
            self.tree.keep(last)
        return last

    def offer(self, node: Node) -> None:
        """Says which node is the best end so far: what the run commits if it has to end before the method decides."""
        self._offer = node

    def propose(self, texts: Sequence[tuple[Sequence[int], float]]) -> None:
        """Says which texts, given as tokens with their scores, could be the answer, the best first: the result's
        `alternatives`.
        """
        for tokens, score in texts:
            text = self.model.tokenizer.decode([token for token in tokens if token not in self._eos])
            self.alternatives.append(Alternative(text, list(tokens), score))

    def kept(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """Returns what methods keep with the target from one run to the next under `key`: what `make` makes, until
        `Engine.clear` forgets it.
        """
        store = self.target.worker.kept
        if key not in store:
            store[key] = make()
        kept: Kept = store[key]
        return kept

    def mark(self, node: Node, **marks: float | str) -> None:
        """Writes what a method thinks of a node of its tree, such as `score`, `visits` or `round`, into the trace."""
        if self.trace is not None:
            self.trace.marked(node, marks)

    def count(self, **amounts: float) -> None:
        """Adds to the ledger what only the method knows: `drafted`, `accepted`, `rounds`, an extra under any name."""
        for name, amount in amounts.items():
            if name in ("drafted", "accepted", "rounds"):
                setattr(self.ledger, name, getattr(self.ledger, name) + int(amount))
            else:
                self.ledger.extras[name] = self.ledger.extras.get(name, 0) + amount

    def finish(self, reason: str) -> None:
        """Ends the run, once: what was offered is committed and held text delivered. A reason that stands already
        stays.
        """
        if self._ended:
            return
        self._ended = True
        if self.finish_reason is None:
            if self._offer is not None:
                self.accept(self._offer)
            self.finish_reason = reason
        self._send(self._text.flush())
        self._rows.clear()
        if self.trace is not None:
            self.trace.finished(self.finish_reason, self.tokens)
        self.clock()

    def clock(self) -> None:
        """Brings the ledger's seconds up to date."""
        self.ledger.seconds = time.perf_counter() - self._started

    def begin(self, target: Seat, draft: Seat | None, prompt_end: Node) -> None:
        """Takes the seats that the engine made; called once, before the method starts."""
        self.target, self.draft, self._prompt_end = target, draft, prompt_end

    def remember(self, node: Node, logits: Tensor) -> None:
        """Keeps a node's raw logits until its successor is committed; only where log-probabilities are wanted."""
        if self.options.logprobs is not None:
            self._rows[node] = logits

    def _emit(self, token: int, above: Node, origin: str = "") -> None:
        self.tokens.append(token)
        self.origins.append(origin)
        self.ledger.tokens_out += 1
        if self.options.logprobs is not None:
            self.logprobs.append(_logprob(self._rows[above], token, self.options.logprobs))
        if token in self._eos:
            self.finish_reason = "stop"
            return
        self._send(self._text.push(token), origin)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self.left("tokens_out") <= 0:
            self.finish_reason = "budget"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def _send(self, piece: str, origin: str = "") -> None:
        if piece:
            self._deliver(piece, origin)


def _logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = logits.float().log_softmax(-1)
    best = torch.topk(logprobs, top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return TokenLogprob(token, float(logprobs[token]), tuple(pairs))
