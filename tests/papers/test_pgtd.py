"""PG-TD: the properties of its specification, on trees that can be enumerated, and its headline at small scale."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from outlay import LM, PGTD, Budget, UsageError, load, problems
from outlay.bench.search.contenders import Setting
from outlay.bench.search.program_report import BEAM, GREEDY, PLANNED, SAMPLES
from outlay.bench.search.programs import ProgramSearch
from outlay.decode.search import pgtd
from outlay.decode.search.pgtd.states import State, back_up, best_child, exploration, priors, score
from outlay.engine.engine import Engine
from outlay.problems import minilist
from outlay.testing import markov_model, tiny_lm, tiny_model

LETTERS = "abc"
PROMPTS = ("Hello", "A second prompt", "3", "five\nlines")


@pytest.fixture
def planners(monkeypatch):
    """The planners of the searches that run, in order."""
    made = []

    class Kept(pgtd.Planner):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(pgtd, "Planner", Kept)
    return made


def letters_lm(probabilities=(0.5, 0.3, 0.2)):
    """A model that writes letters independently of each other."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    for letter, probability in zip(LETTERS, probabilities, strict=True):
        transitions[:, ord(letter) - 33] = probability
    return LM(markov_model(transitions), Engine())


def checksum(prompt, texts):
    """Rewards without a pattern."""
    return [(sum((place + 1) * byte for place, byte in enumerate(text.encode())) % 97) / 97 for text in texts]


def searched(lm, prompt="x", scorer=checksum, max_tokens=12, ignore_eos=True, **options):
    given = {name: options.pop(name) for name in ("budget", "stop", "trace", "seed") if name in options}
    method = PGTD(**options)
    return lm.generate(
        prompt, method=method, scorer=scorer, max_tokens=max_tokens, chat=False, ignore_eos=ignore_eos, **given
    )


def tree_of(planner):
    """(n, Q, prior) of every edge of the search, by the tokens that lead to it."""
    found, stack = {}, [(planner.root, ())]
    while stack:
        state, tokens = stack.pop()
        found[tokens] = (state.n, state.q, state.prior)
        stack += [(child, (*tokens, child.token)) for child in state.children]
    return found


def programs_of(planner):
    return [tuple(state.token for state in program.path()) for program in planner.programs]


def test_the_score_is_that_of_the_paper():
    """beta = ln((N + c_base + 1) / c_base) + c, and Q + beta P sqrt(ln N) / (1 + n), by hand."""
    child = State(None, 7, 1, prior=0.25, n=3, q=0.5)
    beta = math.log((9 + 10 + 1) / 10) + 4
    assert exploration(9, 4, 10, "var_p_ucb") == pytest.approx(beta * math.log(9) ** 0.5)
    assert score(child, exploration(9, 4, 10, "var_p_ucb"), by_prior=True) == pytest.approx(
        0.5 + beta * 0.25 * math.log(9) ** 0.5 / 4
    )
    assert score(child, exploration(9, 4, 10, "p_ucb"), by_prior=True) == pytest.approx(
        0.5 + 4 * 0.25 * math.log(9) ** 0.5 / 4
    )
    assert score(child, exploration(9, 4, 10, "ucb"), by_prior=False) == pytest.approx(0.5 + 4 * math.log(9) ** 0.5 / 4)


def test_the_defaults_are_those_of_the_paper_and_its_scripts():
    method = PGTD()
    assert (method.width, method.c, method.c_base, method.beams, method.policy) == (3, 4, 10, 1, "var_p_ucb")
    assert (method.rollouts, method.completions, method.early_stop) == (5000, 768, False)


def test_priors_are_renormalised_among_the_most_probable_tokens():
    logits = [2.0, 1.0, -1.0]
    expected = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    assert priors(logits) == pytest.approx(expected)
    assert priors([1000.0, 990.0]) == pytest.approx([1, math.exp(-10)], rel=1e-3)


def test_at_a_first_visit_all_bonuses_are_0_and_the_most_probable_child_wins():
    state = State(None, 0, 0)
    state.children = [State(state, token, 1, prior=prior) for token, prior in ((5, 0.5), (2, 0.3), (9, 0.2))]
    assert exploration(state.visits, 4, 10, "var_p_ucb") == 0
    assert best_child(state, 4, 10, "var_p_ucb") is state.children[0]


