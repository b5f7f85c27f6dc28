"""AdaDec (He et al. 2025): the properties of its specification, beside its algorithm written out on known chains."""

from __future__ import annotations

import gzip
import json
import math
import random

import numpy as np
import pytest
import torch

from outlay import LM, AdaDec, Budget
from outlay.decode.search.adadec import KIND, Lines, best_tokens, entropy
from outlay.engine.engine import Engine
from outlay.errors import FailureError, UsageError
from outlay.lm import load
from outlay.models import fitted
from outlay.testing import END, PROMPTS, markov_model, tiny_lm, tiny_model
from outlay.train.reference_code import Reference, functions, references
from outlay.train.threshold import (
    Steps,
    auc,
    balanced,
    fit_threshold,
    forced_steps,
    regression,
    split,
)

ALWAYS, NEVER = -math.inf, math.inf
LENGTH = 24


def silent(phase, done, total):
    pass


def written(lm, prompt, method, **options):
    return lm.generate(prompt, method=method, **{"max_tokens": LENGTH, "ignore_eos": True, "chat": False} | options)


def chain(seed, letters=12, end=0.0):
    """A table of transitions among the first tokens, of which some are nearly certain and some nearly uniform.

    `end` is the probability of the end token, on top of that, behind every third token.
    """
    draw = torch.Generator().manual_seed(seed)
    table = torch.zeros(257, 257, dtype=torch.float64)
    sharpness = torch.rand(letters, 1, generator=draw, dtype=torch.float64) * 5
    table[:letters, :letters] = (
        sharpness * torch.randn(letters, letters, generator=draw, dtype=torch.float64)
    ).softmax(1)
    table[:letters:3] *= 1 - end
    table[:letters:3, END] = end
    table[letters:, 0] = 1
    return table


def as_published(table, token, threshold, candidates=3, lookahead=5, length=LENGTH):
    """The algorithm as the paper has it: no cache, nothing reused, every branch to its end.

    Returns the tokens, and for each pause how many positions its branches read and how many passes that took.
    """
    logprobs = table.float().clamp_min(1e-30).log().log_softmax(-1)
    tokens, pauses = [], []
    while len(tokens) < length and token != END:
        row = logprobs[token]
        best = row.argsort(descending=True, stable=True)[:candidates].tolist()
        if float(-(row.exp() * row).sum()) < threshold:
            token = best[0]
        else:
            scores, lengths = [], []
            for candidate in best:
                last, total, count = candidate, float(row[candidate]), 0
                while count < lookahead and last != END:
                    total, last, count = total + float(logprobs[last].max()), int(logprobs[last].argmax()), count + 1
                scores.append(total / (count + 1))
                lengths.append(count)
            token = best[scores.index(max(scores))]
            pauses.append((sum(lengths), max(lengths)))
        tokens.append(token)
    return tokens, pauses


CHAINS = [(seed, end) for seed in range(6) for end in (0.0, 0.3)]


@pytest.mark.parametrize("threshold", [1.0, ALWAYS])
def test_the_text_is_what_the_papers_algorithm_writes_and_the_ledger_counts_its_pauses(threshold):
    spared = 0
    for seed, end in CHAINS:
        table = chain(seed, end=end)
        expected, pauses = as_published(table, 1, threshold)
        lm = LM(markov_model(table), Engine(prefix_cache=False))
        result = written(lm, [1], AdaDec(threshold, reuse=False), ignore_eos=False)
        assert result.tokens == expected
        extras = result.ledger.extras
        assert extras.get("pauses", 0) == len(pauses)
        assert extras.get("lookahead_tokens", 0) <= sum(positions for positions, _ in pauses)
        assert result.ledger.target_passes <= len(expected) + sum(passes for _, passes in pauses)
        assert result.ledger.target_tokens == len(expected) + extras.get("lookahead_tokens", 0)
        spared += sum(positions for positions, _ in pauses) - extras.get("lookahead_tokens", 0)
        if not end:  # then branches end together, and none can be left alone
            assert extras.get("lookahead_tokens", 0) == 15 * len(pauses)
            assert result.ledger.target_passes == LENGTH + 5 * len(pauses)
        reused = written(lm, [1], AdaDec(threshold), ignore_eos=False)
        assert reused.tokens == expected
        assert reused.ledger.target_passes <= result.ledger.target_passes
    assert spared > 0, "some branch could not win any more, and was left alone"


