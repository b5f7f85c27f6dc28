"""Transfer Q* (Chakraborty et al. 2024): the tilted distribution by enumeration, its bounds, and what it spends."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from papers.distributions import FALSE_ALARM, p_value, random_chain

import outlay
from outlay import LM, TransferQ, UsageError
from outlay.bench.steer.policies import (
    ALIGNED,
    DECODED,
    OURS,
    SAMPLED,
    aligned,
    exact_rewards,
    kl,
    problem,
    reward_of,
    tilted,
    token_policies,
    values,
)
from outlay.decode.steer.transfer_q import contenders, mean_values, raw_values, soft_values
from outlay.engine.engine import Engine
from outlay.testing import MethodProperties, markov_model, tiny_lm, tiny_model

PROBLEMS = range(25)
ALPHAS = (0.05, 0.2, 1.0)
BETA = 0.4
START = 1


# What is exact: all texts of random problems are enumerated, with exact values.


def direct(each, baseline, alpha):
    return tilted(baseline, values(baseline, each.reward), alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_it_is_never_worse_than_its_baseline(alpha):
    for seed in PROBLEMS:
        each = problem(seed)
        baseline = aligned(each.reference, each.reward, BETA)
        assert reward_of(direct(each, baseline, alpha), each.reward) >= reward_of(baseline, each.reward)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_its_gap_to_the_best_text_is_bounded_by_theorem_1(alpha):
    """The gap is at most beta KL(rho* || rho_sft) - alpha sum of E KL(pi_alg || pi_BL), rho* the best text."""
    for seed in PROBLEMS:
        each = problem(seed)
        baseline = aligned(each.reference, each.reward, BETA)
        policy = direct(each, baseline, alpha)
        best = torch.zeros_like(each.reward)
        best.view(-1)[each.reward.argmax()] = 1
        gap = float(each.reward.max()) - reward_of(policy, each.reward)
        assert gap <= BETA * kl(best, each.reference) - alpha * kl(policy, baseline) + 1e-9


@pytest.mark.parametrize("alpha", ALPHAS)
def test_its_deviation_from_the_reference_is_bounded_by_theorem_2(alpha):
    """KL(rho_alg || rho_sft) is at most r_max (1 / beta + T / alpha); T r_max / alpha with the reference as prior."""
    for seed in PROBLEMS:
        each = problem(seed)
        baseline = aligned(each.reference, each.reward, BETA)
        most, length = float(each.reward.max()), each.reward.ndim
        assert kl(direct(each, baseline, alpha), each.reference) <= most * (1 / BETA + length / alpha)
        by_reference = tilted(each.reference, values(baseline, each.reward), alpha)
        assert kl(by_reference, each.reference) <= length * most / alpha


def test_without_a_tilt_it_is_the_baseline_and_with_all_of_it_the_best_values():
    for seed in range(20):
        each = problem(seed)
        baseline = aligned(each.reference, each.reward, BETA)
        assert torch.allclose(direct(each, baseline, math.inf), baseline)
        place, q = (), values(baseline, each.reward)
        for value in q:
            place = (*place, int(value[place].argmax()))
        assert float(direct(each, baseline, 1e-5)[place]) == pytest.approx(1)


def test_indirect_transfer_has_the_values_of_the_policy_that_is_aligned_to_the_reward():
    for seed in PROBLEMS:
        each, other = problem(seed), problem(seed + 1000).reward
        baseline = aligned(each.reference, other, BETA)
        right = values(aligned(each.reference, each.reward, BETA), each.reward)
        named = values(baseline, each.reward, (each.reward - other) / BETA)
        implicit = values(baseline, each.reward, each.reward / BETA + each.reference.log() - baseline.log())
        for q, by_reward, by_ratio in zip(right, named, implicit, strict=True):
            assert torch.allclose(by_reward, q)
            assert torch.allclose(by_ratio, q)


def test_indirect_transfer_to_the_same_reward_is_direct_and_so_is_a_single_roll_out():
    rewards = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        mean_values(rewards, (rewards - rewards) / BETA), mean_values(rewards, torch.zeros_like(rewards))
    )
    assert torch.equal(mean_values(rewards[:, :1], 3 * rewards[:, 1:2]), rewards[:, 0])


def test_weights_that_are_not_normalised_change_the_ranking():
    """Two candidates: the better one has the lower reward of its baseline's, so that its weight is lower."""
    rewards, theirs = torch.tensor([[0.9], [0.8]]).double(), torch.tensor([[0.9], [0.1]]).double()
    weights = (rewards - theirs) / BETA
    assert int(mean_values(rewards, weights).argmax()) == 0
    assert int(raw_values(rewards, weights).argmax()) == 1


