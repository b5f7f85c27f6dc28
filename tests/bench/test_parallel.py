"""ParallelBench: its closed forms, its samples and how they are judged, and what is derived from a grid."""

from __future__ import annotations

import itertools
from math import factorial, log2, prod

import numpy as np
import pytest
from diffuse.made import proposals

from outlay import UsageError
from outlay.bench.parallel import analytic, grid, puzzles, statistics, suite, theory, waiting_line, writing
from outlay.bench.parallel.analytic import AtLeast, Cell, TopK
from outlay.diffuse.exact.denoiser import IDS, ids
from outlay.diffuse.llada import LLaDA
from outlay.diffuse.threshold import Threshold
from outlay.problems import lists

ALL_TASKS = suite.tasks()


def outcomes(task, n):
    """All answers of a list of n items, each as probable."""
    if task == "shuffle":
        return list(itertools.permutations(range(n)))
    return [tuple(-1 if place == other else place for place in range(n)) for other in range(n)]


def entropy(texts):
    _, counts = np.unique(np.array(texts).reshape(len(texts), -1), axis=0, return_counts=True)
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


def enumerated_bound(texts, sizes):
    """The lower bound by enumeration: places are filled from left to right, as the texts are exchangeable."""
    total, begin = 0.0, 0
    for size in sizes:
        groups = {}
        for text in texts:
            groups.setdefault(text[:begin], []).append(text[begin : begin + size])
        for group in groups.values():
            correlation = sum(entropy([part[i : i + 1] for part in group]) for i in range(size)) - entropy(group)
            total += len(group) / len(texts) * correlation
        begin += size
    return total


def sums(n):
    return [parts for length in range(1, n + 1) for parts in itertools.product(range(1, n + 1), repeat=length)
            if sum(parts) == n]  # fmt: skip