def test_without_a_pause_it_is_greedy_at_no_further_cost():
    lm = tiny_lm(prefix_cache=False)
    for prompt in PROMPTS:
        greedy, ours = written(lm, prompt, "greedy"), written(lm, prompt, AdaDec(NEVER))
        assert ours.tokens == greedy.tokens
        assert ours.ledger.target_passes == greedy.ledger.target_passes
        assert ours.ledger.target_tokens == greedy.ledger.target_tokens


@pytest.mark.parametrize("method", [AdaDec(4.0, lookahead=0), AdaDec(ALWAYS, lookahead=0), AdaDec(4.0, candidates=1)])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4, "logit_bias": {40: 3.0}}])
def test_without_lookahead_or_alternatives_it_is_greedy_at_any_threshold(method, options):
    lm = tiny_lm()
    for prompt in PROMPTS[:3]:
        assert written(lm, prompt, method, **options).tokens == written(lm, prompt, "greedy", **options).tokens


@pytest.mark.parametrize("threshold", [3.0, 4.0])
def test_reusing_the_lookahead_changes_no_text(threshold):
    lm, spared = tiny_lm(prefix_cache=False), 0
    for prompt in PROMPTS[:3]:
        plain, reused = (written(lm, prompt, AdaDec(threshold, reuse=reuse)) for reuse in (False, True))
        assert reused.tokens == plain.tokens
        assert reused.ledger.extras["pauses"] == plain.ledger.extras["pauses"]
        assert reused.ledger.target_passes <= plain.ledger.target_passes
        spared += plain.ledger.target_passes - reused.ledger.target_passes
    assert spared > 0


def test_the_candidate_that_is_taken_has_the_highest_score_of_each_pause():
    events = []
    result = written(tiny_lm(), PROMPTS[1], AdaDec(4.0), trace=events.append)
    marks = [event for event in events if event["event"] == "mark"]
    scores, pauses, changed = [], 0, 0
    for mark in marks:
        if "score" in mark:
            assert mark["entropy"] >= 4.0
            scores.append((mark["node"], mark["score"]))
        elif "chosen" in mark:
            taken = dict(scores)[mark["node"]]
            assert len(scores) == 3
            assert taken == max(score for _, score in scores)
            changed += taken > scores[0][1]  # the first one is greedy's
            scores, pauses = [], pauses + 1
    assert pauses == result.ledger.extras["pauses"]
    assert changed > 0


def test_a_second_candidate_with_a_certain_continuation_beats_the_first_with_a_flat_one():
    """0.55 and then 0.1 each, against 0.45 and then 1.0."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    table[0, 1], table[0, 2] = 0.55, 0.45
    table[1, 10:20], table[2, 3], table[3:, 3] = 0.1, 1.0, 1.0
    lm = LM(markov_model(table), Engine())
    assert written(lm, [0], "greedy", max_tokens=1).tokens == [1]
    assert written(lm, [0], AdaDec(0.5, lookahead=1), max_tokens=2).tokens == [2, 3]
    assert written(lm, [0], AdaDec(0.7), max_tokens=1).tokens == [1], "the step's entropy is 0.688 nats"


def test_a_branch_that_ends_keeps_its_sum_and_its_length():
    """Normalised by its own length the end token wins; divided by 6, or with more tokens behind it, it would not."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    table[0, 1], table[0, 2] = 0.52, 0.48
    table[2, END], table[2, 5] = 0.9, 0.1  # mean of the branch: (ln 0.48 + ln 0.9) / 2 = -0.42
    table[1, 3], table[1, 4] = 0.6, 0.4
    table[3, 3], table[3, 4] = 0.6, 0.4  # mean: (ln 0.52 + 5 ln 0.6) / 6 = -0.53
    table[4:, 3] = 1
    lm = LM(markov_model(table), Engine())
    assert written(lm, [0], AdaDec(0.5), ignore_eos=False).tokens == [2, END]
    assert written(lm, [0], AdaDec(0.5, lookahead=0), ignore_eos=False, max_tokens=1).tokens == [1]


