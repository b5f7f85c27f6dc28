"""MEC-B: the bounds of its theorems, the distribution of a player's actions, and texts that carry messages."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from papers.distributions import FALSE_ALARM, exact_probs, markov_lm, p_value

from outlay import LM, FailureError, UsageError, cli
from outlay.coupling import (
    bottleneck,
    distribution,
    ebim,
    entropy,
    information,
    meet,
    min_entropy,
    uniform_quantizer,
)
from outlay.coupling.bottleneck import _deterministic, _lowered, _raised
from outlay.coupling.markov_game import grid, play, rate_of, read_process, soft_policy
from outlay.decode.steer.mecb import ALONE, MECB, columns_of
from outlay.engine.engine import Engine
from outlay.engine.sampling import Sampling
from outlay.reveal import reveal
from outlay.testing import tiny_lm, tiny_model


def drawn(random, most=40):
    """A distribution of 2 to `most` outcomes, flat or peaked, some of probability 0."""
    p = random.dirichlet(np.full(random.integers(2, most), random.choice([0.1, 0.5, 1, 5])))
    p[random.random(len(p)) < 0.1] = 0
    return p / p.sum() if p.sum() > 0 else drawn(random, most)


def binary(p):
    return entropy(np.array([p, 1 - p]))


def partitions(size):
    """Yields each partition of a set as the cluster of each element."""
    if size == 1:
        yield [0]
        return
    for rest in partitions(size - 1):
        for cluster in range(max(rest) + 2):
            yield [*rest, cluster]


def merged_step_by_step(p, rate):
    """The paper's Algorithm 1 as it is written: the clusters of the outcomes, as sets."""
    clusters = sorted(((p[i], [i]) for i in np.flatnonzero(p)), key=lambda each: -each[0])

    def merge(one, other):
        rest = [each for place, each in enumerate(clusters) if place not in (one, other)]
        return [*rest, (clusters[one][0] + clusters[other][0], clusters[one][1] + clusters[other][1])]

    def bits(found):
        return entropy(np.array([mass for mass, _ in found]))

    while bits(clusters) > rate:
        clusters.sort(key=lambda each: -each[0])
        last = len(clusters) - 1
        if bits(small := merge(last - 1, last)) <= rate:
            clusters = small
            break
        clusters = merge(0, 1)
    return {frozenset(map(int, members)) for _, members in clusters}


def test_the_fast_code_is_that_of_the_algorithm_and_keeps_its_bounds():
    """Theorem 2: R - H(T) <= h(p_2), on 10,000 distributions; the algorithm itself is run on 300."""
    random = np.random.default_rng(0)
    for number in range(10_000):
        p = drawn(random)
        rate = random.random() * entropy(p)
        code = ebim(p, rate)
        assert code.entropy <= rate + 1e-9
        assert rate - code.entropy <= binary(np.sort(p)[-2]) + 1e-9
        if number < 300:
            members = {}
            for outcome in np.flatnonzero(p):
                members.setdefault(code.columns[outcome], set()).add(int(outcome))
            assert {frozenset(each) for each in members.values()} == merged_step_by_step(p, rate)
            assert code.information == pytest.approx(information(code.joint(p)), abs=1e-9)


