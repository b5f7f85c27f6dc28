"""AWRS with sequential Monte Carlo (Lipkin et al. 2025): proper weights, its normaliser, and what it saves."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from papers.distributions import FALSE_ALARM, p_value, random_probs

import outlay
from outlay import LM, UsageError, kernels
from outlay.constrain import Choice, Predicate, Regex
from outlay.decode.steer.awrs.order import REST, TopTokens, Visit
from outlay.decode.steer.awrs.samplers import adaptive, geometric, recursive, sampler_for, two_loop
from outlay.engine.engine import Engine
from outlay.engine.random import RandomStreams
from outlay.testing import markov_model, tiny_lm, tiny_model


class Enumerated:
    """A distribution whose draws are told in advance, so that all of them can be gone through.

    `chances` collects the probability of each draw that was made; the first one that nothing tells raises `Branch`.
    """

    def __init__(self, probs, told):
        self.probs, self.told, self.chance, self.visits = probs, list(told), 1.0, 0

    @property
    def largest(self):
        return max(self.probs)

    def order(self, loop, without=()):
        return EnumeratedOrder(self, [v for v in range(len(self.probs)) if v not in without and self.probs[v] > 0])


class EnumeratedOrder:
    def __init__(self, distribution, left):
        self.all, self.left = distribution, left

    def visit(self):
        if not self.left:
            return None
        if not self.all.told:
            raise Branch(self.left)
        self.all.visits += 1
        token, total = self.all.told.pop(0), sum(self.all.probs[v] for v in self.left)
        self.all.chance *= self.all.probs[token] / total
        self.left = [v for v in self.left if v != token]
        return Visit(token, math.log(self.all.probs[token]))
        yield


class Branch(Exception):
    pass


def outcomes(sampler, probs, accepted):
    """Yields (chance, token, weight, checks, visits) of each way in which a sampler can go.

    A visit of a token that was accepted before needs no check; the published counts are of visits.
    """
    open_ends = [()]
    while open_ends:
        told = open_ends.pop()
        p = Enumerated(probs, told)
        checks, asking = 0, sampler(p)
        try:
            answer = None
            while True:
                token, checks = asking.send(answer), checks + 1
                answer = token in accepted
        except Branch as branch:
            open_ends += [(*told, token) for token in branch.args[0]]
        except StopIteration as end:
            yield p.chance, end.value.token, math.exp(end.value.log_weight), checks, p.visits


@pytest.mark.parametrize("sampler", [two_loop, recursive])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_each_token_is_properly_weighted_by_exact_enumeration(sampler, size, seed):
    probs = random_probs(size, seed).tolist()
    accepted = {v for v in range(size) if np.random.default_rng(seed + 50).random(size)[v] < 0.6}
    mean = defaultdict(float)
    for chance, token, weight, checks, _ in outcomes(sampler, probs, accepted):
        assert checks <= size + 1
        assert (token is None) == (weight == 0)
        mean[token] += chance * weight
    for token in accepted:
        assert mean[token] == pytest.approx(probs[token], abs=1e-12)


GOLDEN = [  # probabilities, accepted tokens, and of each variant the mean and spread of its weight, and its checks
    ([0.5, 0.3, 0.15, 0.05], {1, 3}, (0.35, 0.272537, 3.34045), (0.35, 0.163239, 2.888235)),
    ([0.9, 0.06, 0.03, 0.01], {0, 2}, (0.93, 0.177464, 2.138702), (0.93, 0.062026, 2.071244)),
    ([0.6, 0.2, 0.1, 0.1], {3}, (0.1, 0.133889, 4.618481), (0.1, 0.0, 3.613889)),
]


@pytest.mark.parametrize(("probs", "accepted", "of_two_loop", "of_recursive"), GOLDEN)
def test_weights_and_checks_have_the_golden_values(probs, accepted, of_two_loop, of_recursive):
    for sampler, (mean, spread, checks) in ((two_loop, of_two_loop), (recursive, of_recursive)):
        found = list(outcomes(sampler, probs, accepted))
        first = sum(chance * weight for chance, _, weight, _, _ in found)
        second = sum(chance * weight**2 for chance, _, weight, _, _ in found)
        assert first == pytest.approx(mean, abs=1e-6)
        assert math.sqrt(max(0.0, second - first**2)) == pytest.approx(spread, abs=1e-6)
        assert sum(chance * visits for chance, _, _, _, visits in found) == pytest.approx(checks, abs=1e-5)
        assert sum(chance * count for chance, _, _, count, _ in found) <= 2 / sum(probs[v] for v in accepted)


def drawn(sampler, probs, accepted, seed, top=None):
    """Runs a sampler on a real Gumbel order over the `top` most probable tokens and the rest."""
    logprobs = np.log(np.array(probs))
    streams = RandomStreams(seed)
    order = np.argsort(-logprobs)[:top].astype(np.int64)
    rest = math.log(1 - np.exp(logprobs[order]).sum()) if top is not None and top < len(probs) else -math.inf
    p = TopTokens(order, logprobs[order], rest, lambda *key: streams.at(*key))
    asking, answer, checks = sampler(p), None, 0
    try:
        while True:
            asked = asking.send(answer)
            checks += asked != REST
            answer = logprobs.copy() if asked == REST else asked in accepted
    except StopIteration as end:
        found = end.value
    weight = math.exp(found.log_weight + p.log_ratio(found.token)) if found.token is not None else 0.0
    return found.token, weight, checks


@pytest.mark.parametrize(("accepts", "rejects"), [(2, math.inf), (4, math.inf), (2, 3)])
def test_the_geometric_variant_is_properly_weighted(accepts, rejects):
    probs, accepted, runs = [0.5, 0.3, 0.15, 0.05], {1, 3}, 8_000
    total = defaultdict(float)
    for seed in range(runs):
        token, weight, _ = drawn(lambda p: geometric(p, accepts, rejects), probs, accepted, seed)
        total[token] += weight
    for token in accepted:  # a standard error is at most 0.004
        assert total[token] / runs == pytest.approx(probs[token], abs=0.013)


@pytest.mark.parametrize("sampler", [two_loop, recursive, geometric])
def test_weights_stay_proper_where_only_the_top_tokens_are_known(sampler):
    probs, accepted, runs = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04], {1, 3, 4}, 8_000
    total = defaultdict(float)
    for seed in range(runs):
        token, weight, _ = drawn(sampler, probs, accepted, seed, top=2)
        total[token] += weight
    for token in accepted:
        assert total[token] / runs == pytest.approx(probs[token], abs=0.02)


@pytest.mark.parametrize("top", [1, 3, None])
def test_orders_are_those_of_drawing_without_replacement_by_chi_square(top):
    probs, runs = [0.45, 0.3, 0.15, 0.1], 4000
    counts = Counter()
    for seed in range(runs):
        order = []

        def noted(p, order=order):
            visits = p.order(0)
            while (visit := (yield from visits.visit())) is not None:
                order.append(visit.token)
            return (yield from adaptive(p))

        drawn(noted, probs, set(range(4)), seed, top)
        counts[tuple(order)] += 1
    chances = {}
    for order in itertools.permutations(range(4)):
        left, chance = 1.0, 1.0
        for token in order:
            chance, left = chance * probs[token] / left, left - probs[token]
        chances[order] = chance
    assert p_value(counts, chances) > FALSE_ALARM


def test_without_weights_tokens_are_those_of_a_mask_by_chi_square():
    probs, accepted = [0.4, 0.3, 0.2, 0.1], {0, 2, 3}
    counts = Counter(drawn(adaptive, probs, accepted, seed)[0] for seed in range(4000))
    assert p_value(counts, {v: probs[v] / 0.7 for v in accepted}) > FALSE_ALARM


def test_auto_is_geometric_where_one_token_is_likely_or_many_accepts_are_wanted():
    class Shape:
        def __init__(self, largest):
            self.largest = largest

    names = [
        sampler_for(Shape(largest), "auto", accepts, math.inf, True).__name__
        for largest, accepts in ((0.5, 2), (0.7, 2), (0.5, 3))
    ]
    assert names == ["recursive", "geometric", "geometric"]


END = 256
A, B, C, S = (tiny_model().tokenizer.encode(letter)[0] for letter in "abcs")


def chain(rows):
    """A model over bytes whose rows name what may follow each token; others are followed by the end."""
    law = torch.zeros(257, 257, dtype=torch.float64)
    law[:, END] = 1.0
    for token, row in rows.items():
        law[token] = 0.0
        for after, chance in row.items():
            law[token, after] = chance
    return LM(markov_model(law, f"chain{len(rows)}"), Engine(prefix_cache=False))


def dead_ends():
    """The paper's toy: nearly all texts begin with b, after which nothing likely is allowed."""
    return chain({S: {B: 0.9, A: 0.1}, A: {A: 0.9, END: 0.1}, B: {C: 1e-3, S: 0.999}, C: {C: 1e-3, S: 0.899, END: 0.1}})