def test_the_soft_value_of_the_reference_reproduces_the_policy_that_is_aligned_to_the_reward():
    for seed in range(20):
        each = problem(seed)
        q = []
        for place in range(1, each.reward.ndim):
            shape = [*each.reward.shape[:place], -1]
            q.append(soft_values(each.reward.reshape(shape), each.reference.log().reshape(shape), BETA))
        right = aligned(each.reference, each.reward, BETA)
        assert torch.allclose(tilted(each.reference, [*q, each.reward], BETA), right)
        assert not torch.allclose(tilted(each.reference, values(each.reference, each.reward), BETA), right, atol=1e-3)


def test_token_policies_are_the_conditionals_of_the_joint():
    each = problem(3)
    first, second = token_policies(each.reference)[:2]
    assert first.exp().tolist() == pytest.approx(each.reference.sum((1, 2, 3)).tolist())
    both = each.reference.sum((2, 3))
    assert torch.allclose(second.exp(), both / both.sum(-1, keepdim=True))


def test_the_headline_it_earns_a_tenth_more_than_controlled_decoding_which_earns_more_than_the_reference():
    """The means of 200 problems: the specification has 0.498, 0.674, 0.749 and 0.835."""
    found = exact_rewards(200)
    reference, baseline, decoding, ours = (found[name] for name in (SAMPLED, ALIGNED, DECODED, OURS))
    assert reference < baseline < decoding < ours
    assert ours / decoding > 1.08
    assert ours / reference > 1.5


# What the engine writes: chains over four tokens, whose distribution is computed from the rewards of all texts.

SIZE = 4
TOKENIZER = tiny_model().tokenizer


def spelled(tokens):
    """The text of tokens, as scorers read it."""
    return TOKENIZER.decode(list(tokens))


def reward_table(length, seed):
    """Rewards of all texts of up to `length` tokens, by text."""
    draws = np.random.default_rng(seed)
    texts = (text for count in range(1, length + 1) for text in itertools.product(range(SIZE), repeat=count))
    return {spelled(text): float(draws.random()) for text in texts}


def scorer_of(rewards):
    def score(prompt, texts):
        return [rewards[text] for text in texts]

    return score


class Exact:
    """The distribution of texts of a run of `transfer_q` at chains, computed.

    `rolled` gives the distributions of the roll-outs' values: [(chance, [value of each candidate])].
    """

    def __init__(self, prior, rolled, alpha, length, topk=SIZE):
        self.prior, self.rolled, self.alpha, self.length, self.topk = prior, rolled, alpha, length, topk

    def texts(self, begun=(), chance=1.0):
        if len(begun) == self.length:
            yield begun, chance
            return
        row = self.prior[begun[-1] if begun else START].log()
        top = row.topk(self.topk).indices
        mixed = defaultdict(float)
        for share, q in self.rolled(begun, top.tolist()):
            probs = (row[top] + torch.tensor(q, dtype=torch.float64) / self.alpha).softmax(0)
            for token, prob in zip(top.tolist(), probs.tolist(), strict=True):
                mixed[token] += share * prob
        for token, prob in mixed.items():
            yield from self.texts((*begun, token), chance * prob)