def test_an_edge_is_worth_its_best_return_and_every_state_on_the_path_counts_the_rollout():
    root = State(None, 0, 0)
    middle = State(root, 1, 1)
    ends = [State(middle, 2, 2), State(middle, 3, 2)]
    for state, reward in ((ends[0], 0.2), (ends[1], 0.9), (ends[0], 0.4)):
        back_up(state, reward)
    assert (root.visits, middle.visits) == (4, 4)
    assert [(end.n, end.q) for end in ends] == [(2, 0.4), (1, 0.9)]
    assert middle.q == 0.9


@pytest.mark.parametrize("c", [0.1, 4.0, 50.0])
def test_the_first_program_is_the_greedy_one(c, planners):
    lm = tiny_lm()
    for prompt in PROMPTS:
        greedy = lm.generate(prompt, max_tokens=12, ignore_eos=True, chat=False).tokens
        searched(lm, prompt, c=c, rollouts=3)
        assert programs_of(planners[-1])[0] == tuple(greedy)


def test_the_caches_change_no_program_and_no_number_of_the_tree(planners):
    """For a fixed number of rollouts; only what is computed differs."""
    for seed, prompt in enumerate(PROMPTS):
        found, positions = [], []
        for caches in (True, False):
            result = searched(tiny_lm(seed), prompt, rollouts=40, caches=caches)
            different = list(dict.fromkeys(programs_of(planners[-1])))  # without caches a program may be found twice
            found.append((result.tokens, different, tree_of(planners[-1])))
            positions.append(result.ledger.target_tokens)
        assert found[0] == found[1]
        assert positions[0] <= 0.6 * positions[1]


def test_dropping_keys_and_values_changes_nothing_but_what_is_computed_again(planners):
    found = []
    for kept in (8192, 40, 1):
        result = searched(tiny_lm(1), rollouts=60, kept=kept)
        found.append((result.tokens, programs_of(planners[-1]), tree_of(planners[-1])))
        assert result.ledger.extras["completions"] + result.ledger.extras["sequence_hits"] == 60
    assert found[0] == found[1] == found[2]


def test_a_cache_that_is_too_small_for_the_search_is_used_again():
    whole = searched(tiny_lm(2), rollouts=60)
    small = LM(tiny_model(2), Engine(cache_tokens=64, prefix_cache=False))
    result = searched(small, rollouts=60)
    assert result.tokens == whole.tokens
    assert result.ledger.extras == whole.ledger.extras
    assert result.ledger.target_tokens > whole.ledger.target_tokens


def test_the_prompt_is_read_once_and_a_completion_computes_only_what_is_new():
    lm = LM(tiny_model(), Engine(prefix_cache=False))
    prompt = "a prompt that is much longer than its programs " * 4
    result = searched(lm, prompt, rollouts=60)
    length, completions = len(lm.encode(prompt)), result.ledger.extras["completions"]
    assert result.ledger.target_tokens <= length + 12 * completions
    assert completions * length >= 5 * result.ledger.target_tokens  # what reading it for each completion would cost


def test_visits_are_the_rollouts_through_a_state_and_q_is_the_best_return_below(planners):
    result = searched(tiny_lm(3), rollouts=80)
    planner = planners[-1]
    assert sum(child.n for child in planner.root.children) == 80 == result.ledger.extras["rollouts"]
    tree = tree_of(planner)
    rewards = dict(zip(programs_of(planner), (program.reward for program in planner.programs), strict=True))
    for tokens, (n, q, _) in tree.items():
        below = [other for other in tree if other[: len(tokens)] == tokens and len(other) == len(tokens) + 1]
        grown = any(tree[other][0] for other in below)
        if n and len(tokens) < 12 and grown:  # a state's first rollout ended at itself
            assert n == 1 + sum(tree[other][0] for other in below) - (not tokens)
        if n:
            assert q == max(reward for program, reward in rewards.items() if program[: len(tokens)] == tokens)


