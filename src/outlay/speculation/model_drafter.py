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

    Nodes of tokens that were then committed stay in its KV cache; the others are freed. A draft head (a decoder that
    `reads_hidden_states`) starts from the target's hidden states and drafts on from its own. Committed nodes are
    computed anew from the target's, which are better.
    """

    def __init__(self, run: TreeRun) -> None:
        assert run.draft is not None, "the run has no draft model"
        self._run, self._seat = run, run.draft
        self._tree = run.draft.tree
        self._model = run.draft.model
        self._is_head = self._model.decoder.reads_hidden_states
        ids, device = self._model.vocabulary, self._model.decoder.device
        self._ids = None if ids is None else ids.numpy()
        self._vocabulary = None if ids is None else ids.to(device)
        self._known = 0  # how many of the run's tokens are in the draft's tree
        self._nodes: dict[int, Node] = {}
        self.name = "head" if self._is_head else "draft"

    def sync(self) -> bool:
        """Catches up with the run. A draft head can't draft before the target has computed what it starts from."""
        above, target = self._run.tip.parent, self._run.target
        if self._is_head and ((above is not None and not above.computed) or target.owes_states):
            return False
        self._keep_committed()
        tip = self._tree.tip
        assert tip is not None, "a draft's tree holds the prompt"
        self._nodes = {ROOT: tip}
        if self._is_head:
            self._give_hidden_states(tip)
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
        if sampler.raw:
            return sampler.probs(logits)
        rows = [sampler.probs(row, then=tree.path_tokens(place)) for row, place in zip(logits, places, strict=True)]
        return torch.stack(rows)

    @property
    def behind(self) -> int:
        """How many tokens of the text the draft model has not read yet, the whole prompt at first."""
        unread, node = len(self._run.tokens) - self._known, self._tree.tip
        while node is not None and not node.computed:
            unread, node = unread + 1, node.parent
        return unread

    @property
    def ahead(self) -> int:
        """How many tokens after the next one a draft head guesses in one pass, at its prompt tokens."""
        decoder = self._model.decoder
        return len(decoder.prompts) if isinstance(decoder, DraftHeadDecoder) else 0

    def guesses(self, ahead: int, k: int) -> Generator[Request, Any, list[list[tuple[int, float]]]]:
        """Asks a draft head for the next token and the `ahead` tokens after it, in one pass.

        Args:
            ahead: Tokens after the next one, guessed whatever stands between.
            k: Guesses for each token.

        Returns:
            For each token its k most probable guesses, with their probabilities.
        """
        decoder = self._model.decoder
        assert isinstance(decoder, DraftHeadDecoder)
        guessed = self._tree.extend(range(-1, ahead - 1), [NO_TOKEN] * ahead, inputs_embeds=decoder.prompts)
        top: Top = yield self._seat.topk([self._nodes[ROOT], *guessed], k, lse=True)
        assert top.lse is not None
        assert self._ids is not None
        token, rows = self._ids.item, zip(top.tokens.tolist(), top.logits.tolist(), top.lse.tolist(), strict=True)
        # These are few numbers, which plain Python handles faster than torch.
        return [
            [(token(place), math.exp(logit - lse)) for place, logit in zip(places, logits, strict=True)]
            for places, logits, lse in rows
        ]

    def _widened(self, logits: Tensor) -> Tensor:
        """Widens logits over a draft head's vocabulary to the target's, with -inf for the other tokens."""
        ids = self._vocabulary
        if ids is None:
            return logits
        size = self._run.model.decoder.config.vocab_size
        return logits.new_full((len(logits), size), -torch.inf).index_copy_(1, ids, logits)

    def _nodes_of(self, tree: DraftTree, places: Sequence[int]) -> list[Node]:
        """Returns the nodes of the draft model's tree for drafted nodes; grows those that are missing."""
        for place in places:
            if place not in self._nodes:
                parent = self._nodes[tree.parents[place]]
                embeds = [self._seat.hidden_states([parent])[0]] if self._is_head else None
                self._nodes[place] = self._tree.extend([parent], [tree.tokens[place]], inputs_embeds=embeds)[0]
        return [self._nodes[place] for place in places]

    def _keep_committed(self) -> None:
        """Commits what the run has committed to the draft model's tree, with the nodes that it already computed."""
        fresh = self._run.tokens[self._known :]
        self._known = len(self._run.tokens)
        tree, known = self._tree, 0
        if not self._is_head:
            node = tree.tip
            for token in fresh:
                below = next((each for each in tree.tentative if each.parent is node and each.token == token), None)
                if below is None:
                    break
                node, known = below, known + 1
            assert node is not None
            tree.keep(node)
        tree.prune(())
        tree.append(fresh[known:])

    def _give_hidden_states(self, tip: Node) -> None:
        """Gives each node that is not computed yet the target's hidden state before its token."""
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
            for node, hidden_state in zip(missing, self._run.target.hidden_states(above), strict=True):
                node.input_embed = hidden_state
