"""What a method sees of its submission where it decodes on a token tree."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from outlay.constrain import Compiled
from outlay.constrain import State as ConstraintState
from outlay.engine.forward import Forward
from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.sampling import distribution, draw_tokens, most_probable, penalize
from outlay.engine.seat import Seat, Seats
from outlay.engine.session import Session
from outlay.kernels import TokenDraw
from outlay.tree.token_tree import Node, Tree

State = TypeVar("State")
RESERVE = 512  # tokens of text for which a run asks the cache for room at once; more comes when it is needed


class TreeRun(Run):
    """A run on the token tree of the `target` model, with a second seat at the `draft` model where there is one.

    A method grows tentative nodes, asks its seats for passes over them, and calls `commit` or `accept` with what it
    decides. It has no ending to write: the engine stops it when a stop condition holds.
    """

    def __init__(self, session: Session, seats: Seats) -> None:
        super().__init__(session, seats)
        source = session.submission.draft
        draft = source.model if source is not None else None
        reads_states = draft is not None and draft.decoder.reads_hidden_states
        reserve = min(session.max_tokens, RESERVE)
        self.target: Seat = seats.open(
            self.model,
            "target",
            self.prompt,
            reserve=reserve,
            raw_logits=self.options.logprobs is not None,
            hidden_states=reads_states,
        )
        if not session.restarts:
            session.cached_tokens = self.target.cached
        self.draft: Seat | None = None
        if draft is not None:
            self.draft = seats.open(draft, "draft", self.prompt, reserve=reserve, hidden_states=reads_states)
        self._prompt_end: Node = self.tip
        self._offer: Node | None = None
        self._raw_logits: dict[Node, Tensor] = {}
        constraint = session.submission.constraint
        self.allowed: Allowed | None = Allowed(self, constraint) if isinstance(constraint, Compiled) else None
        """What the constraint allows after each node; None where there is no constraint."""
        self.sampler = Sampler(self)
        if session.trace is not None:
            self.tree.watch = session.trace
            session.trace.grew(self.tip.path())

    @property
    def tree(self) -> Tree:
        """The token tree at the target model."""
        return self.target.tree

    @property
    def tip(self) -> Node:
        """The last committed node."""
        tip = self.tree.tip
        assert tip is not None, "a run's tree holds its prompt"
        return tip

    def next_token(self, node: Node, stream: int = 0) -> Generator[Request, Any, int]:
        """Asks the target for what choosing the token after `node` takes: `token = yield from run.next_token(node)`."""
        if self.sampler.raw and self.sampler.greedy:
            top = yield self.target.topk([node], 1)
            return int(top.tokens)
        if self.sampler.raw:
            drawn = yield self.target.draw([node], [self.sampler.token_draw(node, stream)])
            return int(drawn[0])
        logits = yield self.target.forward([node])
        return self.sampler.pick(logits[0], node, stream)

    def text_tokens(self, node: Node) -> list[int]:
        """Returns the tokens from the end of the prompt to `node`."""
        return [below.token for below in node.path(self._prompt_end)]

    def commit(self, token: int) -> Node:
        """Commits the next token and frees all tentative nodes. Returns the token's node, the new tip."""
        self.tree.prune(())
        self._offer = None
        self._refuse(self.tip, token)
        if self.finish_reason is None:
            self._session.commit(token, logits=self._raw_logits.get(self.tip))
            self.tree.append([token])
        self._drop_logits()
        return self.tip

    def accept(self, node: Node) -> Node:
        """Commits the path from the tip to a tentative node, up to the first stop condition; returns the new tip.

        `node` may belong to another tree of this run, forked below the tip.
        """
        last, self._offer = self.tip, None
        for below in node.path(last):
            self._refuse(last, below.token)
            if self.finish_reason is not None:
                break
            self._session.commit(below.token, below.origin, self._raw_logits.get(last))
            last = below
        if last.tree is self.tree:
            self.tree.keep(last)
        self._drop_logits()
        return last

    def offer(self, node: Node) -> None:
        """Says which node is the best end so far: what the run commits if it has to end before the method decides."""
        self._offer = node

    @property
    def has_offer(self) -> bool:
        return self._offer is not None

    def mark(self, node: Node, **marks: float | str) -> None:
        """Writes what a method thinks of a node of its tree, such as `score`, `visits` or `round`, into the trace."""
        if self._session.trace is not None:
            self._session.trace.marked(node, marks)

    def shared_state(self, key: Hashable, make: Callable[[], State]) -> State:
        """Returns what runs of the target model share under `key`, made by `make` until `Engine.clear` forgets it."""
        return self.target.shared_state(key, make)

    def receive(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if isinstance(request, Forward):
                self._raw_logits.update(request.raw_logits)
                request.raw_logits = {}

    def close(self, reason: str, cap: str = "") -> None:
        if self.finish_reason is None and self._offer is not None:
            self.accept(self._offer)
            self._session.cap = cap  # a cap that cuts a search is told, also where its text ends for its own reason
        self._raw_logits.clear()
        super().close(reason, cap)
        if self.allowed is not None:
            self.facts["valid"] = self.allowed.constraint.check(self.text)

    def _refuse(self, node: Node, token: int) -> None:
        """Ends the text before a token that the constraint doesn't allow: nothing valid could be had."""
        if self.allowed is not None and not self.allowed.allows(node, token):
            self._session.end("no_valid_output")

    def _drop_logits(self) -> None:
        """Lets go of logits that no further token is chosen from: those above the tip, and of nodes that are gone."""
        first = self.tip.position
        kept = {node: row for node, row in self._raw_logits.items() if node.position >= first and node.held}
        self._raw_logits = kept
        if self.allowed is not None:
            self.allowed.state(self.tip)  # before those above it are forgotten
            self.allowed.forget(first)


TRIED = 8  # of the most probable tokens, one by one, before a mask is made; a mask costs as much as 50 or more


class Allowed:
    """What a constraint allows after the nodes of a run's tree."""

    def __init__(self, run: TreeRun, compiled: Compiled) -> None:
        self._run, self.constraint = run, compiled.constraint
        self._states: dict[Node, ConstraintState | None] = {run.tip: compiled.state}

    def state(self, node: Node, then: Sequence[int] = ()) -> ConstraintState | None:
        """Returns the state after a node and further tokens; None after an end token or what is not allowed."""
        missing = []
        above = node
        while above not in self._states:
            missing.append(above)
            assert above.parent is not None, "the prompt's end has a state"
            above = above.parent
        state = self._states[above]
        for below in reversed(missing):
            state = self._states[below] = state.after(below.token) if state is not None else None
        for token in then:
            state = state.after(token) if state is not None else None
        return state

    def allows(self, node: Node, token: int) -> bool:
        """Tells whether a token may follow a node."""
        state = self.state(node)
        if state is None:
            return False
        return state.ends() if token in self._run.eos_token_ids else state.after(token) is not None

    def masked(self, logits: Tensor, node: Node, then: Sequence[int]) -> Tensor:
        """Returns logits [vocab] with -inf for what is not allowed; unchanged behind the end of a text."""
        state = self.state(node, then)
        if state is None:
            return logits
        mask = torch.from_numpy(state.mask()).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf)

    def most_probable(self, logits: Tensor, node: Node) -> int | None:
        """Returns the most probable token that may follow; None where a mask has to be made."""
        logits = logits.clone()
        for _ in range(TRIED):
            token = most_probable(logits)
            if self.allows(node, token):
                return token
            logits[token] = -torch.inf
        return None

    def forget(self, position: int) -> None:
        """Forgets nodes above a position of the text, and those that are gone."""
        self._states = {node: s for node, s in self._states.items() if node.position >= position and node.held}


