"""A*-decoding: the properties of its specification, on trees that can be enumerated."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from outlay import LM, AStar, BestOf, Budget
from outlay.decode.search.astar import Queue, State
from outlay.engine.engine import Engine
from outlay.search.steps import Leaf
from outlay.testing import markov_model, tiny_lm, tiny_model

LETTERS = "abc"
DEPTH = 3
TREES = 25
# k draws of three letters, each with probability 1/3, miss one of them with probability 3 (2/3)^k: 3e-6 an expansion
K = 34


def letters_lm(probabilities=(1 / 3, 1 / 3, 1 / 3), **engine):
    """A model that writes letters independently of each other."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    for letter, probability in zip(LETTERS, probabilities, strict=True):
        transitions[:, ord(letter) - 33] = probability
    return LM(markov_model(transitions), Engine(**engine))


def searched(method, scorer, lm=None, **options):
    given = {"temperature": 1, "max_tokens": DEPTH, "chat": False, "ignore_eos": True} | options
    return (lm or letters_lm()).generate("x", method=method, scorer=scorer, **given)


def every_text(depth=DEPTH):
    return ["".join(letters) for letters in itertools.product(LETTERS, repeat=depth)]


def beginnings(text):
    return [text[: end + 1] for end in range(len(text))]


def path_max(h):
    f = h[0]
    for before, after in itertools.pairwise(h):
        f = max(f, f - before + after)  # f - before is g
    return f


@pytest.mark.parametrize("edge_cost", ["drop", "pathmax", "none"])
def test_with_an_exact_heuristic_it_finds_the_optimum_of_a_random_tree_without_a_detour(edge_cost):
    """h is what the best text below a beginning costs; 25 random trees of 27 texts, all searched together."""
    lm, trees = letters_lm(), []
    for seed in range(TREES):
        draw = random.Random(seed)
        costs = {text: draw.uniform(0.05, 0.95) for text in every_text()}

        def exact(prompt, texts, costs=costs):
            return [1 - min(cost for whole, cost in costs.items() if whole.startswith(text)) for text in texts]

        trees.append((costs, exact))
    method = AStar(k=K, edge_cost=edge_cost, reopen=0, step="", step_tokens=1)
    with lm.engine.together():
        handles = [
            lm.submit("x", method=method, scorer=exact, temperature=1, max_tokens=DEPTH, seed=seed, ignore_eos=True)
            for seed, (_, exact) in enumerate(trees)
        ]
    for (costs, _), handle in zip(trees, handles, strict=True):
        result = handle.result(60)
        assert result.text == min(costs, key=costs.__getitem__)
        assert result.ledger.extras["expansions"] == DEPTH


def test_with_pathmax_the_first_text_out_has_the_smallest_f_of_the_whole_tree():
    """Any rewards at all: f of a step is the greater of the f before it and of g before it plus its own h."""
    lm, cases = letters_lm(), []
    for seed in range(TREES):
        draw = random.Random(1000 + seed)
        rewards = {text: draw.random() for depth in range(1, DEPTH + 1) for text in every_text(depth)}
        cases.append((rewards, lambda prompt, texts, rewards=rewards: [rewards[text] for text in texts]))
    method = AStar(k=K, edge_cost="pathmax", reopen=0, step="", step_tokens=1)
    with lm.engine.together():
        handles = [
            lm.submit("x", method=method, scorer=scorer, temperature=1, max_tokens=DEPTH, seed=seed, ignore_eos=True)
            for seed, (_, scorer) in enumerate(cases)
        ]
    for (rewards, _), handle in zip(cases, handles, strict=True):
        whole = {text: path_max([1 - rewards[begun] for begun in beginnings(text)]) for text in every_text()}
        assert whole[handle.result(60).text] == pytest.approx(min(whole.values()))


def test_with_pathmax_what_comes_out_of_the_queue_never_has_a_smaller_f():
    events = []
    rewards = random.Random(5)
    known = {}
    searched(
        AStar(k=6, edge_cost="pathmax", reopen=0, step="", step_tokens=1),
        lambda prompt, texts: [known.setdefault(text, rewards.random()) for text in texts],
        trace=events.append,
    )
    f = {event["node"]: event["f"] for event in events if event["event"] == "mark" and "f" in event}
    popped = [f[e["node"]] for e in events if e["event"] == "mark" and "expanded" in e and e["node"] in f]
    assert len(popped) >= 2
    assert popped == sorted(popped)


def test_with_a_perfect_scorer_no_lost_beginning_is_expanded():
    """Reward 1 where the text can still become "abc", else 0."""
    for seed in range(5):
        events = []
        result = searched(
            AStar(k=K, reopen=0, step="", step_tokens=1),
            lambda prompt, texts: [float("abc".startswith(text)) for text in texts],
            seed=seed,
            trace=events.append,
        )
        scores = {event["node"]: event["score"] for event in events if event["event"] == "mark" and "score" in event}
        expanded = [event["node"] for event in events if event["event"] == "mark" and "expanded" in event]
        assert result.text == "abc"
        assert len(expanded) == DEPTH
        assert all(scores.get(node, 1.0) == 1.0 for node in expanded)


def test_the_cost_of_drops_telescopes():
    """f = 1 - r_1 + 2 (sum of drops) - (sum of rises), and h = 1 - r."""
    draw, method = random.Random(2), AStar(edge_cost="drop")
    for _ in range(50):
        rewards = [draw.random() for _ in range(draw.randint(1, 12))]
        g, before = 0.0, None
        for reward in rewards:
            g, before = g + method.cost(before, 1 - reward, 0.1), 1 - reward
        changes = [after - one for one, after in itertools.pairwise(rewards)]
        drops, rises = -sum(min(0, change) for change in changes), sum(max(0, change) for change in changes)
        assert g + before == pytest.approx(1 - rewards[0] + 2 * drops - rises)