def test_a_branch_ends_with_a_stop_string_and_the_text_with_it():
    """ln 0.45; further on it would be (ln 0.45 + 5 ln 0.05) / 6, less than (ln 0.55 + 5 ln 0.1) / 6 of the other."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    a, b, c = (ord(letter) - 33 for letter in "abc")
    table[a, b], table[a, c] = 0.55, 0.45
    table[b, 10:20] = table[10:20, 10:20] = 0.1
    table[c, 20:40] = table[20:40, 20:40] = 0.05
    lm = LM(markov_model(table), Engine())
    assert written(lm, [a], AdaDec(0.5), max_tokens=3).text.startswith("b")
    stopped = written(lm, [a], AdaDec(0.5), max_tokens=3, stop="c")
    assert (stopped.tokens, stopped.text, stopped.finish_reason) == ([c], "", "stop")


def test_a_shorter_text_is_the_beginning_of_a_longer_one():
    lm = tiny_lm()
    whole = written(lm, PROMPTS[0], AdaDec(4.0), max_tokens=20).tokens
    for length in (1, 3, 8, 19):
        assert written(lm, PROMPTS[0], AdaDec(4.0), max_tokens=length).tokens == whole[:length]


def test_it_writes_up_to_the_end_of_the_context():
    lm = tiny_lm(context=24)
    result = written(lm, list(range(10)), AdaDec(ALWAYS), max_tokens=50)
    assert (len(result.tokens), result.finish_reason) == (14, "length")


@pytest.mark.parametrize(
    ("budget", "pauses"), [({"pauses": 3}, 3), ({"lookahead_tokens": 40}, 2), ({"target_passes": 31}, 4)]
)
def test_a_budget_that_pays_for_no_further_pause_leaves_greedy_decoding(budget, pauses):
    """31 passes are 5 for each of 5 pauses and one more for each token: the fifth pause would need 5 of the last."""
    table = chain(0)
    table[:12, :12] = 1 / 12 + 0.001 * torch.eye(12, dtype=torch.float64)
    lm = LM(markov_model(table / table.sum(1, keepdim=True)), Engine())
    result = written(lm, [1], AdaDec(0.1, reuse=False), budget=Budget(**budget))
    assert result.ledger.extras["pauses"] >= pauses
    for name, cap in budget.items():
        assert result.ledger.amount(name) <= cap
    if "target_passes" not in budget:
        assert result.ledger.extras["pauses"] == pauses
        assert (len(result.tokens), result.finish_reason) == (LENGTH, "length")


def test_lookahead_of_dynamic_length_ends_with_the_line():
    """The candidate behind which a line ends is scored up to there."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    tokenizer = markov_model(torch.eye(257)).tokenizer
    [newline] = tokenizer.encode("\n")
    table[0, 1], table[0, 2] = 0.52, 0.48
    table[2, newline], table[2, 5] = 0.9, 0.1
    table[newline, 10:20] = 0.1
    table[1, 3], table[1, 4], table[3, 3], table[3, 4] = 0.6, 0.4, 0.6, 0.4
    table[10:20, 10:20] = 0.1
    lm = LM(markov_model(table), Engine())
    assert written(lm, [0], AdaDec(0.5, lookahead=10), max_tokens=1).tokens == [1]
    assert written(lm, [0], AdaDec(0.5, lookahead=10, line=True), max_tokens=1).tokens == [2]


def over(text):
    """Whether a body is over, in the words of the official evaluation: a line that isn't indented, four blank lines."""
    lines = text.split("\n")
    dedented = any(line.strip() and not line.startswith((" ", "\t")) for line in lines)
    return dedented or (len(lines) >= 4 and all(not line.strip() for line in lines[-4:]))


def test_the_end_of_a_body_is_found_byte_by_byte():
    draw, ended = random.Random(0), 0
    for _ in range(3000):
        text = "".join(
            draw.choice(["\n", "\n", " ", "    ", "\tx", "x", "é", "\r\n"]) for _ in range(draw.randrange(12))
        )
        lines, known = Lines(), False
        for end in range(len(text)):
            lines = lines.read(text[end].encode())
            known = known or over(text[: end + 1])
        assert lines.over == known, repr(text)
        ended += known
    assert 300 < ended < 2700


