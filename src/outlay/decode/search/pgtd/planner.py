"""What a PG-TD search knows and asks: its states, the model that finishes programs, and the scorer that rates them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor

from outlay.decode.search.pgtd.states import Ranked, State, priors
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.errors import CacheFull
from outlay.tree.token_tree import Node

COUNTS = {"rollouts": "rollouts", "completions": "programs", "sequence_hits": "programs"}
"""What it counts: completions are programs that the model finished, sequence hits those that were known already."""
Asking = Generator[Request | list[Request], Any, None]
Finding = Generator[Request | list[Request], Any, State]


class Planner:
    """What a search knows: its states, and the way to the model and the scorer.

    Args:
        run: The run.
        width: Children of a state.
        beams: Beams of a completion; 1 is greedy.
        caches: Whether what completions computed is kept.
        kept: Tokens whose keys and values are held at most, before a completion.

    Attributes:
        root: The prompt's end.
        best: The program with the highest reward so far, the first among equals.
        programs: All programs that were rated, in the order in which they were found.
    """

    def __init__(self, run: TreeRun, *, width: int, beams: int, caches: bool, kept: int) -> None:
        self._run, self._width, self._beams, self._caches, self._kept = run, width, beams, caches, kept
        self._scorer = run.submission.scorer.begin(run)
        self._stops = [stop.encode() for stop in run.options.stop]
        self._held: list[State] = []  # states whose keys and values are kept
        self.programs: dict[State, None] = {}
        vocab = run.model.decoder.config.vocab_size
        self._count = min(vocab, max(width, 2 * beams if beams > 1 else 1))
        self.root = State(None, run.tip.token, 0, run.tip)
        self.best: State | None = None

    def rank(self, states: Sequence[State]) -> Asking:
        """Has the most probable tokens after states known, by one pass for those that aren't in the cache."""
        states = [state for state in states if not state.ranked]
        if not states:
            return
        nodes, sampler = list[Node](), self._run.sampler
        for state in states:
            nodes.append(self.grown(state, nodes))
        if self.best is None:
            self._run.offer(nodes[0])
        if sampler.raw:
            lse = self._scorer.reads_logprobs or self._beams > 1
            top = yield self._run.target.topk(nodes, self._count, lse=lse)
            sums = top.lse.tolist() if lse else [0.0] * len(nodes)
            for state, tokens, logits, total in zip(
                states, top.tokens.tolist(), top.logits.tolist(), sums, strict=True
            ):
                state.ranked = [
                    Ranked(token, logit, logit - total if lse else 0.0)
                    for token, logit in zip(tokens, logits, strict=True)
                ]
            return
        rows = yield self._run.target.forward(nodes)
        for state, node, row in zip(states, nodes, rows, strict=True):
            state.ranked = most_probable(sampler.penalized(row, node), row, self._count)

    def expand(self, state: State) -> None:
        """Gives a state its children: the most probable tokens with their probabilities among themselves."""
        chosen = state.ranked[: self._width]
        state.children = [self._child(state, each) for each in chosen]
        for child, prior in zip(state.children, priors([each.logit for each in chosen]), strict=True):
            child.prior = prior
        if not self._caches:
            state.ranked = ()

    def finished(self, state: State) -> Finding:
        """Returns the program that a state is finished to: itself, a known one, or one that the model completes now."""
        if state.ended:
            return state
        if state.program is not None:
            self._run.count(sequence_hits=1)
            return state.program
        self._make_room(state)
        # Without caches the completion computes its tokens anew, below a copy that nothing refers to afterwards.
        begin = state if self._caches else State(state.parent, state.token, state.depth, state.node)
        program = yield from (self._greedy(begin) if self._beams == 1 else self._beam_search(begin))
        self._run.count(completions=1)
        if self._caches and self._beams == 1:
            for below in program.path()[state.depth :]:
                below.program = program
            state.program = program
        return program

    def reward(self, program: State) -> Generator[Request | list[Request], Any, float]:
        """Returns a program's reward; the scorer is asked once."""
        if program.reward is None:
            (program.reward,) = yield from self._scorer.rewards([self.grown(program)])
            self.programs[program] = None
            self._run.mark(self.grown(program), score=program.reward)
            if self.best is None or program.reward > (self.best.reward or 0.0):
                self.best = program
                self._run.offer(self.grown(program))
                self._run.facts["reward"] = program.reward
        return program.reward

    def best_programs(self, count: int) -> list[State]:
        """Returns the programs with the highest rewards, one of each text, those found first among equals."""
        texts: dict[str, State] = {}
        for program in sorted(self.programs, key=lambda each: -(each.reward or 0.0)):
            texts.setdefault(self._run.model.tokenizer.decode([each.token for each in program.path()]), program)
            if len(texts) == count:
                break
        return list(texts.values())

    def mark(self, state: State) -> None:
        """Writes a rollout into the trace, at the state that it added or came to."""
        if state.node is not None:
            self._run.mark(state.node, visits=state.n, q=state.q, round=int(self._run.ledger.extras["rollouts"]))

    def grown(self, state: State, beside: Sequence[Node] = ()) -> Node:
        """Returns the node of a state's last token, grown with those above it that are not in the token tree.

        Args:
            state: The state.
            beside: Nodes that must stay if others are dropped for it.
        """
        missing: list[State] = []
        while state.node is None:
            missing.append(state)
            assert state.parent is not None, "the prompt's end is in the tree"
            state = state.parent
        if not missing:
            return state.node
        missing.reverse()
        tokens = [each.token for each in missing]
        try:
            nodes = self._run.tree.extend([state.node, *range(len(tokens) - 1)], tokens, "planned")
        except CacheFull:
            self._drop([state.node, *beside])
            nodes = self._run.tree.extend([state.node, *range(len(tokens) - 1)], tokens, "planned")
        for each, node in zip(missing, nodes, strict=True):
            each.node = node
            if self._scorer.reads_logprobs:
                self._scorer.wrote(node, each.logprob)
        self._held += missing
        return nodes[-1]

    def _make_room(self, state: State) -> None:
        """Drops keys and values where too many are held: those of completions, then all that aren't needed now."""
        node = self.grown(state)
        if not self._caches or len(self._run.tree.tentative) > self._kept:
            self._drop([node, *(each.node for each in self._held if each.n and each.node is not None)])
        if len(self._run.tree.tentative) > self._kept:
            self._drop([node])

    def _drop(self, kept: list[Node]) -> None:
        """Frees all nodes but those on the paths to some, and to the best program."""
        if self.best is not None:
            kept.append(self.grown(self.best))
        else:
            self._run.offer(kept[0])
        self._run.tree.prune(kept)
        for state in self._held:
            if state.node not in self._run.tree.tentative:
                state.node = None
        self._held = [state for state in self._held if state.node is not None]

    def _greedy(self, state: State) -> Finding:
        """Returns the program that the most probable tokens lead to."""
        while not state.ended:
            yield from self.rank([state])
            state = self._child(state, state.ranked[0])
        return state

    def _beam_search(self, begin: State) -> Finding:
        """Returns the best program of a beam search, which ends with `beams` programs, by its mean log-probability.

        Of each step's 2 `beams` best continuations, those that end the text count among the first `beams`, as in
        `transformers` with early stopping.
        """
        beams, running, found = self._beams, [(0.0, begin)], list[tuple[float, State]]()
        while running and len(found) < beams:
            yield from self.rank([state for _, state in running])
            grown = [
                (total + each.logprob, state, each) for total, state in running for each in state.ranked[: 2 * beams]
            ]
            running = []
            for place, (total, state, each) in enumerate(sorted(grown, key=lambda one: -one[0])[: 2 * beams]):
                child = self._child(state, each)
                if not child.ended and len(running) < beams:
                    running.append((total, child))
                elif child.ended and place < beams:
                    found.append((total / (child.depth - begin.depth), child))
        return max(found, key=lambda one: one[0])[1]

    def _child(self, state: State, each: Ranked) -> State:
        """Returns the state after one more token."""
        child = state.below.get(each.token)
        if child is None:
            child = state.below[each.token] = State(state, each.token, state.depth + 1, logprob=each.logprob)
            run = self._run
            child.ended = child.depth >= run.max_tokens or each.token in run.eos_token_ids or self._stopped(child)
        return child

    def _stopped(self, state: State) -> bool:
        """Tells whether a stop string ends with the state's token or within it."""
        for stop in self._stops:
            data, above, last = b"", state, self._run.model.tokenizer.bytes_of(state.token)
            while above.parent is not None and len(data) < len(stop) + len(last):
                data, above = self._run.model.tokenizer.bytes_of(above.token) + data, above.parent
            if stop in data:
                return True
        return False


def most_probable(penalized: Tensor, raw: Tensor, count: int) -> list[Ranked]:
    """Returns the tokens with the highest logits after penalties, with their log-probabilities under the raw ones.

    Args:
        penalized: Logits after penalties, [vocab]; minus infinity where a token is forbidden.
        raw: Raw logits, [vocab].
        count: How many at most.
    """
    logits, tokens = penalized.topk(count)
    total = float(raw.logsumexp(-1))
    return [
        Ranked(token, logit, float(raw[token]) - total)
        for token, logit in zip(tokens.tolist(), logits.tolist(), strict=True)
        if logit > -math.inf
    ]