def greedy_values(chain, rewards, length):
    """Values of greedy roll-outs to the end of the text."""

    def rolled(begun, candidates):
        q = []
        for token in candidates:
            text = [*begun, token]
            while len(text) < length:
                text.append(int(chain[text[-1]].argmax()))
            q.append(rewards[spelled(text)])
        return [(1.0, q)]

    return rolled


def drawn_values(chain, rewards, length, count, log_weight):
    """Values of `count` drawn roll-outs of one token, self-normalised by exp(log_weight(text, last but one))."""

    def one(text):
        return rewards[spelled(text)], math.exp(log_weight(text))

    def rolled(begun, candidates):
        if len(begun) + 1 == length:
            return [(1.0, [rewards[spelled((*begun, token))] for token in candidates])]
        found = []
        ways = itertools.product(itertools.product(range(SIZE), repeat=count), repeat=len(candidates))
        for way in ways:
            chance, q = 1.0, []
            for token, behind in zip(candidates, way, strict=True):
                chance *= math.prod(float(chain[token][after]) for after in behind)
                pairs = [one((*begun, token, after)) for after in behind]
                q.append(sum(r * w for r, w in pairs) / sum(w for _, w in pairs))
            found.append((chance, q))
        return found

    return rolled


def written(lm, method, rewards, runs, length, **options):
    """The texts of runs and the results."""
    handles = [
        lm.submit([START], method=method, scorer=scorer_of(rewards), seed=seed, max_tokens=length, ignore_eos=True,
                  temperature=1.0, **options)
        for seed in range(runs)
    ]  # fmt: skip
    results = [handle.result() for handle in handles]
    return Counter(tuple(result.tokens) for result in results), results


@pytest.fixture(scope="module")
def chains():
    """A target with its engine and a baseline, and the distributions of both."""
    laws = random_chain(SIZE, 5), random_chain(SIZE, 6)
    target, baseline = (markov_model(law, f"chain{place}") for place, law in enumerate(laws))
    return lm_of(target), baseline, *laws


def lm_of(model):
    return LM(model, Engine(prefix_cache=False))


@pytest.mark.parametrize("topk", [SIZE, 2])
def test_texts_are_distributed_as_the_tilted_prior_of_the_k_candidates(chains, topk):
    """Greedy roll-outs to the end, so that values are known. False alarms: 1e-4."""
    lm, _, chain, _ = chains
    rewards = reward_table(3, 1)
    law = dict(Exact(chain, greedy_values(chain, rewards, 3), 0.3, 3, topk).texts())
    counts, results = written(lm, TransferQ(alpha=0.3, topk=topk), rewards, 400, 3)
    assert p_value(counts, law) > FALSE_ALARM
    assert all(result.facts["finished"] < 1 for result in results)  # no text has an end token


@pytest.mark.parametrize("prior", ["baseline", "target"])
def test_a_baseline_beside_the_target_rolls_out_and_gives_the_prior_unless_the_target_does(chains, prior):
    """False alarms: 1e-4."""
    lm, other, chain, others = chains
    rewards = reward_table(3, 2)
    law = dict(Exact(others if prior == "baseline" else chain, greedy_values(others, rewards, 3), 0.3, 3).texts())
    counts, _ = written(lm, TransferQ(alpha=0.3, baseline=other, prior=prior), rewards, 400, 3)
    assert p_value(counts, law) > FALSE_ALARM