def several(lm, constraint, method, runs, **options):
    given = {"constraint": constraint, "method": method, "temperature": 1.0, "max_tokens": 12} | options
    with lm.engine.together():
        handles = [lm.submit([S], seed=seed, **given) for seed in range(runs)]
    return [handle.result() for handle in handles]


def weight_of(result, text):
    return sum(each.score for each in result.alternatives if each.text == text)


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_the_dead_end_gets_its_right_weight_and_masks_give_it_the_wrong_one(runs):
    """0.97 of the weight for the right text, of which it has more than 0.999999; masks write it one time in ten."""
    texts = Choice("aaaa", "bccc")
    found = several(dead_ends(), texts, "awrs:particles=64", runs)
    assert all(result.facts["valid"] for result in found)
    right = sum(weight_of(result, "aaaa") for result in found) / runs
    masked = several(dead_ends(), texts, "sample", 10 * runs)
    by_masks = sum(result.text == "aaaa" for result in masked) / (10 * runs)
    print(f"weight of the right text: {right:.4f}; by masks {by_masks:.3f}")
    assert right >= 0.97
    assert 1 - right <= 0.5 * (1 - by_masks)
    assert by_masks == pytest.approx(0.1, abs=3 * 0.3 / math.sqrt(10 * runs))


def language():
    """A chain over a, b, c with its law of texts of at most 5 letters, and a constraint that half of them satisfy."""
    rows = {
        S: {A: 0.5, B: 0.3, C: 0.2},
        A: {A: 0.2, B: 0.5, C: 0.1, END: 0.2},
        B: {A: 0.1, B: 0.2, C: 0.5, END: 0.2},
        C: {A: 0.4, B: 0.1, C: 0.2, END: 0.3},
    }
    allowed = {
        "".join(letters): 0.0
        for length in range(1, 6)
        for letters in itertools.product("abc", repeat=length)
        if "".join(letters).count("c") == 1 and not "".join(letters).startswith("c")
    }
    for text in allowed:
        chance, last = 1.0, S
        for token in [*({"a": A, "b": B, "c": C}[letter] for letter in text), END]:
            chance, last = chance * rows[last][token], token
        allowed[text] = chance
    return chain(rows), allowed


