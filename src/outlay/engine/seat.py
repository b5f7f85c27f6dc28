"""A run's place at one model: its tokens in that model's KV cache, and the way to ask the model for work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from outlay.budget import Account
from outlay.engine.forward import Forward
from outlay.engine.registry import Workers
from outlay.engine.request import PassReport
from outlay.engine.worker import ModelWorker, Role
from outlay.errors import UsageError
from outlay.kernels import TokenDraw
from outlay.models.load import Model
from outlay.tree.token_tree import Node, Tree

State = TypeVar("State")


class Seat:
    """The token `tree` of a run at one model.

    `cached` counts the tokens of its beginning that were in the cache already. `raw_logits` says whether the logits of
    each pass are kept for the run's log-probabilities. `owed` are nodes that were computed before hidden states were
    kept: the first pass computes them anew.
    """

    def __init__(
        self,
        account: Account,
        worker: ModelWorker,
        tree: Tree,
        cached: int = 0,
        *,
        raw_logits: bool = False,
        owed: Sequence[Node] = (),
    ) -> None:
        self.tree, self.cached = tree, cached
        self._owed = owed
        self._account, self._worker, self._raw_logits = account, worker, raw_logits
        self._trees = [tree]
        worker.seated += 1

    @property
    def model(self) -> Model:
        """The model at this seat."""
        return self._worker.model

    @property
    def worker(self) -> ModelWorker:
        """Who runs the model."""
        return self._worker

    @property
    def runs(self) -> int:
        """How many runs have a seat at this model at present."""
        return self._worker.seated

    @property
    def last_pass(self) -> PassReport:
        """What the model's last forward pass was."""
        return self._worker.last

    def forward(self, nodes: Sequence[Node]) -> Forward:
        """Asks for the logits of `nodes`, float32 [len(nodes), vocab], in one pass if they fit."""
        return self._ask(nodes)

    def topk(self, nodes: Sequence[Node], k: int, *, lse: bool = False) -> Forward:
        """Asks for the k largest logits of `nodes`, as a `Top`, with their log-sum-exp if `lse`: cheaper than all."""
        return self._ask(nodes, topk=k, lse=lse)

    def logprobs_of(self, nodes: Sequence[Node], tokens: Sequence[Sequence[int]]) -> Forward:
        """Asks for the log-probabilities of some `tokens` after each of `nodes`, and the most probable token there.

        The result is a list of `NamedLogprobs`. This is cheaper than all logits, which are never held together.
        """
        return self._ask(nodes, named=tuple(tokens))

    def forward_with_states(self, nodes: Sequence[Node]) -> Forward:
        """Asks for the logits of `nodes` and for their hidden states after every layer.

        The result is a pair: logits float32 [len(nodes), vocab], and float32 [len(nodes), layers + 1, hidden_size]: the
        first layer's input, then each layer's output, the last one before the final norm.
        """
        return self._ask(nodes, layer_states=True)

    @property
    def owes_states(self) -> bool:
        """Whether hidden states are still missing for nodes that were computed before anybody asked for them."""
        self._owed = [node for node in self._owed if not node.has_state]
        return bool(self._owed)

    def draw(self, nodes: Sequence[Node], draws: Sequence[TokenDraw]) -> Forward:
        """Asks for a token drawn after each of `nodes`, as a list: far cheaper than drawing from all logits."""
        return self._ask(nodes, draws=tuple(draws))

    def hidden_states(self, nodes: Sequence[Node]) -> list[Tensor]:
        """Returns what the LM head read for computed nodes, float32 [hidden_size] each, in the cache's own memory.

        They are there for the nodes of a run that reads them, as soon as it no longer `owes_states`.
        """
        store = self._worker.cache.hidden_states
        assert store is not None, "hidden states are kept where a draft head starts from them"
        if not all(node.has_state for node in nodes):
            raise ValueError("hidden states are there after the pass that computes their nodes, not before")
        return [store[node.slot] for node in nodes]

    def fork(self, tree: Tree, node: Node | None = None) -> Tree:
        """Returns a tree of this run that shares the path to `node` of `tree` (its tip by default)."""
        twin = tree.fork(node)
        self._trees.append(twin)
        return twin

    def shared_state(self, key: Hashable, make: Callable[[], State]) -> State:
        """Returns what runs of this model share under `key`: what `make` makes, until `Engine.clear` forgets it."""
        store = self._worker.shared_state
        if key not in store:
            store[key] = make()
        state: State = store[key]
        return state

    def release(self, *, remember: bool) -> None:
        """Frees everything that this run holds in the model's cache, once.

        Args:
            remember: Whether the path to the tree's tip, as far as it is computed, is kept for requests to come.
        """
        trees, self._trees = self._trees, []
        if not trees:
            return
        tip = self.tree.tip
        while tip is not None and not tip.computed:
            tip = tip.parent
        if remember and tip is not None:
            self._worker.remember(tip)
        self._worker.seated -= 1
        for tree in trees:
            tree.release()

    def _ask(self, nodes: Sequence[Node], **wanted: Any) -> Forward:
        owed = tuple(self._owed) if self.owes_states else ()
        keep = self._raw_logits
        return Forward(self._account, self._worker, tuple(nodes), self._trees, owed, keep_raw_logits=keep, **wanted)


class Seats:
    """The seats of one run, at models that the engine's `workers` run, and its way to the other workers."""

    def __init__(self, account: Account, workers: Workers) -> None:
        self.account, self.workers = account, workers
        self._seats: list[Seat] = []

    def open(
        self,
        model: Model,
        role: Role,
        tokens: Sequence[int],
        *,
        reserve: int = 0,
        raw_logits: bool = False,
        hidden_states: bool = False,
    ) -> Seat:
        """Opens a seat.

        Args:
            model: The model.
            role: What it is to the run.
            tokens: What the seat's tree holds to begin with; what is already in the cache is shared.
            reserve: Tokens of text for which the cache makes room at once; more comes when it is needed.
            raw_logits: Whether the logits of each pass are kept for the run's log-probabilities.
            hidden_states: Whether the model's cache keeps hidden states from now on.

        Raises:
            UsageError: Where the model can't read that many tokens.
            FailureError: Where they don't fit into its cache.
        """
        if not 1 <= len(tokens) <= model.decoder.config.max_positions:
            limit = model.decoder.config.max_positions
            raise UsageError(f"{model.name} reads 1 to {limit} tokens of a text, not {len(tokens)}")
        worker = self.workers.model(model, role)
        if hidden_states:
            worker.keep_hidden_states()
        tree, cached = worker.plant(tokens, reserve)
        owed: list[Node] = []
        if worker.cache.hidden_states is not None and tree.tip is not None:
            owed = [node for node in tree.tip.path() if node.computed and not node.has_state]
        seat = Seat(self.account, worker, tree, cached, raw_logits=raw_logits, owed=owed)
        self._seats.append(seat)
        return seat

    @property
    def models(self) -> set[ModelWorker]:
        """The models at which the run has seats."""
        return {seat.worker for seat in self._seats}

    def release(self, *, remember: bool) -> None:
        """Frees everything that the run holds, once. `remember`: whether its texts are kept for requests to come."""
        seats, self._seats = self._seats, []
        for seat in seats:
            seat.release(remember=remember)