@pytest.mark.parametrize(("transfer", "seed"), [("direct", 5), ("indirect", 5), ("implicit", 7)])
def test_drawn_roll_outs_are_weighed_as_the_estimate_says(chains, transfer, seed):
    """Two roll-outs of each candidate, whose 4,096 outcomes are enumerated. False alarms: 1e-4.

    With these rewards the weights matter: chi-square of direct in place of weighed transfer would be 70 or more.
    """
    lm, other, chain, others = chains
    rewards, theirs = reward_table(2, seed), reward_table(2, seed + 1)
    beta, alpha = 0.1, 0.05
    weights = {
        "direct": lambda text: 0.0,
        "indirect": lambda text: (rewards[spelled(text)] - theirs[spelled(text)]) / beta,
        "implicit": lambda text: (
            rewards[spelled(text)] / beta + float(chain[text[-2]][text[-1]].log() - others[text[-2]][text[-1]].log())
        ),
    }
    given = {"indirect": {"baseline_reward": scorer_of(theirs)}, "implicit": {"implicit": True}}
    method = TransferQ(alpha=alpha, beta=beta, topk=3, rollouts=2, baseline=other, **given.get(transfer, {}))
    law = dict(Exact(others, drawn_values(others, rewards, 2, 2, weights[transfer]), alpha, 2, 3).texts())
    counts, results = written(lm, method, rewards, 300, 2)
    assert p_value(counts, law) > FALSE_ALARM
    assert all(("ess" in result.facts) == (transfer != "direct") for result in results)


def test_at_temperature_zero_it_takes_the_best_of_logit_and_value(chains):
    lm, other, _, others = chains
    for seed in range(20):
        rewards = reward_table(4, seed)
        rolled, text = greedy_values(others, rewards, 4), ()
        while len(text) < 4:
            row = others[text[-1] if text else START].log()
            ((_, q),) = rolled(text, range(SIZE))
            text = (*text, int((row + torch.tensor(q, dtype=torch.float64) / 0.2).argmax()))
        method = TransferQ(alpha=0.2, baseline=other)
        found = lm.generate([START], method=method, scorer=scorer_of(rewards), max_tokens=4, ignore_eos=True)
        assert tuple(found.tokens) == text


def test_the_kl_that_it_reports_is_that_of_its_distribution_to_the_target(chains):
    """The mean over texts of the sums over tokens is the KL of whole texts, within 4 standard errors."""
    lm, other, chain, others = chains
    rewards = reward_table(3, 1)
    law = dict(Exact(others, greedy_values(others, rewards, 3), 0.3, 3).texts())
    exact = 0.0
    for text, chance in law.items():
        target = math.prod(float(chain[above][below]) for above, below in itertools.pairwise((START, *text)))
        exact += chance * math.log(chance / target)
    _, results = written(lm, TransferQ(alpha=0.3, baseline=other), rewards, 300, 3)
    found = np.array([result.facts["kl"] for result in results])
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))


# What it writes and spends on a network.

PROMPT = "The first"


def letters(prompt, texts):
    return [(sum(text.encode()) % 97) / 97 for text in texts]


def ran(method, lm=None, **options):
    given = {"scorer": letters, "max_tokens": 16, "ignore_eos": True} | options
    return (lm or tiny_lm(prefix_cache=False)).generate(PROMPT, method=method, **given)


@pytest.mark.parametrize("method", ["transfer_q:topk=1", "transfer_q:alpha=inf", "transfer_q:sure=1e-9"])
def test_without_a_choice_or_a_tilt_it_writes_what_greedy_writes_and_rolls_nothing_out(method):
    found = ran(method)
    assert found.tokens == tiny_lm().generate(PROMPT, max_tokens=16, ignore_eos=True).tokens
    assert found.ledger.target_passes == 16
    assert found.ledger.scores == 0


@pytest.mark.parametrize("alpha", [0.03, 0.2, 1.0])
@pytest.mark.parametrize("given", [{}, {"baseline": tiny_model(1)}, {"baseline": tiny_model(1), "prior": "target"}])
def test_what_can_not_win_and_what_is_known_is_left_out_and_changes_no_token(alpha, given):
    plain = ran(TransferQ(alpha=alpha, topk=6, rollout_len=6, bound=False, reuse=False, **given))
    for saving in ({"bound": True, "reuse": False}, {"bound": False, "reuse": True}, {}):
        saved = ran(TransferQ(alpha=alpha, topk=6, rollout_len=6, **{**given, **saving}))
        assert saved.tokens == plain.tokens
        assert positions(saved) <= positions(plain)
    if alpha == 1 or "prior" not in given:
        assert positions(saved) < positions(plain)


