"""A draft model or a draft head that drafts for a run, in the run's second seat."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.kernels import Top
from outlay.models.draft_head import DraftHeadDecoder
from outlay.speculation.rounds import ROOT, Drafter, DraftTree, TopTokens
from outlay.tree.token_tree import NO_TOKEN, Node


class ModelDrafter(Drafter):
    """Drafts with the model in the seat `run.draft`.

    What it computed for tokens that were then committed is kept; the rest is freed. A draft head (a decoder that
    `reads_hidden_states`) starts from the target's hidden states, and drafts on from its own: its nodes are computed
    anew when they are committed, from the target's hidden states, which are better.
    """

    def __init__(self, run: TreeRun) -> None:
        assert run.draft is not None, "the run has no draft model"
        self._run, self._seat = run, run.draft
        self._tree = run.draft.tree
        self._model = run.draft.model
        self._head = self._model.decoder.reads_hidden_states
        ids, device = self._model.vocabulary, self._model.decoder.device
        self._ids = None if ids is None else ids.numpy()
        self._vocabulary = None if ids is None else ids.to(device)
        self._known = 0  # how many of the run's tokens are in the draft's tree
        self._nodes: dict[int, Node] = {}
        self.name = "head" if self._head else "draft"

    def sync(self) -> bool:
        """Catches up with the run. A head can't draft before the target has read the prompt."""
        above = self._run.tip.parent
        if self._head and above is not None and not above.computed:
            return False
        self._keep_committed()
        tip = self._tree.tip
        assert tip is not None, "a draft's tree holds the prompt"
        self._nodes = {ROOT: tip}
        if self._head:
            self._give_features(tip)
        return True

    def topk(self, tree: DraftTree, places: Sequence[int], k: int) -> Generator[Request, Any, TopTokens]:
        top: Top = yield self._seat.topk(self._nodes_of(tree, places), k, lse=True)
        assert top.lse is not None
        ids = self._vocabulary
        return TopTokens(top.tokens if ids is None else ids[top.tokens], top.logits - top.lse[:, None])

    def probs(self, tree: DraftTree, places: Sequence[int]) -> Generator[Request, Any, Tensor]:
        logits: Tensor = yield self._seat.forward(self._nodes_of(tree, places))
        logits = self._widened(logits)
        sampler = self._run.sampler
        rows = [sampler.probs(row, then=tree.path_tokens(place)) for row, place in zip(logits, places, strict=True)]
        return torch.stack(rows)

    @property
    def behind(self) -> int:
        """How many tokens of the text the draft has not read yet: all of them before it is asked for the first time."""
        unread, node = len(self._run.tokens) - self._known, self._tree.tip
        while node is not None and not node.computed:
            unread, node = unread + 1, node.parent
        return unread

    @property
    def ahead(self) -> int:
        """How many tokens a head guesses in one pass beside the next one: it has so many prompt tokens."""
        decoder = self._model.decoder
        return len(decoder.prompts) if isinstance(decoder, DraftHeadDecoder) else 0

    def guesses(self, ahead: int, k: int) -> Generator[Request, Any, list[list[tuple[int, float]]]]:
        """Returns the k most probable of the next token, and of each of the `ahead` tokens behind it whatever stands
        between, with their probabilities: in one pass of the head.
        """
        decoder = self._model.decoder
        assert isinstance(decoder, DraftHeadDecoder)
        guessed = self._tree.extend(range(-1, ahead - 1), [NO_TOKEN] * ahead, inputs_embeds=decoder.prompts)
        top: Top = yield self._seat.topk([self._nodes[ROOT], *guessed], k, lse=True)
        assert top.lse is not None
        assert self._ids is not None
        token, rows = self._ids.item, zip(top.tokens.tolist(), top.logits.tolist(), top.lse.tolist(), strict=True)
        # Some numbers, which take Python less time than each of torch's operations does.
        return [
            [(token(place), math.exp(logit - lse)) for place, logit in zip(places, logits, strict=True)]
            for places, logits, lse in rows
        ]

    def _widened(self, logits: Tensor) -> Tensor:
        """Logits over the tokens that a head drafts -> over the target's vocabulary, -inf for the others."""
        ids = self._vocabulary
        if ids is None:
            return logits
        size = self._run.model.decoder.config.vocab_size
        return logits.new_full((len(logits), size), -torch.inf).index_copy_(1, ids, logits)

    def _nodes_of(self, tree: DraftTree, places: Sequence[int]) -> list[Node]:
        """Returns the nodes of the draft's tree that stand for nodes of the drafted one; grows those that lack."""
        for place in places:
            if place not in self._nodes:
                parent = self._nodes[tree.parents[place]]
                vectors = [self._seat.hidden_states([parent])[0]] if self._head else None
                self._nodes[place] = self._tree.extend([parent], [tree.tokens[place]], inputs_embeds=vectors)[0]
        return [self._nodes[place] for place in places]

    def _keep_committed(self) -> None:
        fresh = self._run.tokens[self._known :]
        self._known = len(self._run.tokens)
        tree, kept = self._tree, 0
        if not self._head:
            node = tree.tip
            for token in fresh:
                below = next((loose for loose in tree.tentative if loose.parent is node and loose.token == token), None)
                if below is None:
                    break
                node, kept = below, kept + 1
            assert node is not None
            tree.keep(node)
        tree.prune(())
        tree.append(fresh[kept:])

    def _give_features(self, tip: Node) -> None:
        """Gives each node that is not computed yet what the target's head read for the token before it."""
        missing, above = [], []
        node: Node | None = tip
        before = self._run.tip.parent
        while node is not None and not node.computed:
            if before is None:  # the text's first token
                node.input_embed = torch.zeros(self._model.decoder.config.hidden_size)
                break
            missing.append(node)
            above.append(before)
            node, before = node.parent, before.parent
        if missing:
            for node, vector in zip(missing, self._run.target.hidden_states(above), strict=True):
                node.input_embed = vector