def test_all_of_the_rate_is_used_only_where_a_partition_has_it():
    """Theorem 1, by all partitions of 6 outcomes: no deterministic code tells more than the best of them."""
    random = np.random.default_rng(1)
    for _ in range(20):
        p = random.dirichlet(np.ones(6))
        known = sorted(entropy(np.bincount(each, p)) for each in map(np.array, partitions(6)))
        rate = known[len(known) // 2]
        best = max(bits for bits in known if bits <= rate)
        assert best == pytest.approx(rate)
        assert ebim(p, rate).information <= best + 1e-9


@pytest.mark.parametrize(("rate", "bits"), [(0.3, 0.2003), (0.6, 0.5105), (0.8, 0.7528), (1.0, 0.9214)])
def test_a_split_outcome_reaches_the_optimum(rate, bits):
    """The specification's optima of (.7, .2, .1), found by numerical optimisation, over all partitions."""
    p = np.array([0.7, 0.2, 0.1])
    found = [ebim(p, rate, refine=True, every=True)]
    for clusters in partitions(3):
        code = _deterministic(p, np.arange(3), np.array(clusters))
        found += (_raised if code.entropy <= rate else _lowered)(p, code, rate, True)
    assert all(each.entropy <= rate + 1e-9 for each in found)
    assert max(each.information for each in found) == pytest.approx(bits, abs=5e-5)
    assert ebim(p, rate, refine=True).information == pytest.approx(bits, abs=5e-5)


def test_a_refined_code_is_never_worse_and_keeps_its_marginals():
    random = np.random.default_rng(2)
    better = 0
    for _ in range(500):
        p = drawn(random, 12)
        rate = random.random() * entropy(p)
        plain, code = ebim(p, rate), ebim(p, rate, refine=True)
        joint = code.joint(p)
        assert code.entropy <= rate + 1e-9
        assert code.information == pytest.approx(information(joint), abs=1e-9)
        assert code.information >= plain.information
        assert np.allclose(joint.sum(1), p, rtol=0, atol=1e-12)
        assert np.allclose(joint.sum(0), code.masses, rtol=0, atol=1e-12)
        better += code.information > plain.information + 1e-6
    assert better > 400


def test_the_greedy_coupling_is_within_its_bounds():
    """Between the majorisation meet's entropy and 0.53 bits above it, with at most n + k - 1 cells."""
    random = np.random.default_rng(3)
    for _ in range(1000):
        p, q = drawn(random), drawn(random)
        found = min_entropy(p, q)
        joint = found.dense()
        assert np.allclose(joint.sum(1), p, rtol=0, atol=1e-11)
        assert np.allclose(joint.sum(0), q, rtol=0, atol=1e-11)
        assert len(found.masses) <= np.count_nonzero(p) + np.count_nonzero(q) - 1
        assert found.entropy >= max(entropy(p), entropy(q)) - 1e-9
        assert found.lower_bound == pytest.approx(entropy(meet(p, q)), abs=1e-9)
        assert found.lower_bound - 1e-9 <= found.entropy <= found.lower_bound + math.log2(math.e) / math.e


@pytest.mark.parametrize("refine", [False, True])
def test_the_chain_has_both_marginals_and_tells_at_most_the_rate(refine):
    random = np.random.default_rng(4)
    for _ in range(300):
        p, q = drawn(random, 20), drawn(random, 20)
        rate = random.random() * 1.2 * entropy(p)
        found = bottleneck(p, q, rate, lambda p, rate: ebim(p, rate, refine=refine))
        joint = found.joint()
        assert np.allclose(joint.sum(1), p, rtol=0, atol=1e-11)
        assert np.allclose(joint.sum(0), q, rtol=0, atol=1e-11)
        assert found.information <= min(rate, entropy(p), entropy(q)) + 1e-9
        told = found.encoder.information
        through = found.encoder.entropy + entropy(q) - found.coupling.entropy
        assert found.information >= told + through - found.encoder.entropy - 1e-9  # I(X;T) + I(T;Y) - H(T)
        y = int(random.choice(len(q), p=q))
        assert np.allclose(found.posterior(y), joint[:, y] / joint[:, y].sum(), atol=1e-9)


def test_without_a_bottleneck_it_is_the_greedy_coupling_and_at_rate_0_nothing_is_told():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.25, 0.15])
    assert np.allclose(bottleneck(p, q, 9.0).joint(), min_entropy(p, q).dense())
    assert np.allclose(bottleneck(p, q, 0.0).joint(), np.outer(p, q))


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_greedy_codes_tell_more_than_uniform_ones(share):
    """The acceptance experiment: at least 1.5 times, on a truncated geometric source."""
    p = 0.85 ** np.arange(40)
    p /= p.sum()
    rate = share * entropy(p)
    assert ebim(p, rate).information >= 1.5 * uniform_quantizer(p, rate).information


def test_a_million_outcomes_are_coded():
    p = np.random.default_rng(5).dirichlet(np.ones(1_000_000))
    assert ebim(p, 8.0).entropy <= 8.0


# The Markov coding game


def played(episodes, rate, quantizer=None, log_beta=-5):
    process, prior = grid(), np.full(64, 1 / 64)
    policy = soft_policy(process, math.exp(log_beta))
    games = []
    for number in range(episodes):
        random = np.random.default_rng(number)
        message = int(random.integers(64))
        bits = 0.0 if rate is None else rate_of(rate, prior)
        game = play(process, policy, None if rate is None else message, prior, bits, random, quantizer)
        games.append((game.hit, game.belief[message], game.reward, (game.belief**2).sum()))
    return np.mean(games, 0), np.std(games, 0) / math.sqrt(episodes)