def positions(result):
    return result.ledger.target_tokens + result.ledger.side_tokens


@pytest.mark.parametrize(("length", "each"), [(4, 1), (20, 1), (3, 2)])
def test_it_spends_a_position_for_each_token_of_each_roll_out_and_a_pass_for_each_of_their_depths(length, each):
    found = ran(TransferQ(topk=5, rollouts=each, rollout_len=length, bound=False, reuse=False))
    depths = [min(length, 16 - written - 1) for written in range(16)]
    first = [min(1, depth) for depth in depths]  # roll-outs of a candidate share its own position
    rolled = sum(5 * (one + each * (depth - one)) for one, depth in zip(first, depths, strict=True))
    assert found.ledger.target_tokens == len(PROMPT) + rolled
    assert found.ledger.target_passes == 1 + sum(depths)
    assert found.ledger.rounds == 16
    assert found.ledger.extras["rollouts"] == 16 * 5 * each
    assert found.ledger.scores <= 16 * 5 * each


def test_going_on_with_a_greedy_roll_out_saves_at_most_the_positions_of_one_candidate():
    """The specification expects a fifth of the passes: it can't be more than 1 / k of the positions."""
    plain, saved = (ran(TransferQ(topk=4, rollout_len=8, bound=False, reuse=reuse)) for reuse in (False, True))
    share = 1 - positions(saved) / positions(plain)
    assert 0 < share <= 1 / 4
    assert saved.ledger.target_passes == plain.ledger.target_passes


def test_a_weak_tilt_is_decided_between_few_candidates():
    """At the paper's alpha a logit rises by 1 at most, so that candidates further behind are not rolled out."""
    every, few = ran("transfer_q:bound=false"), ran("transfer_q")
    assert few.tokens == every.tokens
    assert few.ledger.extras["rollouts"] < every.ledger.extras["rollouts"]


def test_a_block_of_the_best_roll_out_is_taken_at_a_time():
    found = ran("transfer_q:alpha=0.1,block=4,bound=false")
    assert found.ledger.rounds == 4
    assert len(found.tokens) == 16
    several = ran("transfer_q:alpha=0.1,block=4,rollouts=3,rollout_len=4,bound=false")
    assert several.ledger.rounds == 4


def test_roll_outs_end_where_texts_do_and_an_end_is_a_candidate_without_one():
    """The first token may end the text, whose reward is then that of the empty text."""
    law = torch.full((257, 257), 1e-9, dtype=torch.float64)
    a, b, end = 65, 66, 256
    law[:, a], law[:, b], law[:, end] = 0.5, 0.2, 0.3
    lm = lm_of(markov_model(law / law.sum(1, keepdim=True)))
    read = []

    def short(prompt, texts):
        read.extend(texts)
        return [1.0 if not text else 0.0 for text in texts]

    found = lm.generate([a], method="transfer_q:alpha=0.1,topk=3,rollout_len=5", scorer=short, max_tokens=8)
    assert found.finish_reason == "stop"
    assert found.text == ""
    assert found.facts["finished"] == pytest.approx(1 / 3)
    stopped = lm.generate(
        [a], method="transfer_q:alpha=0.1,topk=3,rollout_len=5", scorer=short, max_tokens=8,
        logit_bias={end: -50.0}, stop=spelled([a]),
    )  # fmt: skip
    assert stopped.facts["finished"] > 0
    assert "" in read