def test_the_best_reward_never_falls_with_more_rollouts_and_is_at_least_that_of_greedy():
    for seed in range(4):
        lm = tiny_lm(seed)
        greedy = lm.generate("x", max_tokens=12, ignore_eos=True, chat=False).text
        rewards = [searched(lm, rollouts=count).facts["reward"] for count in (1, 5, 20, 60)]
        assert rewards == sorted(rewards)
        assert rewards[0] == checksum("", [greedy])[0]


def test_enough_rollouts_visit_every_program_and_find_the_optimum(planners):
    """27 programs of three letters; the width covers all."""
    every = ["".join(letters) for letters in itertools.product(LETTERS, repeat=3)]
    result = searched(letters_lm(), max_tokens=3, rollouts=3000)
    found = {"".join(chr(token + 33) for token in program) for program in programs_of(planners[-1])}
    assert found == set(every)
    assert result.text == max(every, key=lambda text: checksum("", [text])[0])
    assert result.ledger.extras["completions"] <= len(every)


def test_without_exploration_the_greedy_path_is_repeated():
    """c = 0 and a constant weight: no child that wasn't tried has a score above 0."""
    result = searched(letters_lm(), scorer=lambda prompt, texts: [0.5] * len(texts), policy="p_ucb", c=0, rollouts=50)
    assert result.ledger.extras["completions"] == 1
    assert result.ledger.scores == 1


def test_a_large_weight_visits_children_in_proportion_to_their_probabilities(planners):
    """P / (1 + n) is then equal for all: each child of the root has its share of rollouts to within one visit."""
    searched(letters_lm(), scorer=lambda prompt, texts: [0.0] * len(texts), c=1e6, rollouts=300, max_tokens=8)
    visits = [1 + child.n for child in planners[-1].root.children]
    total = sum(visits)
    assert all(abs(count - share * total) <= 1.5 for count, share in zip(visits, (0.5, 0.3, 0.2), strict=True)), visits


def test_a_stop_string_ends_a_program_and_is_no_part_of_what_is_rated():
    rated = []

    def scorer(prompt, texts):
        rated.extend(texts)
        return checksum(prompt, texts)

    result = searched(letters_lm(), scorer=scorer, max_tokens=6, rollouts=200, stop="ca")
    assert rated
    assert not any("ca" in text for text in rated)
    assert any(len(text) < 5 for text in rated)
    assert result.text in rated
    assert result.facts["reward"] == checksum("", [result.text])[0]


def test_a_text_is_rated_once():
    asked = Counter()

    def scorer(prompt, texts):
        asked.update(texts)
        return checksum(prompt, texts)

    result = searched(letters_lm(), scorer=scorer, max_tokens=4, rollouts=400)
    assert set(asked.values()) == {1}
    assert result.ledger.scores == len(asked)


@pytest.mark.parametrize(("beams", "text"), [(1, "aaaa"), (9, "abbb")])
def test_a_beam_search_finishes_a_program_with_the_most_probable_one(beams, text, planners):
    """After a, greedy goes on with a each time (0.4); abbb has 0.35 of 0.95 of 0.95, and nine beams hold all."""
    transitions = torch.zeros(257, 257, dtype=torch.float64)
    letters = torch.tensor([ord(letter) - 33 for letter in LETTERS])
    transitions[:, letters] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rows = [[0.4, 0.35, 0.25], [0.03, 0.95, 0.02], [0.05, 0.05, 0.9]]
    transitions[letters[:, None], letters] = torch.tensor(rows, dtype=torch.float64)
    lm = LM(markov_model(transitions), Engine())
    assert searched(lm, beams=beams, rollouts=1, max_tokens=4).text == text
    result = searched(lm, beams=beams, rollouts=20, max_tokens=4)
    assert (result.ledger.extras.get("sequence_hits", 0) > 0) == (beams == 1)


@pytest.mark.parametrize("name", ["rollouts", "completions", "scores", "target_passes"])
def test_budgets_are_kept_to_the_last_unit(name):
    result = searched(tiny_lm(), rollouts=200, budget=Budget(**{name: 9}))
    assert result.ledger.amount(name) == 9
    assert result.tokens