def test_greedy_codes_tell_messages_that_uniform_ones_do_not_at_an_equal_return():
    """The acceptance experiment: 400 games at beta = e^-5, a quarter of the messages' entropy."""
    (right, belief, reward, calibrated), errors = played(400, 0.25)
    uniform, uniform_errors = played(400, 0.25, uniform_quantizer)
    usual, usual_errors = played(400, None)
    assert right >= 1.5 * uniform[0]
    assert belief == pytest.approx(calibrated, abs=3 * (errors[1] + errors[3]))
    for other, error in ((uniform, uniform_errors), (usual, usual_errors)):
        assert reward == pytest.approx(other[2], abs=max(0.1 * abs(other[2]), 3 * (errors[2] + error[2])))


def test_actions_averaged_over_messages_are_the_policys():
    process = grid()
    policy = soft_policy(process, math.exp(-4.5))
    random = np.random.default_rng(6)
    for state in range(64):
        belief = random.dirichlet(np.full(64, 0.2))
        joint = bottleneck(belief, policy[state], 1.5).joint()
        assert np.allclose(joint.sum(0), policy[state], rtol=0, atol=1e-11)


def test_a_message_is_told_by_the_end_of_long_games():
    (right, belief, *_), _ = played(60, 1.0, log_beta=-4)
    assert right == 1.0
    assert belief > 0.99


def test_games_that_cannot_be_played_are_refused(tmp_path, capsys):
    process, prior = grid(), np.full(4, 0.25)
    with pytest.raises(UsageError, match="message 4 is not among those of the prior, 0 to 3"):
        play(process, soft_policy(process, 1.0), 4, prior, 1.0, np.random.default_rng(0))
    np.savez(tmp_path / "half.npz", transitions=process.transitions, rewards=process.rewards)
    for words, message in [
        (["--env", str(tmp_path / "half.npz")], "lacks terminal, start"),
        (["--env", str(tmp_path / "none.npz")], "can't be read"),
        (["--message", "64"], "below the number of messages, 64, not 64"),
    ]:
        assert cli.main(["mcg", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_users_process_is_played(tmp_path, capsys):
    process = grid()
    held = {name: getattr(process, name) for name in ("transitions", "rewards", "terminal", "start", "gamma")}
    np.savez(tmp_path / "mine.npz", **held)
    assert np.array_equal(read_process(tmp_path / "mine.npz").transitions, process.transitions)
    words = ["mcg", "--episodes", "20", "--rate", "1", "--beta-log", "-4", "--json"]
    assert cli.main([*words, "--env", str(tmp_path / "mine.npz")]) == 0
    own = json.loads(capsys.readouterr().out)
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out) == own
    assert own["right"] > 0.9


def test_the_command_couples_two_files(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[0.7, 0.2, 0.1]")
    np.save(tmp_path / "y.npy", np.array([0.5, 0.5]))
    words = ["couple", "--px", str(tmp_path / "x.json"), "--py", str(tmp_path / "y.npy")]
    assert cli.main([*words, "--rate", "1", "--refine", "--json", "--out", str(tmp_path / "joint.npz")]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["I(X;T)"] == pytest.approx(0.9214, abs=1e-4)
    assert row["H(T)"] == pytest.approx(1.0)
    with np.load(tmp_path / "joint.npz") as held:
        assert np.allclose(held["joint"].sum(1), [0.7, 0.2, 0.1])
    for text, message in [("[0.7, 0.2]", "must sum to 1, not 0.9"), ("[2, -1]", "0 or more"), ("{}", "a list of")]:
        (tmp_path / "x.json").write_text(text)
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="at least one outcome"):
        distribution([])


# Texts


def test_texts_are_distributed_as_the_models_own():
    """The first 3 tokens over keys and seeds, by chi-square; a right method fails 1 of 10,000 such tests."""
    lm = markov_lm(4, 3)
    for rate, bits in ((1.0, 4), (0.5, 2)):
        handles = [
            lm.submit([1], method=MECB("a", f"{seed}", rate, bits), seed=seed, max_tokens=3, ignore_eos=True,
                      temperature=0.9)
            for seed in range(1000)
        ]  # fmt: skip
        counts = Counter(tuple(handle.result().tokens) for handle in handles)
        assert p_value(counts, exact_probs(lm, 1, 3, Sampling(temperature=0.9))) > FALSE_ALARM


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.8, "presence_penalty": 0.5}])
def test_a_message_is_read_from_the_text_alone_and_in_company(options):
    lm = tiny_lm()
    options = {"temperature": 1.0} | options
    prompts = ["Once", "Then there were two", "At last"]
    method = MECB("hi Ω", "secret", 0.5)
    with lm.engine.together():
        handles = [
            lm.submit(prompt, method=method, seed=seed, max_tokens=80, ignore_eos=True, **options)
            for seed, prompt in enumerate(prompts)
        ]
    for prompt, handle in zip(prompts, handles, strict=True):
        result = handle.result()
        assert result.facts["message"] == {"bits": 40, "told": True}
        assert result.ledger.extras["message_bits"] == 48
        found = reveal(lm, prompt, result.tokens, MECB(None, "secret", 0.5), **options)
        assert (found.message, found.certain) == ("hi Ω", True)
        assert found.tokens < 80
        assert found.target_passes < found.tokens


