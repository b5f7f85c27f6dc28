"""The searches' own properties, on chains whose probabilities are known."""

from __future__ import annotations

import math

import pytest
import torch

from outlay import LM, AStar, BestOf, Budget, Particles, StepBeam, UsageError
from outlay.decode.search.particles import tempered
from outlay.engine.engine import Engine
from outlay.search.resampling import effective_sample_size
from outlay.testing import markov_model, tiny_lm, tiny_model, tiny_reward_model

A, B = 97 - 33, 98 - 33  # the tokens of the letters a and b


def chain(stay=0.6):
    """A model that writes a and b alone, each again with probability `stay`."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    transitions[:, A], transitions[:, B] = 1 - stay, stay
    transitions[A, A], transitions[A, B] = stay, 1 - stay
    return LM(markov_model(transitions), Engine())


def letters(prompt, texts):
    return [0.2 + 0.6 * text.count("a") / max(1, len(text)) for text in texts]


def test_k_of_1_writes_what_sampling_writes():
    lm, options = tiny_lm(), {"temperature": 0.9, "max_tokens": 20, "seed": 5}
    sampled = lm.generate("Once", method="sample", **options).tokens
    for method in (
        AStar(k=1, reopen=0, step_tokens=4),
        Particles(n=1, step_tokens=4),
        StepBeam(n=1, width=1, step_tokens=4),
        BestOf(n=1, by="score"),
    ):
        assert lm.generate("Once", method=method, scorer=letters, **options).tokens == sampled


def test_a_star_with_pathmax_finds_the_optimum_of_the_whole_tree():
    """k samples that cover both letters; h is exact: what the best text below a beginning still costs."""
    best = "abba"

    def exact(prompt, texts):
        return [1.0 if best.startswith(text) else 0.25 for text in texts]

    method = AStar(k=16, edge_cost="pathmax", reopen=0, step="", step_tokens=1)
    for seed in range(5):
        result = chain().generate("b", method=method, scorer=exact, temperature=1, max_tokens=4, seed=seed, chat=False)
        assert result.text == best
        assert result.ledger.extras["expansions"] == 4  # nothing with a worse f is expanded


def test_constant_rewards_leave_weights_uniform_and_the_normaliser_at_its_value():
    result = chain().generate(
        "b", method=Particles(n=4, potential="ratio", odds=False, step="", step_tokens=1),
        scorer=lambda prompt, texts: [0.5] * len(texts), temperature=1, max_tokens=3,
    )  # fmt: skip
    assert math.exp(result.facts["log_normaliser"]) == pytest.approx(0.5)


def test_the_normaliser_of_the_particle_filter_is_unbiased():
    """E of the last reward over all texts of 3 letters, within 4 standard errors (a false alarm in 16,000)."""
    lm, rounds, stay = chain(), 250, 0.6
    exact = 0.0
    for number in range(8):
        text = "".join("ab"[number >> place & 1] for place in range(3))
        probability = 1.0
        for before, after in zip("b" + text, text, strict=False):
            probability *= stay if before == after else 1 - stay
        exact += probability * letters("", [text])[0]
    method = Particles(n=3, potential="ratio", odds=False, step="", step_tokens=1)
    handles = [
        lm.submit("b", method=method, scorer=letters, temperature=1, max_tokens=3, seed=seed, ignore_eos=True)
        for seed in range(rounds)
    ]
    found = torch.tensor([math.exp(handle.result(60).facts["log_normaliser"]) for handle in handles])
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / rounds**0.5


def test_positions_computed_equal_the_nodes_of_the_tree():
    for method in (AStar(k=3, step_tokens=4), Particles(n=4, step_tokens=4, sweeps=2), StepBeam(4, 2, step_tokens=4)):
        events = []
        lm = LM(tiny_model(), Engine(prefix_cache=False))
        options = {"temperature": 0.9, "max_tokens": 16, "ignore_eos": True, "trace": events.append}
        result = lm.generate("Hello", method=method, scorer=letters, **options)
        computed = [node for each in events if each["event"] == "pass" for node in each["nodes"]]
        assert len(computed) == len(set(computed)) == result.ledger.target_tokens


def test_sixteen_searches_together_give_what_each_gives_alone():
    method, options = AStar(k=2, step_tokens=3), {"temperature": 0.9, "max_tokens": 9, "ignore_eos": True}
    scorer, lm = tiny_reward_model(), tiny_lm()
    with lm.engine.together():
        handles = [lm.submit("Hi", method=method, scorer=scorer, seed=seed, **options) for seed in range(16)]
    together = [handle.result(60).tokens for handle in handles]
    assert together == [
        tiny_lm().generate("Hi", method=method, scorer=scorer, seed=seed, **options).tokens for seed in range(16)
    ]


def test_a_full_cache_ends_a_search_with_the_best_so_far():
    lm = LM(tiny_model(), Engine(cache_tokens=64, prefix_cache=False))
    options = {"temperature": 0.9, "max_tokens": 60, "ignore_eos": True}
    result = lm.generate("Hello", method=Particles(n=8, step_tokens=2), scorer=letters, **options)
    assert result.finish_reason == "budget"
    assert result.tokens


def test_tempered_weights_have_the_effective_sample_size_that_is_asked_for():
    logs = torch.tensor([0.0, 3.0, 9.0, 1.0], dtype=torch.float64)
    assert effective_sample_size(tempered(logs, 2.0).softmax(0)) == pytest.approx(2.0, abs=1e-6)


def test_what_cannot_be_searched_is_refused_in_one_line():
    lm = tiny_lm()
    hot = {"temperature": 0.9, "scorer": letters}
    for message, options in {
        "needs a scorer": {"method": "astar", "temperature": 0.9},
        "temperature above 0": {"method": "astar", "scorer": letters},
        "below one expansion": {"method": "astar:k=4", "budget": Budget(scores=3)} | hot,
        "best_of:by=score needs a scorer": {"method": "best_of:by=score", "temperature": 0.9},
        "multiple of its width": {"method": "step_beam:n=5,width=2"} | hot,
        "takes no scorer": {"method": "greedy", "scorer": letters},
    }.items():
        with pytest.raises(UsageError, match=message):
            lm.submit("Hello", **options)