def test_it_stops_at_a_perfect_program_if_asked_to_with_the_same_text():
    def scorer(prompt, texts):
        return [float(text.count("c") >= 2) for text in texts]

    results = [searched(letters_lm(), scorer=scorer, max_tokens=5, rollouts=300, early_stop=stop) for stop in (0, 1)]
    assert results[0].text == results[1].text
    assert results[1].ledger.extras["rollouts"] < results[0].ledger.extras["rollouts"] == 300


def test_the_alternatives_are_the_best_programs_in_order():
    result = searched(letters_lm(), max_tokens=3, rollouts=1000, returned=5)
    every = sorted(
        (checksum("", ["".join(letters)])[0] for letters in itertools.product(LETTERS, repeat=3)), reverse=True
    )
    assert [each.score for each in result.alternatives] == every[:5]
    assert result.alternatives[0].text == result.text


def test_the_search_depends_on_no_seed():
    assert searched(tiny_lm(), seed=1, rollouts=30).tokens == searched(tiny_lm(), seed=2, rollouts=30).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width of 1 or more, not 0"),
        ({"rollouts": 0}, "rollouts of 1 or more"),
        ({"policy": "best"}, "policy of pgtd is var_p_ucb, p_ucb, ucb, not 'best'"),
        ({"c": -1.0}, "c of 0 or more"),
        ({"c_base": 0.0}, "c_base above 0"),
    ],
)
def test_what_can_not_be_searched_is_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        PGTD(**options)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_or_the_options_is_refused():
    lm = tiny_lm()
    for message, options in {
        "needs a scorer": {"method": "pgtd"},
        "leave temperature at 0": {"method": "pgtd", "scorer": checksum, "temperature": 0.5},
        "257 tokens, so pgtd's width": {"method": "pgtd:width=258", "scorer": checksum},
    }.items():
        with pytest.raises(UsageError, match=message):
            lm.submit("Hello", **options)


def test_private_examples_are_never_rated():
    """What the scorer is given holds the public examples alone, and the prompt shows no others."""
    lm = load("outlay/tiny-coder")
    for row in problems.make("minilist:count=5"):
        shown, asked = minilist.examples_of(row["prompt"]), []

        def scorer(prompt, texts, asked=asked):
            asked.append(prompt)
            return minilist.score(prompt, texts)

        lm.generate(row["prompt"], method=PGTD(rollouts=4), scorer=scorer, max_tokens=24)
        assert asked
        assert {prompt.strip() for prompt in asked} == {row["prompt"]}
        assert not {items for items, _ in row["private"]} & {items for items, _ in shown}


def answers(count, *methods):
    """What searches for programs give on problems of minilist, a row a problem."""
    rows = problems.make(f"minilist:count={count}")
    setting = Setting("outlay/tiny-coder", "", temperature=1.0, max_tokens=32, max_steps=1)
    return [ProgramSearch(name, curve).answer(setting, rows) for name, curve in methods]


def total(rows, name):
    return sum(row[name] for row in rows)


def test_programs_pass_no_fewer_public_examples_than_greedy_ones_and_cost_fewer_positions_than_samples():
    greedy, planned, sampled = answers(
        10, ("greedy", GREEDY), ("pgtd:completions=16", PLANNED), ("best_of:n=16,by=score", SAMPLES)
    )
    assert all(mine["public"] >= base["public"] for mine, base in zip(planned, greedy, strict=True))
    assert total(planned, "public") > total(greedy, "public")
    assert total(planned, "programs") <= total(sampled, "programs")
    assert total(planned, "positions") < 0.9 * total(sampled, "positions")


@pytest.mark.slow
def test_the_headline_at_small_scale():
    """Over beam search and greedy by far, over samples for few programs; `outlay bench search` has the ratios."""
    beam, greedy, planned, few, samples = answers(
        60, ("beam:width=5", BEAM), ("greedy", GREEDY), ("pgtd:completions=64", PLANNED),
        ("pgtd:completions=4", PLANNED), ("best_of:n=4,by=score", SAMPLES),
    )  # fmt: skip
    assert total(planned, "solved") >= 1.5 * total(greedy, "solved")
    assert total(planned, "solved") >= 1.5 * total(beam, "solved")
    assert total(few, "private") > total(samples, "private")