Edit = Callable[[Tensor, Node, Sequence[int]], Tensor]
"""(logits [vocab], the node and the tokens after it that they stand behind) -> logits [vocab], its input unchanged."""


class Sampler:
    """Chooses tokens from logits by the run's sampling options and its random streams.

    The order is fixed: raw logits, bias and penalties, the `edits` of steering, the constraint's mask,
    temperature, truncation. It holds wherever a distribution is made, of the target's logits or a draft's.
    """

    def __init__(self, run: TreeRun) -> None:
        self._run, self._options = run, run.options.sampling
        self.edits: list[Edit] = []

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self._options.temperature == 0

    @property
    def raw(self) -> bool:
        """Whether the logits are used as they are, before temperature: without bias, penalties and edits."""
        edited = self.edits or self._run.allowed is not None
        return not edited and not self._options.logit_bias and not self._options.counts_text

    def penalized(self, logits: Tensor, node: Node | None = None, then: Sequence[int] = ()) -> Tensor:
        """Applies bias, penalties and edits to logits, before temperature and truncation.

        Args:
            logits: Raw logits [vocab].
            node: The node after which they stand, the run's tip by default.
            then: Tokens between `node` and the logits.
        """
        text: list[int] = []
        if self._options.counts_text:
            text = [*self._run.text_tokens(node or self._run.tip), *then]
        logits = self._edited(logits, text, node or self._run.tip, then)
        if self._run.allowed is not None:
            logits = self._run.allowed.masked(logits, node or self._run.tip, then)
        return logits

    def probs(self, logits: Tensor, node: Node | None = None, then: Sequence[int] = ()) -> Tensor:
        """Returns the distribution, float32 [vocab], of the token after `node` and `then`.

        Where the logits are used as they are (`raw`), those of several nodes, [nodes, vocab], give one for each.
        """
        penalized = self.penalized(logits, node, then)
        if self._run.allowed is not None and not bool((penalized > -torch.inf).any()):
            penalized = torch.zeros_like(penalized)  # nothing is allowed: a draft is cut there, and a text ends
        return distribution(penalized, self._options)

    def _edited(self, logits: Tensor, text: Sequence[int], node: Node, then: Sequence[int]) -> Tensor:
        """Applies bias, penalties and edits to logits [vocab], where `text` was written."""
        logits = penalize(logits, self._options, self._run.prompt, text)
        for edit in self.edits:
            logits = edit(logits, node, then)
        return logits

    def token_draw(self, node: Node | None = None, stream: int = 0) -> TokenDraw:
        """Returns how the token after `node` is drawn, above temperature 0: see `pick`."""
        number = self._run.random.uniform((node or self._run.tip).position, stream)
        return TokenDraw(self._options.truncation, number)

    def pick(self, logits: Tensor, node: Node | None = None, stream: int = 0) -> int:
        """Returns the token after `node`, given its logits [vocab].

        Draws depend on the seed, the position of `node`, and `stream`.
        """
        allowed, node = self._run.allowed, node or self._run.tip
        if self.greedy and allowed is not None:
            text = self._run.text_tokens(node) if self._options.counts_text else []
            token = allowed.most_probable(self._edited(logits, text, node, ()), node)
            if token is not None:
                return token
        penalized = self.penalized(logits, node)
        if self.greedy:
            return most_probable(penalized)
        if allowed is not None and not bool((penalized > -torch.inf).any()):
            return 0  # nothing is allowed, so this isn't either, and the text ends
        return draw_tokens(penalized[None], [self.token_draw(node, stream)])[0]
