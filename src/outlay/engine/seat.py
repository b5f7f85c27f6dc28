"""A run's place at one model: its tokens in that model's KV cache, and the way to ask the model for work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from outlay.attend.policy import CachePolicy, Keeper
from outlay.budget import Account
from outlay.engine.denoise import Denoise
from outlay.engine.encode import Encode
from outlay.engine.forward import Forward
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.registry import Workers
from outlay.engine.request import PassReport
from outlay.engine.under_policy import Policed
from outlay.engine.worker import ModelWorker, Role
from outlay.errors import FailureError, UsageError
from outlay.kernels import TokenDraw
from outlay.models.config import MaskedDiffusion
from outlay.models.load import Model
from outlay.models.speech import Clip
from outlay.tree.canvas import Canvas
from outlay.tree.memory import Memory
from outlay.tree.prefix import PrefixCache
from outlay.tree.token_tree import Node, Tree
from outlay.tree.visual import VisualToken

State = TypeVar("State")


class Seat:
    """The token `tree` of a run at one model.

    `cached` counts the tokens of its beginning that were in the cache already. `raw_logits` says whether the logits of
    each pass are stored for the run's log-probabilities. `memory` is what an encoder reads for all trees here, which
    the seat closes. `owed` are nodes that were computed before hidden states were stored: the first pass computes them
    anew.
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
        memory: Memory | None = None,
    ) -> None:
        self.tree, self.cached, self.memory = tree, cached, memory
        self._owed = owed
        self._account, self._worker, self._raw_logits = account, worker, raw_logits
        self._trees = [tree]
        self._canvases: list[Canvas] = []
        self._planted = PrefixCache()  # what this run shares among its trees where requests share nothing
        worker.holdings.open(account, self._trees, self._canvases)

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

    def encode(self) -> Encode:
        """Asks that the input, or the prompt's images, are read ahead of the first pass that needs them."""
        if self.memory is not None:
            return Encode(self._account, self._worker, [self.memory])
        if self._worker.visuals is None:
            raise ValueError(f"{self.model.name} has neither an encoder nor a vision tower")
        path = self.tree.tip.path() if self.tree.tip is not None else ()
        seen = (node.input_embed for node in path if not node.computed)
        visuals = dict.fromkeys(embed.visual for embed in seen if isinstance(embed, VisualToken))
        return Encode(self._account, self._worker, list(visuals))

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

    def forward_with_attention(self, nodes: Sequence[Node]) -> Forward:
        """Asks for the logits of `nodes` and for what each of them reads.

        The result is a pair: logits float32 [len(nodes), vocab], and for each node float32 [layers, keys], the mean
        over heads of its attention weights over the tokens of its path, itself the last. A layer's sum to 1, unless it
        has an attention sink.
        """
        return self._ask(nodes, attention=True)

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
        assert store is not None, "hidden states are stored where a draft head starts from them"
        if not all(node.has_state for node in nodes):
            raise ValueError("hidden states are there after the pass that computes their nodes, not before")
        return [store[node.slot] for node in nodes]

    def canvas(self, tokens: Sequence[int], *, tree: Tree | None = None, block: int = 0) -> Canvas:
        """Returns a canvas behind the trunk of this seat's tree, which the seat frees with itself.

        Args:
            tokens: Token ids; the model's mask where a position is masked.
            tree: Another tree of this run behind which it lies.
            block: The size of a block of block-causal attention; 0 for full attention.

        Raises:
            CacheFull: When the cache has no room for it at present.
        """
        canvas = self._worker.canvas(tree or self.tree, tokens, mask=self._diffusion.mask, block=block)
        self._canvases.append(canvas)
        return canvas

    def copy(self, canvas: Canvas) -> Canvas:
        """Returns a copy of a canvas, which shares the trunk and is freed with the seat."""
        twin = canvas.copy()
        self._canvases.append(twin)
        return twin

    def drop(self, canvas: Canvas) -> None:
        """Frees a canvas before the run ends."""
        self._canvases.remove(canvas)
        canvas.release()

    def denoise(self, canvas: Canvas, rows: Sequence[int], wanted: Sequence[int]) -> Denoise:
        """Asks for logits of what stands at positions of a canvas, float32 [len(wanted), vocab].

        Args:
            canvas: One of this seat's canvases.
            rows: Positions of the text whose keys and values are computed by the pass, ascending.
            wanted: Positions of the text whose logits are wanted.
        """
        diffusion = self._diffusion
        return Denoise(self._account, self._worker, canvas, rows, wanted, diffusion.mask, diffusion.shift)

    @property
    def _diffusion(self) -> MaskedDiffusion:
        diffusion = self.model.decoder.config.diffusion
        assert diffusion is not None, "a canvas is asked of a model that fills masks"
        return diffusion

    def fork(self, tree: Tree, node: Node | None = None) -> Tree:
        """Returns a tree of this run that shares the path to `node` of `tree` (its tip by default)."""
        twin = tree.fork(node)
        self._trees.append(twin)
        return twin

    def plant(self, tokens: Sequence[int]) -> Tree:
        """Returns another tree of this run, which holds `tokens` and shares what the run's trees hold of them.

        Raises:
            FailureError: Where they don't fit into the cache.
            UsageError: Where a cache policy holds the run's prompt, which is then the only one.
        """
        if self.tree.stored is not None:
            raise UsageError(
                "a run under a cache policy holds one prompt; leave cache= out for a method that reads more"
            )
        prefixes = self._worker.prefixes if self.memory is None else self.memory.prefixes
        if prefixes is None and self.tree.tip is not None:
            self._planted.insert(self.tree.tip)
        tree, _ = self._worker.plant(tokens, 0, self._planted, memory=self.memory)
        self._trees.append(tree)
        return tree

    def shared_state(self, key: Hashable, make: Callable[[], State]) -> State:
        """Returns what runs of this model share under `key`: what `make` makes, until `Engine.clear` forgets it."""
        store = self._worker.shared_state
        if key not in store:
            store[key] = make()
        state: State = store[key]
        return state

    def cache_facts(self) -> dict[str, Any] | None:
        """Returns what the cache policy found out; None where there is none, or before the prompt is read."""
        stored = self.tree.stored
        keeper = None if stored is None else stored.keeper
        return keeper.facts() if isinstance(keeper, Keeper) else None

    def release(self, *, remember: bool) -> None:
        """Frees everything that this run holds in the model's cache, once.

        Args:
            remember: Whether the path to the tree's tip, as far as it is computed, is cached for requests to come.
        """
        trees, self._trees = self._trees, []
        if not trees:
            return
        canvases, self._canvases = self._canvases, []
        tip = self.tree.tip if self.tree.private_below is None else self.tree.private_below
        while tip is not None and not tip.computed:
            tip = tip.parent
        if remember and tip is not None and self.tree.stored is None:
            self._worker.remember(tip, self.memory)
        self._worker.holdings.close(self._account, trees, canvases)
        self._planted.clear()
        for canvas in canvases:
            canvas.release()
        for tree in trees:
            tree.release()
        if self.memory is not None:
            self._worker.close_memory(self.memory)

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
        block: int = 1,
        raw_logits: bool = False,
        hidden_states: bool = False,
        held: HeldPrefix | None = None,
        input: Sequence[int] | Clip = (),
        policy: CachePolicy | None = None,
        prompt: int = 0,
        max_tokens: int = 0,
    ) -> Seat:
        """Opens a seat.

        Args:
            model: The model.
            role: What it is to the run.
            tokens: What the seat's tree holds to begin with; what is already in the cache is shared.
            reserve: Tokens of text for which the cache makes room at once; more comes when it is needed.
            block: Tokens that see each other, in whole blocks; 1 is causal.
            raw_logits: Whether the logits of each pass are stored for the run's log-probabilities.
            hidden_states: Whether the model's cache keeps hidden states from now on.
            held: What is held of the tokens' beginning.
            input: What the model's encoder reads, if it has one.
            policy: What holds the first `prompt` of the tokens, if a cache policy does.
            prompt: How many tokens the prompt has.
            max_tokens: How many tokens the run may write, which a policy may know.

        Raises:
            UsageError: Where the model can't read that many tokens, or has an encoder and gets nothing to read.
            FailureError: Where they don't fit into its cache.
        """
        least, limit = 0 if model.writes_canvas else 1, model.decoder.config.max_positions
        if not least <= len(tokens) <= limit:
            raise UsageError(f"{model.name} reads {least} to {limit} tokens of a text, not {len(tokens)}")
        worker = self.workers.model(model, role)
        if hidden_states:
            worker.keep_hidden_states()
        if policy is None:
            seat = self._planted(worker, tokens, reserve, block, raw_logits, held, input)
        else:
            tree = worker.plant_policed(tokens, prompt, reserve, Policed(policy, self.account, max_tokens))
            seat = Seat(self.account, worker, tree, raw_logits=raw_logits)
        self._seats.append(seat)
        return seat

    def _planted(
        self,
        worker: ModelWorker,
        tokens: Sequence[int],
        reserve: int,
        block: int,
        raw_logits: bool,
        held: HeldPrefix | None,
        input: Sequence[int] | Clip,
    ) -> Seat:
        """Returns a seat whose tree shares what the cache holds of its tokens, and reads `input`."""
        memory = worker.open_memory(input) if worker.memories is not None else None
        try:
            tree, cached = worker.plant(tokens, reserve, block=block, held=held, memory=memory)
        except FailureError:
            if memory is not None:
                worker.close_memory(memory)
            raise
        owed: list[Node] = []
        if worker.cache.hidden_states is not None and tree.tip is not None:
            owed = [node for node in tree.tip.path() if node.computed and not node.has_state]
        return Seat(self.account, worker, tree, cached, raw_logits=raw_logits, owed=owed, memory=memory)

    @property
    def models(self) -> set[ModelWorker]:
        """The models at which the run has seats."""
        return {seat.worker for seat in self._seats}

    def release(self, *, remember: bool) -> None:
        """Frees everything that the run holds, once. `remember`: whether its texts are cached for requests to come."""
        seats, self._seats = self._seats, []
        for seat in seats:
            seat.release(remember=remember)