def greedy_checker(texts):
    """A checker that sees dead ends late: any beginning without two of c may go on."""
    return Predicate(
        lambda data: data.decode() in texts,
        lambda data: data.count(b"c") < 2 and len(data) < 6 and not data.strip(b"abc"),
    )


@pytest.mark.parametrize(
    ("particles", "runs"),
    [(1, 300), (4, 100), *(pytest.param(n, 2000, marks=pytest.mark.slow) for n in (1, 4, 16))],
)
@pytest.mark.parametrize("variant", ["two_loop", "recursive", "geometric"])
def test_the_estimate_of_the_normaliser_is_unbiased_for_any_number_of_particles(variant, particles, runs):
    lm, texts = language()
    method = f"awrs:particles={particles},variant={variant}"
    found = several(lm, greedy_checker(texts), method, runs, max_tokens=6)
    estimates = np.exp([result.facts["log_ml"] for result in found])
    error = estimates.std() / math.sqrt(runs)
    assert abs(estimates.mean() - sum(texts.values())) < 3 * error
    assert all(result.text in texts for result in found if result.finish_reason == "stop")


@pytest.mark.parametrize("resample", ["multinomial", "systematic", "residual"])
def test_every_scheme_and_a_proposal_and_a_forced_end_leave_the_normaliser_unbiased(resample):
    lm, texts = language()
    other = {A: 0.3, B: 0.3, C: 0.2, END: 0.2}
    proposal = chain({S: other, A: other, B: other, C: other}).model
    method = outlay.AWRS(particles=8, resample=resample, ess=1.0, proposal=proposal)
    short = {text: chance for text, chance in texts.items() if len(text) < 4}
    found = several(lm, greedy_checker(texts), method, 60, max_tokens=4)
    estimates = np.exp([result.facts["log_ml"] for result in found])
    assert abs(estimates.mean() - sum(short.values())) < 3 * estimates.std() / math.sqrt(60)


