"""Traversal verification (Weng et al. 2025): exact by enumeration, and never worse than token by token."""

from __future__ import annotations

import itertools

import pytest
import torch
from papers.distributions import assert_exact, markov_lm, random_probs

from outlay.decode.draft.traversal import Traversal, traverse
from outlay.errors import UsageError
from outlay.speculation.rounds import ROOT, DraftTree
from outlay.testing import PROMPTS, tiny_lm, tiny_model

SIZE = 3


class Contexts:
    """Distributions of the target and the draft after every text, made up from a seed."""

    def __init__(self, seed):
        self._seed = seed

    def target(self, text):
        return random_probs(SIZE, hash((self._seed, 0, text)) % 2**32)

    def draft(self, text):
        return random_probs(SIZE, hash((self._seed, 1, text)) % 2**32)


def drafts(contexts, branching):
    """Every tree without replacement that can be drawn, with its probability."""

    def below(text, levels):
        """Lists of (token, subtree) after a text, with their probabilities."""
        if not levels:
            return [(1.0, [])]
        probs, found = contexts.draft(text), []
        for tokens in itertools.permutations(range(SIZE), levels[0]):
            drawn, left = 1.0, 1.0
            for token in tokens:
                drawn, left = drawn * float(probs[token]) / left, left - float(probs[token])
            for subtrees in itertools.product(*(below((*text, token), levels[1:]) for token in tokens)):
                chance = drawn
                for each, _ in subtrees:
                    chance *= each
                found.append((chance, [(token, sub) for token, (_, sub) in zip(tokens, subtrees, strict=True)]))
        return found

    for chance, children in below((), branching):
        tree = DraftTree()

        def plant(parent, text, children, tree=tree):
            if children:
                tree.draft_probs[parent] = contexts.draft(text)
            for node, token, sub in [(tree.add(parent, token, ""), token, sub) for token, sub in children]:
                plant(node, (*text, token), sub)

        plant(ROOT, (), children)
        yield chance, tree


def outcomes(tree, target, monkeypatch):
    """All texts that `traverse` may return, with their probabilities: every coin falls both ways."""
    ways = [()]
    while ways:
        known, taken, weight = ways.pop(), [], [1.0]

        class Coin(float):
            """A uniform number that is compared with a probability."""

            def __lt__(self, p, known=known, taken=taken, weight=weight):
                at = len(taken)
                if p >= 1 or p <= 0:
                    return p >= 1
                falls = known[at] if at < len(known) else True
                if at >= len(known):
                    ways.append((*taken, False))
                taken.append(falls)
                weight[0] *= p if falls else 1 - p
                return falls

        last = []
        monkeypatch.setattr("outlay.decode.draft.traversal.uniform", lambda generator, coin=Coin: coin(0))
        monkeypatch.setattr("outlay.decode.draft.traversal.draw", lambda q, generator, last=last: last.append(q) or 0)
        path, _ = traverse(tree, target, torch.Generator())
        text = tuple(tree.path_tokens(path[-1])) if path else ()
        for token, chance in enumerate(last[0].tolist()):
            yield (*text, token), weight[0] * chance


@pytest.mark.parametrize("branching", [(1,), (1, 1), (2,), (2, 1), (2, 2), (3, 1)])
def test_texts_are_distributed_as_the_targets_own_by_enumeration(branching, monkeypatch):
    contexts, length = Contexts(len(branching)), len(branching) + 1
    found = dict.fromkeys(itertools.product(range(SIZE), repeat=length), 0.0)
    for chance, tree in drafts(contexts, branching):
        tokens = {ROOT: ()} | {node: tuple(tree.path_tokens(node)) for node in range(len(tree))}
        for text, weight in outcomes(tree, lambda at, tokens=tokens: contexts.target(tokens[at]), monkeypatch):
            for rest in itertools.product(range(SIZE), repeat=length - len(text)):
                whole, share = (*text, *rest), chance * weight
                for place in range(len(text), length):
                    share *= float(contexts.target(whole[:place])[whole[place]])
                found[whole] += share
    for text, chance in found.items():
        expected = 1.0
        for place in range(length):
            expected *= float(contexts.target(text[:place])[text[place]])
        assert chance == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("runs", [400, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("branching", [(2, 2, 1), (1, 1, 1)])
def test_texts_are_distributed_as_the_targets_own(branching, runs):
    """By chi-square against exact probabilities, with the false-alarm rate of `papers.distributions`."""
    lm, draft = markov_lm(4, 5), markov_lm(4, 6).model
    assert_exact(lm, Traversal(branching), runs, draft=draft, temperature=1.0)


def test_it_accepts_longer_texts_than_token_by_token(monkeypatch):
    """Expected accepted tokens of chains, by enumeration, against those of speculative sampling in closed form."""
    gains = []
    for seed in range(4):
        contexts, accepted = Contexts(10 + seed), 0.0
        for chance, tree in drafts(contexts, (1, 1, 1)):
            tokens = {ROOT: ()} | {node: tuple(tree.path_tokens(node)) for node in range(len(tree))}
            target = lambda at, tokens=tokens, contexts=contexts: contexts.target(tokens[at])  # noqa: E731
            accepted += sum(chance * weight * (len(text) - 1) for text, weight in outcomes(tree, target, monkeypatch))
        one_by_one = 0.0
        for length in (1, 2, 3):
            for text in itertools.product(range(SIZE), repeat=length):
                both = 1.0
                for at, token in enumerate(text):
                    both *= min(float(contexts.target(text[:at])[token]), float(contexts.draft(text[:at])[token]))
                one_by_one += both
        assert accepted >= one_by_one - 1e-12
        gains.append(accepted / one_by_one)
    assert max(gains) > 1.03


@pytest.mark.parametrize("options", [{}, {"logit_bias": {65: 3.0}}])
@pytest.mark.parametrize("draft", [tiny_model(1), "lookup"], ids=["model", "lookup"])
def test_at_temperature_zero_it_writes_what_greedy_writes(draft, options):
    expected = tiny_lm().generate_batch(PROMPTS, max_tokens=24, ignore_eos=True, **options)
    found = tiny_lm().generate_batch(
        PROMPTS, method="traversal", draft=draft, max_tokens=24, ignore_eos=True, **options
    )
    assert [result.tokens for result in found] == [result.tokens for result in expected]


def test_a_branching_without_children_is_refused():
    with pytest.raises(UsageError, match="traversal needs a branching of numbers from 1 on, such as 2x2x1"):
        Traversal((2, 0))