def test_a_run_that_is_put_back_writes_the_same_text():
    lm, alone = LM(tiny_model(), Engine(cache_tokens=300)), tiny_lm()
    asked = {"method": MECB("some words", "k"), "temperature": 1.0, "max_tokens": 280, "ignore_eos": True}
    handles = [lm.submit(f"number {seed}", seed=seed, **asked) for seed in range(4)]
    results = [handle.result(60) for handle in handles]
    assert any(result.ledger.extras.get("restarts") for result in results)
    for seed, result in enumerate(results):
        one = alone.generate(f"number {seed}", seed=seed, **asked)
        assert (result.tokens, result.facts["message"]) == (one.tokens, {"bits": 80, "told": True})


def test_another_key_or_prompt_reads_no_message():
    lm = tiny_lm()
    tokens = lm.generate("Once", method=MECB("noon", "k"), temperature=1.0, max_tokens=60, ignore_eos=True).tokens
    assert reveal(lm, "Once", tokens, MECB(None, "k"), temperature=1.0).message == "noon"
    for prompt, key in (("Once", "j"), ("Twice", "k")):
        try:
            found = reveal(lm, prompt, tokens, MECB(None, key), temperature=1.0)
        except FailureError:
            continue
        assert found.message != "noon"


def test_a_token_that_is_never_drawn_is_told():
    lm = tiny_lm()
    text = lm.generate("Once", method=MECB("noon", "k"), temperature=1.0, top_k=3, max_tokens=8, ignore_eos=True)
    wrong = next(token for token in range(256) if token not in text.tokens)
    with pytest.raises(FailureError, match="is never drawn here"):
        reveal(lm, "Once", [*text.tokens[:4], wrong, wrong], MECB(None, "k"), temperature=1.0, top_k=2)


def test_a_text_that_is_too_short_tells_a_message_in_part():
    lm = tiny_lm()
    result = lm.generate("Once", method=MECB("a long message", "k"), temperature=1.0, max_tokens=6, ignore_eos=True)
    assert result.facts["message"]["told"] is False
    assert not reveal(lm, "Once", result.tokens, MECB(None, "k"), temperature=1.0).certain


def test_the_vocabulary_s_columns_keep_its_masses_and_draw_within_them():
    probs = np.random.default_rng(7).dirichlet(np.full(5000, 0.1))
    columns = columns_of(probs)
    masses = np.bincount(columns.of, probs)
    assert len(masses) <= 2 * ALONE
    assert masses.sum() == pytest.approx(1)
    assert np.array_equal(np.sort(masses[:ALONE])[::-1], np.sort(probs)[::-1][:ALONE])
    column = 2 * ALONE - 500
    tokens = np.flatnonzero(columns.of == column)
    assert {columns.draw(column, number) for number in np.linspace(0, 1, 500, endpoint=False)} <= set(tokens.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MECB(block_bits=3), "blocks of 1, 2, 4 or 8 bits, not 3"),
        (lambda: MECB(rate=0.0), "a rate above 0"),
        (lambda: MECB("x" * 256), "at most 255 bytes; the message has 256"),
        (lambda: tiny_lm().generate("Once", method=MECB("x"), max_tokens=2), "at temperature 0 there are none"),
        (lambda: ebim(np.array([0.5, 0.5]), -1.0), "0 or more, not -1"),
    ],
)
def test_bad_options_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