def test_a_body_ends_before_the_line_that_is_not_in_it():
    """Behind a newline greedy decoding leaves the body; looking ahead finds that staying in it is more probable."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    newline, space, a, b = (tiny_model().tokenizer.encode(letter)[0] for letter in "\n ab")
    table[newline, b], table[newline, space] = 0.55, 0.45
    table[space, a] = table[a, newline] = 1
    table[b, 10:20] = table[10:20, 10:20] = 0.1
    lm = LM(markov_model(table), Engine())
    assert written(lm, [a], "greedy", max_tokens=2).text == "\nb"
    left = written(lm, [a], AdaDec(NEVER, body=True))
    assert (left.text, left.finish_reason) == ("\n", "stop")
    assert written(lm, [a], AdaDec(0.5, body=True), max_tokens=7).text == "\n a\n a\n"


def test_a_branch_that_leaves_the_body_is_scored_up_to_there():
    """ln 0.55; further on it would be (ln 0.55 + 5 ln 0.05) / 6, less than (ln 0.45 + 5 ln 0.1) / 6 in the body."""
    table = torch.zeros(257, 257, dtype=torch.float64)
    newline, space, a, b = (tiny_model().tokenizer.encode(letter)[0] for letter in "\n ab")
    table[a, newline], table[newline, b], table[newline, space] = 1, 0.55, 0.45
    table[b, 100:120] = table[100:120, 100:120] = 0.05
    table[space, 40:50] = table[40:50, 40:50] = 0.1
    lm = LM(markov_model(table), Engine())
    assert written(lm, [a], AdaDec(0.5), max_tokens=2).tokens == [newline, space]
    assert written(lm, [a], AdaDec(0.5, body=True), max_tokens=2).tokens == [newline]


def test_the_rest_of_the_prompts_last_line_is_no_line_of_its_own():
    table = torch.zeros(257, 257, dtype=torch.float64)
    x, newline = (tiny_model().tokenizer.encode(letter)[0] for letter in "x\n")
    table[:, x], table[x, x] = 1, 1
    lm = LM(markov_model(table), Engine())
    assert written(lm, [x], AdaDec(NEVER, body=True), max_tokens=3).text == "xxx"
    assert written(lm, [newline], AdaDec(NEVER, body=True), max_tokens=3).text == ""


def test_the_entropy_of_a_uniform_distribution_is_ln_v_and_of_a_certain_one_0():
    assert float(entropy(torch.zeros(1, 50))) == pytest.approx(math.log(50), abs=1e-6)
    certain = torch.full((1, 50), -torch.inf)
    certain[0, 3] = 2.0
    assert float(entropy(certain)) == 0
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(entropy(logits), entropy(logits + 7.5), atol=1e-5)
    assert float(entropy(torch.tensor([[0.0, 0.0]]))) == pytest.approx(0.693147, abs=1e-6), "nats, not bits"


def test_of_equal_tokens_the_lowest_ids_come_first_and_forbidden_ones_never():
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, -torch.inf, 3.0])
    assert best_tokens(logits, 2)[0] == (1, 3)
    assert best_tokens(logits, 5)[0] == (1, 3, 6, 2, 4)
    assert best_tokens(logits, 1)[0] == (1,)
    tokens, logprobs = best_tokens(torch.tensor([0.0, -torch.inf, 0.0]), 3)
    assert tokens == (0, 2)
    assert logprobs == pytest.approx([math.log(0.5)] * 2)
    assert best_tokens(torch.full((4,), -torch.inf), 3) == ((), ())


def test_logits_that_are_no_numbers_are_an_error():
    table = chain(0)
    table[1, 0] = math.nan
    with pytest.raises(FailureError, match="no numbers"):
        written(LM(markov_model(table), Engine()), [1], AdaDec(1.0))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("adadec:threshold=nan", "threshold in nats"),
        ("adadec:threshold=1,candidates=0", "candidates of 1 or more, not 0"),
        ("adadec:threshold=1,lookahead=-1", "lookahead of 0 or more, not -1"),
        ("adadec", "there is no entropy threshold for tiny-0; `outlay train threshold --model tiny-0` trains one"),
        ("adadec:threshold=gone.json", "there is no file gone.json"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(method, message, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=message) as caught:
        written(tiny_lm(), "x", method)
    assert "\n" not in str(caught.value)


def test_it_draws_no_tokens():
    with pytest.raises(UsageError, match="leave temperature at 0"):
        written(tiny_lm(), "x", AdaDec(1.0), temperature=0.5)


def test_a_threshold_is_read_from_its_file_and_refused_for_another_model(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    lm, path = tiny_lm(), tmp_path / "tau"
    fitted.write(path, KIND, lm.model, {}, threshold=4.0)
    assert json.loads(path.read_text())["fingerprint"] == lm.model.fingerprint
    expected = written(lm, "x", AdaDec(4.0))
    assert written(lm, "x", f"adadec:threshold={path}").ledger.extras == expected.ledger.extras
    with pytest.raises(UsageError, match="was trained for tiny-0"):
        written(tiny_lm(1), "x", AdaDec(str(path)))
    fitted.write(fitted.own_path(KIND, lm.model), KIND, lm.model, {}, threshold=4.0)
    assert written(lm, "x", "adadec").tokens == expected.tokens
    for damage in ('{"kind": ', '{"a": 1}', "[1]", ""):
        path.write_text(damage)
        with pytest.raises(UsageError, match="tau"):
            written(lm, "x", AdaDec(str(path)))
    fitted.write(path, KIND, lm.model, {}, threshold="high")
    with pytest.raises(UsageError, match="is damaged"):
        written(lm, "x", AdaDec(str(path)))


# The threshold.


def known_steps(count, weight=-2.5, bias=3.0, seed=0):
    """Steps whose rightness follows a logistic law of their entropy."""
    draw = np.random.default_rng(seed)
    entropies = draw.exponential(1.0, count)
    return Steps(entropies, draw.random(count) < 1 / (1 + np.exp(-(weight * entropies + bias))))


def test_the_regression_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    for seed in range(5):
        entropies, right = known_steps(400, seed=seed)
        theirs = linear_model.LogisticRegression(tol=1e-10).fit(entropies[:, None], right)
        ours = regression(entropies, right)
        assert ours.weight == pytest.approx(float(theirs.coef_[0, 0]), abs=1e-4)
        assert ours.bias == pytest.approx(float(theirs.intercept_[0]), abs=1e-4)


def test_the_split_is_scikit_learns():
    selection = pytest.importorskip("sklearn.model_selection")
    for count in (10, 101):
        train, held = selection.train_test_split(np.arange(count), test_size=0.2, random_state=42)
        assert [part.tolist() for part in split(count)] == [train.tolist(), held.tolist()]


def test_as_many_right_steps_as_wrong_ones_are_learned_from_and_none_that_is_held_out():
    right = np.random.default_rng(0).random(1000) < 0.8
    train, held = split(1000)
    chosen = balanced(right, train)
    assert len(set(chosen.tolist())) == len(chosen) == 2 * (~right[train]).sum()
    assert right[chosen].mean() == 0.5
    assert not set(chosen.tolist()) & set(held.tolist())


def test_a_known_law_is_found_again_within_2_percent():
    """Of balanced classes the law keeps its weight, and its bias falls by the log of the ratio of the classes."""
    steps = known_steps(200_000)
    found = fit_threshold(steps, cut=0.5)
    ratio = steps.right.mean() / (1 - steps.right.mean())
    assert found.threshold == pytest.approx((3.0 - math.log(ratio)) / 2.5, rel=0.02)
    assert found.weight == pytest.approx(-2.5, rel=0.02)
    best = fit_threshold(steps)
    told = np.maximum(
        *(np.where(side, p, 1 - p) for p in [1 / (1 + np.exp(2.5 * steps.entropies - 3))] for side in (True, False))
    )
    assert best.accuracy == pytest.approx(float(told.mean()), abs=0.005), "as often as anyone could tell"
    assert best.cut < 0.5, "there are more right steps than wrong ones"
    assert best.accuracy > best.majority


def test_a_pause_rate_can_be_asked_for():
    found = fit_threshold(known_steps(5000), pause_rate=0.06)
    assert found.pause_rate == pytest.approx(0.06, abs=0.001)


def test_the_order_of_the_steps_does_not_matter_to_the_regression():
    entropies, right = known_steps(500)
    order = np.random.default_rng(1).permutation(500)
    assert regression(entropies[order], right[order]) == pytest.approx(regression(entropies, right))


def test_what_entropy_tells_without_an_error_is_cut_in_the_gap_of_the_held_out_steps():
    draw = np.random.default_rng(0)
    entropies = np.concatenate([draw.uniform(0, 1, 700), draw.uniform(2, 3, 300)])
    found, held = fit_threshold(Steps(entropies, entropies < 1.5)), entropies[split(1000)[1]]
    assert held[held < 1.5].max() < found.threshold <= held[held > 1.5].min()
    assert (found.accuracy, found.auc) == (1, 1)


@pytest.mark.parametrize(
    ("entropies", "right", "message"),
    [
        (np.linspace(0, 3, 50), np.ones(50, bool), "all of the model's 50 steps are right"),
        (np.linspace(0, 3, 50), np.zeros(50, bool), "all of the model's 50 steps are wrong"),
        (np.full(50, 1.0), np.arange(50) % 3 > 0, "does not tell its errors"),
        (np.linspace(0, 3, 50), np.linspace(0, 3, 50) > 1, "does not tell its errors"),
        (np.zeros(0), np.zeros(0, bool), "give more code"),
    ],
)
def test_where_there_is_nothing_to_learn_one_line_says_so(entropies, right, message):
    with pytest.raises(UsageError, match=message):
        fit_threshold(Steps(entropies, right))


def test_the_auc_counts_pairs_in_order_and_ties_as_half():
    assert auc(np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)


def test_teacher_forcing_sees_what_decoding_would_see():
    """The entropies are those of a chain's rows, and a step is right where the token is the row's best."""
    table = chain(3)
    lm = LM(markov_model(table), Engine())
    tokenizer = lm.model.tokenizer
    rows = table.float().clamp_min(1e-30).log().log_softmax(-1)
    pairs = [Reference(tokenizer.decode([1]), tokenizer.decode([2, 3, 4, 5, 6, 7] * 20)) for _ in range(3)]
    tokens = tokenizer.encode(pairs[0].solution)
    steps = forced_steps(lm, pairs, 10**6, 0, silent)
    before = [*tokenizer.encode(pairs[0].prompt), *tokens][: len(tokens)]
    expected = [-(rows[token].exp() * rows[token]).sum() for token in before]
    assert steps.entropies.tolist() == pytest.approx([float(nats) for nats in expected] * 3, abs=1e-4)
    best = [int(rows[token].argmax()) == then for token, then in zip(before, tokens, strict=True)]
    assert steps.right.tolist() == best * 3
    assert len(forced_steps(lm, pairs * 8, 10, 0, silent).right) < 24 * len(tokens), "no more than asked for"


# Reference code.

SOURCE = '''import os


@decorated
def one(x):
    """Says one."""
    y = x  # é
    return y


class Two:
    def method(self):
        """Says two.

        At length.
        """

        return """a
  b"""

    def empty(self):
        """Nothing behind it."""


def undocumented():
    return 3
'''


def test_functions_with_a_docstring_are_prompts_and_their_bodies_solutions():
    pairs = list(functions(SOURCE, "here"))
    assert pairs[0] == ('@decorated\ndef one(x):\n    """Says one."""\n', "    y = x  # é\n    return y\n")
    assert pairs[1].prompt == 'def method(self):\n    """Says two.\n\n    At length.\n    """\n'
    assert pairs[1].solution.startswith("\n    return")
    assert len(pairs) == 2


def test_rows_of_a_benchmark_are_read_and_may_be_compressed(tmp_path):
    rows = [{"prompt": "def f():\n", "canonical_solution": "    return 1\n"}, {"complete_prompt": "p", "answer": "a"}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.py").write_text(SOURCE)
    expected = [("def f():\n", "    return 1\n"), ("p", "a")]
    assert references([tmp_path / "a.jsonl"]) == references([tmp_path / "b.jsonl.gz"]) == expected
    assert len(references([tmp_path / "c.py", tmp_path / "a.jsonl"])) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n', 'line 1 of .* must be a JSON object with "prompt" and "canonical_solution"'),
        ("a.jsonl", b"{]\n", "line 1 of .* is not JSON"),
        ("a.jsonl", b"\xff\n", "is not UTF-8 text"),
        ("a.jsonl.gz", b"no gzip", "can't read"),
        ("a.py", b"def f(:\n", "is not Python"),
        ("a.py", b"x = 1\n", "no function with a docstring"),
        ("a.txt", b"x", "neither Python"),
    ],
)
def test_a_file_that_is_no_reference_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        references([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"can't read .*gone.py: No such file"):
        references([tmp_path / "gone.py"])


# The headline, small.


@pytest.mark.slow
def test_on_the_default_model_a_pause_costs_little_more_than_the_tokens_that_it_gives(code_prompts):
    """At most 1.6 times the calls of greedy decoding, and a quarter fewer than without reuse, for the same text."""
    lm = load(None, threads=1)
    passes, tokens, pauses = dict.fromkeys(("greedy", "plain", "reused"), 0), 0, 0
    methods = {"greedy": "greedy", "plain": AdaDec(1.7, reuse=False), "reused": AdaDec(1.7)}
    for prompt in code_prompts[:12]:
        results = {name: written(lm, prompt, method, max_tokens=64) for name, method in methods.items()}
        assert results["reused"].tokens == results["plain"].tokens
        for name, result in results.items():
            passes[name] += result.ledger.target_passes
        tokens, pauses = tokens + 64, pauses + results["plain"].ledger.extras.get("pauses", 0)
    assert passes["reused"] <= 1.6 * passes["greedy"]
    assert passes["reused"] <= 0.75 * passes["plain"]
    assert 0.1 < pauses / tokens < 0.3