def test_the_range_of_rewards_is_reported_and_a_bad_reward_is_named():
    low, high = ran("transfer_q:bound=false").facts["rewards"]
    assert 0 <= low < high <= 1
    with pytest.raises(outlay.FailureError, match="a reward is a number from 0 to 1"):
        ran("transfer_q", scorer=lambda prompt, texts: [float("nan")] * len(texts))


def test_it_tilts_by_a_reward_model_and_by_the_scorer_that_an_option_names(tmp_path):
    from outlay.rewards.model import RewardModel
    from outlay.testing import tiny_reward_model

    found = ran("transfer_q:alpha=0.05,rollout_len=4", scorer=RewardModel(tiny_reward_model()))
    assert found.ledger.score_passes > 0
    file = tmp_path / "long.py"
    file.write_text("quick = True\n\ndef score(prompt, texts):\n    return [min(1, len(t) / 99) for t in texts]\n")
    method = f"transfer_q:alpha=0.05,rollouts=2,rollout_len=3,baseline_reward=python:{file}"
    assert ran(method).facts["ess"] <= 2


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"repetition_penalty": 1.3}, {"temperature": 0.7, "top_p": 0.9}]
)
def test_it_draws_by_the_sampling_options_and_tells_log_probabilities(options):
    found = ran("transfer_q:alpha=0.2,topk=4,rollout_len=3", logprobs=2, **options)
    assert len(found.logprobs) == len(found.tokens) == 16
    beside = ran(TransferQ(alpha=0.2, topk=4, rollout_len=3, baseline=tiny_model(1)), logprobs=2, **options)
    assert len(beside.logprobs) == 16


@pytest.mark.parametrize(
    "method",
    [
        TransferQ(alpha=0.1, topk=3, rollout_len=4, baseline=tiny_model(1)),
        TransferQ(alpha=0.1, topk=3, rollouts=2, rollout_len=3, baseline=tiny_model(1), implicit=True),
    ],
    ids=["direct", "implicit"],
)
class TestWithABaseline(MethodProperties):
    """The properties of every method, with a second model."""

    options = {"temperature": 0.9}  # noqa: RUF012 - read alone
    scorer = staticmethod(letters)

    @pytest.fixture(autouse=True)
    def _method(self, method):
        type(self).method = method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("alpha=0", "alpha of transfer_q is above 0"),
        ("beta=0", "beta of transfer_q is a number above 0"),
        ("topk=0", "topk of 1 or more"),
        ("sure=0", "sure of transfer_q is a probability"),
        ("rollouts=2,rollout=greedy", "all the same"),
        ("implicit=true,rollouts=2", "weighs a baseline= against the target"),
        ("baseline_reward=python:x.py", "weight of a single roll-out cancels"),
        ("prior=reference", "must be 'baseline' or 'target'"),
    ],
)
def test_options_that_can_not_be_used_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ran(f"transfer_q:{options}")


def test_it_needs_a_scorer_of_texts_and_a_baseline_of_the_same_tokens():
    with pytest.raises(UsageError, match="needs a scorer"):
        ran("transfer_q", scorer=None)
    with pytest.raises(UsageError, match="a scorer but self"):
        ran("transfer_q", scorer="self")
    with pytest.raises(UsageError, match="needs the same vocabulary"):
        ran(TransferQ(baseline=markov_model(random_chain(4, 0))))
    with pytest.raises(UsageError, match="take block=1 for log-probabilities"):
        ran(TransferQ(baseline=tiny_model(1), block=2), logprobs=1)
    with pytest.raises(UsageError, match="reads at most 16 tokens"):
        ran(TransferQ(baseline=tiny_model(1, context=16)))


def test_contenders_are_those_that_the_highest_reward_could_put_first():
    assert contenders(torch.tensor([3.0, 2.5, 2.0, 1.9]), 1.0) == [0, 1, 2]
    assert contenders(torch.tensor([3.0, 2.9]), 0.0) == [0]