def test_equals_come_out_by_depth_and_then_by_age():
    queue = Queue()
    states = [State(Leaf(None, 0, steps=steps), 0.5, 0.0) for steps in (1, 3, 2, 3)]
    for state in states:
        queue.push(state)
    out = [queue.pop(1, [], 1)[0] for _ in states]
    assert [states.index(state) for state in out] == [1, 3, 2, 0]


def test_a_beginning_whose_steps_are_all_wrong_is_opened_again():
    """The right letter is rare: the rule as published often ends with a wrong text, re-opening finds the right one."""

    def scorer(prompt, texts):
        return [1.0 if text == "c" * len(text) else 0.3 / len(text) ** 3 for text in texts]

    published, reopened = [], []
    for seed in range(12):
        lm = letters_lm((0.6, 0.3, 0.1))
        for found, reopen in ((published, 0), (reopened, 0.05)):
            method = AStar(k=2, reopen=reopen, step="", step_tokens=1)
            budget = Budget(scores=60)
            found.append(searched(method, scorer, lm, seed=seed, max_tokens=2, budget=budget).text)
    assert sum(text == "cc" for text in published) < sum(text == "cc" for text in reopened)
    assert sum(text == "cc" for text in reopened) >= 6


def test_a_search_of_several_solutions_ends_where_there_is_but_one_text():
    method = AStar(k=2, n_solutions=3, step="", step_tokens=1)
    result = searched(method, lambda prompt, texts: [0.5] * len(texts), letters_lm((1.0, 0.0, 0.0)))
    assert result.text == "aaa"


def test_a_larger_budget_begins_with_the_same_expansions():
    def scorer(prompt, texts):
        return [(sum(text.encode()) % 89) / 89 for text in texts]

    traces = []
    for cap in (12, 24, 48):
        events = []
        searched(AStar(k=3, step="", step_tokens=2), scorer, tiny_lm(), max_tokens=40, seed=3,
                 budget=Budget(scores=cap), trace=events.append)  # fmt: skip
        traces.append([event["node"] for event in events if event["event"] == "mark" and "expanded" in event])
    assert len(traces[0]) < len(traces[1]) < len(traces[2])
    for shorter, longer in itertools.pairwise(traces):
        assert longer[: len(shorter) - 1] == shorter[:-1]  # the last one may have been cut by the budget


@pytest.mark.parametrize("method", [AStar(k=4, step_tokens=4), BestOf(n=4, by="score")])
def test_all_drawn_tokens_are_counted_those_of_dropped_steps_too_and_the_prompt_once(method):
    events, lm = [], LM(tiny_model(), Engine(prefix_cache=False))
    result = lm.generate(
        "Hello", method=method, scorer=lambda prompt, texts: [0.5] * len(texts), temperature=0.7, max_tokens=12,
        ignore_eos=True, trace=events.append,
    )  # fmt: skip
    grown = [row for event in events if event["event"] == "grow" for row in event["nodes"]]
    prompt = len(lm.encode("Hello"))
    assert result.ledger.extras["drawn"] == len(grown) - prompt
    computed = [node for event in events if event["event"] == "pass" for node in event["nodes"]]
    assert len(set(computed)) == len(computed) == result.ledger.target_tokens


class Probing:
    """A scorer that asks the target for its logits at what it rates."""

    reads_logprobs = False

    def begin(self, run, step=""):
        self.run, self.found = run, {}
        return self

    def rewards(self, nodes):
        logits = yield self.run.target.forward(nodes)
        for node, row in zip(nodes, logits, strict=True):
            self.found[tuple(self.run.text_tokens(node))] = row.log_softmax(-1)
        return [node.token % 11 / 11 for node in nodes]


def test_keys_and_values_below_forks_are_those_of_a_fresh_prefill():
    scorer, lm = Probing(), tiny_lm()
    options = {"temperature": 0.9, "max_tokens": 12, "ignore_eos": True, "budget": Budget(target_passes=30)}
    lm.generate("Once", method=AStar(k=3, step_tokens=4), scorer=scorer, **options)
    assert max(map(len, scorer.found)) == 12
    for tokens, logprobs in scorer.found.items():
        fresh = tiny_lm().generate([*lm.encode("Once"), *tokens], max_tokens=1, logprobs=257, ignore_eos=True)
        for token, logprob in fresh.logprobs[0].top:
            assert float(logprobs[token]) == pytest.approx(logprob, abs=1e-4)


def test_the_best_of_n_by_a_perfect_scorer_is_right_with_1_minus_1_minus_p_to_the_n():
    """p = 1/9, n = 4; within 4 standard errors, which a right method misses in 1 of 16,000."""

    def only_ab(prompt, texts):
        return [float(text == "ab") for text in texts]

    lm, rounds = letters_lm(), 300
    with lm.engine.together():
        handles = [
            lm.submit("x", method=BestOf(n=4, by="score"), scorer=only_ab,
                      temperature=1, max_tokens=2, seed=seed, ignore_eos=True)
            for seed in range(rounds)
        ]  # fmt: skip
    share = sum(handle.result(60).text == "ab" for handle in handles) / rounds
    expected = 1 - (1 - 1 / 9) ** 4
    assert abs(share - expected) < 4 * (expected * (1 - expected) / rounds) ** 0.5
