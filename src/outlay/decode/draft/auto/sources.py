"""The sources of candidates: prompt lookup, a table of n-grams, and a draft head or model.

Each adds nodes to one tree, and says how confident it is of each.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import cache
from heapq import heappop, heappush
from typing import Any

from outlay.decode.draft.auto.acceptance import AcceptanceModel
from outlay.decode.draft.auto.candidates import Candidates
from outlay.decode.draft.auto.config import AutoConfig
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.models import fitted, hub
from outlay.models.load import Model
from outlay.speculation.lookup import ORIGIN, LookupProposer
from outlay.speculation.model_drafter import ModelDrafter
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.speculation.rounds import ROOT, DraftTree

TABLE = "table"


class LookupSource:
    """Copies what followed the last place where the text's end stood."""

    def __init__(self, run: TreeRun, acceptance: AcceptanceModel, config: AutoConfig) -> None:
        self._text, self._prior = LookupProposer(run, config.match_tokens), config.prior
        self._levels = [acceptance.of(ORIGIN, length) for length in range(config.match_tokens + 1)]

    def add(self, candidates: Candidates, nodes: int, depth: int) -> None:
        """Adds a chain of `nodes` at most; the longer the match is, the more confident."""
        found = self._text.match()
        if found is None:
            return
        place, length = found
        at = ROOT
        for token in self._text.after(place, min(nodes, depth)):
            level = self._levels[min(length, len(self._levels) - 1)]
            node = candidates.add(at, token, level, length / (length + self._prior))
            if node is None:
                return
            at, length = node, length + 1


class TableSource:
    """Adds what followed the text's end, and the most probable candidates, in a table of n-grams."""

    def __init__(self, run: TreeRun, table: NgramTable, acceptance: AcceptanceModel, config: AutoConfig) -> None:
        self._run, self._table, self._config = run, table, config
        self._levels = [acceptance.of(TABLE, length) for length in range(table.order)]

    def add(self, candidates: Candidates, nodes: int, depth: int) -> None:
        """Adds what followed the text's end and, the most probable first, what followed the candidates.

        Args:
            candidates: The tree of the round.
            nodes: Contexts that are looked up, at most.
            depth: The greatest depth.
        """
        longest, config = self._table.order - 1, self._config
        text = self._run.tokens[-longest:]
        if len(text) < longest:
            text = [*self._run.known_text[len(text) - longest :], *text]
        heap = [(-1.0, 0, ROOT, text)]
        for _ in range(nodes):
            if not heap:
                return
            _, level, parent, context = heappop(heap)
            length, seen, successors = self._table.backoff(context)
            if not successors:
                continue
            known = seen / (seen + config.prior / length)
            for token, share in successors[: config.branching]:
                node = candidates.add(parent, token, self._levels[length], share * known)
                if node is None:
                    break
                if level + 1 < depth:
                    heappush(heap, (-candidates.reach(node), level + 1, node, [*context[1:], token]))


class DraftModelSource:
    """Asks a draft head, which guesses several tokens in one pass, or a draft model, token by token."""

    def __init__(self, run: TreeRun, acceptance: AcceptanceModel, config: AutoConfig) -> None:
        self.drafter = ModelDrafter(run)
        self._acceptance, self._branching = acceptance, config.branching

    def add(self, candidates: Candidates, nodes: int, depth: int, step: float) -> Generator[Request, Any, None]:
        """Adds the most probable paths.

        Args:
            candidates: The tree of the round.
            nodes: Most nodes at a depth.
            depth: The greatest depth.
            step: What a further pass of a draft model costs, in tokens.
        """
        ahead = self.drafter.ahead
        if ahead:
            guesses = yield from self.drafter.guesses(min(ahead, depth - 1), self._branching)
            self._combine(candidates, guesses, nodes)
        else:
            yield from self._chain(candidates, depth, step)

    def _combine(self, candidates: Candidates, guesses: Sequence[Sequence[tuple[int, float]]], nodes: int) -> None:
        """Combines the guesses of each depth to paths."""
        parents = [ROOT]
        for level, guessed in enumerate(guesses):
            calibration = self._acceptance.of(self.drafter.name, level)
            added = (
                candidates.add(parent, token, calibration, confidence)
                for parent in parents
                for token, confidence in guessed
            )
            below = {node for node in added if node is not None}
            parents = sorted(below, key=candidates.reach, reverse=True)[:nodes]

    def _chain(self, candidates: Candidates, depth: int, step: float) -> Generator[Request, Any, None]:
        """Goes on with the best token for as long as another pass is likely to pay."""
        name, tree, at, node = self.drafter.name, DraftTree(), ROOT, ROOT
        while tree.depth < depth and (not tree or candidates.reach(node) > step):
            best = yield from self.drafter.topk(tree, [at], self._branching)
            calibration = self._acceptance.of(name, tree.depth)
            confidences = best.logprobs[0].exp().tolist()
            added = [
                candidates.add(node, token, calibration, confidence)
                for token, confidence in zip(best.tokens[0].tolist(), confidences, strict=True)
            ]
            if added[0] is None:
                return
            at, node = tree.add(at, int(best.tokens[0, 0]), name), added[0]


@cache
def model_table(model: Model) -> NgramTable | None:
    """Returns the table of n-grams of what a model writes, the user's own or what comes with the package, if any."""
    path = fitted.own_path("table", model)
    if path.exists():
        return NgramTable.load(path, model.tokenizer)
    tokens = tokenizer_fingerprint(model.tokenizer)
    for path in sorted(hub.SHIPPED.glob("*.table.safetensors")):
        table = NgramTable.load(path)
        if table.tokenizer == tokens:
            return table
    return None