@pytest.mark.parametrize("task", ["shuffle", "replace_random"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_bounds_are_those_of_an_enumeration(task, n):
    for sizes in sums(n):
        assert theory.lower_bound(task, n, sizes) == pytest.approx(enumerated_bound(outcomes(task, n), sizes), abs=1e-9)


def test_one_round_of_a_shuffle_or_a_replacement_costs_what_the_paper_says():
    for n in (3, 6, 50):
        assert theory.total_correlation("shuffle", n) == pytest.approx(n * log2(n) - log2(factorial(n)))
        assert theory.total_correlation("replace_random", n) == pytest.approx((n - 1) * (log2(n) - log2(n - 1)))
    assert theory.total_correlation("replace_random", 10**6) == pytest.approx(1.4427, abs=1e-4)
    assert theory.total_correlation("copy", 5) == 0
    pairs = log2(prod(range(2, 9, 2)) / prod(range(1, 8, 2)))
    assert theory.lower_bound("shuffle", 8, (2, 2, 2, 2)) == pytest.approx(pairs)


@pytest.mark.parametrize("task", ["shuffle", "replace_random"])
def test_the_best_bound_falls_with_the_rounds_down_to_0(task):
    bounds = [theory.best_lower_bound(task, 5, rounds) for rounds in range(1, 6)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(0, abs=1e-12)


def test_the_one_round_decoder_of_a_shuffle_is_as_far_from_the_data_as_the_bound():
    n = 4
    divergence = sum(log2(n**n / factorial(n)) for _ in outcomes("shuffle", n)) / factorial(n)
    assert divergence == pytest.approx(theory.total_correlation("shuffle", n))


def test_the_papers_own_figures():
    assert theory.accuracy("shuffle", 3, 3, sampled=True) == pytest.approx(2 / 9)
    assert theory.accuracy("replace_random", 3, 3, sampled=True) == pytest.approx(4 / 9)
    assert theory.accuracy("shuffle", 6, 2, sampled=False) == pytest.approx(15 / 48)
    assert [theory.accuracy("replace_random", 6, k, sampled=False) for k in (1, 2, 3, 6)] == [1, 0.5, 0, 0]
    assert theory.threshold_accuracy("replace_random", 5, 0.79) == 0
    assert theory.threshold_accuracy("replace_random", 5, 0.8) == theory.threshold_accuracy("shuffle", 5, 0.6) == 1


def test_closed_forms_hold_on_exact_denoisers():
    """2,000 lists each; a fixed seed, of which the command's own 20,000 are the full size."""
    rows = analytic.measured(2000, 0, lambda *told: None)
    assert len(rows) == 40
    assert all(row["z"] is not None and abs(row["z"]) < 3.5 for row in rows)
    assert len({row["expected"] for row in rows}) > 15


def test_the_rules_of_the_closed_forms_choose_what_the_engines_rules_choose():
    rng = np.random.default_rng(0)
    for _ in range(200):
        confidence, filled = rng.uniform(0.1, 1, 6), np.flatnonzero(rng.random(6) < 0.3)
        if len(filled) == 6:
            continue
        masked = ~np.isin(np.arange(6), filled)
        for rule, ours in ((TopK(2), LLaDA()), (AtLeast(0.6), Threshold(tau=0.6))):
            made = proposals(confidence, filled, quotas=[2])
            chosen = rule.select(confidence[None], masked[None], rng)[0]
            assert (chosen == (ours.select(made) & made.masked)).all()


def test_impossible_answers_are_found():
    items = ids("abc")
    new = IDS["#"]
    assert analytic.right("shuffle", items, np.array([ids("cab"), ids("aab")])).tolist() == [True, False]
    answers = np.array([[0, new, 2], [new, new, 2], [0, 1, 2], [1, new, 2]])
    assert analytic.right("replace_random", items, answers).tolist() == [True, False, False, False]


def test_a_rule_that_fills_places_by_the_token_drawn_is_told_apart():
    """Replacing one of six at temperature 1, two a round, the surest drawn tokens first: biased."""
    biased = Cell("replace_random", 6, TopK(2), sampled=True)
    answers, _ = analytic.decoded(biased, 4000, np.random.default_rng(1))
    found = analytic.right("replace_random", ids("abcdef"), answers).mean()
    assert abs(found - biased.expected) > 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_a_samples_own_answer_is_right_and_samples_are_those_of_the_seed(task):
    samples = task.draw(8, (3, 6), 1)
    assert all(sample.score(sample.answer, True) == sample.score(sample.answer, False) == 1 for sample in samples)
    assert all(sample.score("", False) == 0 for sample in samples)
    again = task.draw(8, (3, 6), 1)
    assert [(each.prompt, each.answer) for each in again] == [(each.prompt, each.answer) for each in samples]
    assert [each.prompt for each in task.draw(8, (3, 6), 2)] != [each.prompt for each in samples]


@pytest.mark.parametrize("task", lists.TASKS)
def test_the_list_unchanged_is_the_answer_to_copy_alone(task):
    for index in range(20):
        asked = lists.letters(index, 3, (task,))
        is_answer = asked.answer == asked.items
        assert asked.right(asked.items) == (task == "copy" or (task == "sort" and is_answer))
        assert asked.right(asked.answer)


def test_lists_of_people_are_read_whatever_their_quotes_unless_the_form_counts():
    assert waiting_line.names_of('So: ["no"] then [ \'Ada Bell\',"Bruno Kim" ].') == ["Ada Bell", "Bruno Kim"]
    assert waiting_line.names_of("Ada Bell, Bruno Kim") == waiting_line.names_of("[Ada Bell") == []
    (task,) = (task for task in ALL_TASKS if task.name == "waiting_line/copy")
    (sample,) = task.draw(1, (3, 3), 0)
    loose = sample.answer.replace('"', "'").replace(", ", ",")
    assert (sample.score(loose, False), sample.score(loose, True)) == (1, 0)


def test_there_are_288_sudokus_and_every_puzzle_has_one_solution():
    assert len(puzzles.solved()) == len(set(puzzles.solved())) == 288
    (task,) = (task for task in ALL_TASKS if task.name == "puzzle/latin_square")
    (sample,) = task.draw(1, (3, 6), 0)
    rows = sample.answer.split("\n")
    assert sample.score("\n".join(["Here it is:", *rows[::-1]]), False) == 1
    assert sample.score("\n".join([rows[0]] * 4), False) == 0


def test_sentences_are_judged_by_their_words_and_a_few_rules():
    (task,) = (task for task in ALL_TASKS if task.name == "writing/words_easy")
    (sample,) = task.draw(1, (3, 6), 0)
    assert sample.score(sample.answer.replace("We saw", "We saw a owl and"), False) == 0
    assert sample.score("We saw nothing.", False) == 0
    assert list(writing.issues("The the cat is here")) == ["no end", "'the' twice"]


def test_the_oracle_is_at_least_as_good_as_every_threshold():
    points = [
        {"kind": "threshold", "score": 0.5, "passes": 3, "scores": [1, 0], "passes_of": [2, 4]},
        {"kind": "threshold", "score": 1.0, "passes": 7, "scores": [1, 1], "passes_of": [6, 8]},
        {"kind": "factor", "score": 1.0, "passes": 1, "scores": [1, 1], "passes_of": [1, 1]},
    ]
    assert statistics.oracle(points) == {"score": 1, "passes": 5}
    assert statistics.best_threshold(points)["passes"] == 7
    assert statistics.oracle(points[2:]) is statistics.best_threshold(points[2:]) is None


def test_what_is_derived_from_a_grid():
    def at(value, score, block="all", kind="confidence", speed=1.0):
        way = f"{kind} {value} {block}"
        return {"kind": kind, "value": value, "block": block, "score": score, "way": way, "tokens_per_pass": speed}

    assert statistics.parallelizability([at(1, 1.0), at(3, 0.5)], "confidence") == pytest.approx(2.5 / 1.5)
    assert statistics.parallelizability([at(1, 0.0)], "confidence") is None
    over_blocks = [at(2, 0.2, "2"), at(2, 0.4, "4"), at(2, 0.6)]
    assert statistics.order_preference(over_blocks, "confidence", 8) == pytest.approx(0.2)
    assert statistics.order_preference(over_blocks[:1], "confidence", 8) is None
    board = [at(1, 1.0), at(2, 0.85, speed=2.0), at(4, 0.5, speed=4.0), at(0.9, 0.9, kind="threshold", speed=3.0)]
    assert statistics.leaderboard(board, 0.8) == [("threshold 0.9 all", 3.0, 0.9), ("confidence 2 all", 2.0, 0.85)]


def test_a_grid_names_methods():
    found = grid.ways(["confidence:1,4", "left:2", "threshold:0.9"], ["ete:gap=2"], ["all", "4"])
    methods = [way.method(8) for way in found]
    assert methods == [
        "llada:steps=8,block=all,by=confidence", "llada:steps=2,block=all,by=confidence", "llada:steps=4,block=2",
        "threshold:tau=0.9,block=all", "llada:steps=8,block=4,by=confidence", "llada:steps=2,block=4,by=confidence",
        "llada:steps=4,block=2", "threshold:tau=0.9,block=4", "ete:gap=2",
    ]  # fmt: skip
    for text, message in (("treshold:1", "did you mean"), ("random:0.5", "whole"), ("factor:x", "takes numbers")):
        with pytest.raises(UsageError, match=message):
            grid.ways([text], [], ["all"])
    with pytest.raises(UsageError, match="don't divide a canvas of 8"):
        grid.ways(["random:3"], [], ["all"])[0].method(8)


def test_closed_forms_are_asked_for_without_a_model(capsys):
    from outlay.cli import main

    assert main(["bench", "parallel", "--analytic", "--model", "exact-copy"]) == 2
    assert "leave out --model" in capsys.readouterr().err
    assert main(["bench", "parallel", "--analytic", "--lists", "200"]) == 0
    assert "40 closed forms" in capsys.readouterr().out