def distance(found, law):
    """The total variation between the mean weights of several results and a law."""
    total = sum(law.values())
    means = {text: sum(weight_of(result, text) for result in found) / len(found) for text in law}
    return sum(abs(means[text] - law[text] / total) for text in law) / 2


def test_more_particles_come_nearer_to_the_posterior_and_much_nearer_than_masks():
    lm, texts = language()
    checker = greedy_checker(texts)
    few, many = (several(lm, checker, f"awrs:particles={n}", 512 // n, max_tokens=6) for n in (1, 32))
    masked = several(lm, checker, "awrs:particles=1,proper=false", 512, max_tokens=6)
    counts = Counter(result.text for result in masked)
    total = sum(texts.values())
    valid = sum(counts[text] for text in texts)
    of_masks = sum(abs(counts[text] / valid - texts[text] / total) for text in texts) / 2
    print(f"distance to the posterior: masks {of_masks:.3f}, one particle {distance(few, texts):.3f}, "
          f"32 particles {distance(many, texts):.3f}")  # fmt: skip
    assert distance(many, texts) <= 0.5 * of_masks


def test_under_a_constraint_that_all_satisfies_it_is_plain_sampling():
    lm, _ = language()
    found = several(lm, Predicate(lambda data: True), "awrs:particles=3", 600, max_tokens=60)
    assert all(abs(result.facts["log_ml"]) < 1e-4 for result in found)
    assert not any(result.ledger.extras for result in found)
    counts = Counter(result.text[:1] for result in found)
    assert p_value(counts, {"a": 0.5, "b": 0.3, "c": 0.2}) > FALSE_ALARM


def test_a_scorer_tilts_the_texts_by_its_rewards():
    """Each text gets p(text) times its reward: by the normaliser, and by the share of the texts that are favoured."""
    lm, texts = language()

    def favour(prompt, given):
        return [0.9 if text.startswith("a") else 0.1 for text in given]

    from outlay.rewards.functions import FunctionScorer

    reward = {text: chance * (0.9 if text.startswith("a") else 0.1) for text, chance in texts.items()}
    for every in (1, 16):
        method = f"awrs:particles=16,score_every={every}"
        found = several(lm, greedy_checker(texts), method, 60, max_tokens=6, scorer=FunctionScorer(favour))
        estimates = np.exp([result.facts["log_ml"] for result in found])
        assert abs(estimates.mean() - sum(reward.values())) < 3 * estimates.std() / math.sqrt(60)


def test_checks_are_counted_one_by_one_and_capped():
    asked = []

    def prefix(data):
        asked.append(data)
        return data.isdigit() and len(data) < 5

    number = Predicate(lambda data: len(data) == 4, prefix)
    result = tiny_lm().generate("Say", constraint=number, method="awrs", temperature=1.0)
    ends = result.ledger.checks - len(set(asked))
    assert len(set(asked)) <= result.ledger.checks
    assert ends >= 0
    capped = tiny_lm().generate(
        "Say", constraint=number, method="awrs", temperature=1.0, budget=outlay.Budget(checks=result.ledger.checks // 2)
    )
    assert capped.finish_reason == "budget"
    assert capped.cap == "checks"
    assert capped.ledger.checks <= result.ledger.checks // 2


@pytest.mark.parametrize("variant", ["auto", "two_loop", "geometric"])
def test_the_same_seed_gives_the_same_text_alone_and_beside_others(variant):
    lm = tiny_lm()
    date = Regex("[0-9]{2}-[0-9]{2}")
    given = {"constraint": date, "method": f"awrs:variant={variant}", "temperature": 1.0}
    with lm.engine.together():
        handles = [lm.submit("Say", seed=seed, **given) for seed in range(3)]
    together = [handle.result() for handle in handles]
    for seed, result in enumerate(together):
        alone = tiny_lm().generate("Say", seed=seed, **given)
        assert alone.tokens == result.tokens
        exactly = 0 if kernels.available() else 1e-6  # torch's sums depend on how many rows a pass has
        assert alone.facts["log_ml"] == pytest.approx(result.facts["log_ml"], rel=exactly, abs=0)
        assert re.fullmatch(r"\d\d-\d\d", result.text)


def test_the_mode_is_the_text_with_the_highest_weight_and_nothing_valid_is_said():
    lm, texts = language()
    result = several(lm, greedy_checker(texts), "awrs:particles=32,select=mode", 1, max_tokens=6)[0]
    assert result.text == result.alternatives[0].text
    assert sum(each.score for each in result.alternatives) == pytest.approx(1)
    none = several(lm, Predicate(lambda data: False), "awrs", 1, max_tokens=3)[0]
    assert none.finish_reason == "no_valid_output"
    assert none.facts["valid"] is False
    assert none.facts["log_ml"] == -math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("max_accepts=1", "max_accepts of 2 or more"),
        ("particles=0", "particles of 1 or more"),
        ("ess=1.5", "from 0 to 1"),
        ("variant=three", "variant.*must be 'auto'"),
        ("max_rejects=1", "2 or more, or 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        tiny_lm().generate("x", method=f"awrs:{options}", constraint=Choice("a"), temperature=1.0)


def test_it_needs_a_constraint_a_temperature_and_no_stop_string():
    for given, message in (
        ({"temperature": 1.0}, "needs a constraint"),
        ({"constraint": Choice("a")}, "temperature above 0"),
        ({"constraint": Choice("a"), "temperature": 1.0, "stop": "b"}, "leave out the stop"),
    ):
        with pytest.raises(UsageError, match=message):
            tiny_lm().generate("x", method="awrs", **given)


@pytest.mark.slow
def test_a_date_takes_a_hundredth_of_the_checks_of_masks_and_a_fiftieth_of_their_time(default_lm):
    spent = [0.0, 0]  # seconds and calls
    whole, partial = re.compile(rb"\d{4}-\d{2}-\d{2}"), b"0000-00-00"

    def prefix(data):
        begun = time.perf_counter()
        spent[1] += 1
        try:
            return len(data) <= 10 and bool(whole.fullmatch(data + partial[len(data) :]))
        finally:
            spent[0] += time.perf_counter() - begun

    date = Predicate(lambda data: bool(whole.fullmatch(data)), prefix)
    prompt = "When did the war end? Answer with a date, as in 2024-12-31."
    found = default_lm.generate(prompt, constraint=date, method="awrs", temperature=1.0, max_tokens=24)
    ours, checks, tokens = spent[0], found.ledger.checks, len(found.tokens)  # the checks of all particles
    spent[:] = 0.0, 0
    masked = default_lm.generate(prompt, constraint=date, method="sample", temperature=1.0, max_tokens=24)
    a_token = checks / tokens
    print(f"awrs: {found.text} {checks} checks, {a_token:.1f} a token, {ours:.4f} s; masks: {masked.text} "
          f"{spent[1]} checks, {spent[0]:.3f} s for {len(masked.tokens)} tokens")  # fmt: skip
    assert found.facts["valid"]
    assert a_token <= spent[1] / len(masked.tokens) / 100
    assert ours / tokens <= spent[0] / len(masked.tokens) / 50
