"""What a method sees of its submission where it decodes on a token tree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from outlay.constrain import Compiled
from outlay.constrain import State as ConstraintState
from outlay.constrain.constraint import Mask
from outlay.engine.forward import Forward
from outlay.engine.random import RandomStreams
from outlay.engine.request import Request
from outlay.engine.rules import apply_rules
from outlay.engine.run import Run
from outlay.engine.sampling import distribution, draw_tokens, most_probable, penalize
from outlay.engine.seat import Seat, Seats
from outlay.engine.session import Session
from outlay.engine.views import ViewedForward
from outlay.kernels import TokenDraw, Truncation
from outlay.models.generation import GenerationRules
from outlay.models.images import ImagePrompt
from outlay.models.speech import Clip
from outlay.tree.token_tree import Node, Tree

State = TypeVar("State")
RESERVE = 512  # tokens of text for which a run asks the cache for room at once; more comes when it is needed


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a text goes on from."""

    prompt: Sequence[int]
    """The prompt's token ids."""
    end: Node
    """The node of its last token."""
    random: RandomStreams
    """Where the draws of the text come from."""


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
            self.prompt + self.tokens if isinstance(self.prompt, ImagePrompt) else [*self.prompt, *self.tokens],
            reserve=reserve,
            raw_logits=self.options.logprobs is not None or self.options.receipt,
            hidden_states=reads_states,
            held=session.submission.prefix,
            input=self.input,
            policy=session.submission.cache,
            prompt=len(self.prompt),
            max_tokens=session.max_tokens,
        )
        session.kv_dtype = str(self.target.worker.cache.dtype).removeprefix("torch.")
        if not session.restarts and not self.tokens:
            session.cached_tokens = self.target.cached
        self.draft: Seat | None = None
        if draft is not None:
            drafted = (
                self.prompt if draft.vision is not None and draft.vision is self.model.vision else self.text_prompt
            )
            self.draft = seats.open(
                draft, "draft", drafted, reserve=reserve, hidden_states=reads_states, input=self.input
            )
        self.prompt_end = self._written(len(self.tokens))
        self.beginning = Beginning(self.prompt, self.prompt_end, self.random)
        self._offer: Node | None = None
        self._closing = False
        self._raw_logits: dict[Node, Tensor] = {}
        constraint = session.submission.constraint
        self.allowed: Allowed | None = None
        """What the constraint allows after each node; None where there is no constraint."""
        if isinstance(constraint, Compiled):
            self.allowed = Allowed(self, constraint, session.closed)
            session.holds = not constraint.constraint.masks_all
        self.sampler = Sampler(self, self.beginning)
        if session.trace is not None:
            self.tree.watch = session.trace
            if self.target.memory is not None and self.target.worker.memories is not None:
                rows, slot = len(self.target.memory), self.target.worker.memories.cache.bytes_per_slot
                session.trace.memory(rows, "sound" if isinstance(self.input, Clip) else "tokens", rows * slot)
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
        return [below.token for below in node.path(self.prompt_end)]

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

    def accept(self, node: Node, *, checked: bool = False, behind: Sequence[Node] = ()) -> Node:
        """Commits the path from the tip to a tentative node, up to the first stop condition; returns the new tip.

        Args:
            node: The node; it may belong to another tree of this run, forked below the tip.
            checked: Whether the whole text passed the constraint's check, which may allow more than its masks do.
            behind: Tentative nodes of the run's tree below the node, the paths to which stay tentative.
        """
        last, self._offer = self.tip, None
        for below in node.path(last):
            if not checked:
                self._refuse(last, below.token)
            if self.finish_reason is not None:
                break
            self._session.commit(below.token, below.origin, self._raw_logits.get(last))
            last = below
        if last.tree is self.tree:
            self.tree.keep(last, behind if last is node else ())
        self._drop_logits()
        return last

    def give_up(self, node: Node | None = None) -> None:
        """Ends the run where nothing that satisfies the constraint could be had.

        Args:
            node: Where nothing is allowed any more: the run goes back from there to where there is a choice.
        """
        if node is not None:
            tip = self.accept(node)
            if self.finish_reason is None and not self._closing and self._go_back(tip):
                return
        self._session.end("no_valid_output")

    def begin(self, tree: Tree, prompt: Sequence[int], seed: int) -> tuple[Tree, Sampler]:
        """Begins a text of its own, which is that of a run of this prompt and seed.

        Args:
            tree: Holds the prompt: the run's own, or one of `Seat.plant`.
            prompt: Its token ids.
            seed: Of the text's draws.

        Returns:
            A fork of the tree to grow, and what chooses its tokens.
        """
        twin = self.target.fork(tree)
        assert twin.tip is not None, "a tree holds its prompt"
        return twin, Sampler(self, Beginning(prompt, twin.tip, RandomStreams(seed)))

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
            if isinstance(request, Forward | ViewedForward):
                self._raw_logits.update(request.raw_logits)
                request.raw_logits = {}

    def close(self, reason: str, cap: str = "") -> None:
        self._closing = True
        if self.finish_reason is None and self._offer is not None:
            self.accept(self._offer)
            self._session.cap = cap  # a cap that cuts a search is told, also where its text ends for its own reason
        self._raw_logits.clear()
        if (found := self.target.cache_facts()) is not None:
            self.facts["cache"] = found
        super().close(reason, cap)
        if self.allowed is not None:
            self.facts["valid"] = self.allowed.constraint.check(self.text)

    def _refuse(self, node: Node, token: int) -> None:
        """Ends the text before a token that the constraint doesn't allow, or goes back to where there is a choice."""
        if self.allowed is None or self.finish_reason is not None:
            return
        dead = not self.allowed.allows(node, token)
        if not dead and token in self.eos_token_ids and not self.allowed.constraint.masks_all:
            text = self.model.tokenizer.decode(self.text_tokens(node))
            dead = not self.allowed.constraint.check(text)
            if dead:
                self._close_tokens(node, self.eos_token_ids)
        elif dead and self.allowed.goes_on(node):  # the method took what it had to leave
            self._session.end("no_valid_output")
            return
        if dead and (self._closing or not self._go_back(node)):
            self._session.end("no_valid_output")

    def _go_back(self, node: Node) -> bool:
        """Closes what led to a node where nothing is allowed, up to the deepest node that has a choice.

        The run then begins anew behind that node. Returns whether there is one.
        """
        assert self.allowed is not None, "only a constraint leads to a dead end"
        if self.ledger.extras.get("backtracks", 0) >= BACKTRACKS:
            return False
        # The more dead ends, the sooner their subtree is left, up to a fourth of the text at a time.
        further = min(self.ledger.extras.get("backtracks", 0) // PATIENCE, len(self.text_tokens(node)) // 4)
        while further > 0 or not self.allowed.goes_on(node):
            if node is self.prompt_end or node.parent is None:
                return False
            further -= self.allowed.goes_on(node)
            self._close_tokens(node.parent, {node.token})
            node = node.parent
        self.count(backtracks=1)
        self._session.go_back(self.text_tokens(node))
        return True

    def _close_tokens(self, node: Node, tokens: Collection[int]) -> None:
        self._session.closed.setdefault(tuple(self.text_tokens(node)), set()).update(tokens)

    def _written(self, count: int) -> Node:
        """Returns the node before the last `count` tokens."""
        node = self.tip
        for _ in range(count):
            assert node.parent is not None, "the prompt is not empty"
            node = node.parent
        return node

    def _drop_logits(self) -> None:
        """Lets go of logits that no further token is chosen from: those above the tip, and of nodes that are gone."""
        first = self.tip.position
        kept = {node: row for node, row in self._raw_logits.items() if node.position >= first and node.held}
        self._raw_logits = kept
        if self.allowed is not None and self.finish_reason is None:
            self.allowed.state(self.tip)  # before those above it are forgotten
            self.allowed.forget(first)


TRIED = 8  # of the most probable tokens, one by one, before a mask is made; a mask costs as much as 50 or more
PATIENCE = 8  # backtracks after which each closes one choice more
BACKTRACKS = 100  # of a run, at most: each costs a pass, and a check that nothing passes would cost all of them


class Allowed:
    """What a constraint allows after the nodes of a run's tree.

    Args:
        run: The run.
        compiled: The constraint.
        closed: Tokens that turned out to lead nowhere, by the text before them.
    """

    def __init__(self, run: TreeRun, compiled: Compiled, closed: Mapping[tuple[int, ...], set[int]]) -> None:
        self._run, self.constraint, self._closed = run, compiled.constraint, closed
        self.impossible = compiled.unwritable
        self._states: dict[Node, ConstraintState | None] = {run.prompt_end: compiled.state}

    def state(self, node: Node, then: Sequence[int] = ()) -> ConstraintState | None:
        """Returns the state after a node and further tokens; None after an end token or what is not allowed."""
        missing = []
        above = node
        while above not in self._states:
            missing.append(above)
            assert above.parent is not None, "the prompt's end has a state"
            above = above.parent
        state, text = self._states[above], self._text(above)
        for below in reversed(missing):
            state = self._states[below] = self.after(state, text, below.token)
            text = (*text, below.token)
        for token in then:
            state, text = self.after(state, text, token), (*text, token)
        return state

    def after(self, state: ConstraintState | None, text: tuple[int, ...], token: int) -> ConstraintState | None:
        """Returns the state after one more token, where `text` stands before it; None where that is not allowed."""
        return None if state is None or token in self._closed.get(text, ()) else state.after(token)

    def may_end(self, state: ConstraintState, text: tuple[int, ...]) -> bool:
        """Tells whether a text may end."""
        return not self._closed.get(text, set()) & self._run.eos_token_ids and state.ends()

    def forced(self, state: ConstraintState, text: tuple[int, ...]) -> list[int]:
        """Returns tokens that write what must follow, as far as none of them was closed."""
        tokens = state.forced()
        closed = (
            place for place, token in enumerate(tokens) if token in self._closed.get((*text, *tokens[:place]), ())
        )
        return tokens[: next(closed, len(tokens))]

    def allows(self, node: Node, token: int) -> bool:
        """Tells whether a token may follow a node."""
        state = self.state(node)
        if state is None:
            return False
        if token in self._run.eos_token_ids:
            return self.may_end(state, self._text(node))
        return self.after(state, self._text(node), token) is not None

    def goes_on(self, node: Node) -> bool:
        """Tells whether any token, an end token included, may follow a node."""
        state, text = self.state(node), self._text(node)
        if state is None:
            return False
        if text in self._closed:
            return bool(self._mask(state, text).any())
        return state.ends() or state.goes_on()

    def masked(self, logits: Tensor, node: Node, then: Sequence[int]) -> Tensor:
        """Returns logits [vocab] with -inf for what is not allowed; unchanged behind the end of a text."""
        state = self.state(node, then)
        if state is None:
            return logits
        mask = torch.from_numpy(self._mask(state, (*self._text(node), *then))).to(logits.device)
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
        """Forgets nodes above a position of the text but the prompt's end, and those that are gone."""
        first = self._run.prompt_end
        self._states = {
            node: state
            for node, state in self._states.items()
            if node is first or (node.position >= position and node.held)
        }

    def _mask(self, state: ConstraintState, text: tuple[int, ...]) -> Mask:
        mask = state.mask()
        if text in self._closed:
            mask = mask.copy()
            mask[list(self._closed[text])] = False
        return mask

    def _text(self, node: Node) -> tuple[int, ...]:
        """Returns the text up to a node, by which closed tokens are known; empty where there are none."""
        return tuple(self._run.text_tokens(node)) if self._closed else ()


Edit = Callable[[Tensor, Node, Sequence[int]], Tensor]
"""(logits [vocab], the node and the tokens after it that they stand behind) -> logits [vocab], its input unchanged."""


class Sampler:
    """Chooses tokens from logits by the run's sampling options and its random streams.

    The order is fixed: raw logits, bias and penalties, the `edits` of steering, the constraint's mask,
    temperature, truncation. It holds wherever a distribution is made, of the target's logits or a draft's.
    """

    def __init__(self, run: TreeRun, beginning: Beginning) -> None:
        self._run, self._beginning, self._options = run, beginning, run.options.sampling
        self.edits: list[Edit] = []
        rules = run.submission.keeps
        if rules is not None and rules.edit_logits:
            self.edits.append(self._by_rules(rules))

    def _by_rules(self, rules: GenerationRules) -> Edit:
        """Returns an edit that keeps the rules of the model's checkpoint."""

        def edit(logits: Tensor, node: Node, then: Sequence[int]) -> Tensor:
            text = [*self._text_tokens(node), *then]
            eos, most = self._run.eos_token_ids, self._run.max_tokens
            return apply_rules(rules, logits, self._beginning.prompt, text, eos=eos, max_tokens=most)

        return edit

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
            text = [*self._text_tokens(node or self._run.tip), *then]
        logits = self._edited(logits, text, node or self._run.tip, then)
        if self._run.allowed is not None:
            logits = self._run.allowed.masked(logits, node or self._run.tip, then)
        return logits

    def probs(self, logits: Tensor, node: Node | None = None, then: Sequence[int] = ()) -> Tensor:
        """Returns the distribution, float32 [vocab], of the token after `node` and `then`.

        Where the logits are used as they are (`raw`), those of several nodes, [nodes, vocab], give one for each.
        """
        penalized = self.penalized(logits, node, then)
        if self._run.allowed is not None and bool(penalized.amax() == -torch.inf):
            penalized = torch.zeros_like(penalized)  # nothing is allowed: a draft is cut there, and a text ends
        return distribution(penalized, self._options)

    @property
    def plain(self) -> bool:
        """Whether, but for the constraint, tokens are drawn from the softmax of the raw logits."""
        options, nothing = self._options, Truncation(1.0, None, None, None)
        return options.truncation == nothing and not (self.edits or options.logit_bias or options.counts_text)

    def unmasked_logprobs(self, logits: Tensor, node: Node) -> Tensor:
        """Returns log-probabilities, float64 [vocab], of the token after `node`, before the constraint's mask.

        They are for methods that ask the constraint themselves. Tokens that truncation drops have -inf.

        Args:
            logits: Raw logits [vocab].
            node: The node after which they stand.
        """
        text = self._text_tokens(node) if self._options.counts_text else []
        logits = self._edited(logits, text, node, ())
        cut = self._options.truncation
        if cut._replace(temperature=1.0) == Truncation(1.0, None, None, None) and cut.temperature > 0:
            return (logits.double() / cut.temperature).log_softmax(-1)
        return distribution(logits, self._options).double().log()

    def _edited(self, logits: Tensor, text: Sequence[int], node: Node, then: Sequence[int]) -> Tensor:
        """Applies bias, penalties and edits to logits [vocab], where `text` was written."""
        logits = penalize(logits, self._options, self._beginning.prompt, text)
        for edit in self.edits:
            logits = edit(logits, node, then)
        return logits

    def _text_tokens(self, node: Node) -> list[int]:
        return [below.token for below in node.path(self._beginning.end)]

    def token_draw(self, node: Node | None = None, stream: int = 0) -> TokenDraw:
        """Returns how the token after `node` is drawn, above temperature 0: see `pick`."""
        number = self._beginning.random.uniform((node or self._run.tip).position, stream)
        return TokenDraw(self._options.truncation, number)

    def pick(self, logits: Tensor, node: Node | None = None, stream: int = 0) -> int:
        """Returns the token after `node`, given its logits [vocab].

        Draws depend on the seed, the position of `node`, and `stream`.
        """
        allowed, node = self._run.allowed, node or self._run.tip
        if self.greedy and allowed is not None:
            text = self._text_tokens(node) if self._options.counts_text else []
            token = allowed.most_probable(self._edited(logits, text, node, ()), node)
            if token is not None:
                return token
        penalized = self.penalized(logits, node)
        if self.greedy:
            return most_probable(penalized)
        if allowed is not None and bool(penalized.amax() == -torch.inf):
            return 0  # nothing is allowed, so this isn't either, and the text ends
        return draw_tokens(penalized[None], [self.token_draw(node, stream)])[0]
