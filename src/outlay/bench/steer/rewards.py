"""What a reward costs: sampling, best of n, controlled decoding and `transfer_q` on problems that can be enumerated.

Each problem's reference, and the policy that is aligned to its reward, are models of the engine: a token stands for a
whole beginning of a text, so that the next one depends on all before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from outlay.bench.steer.policies import (
    ALIGNED,
    ALPHA,
    BETA,
    DECODED,
    LENGTH,
    OURS,
    SAMPLED,
    VOCAB,
    Problem,
    aligned,
    best_of,
    exact_rewards,
    kl,
    problem,
    token_policies,
)
from outlay.decode.sample import Sample
from outlay.decode.search.best_of import BestOf
from outlay.decode.steer.transfer_q import TransferQ
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.lm import LM
from outlay.models.load import Model
from outlay.progress import ShowProgress
from outlay.testing import markov_model

EXACT = 200  # problems whose exact rewards are averaged, as in the specification
NEVER = 1e-12  # the probability of what no text has
WHOLE = VOCAB**LENGTH
"""The tokens that end a whole text come first: their letters can be read."""
START = WHOLE + sum(VOCAB**count for count in range(1, LENGTH))
"""The token of the prompt."""


@dataclass(frozen=True)
class Contender:
    """A way to decode. `far` is the KL of its texts to the reference, where it is known exactly."""

    name: str
    lm: LM
    method: Method
    far: float | None = None


def measured(problems: int, runs: int, rollouts: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns for each contender the means over all runs of `reward`, `kl`, `passes` and `positions`.

    Args:
        problems: How many.
        runs: Texts of each contender on each problem.
        rollouts: Of each candidate.
        progress: Is told how far the work is.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(problems):
        progress("rewards of enumerated problems", seed, problems)
        each = problem(seed)
        for contender in contenders(each, rollouts):
            results = drawn(contender, each, runs)
            found.setdefault(contender.name, []).append(_summary(contender, each, results))
    rows = [
        {"name": name, **{value: mean(row[value] for row in of_name) for value in of_name[0]}}
        for name, of_name in found.items()
    ]
    return {"contenders": rows, "exact": exact_rewards(EXACT), "rollouts": rollouts, "alpha": ALPHA, "beta": BETA}


def contenders(each: Problem, rollouts: int) -> list[Contender]:
    """Returns all ways to decode a problem; best of n draws as many positions as `transfer_q` computes at most."""
    baseline = aligned(each.reference, each.reward, BETA)
    reference_model, baseline_model = model_of(each.reference, "reference"), model_of(baseline, "baseline")
    reference, of_baseline = (LM(model, Engine(prefix_cache=False)) for model in (reference_model, baseline_model))
    options: dict[str, Any] = {"alpha": ALPHA, "topk": VOCAB, "rollouts": rollouts}
    texts = round((positions(rollouts) - 1) / (LENGTH - 1))  # they share the prompt's position
    best = BestOf(texts, "score")
    return [
        Contender(SAMPLED, reference, Sample(), 0.0),
        Contender(f"best of {texts}", reference, best, kl(best_of(each.reference, each.reward, texts), each.reference)),
        Contender(DECODED, reference, TransferQ(**options)),
        Contender(ALIGNED, of_baseline, Sample(), kl(baseline, each.reference)),
        Contender(
            f"best of {texts} of the baseline", of_baseline, best,
            kl(best_of(baseline, each.reward, texts), each.reference),
        ),
        Contender(OURS, reference, TransferQ(baseline=baseline_model, **options)),
    ]  # fmt: skip


def positions(rollouts: int) -> int:
    """Returns the positions that roll-outs to the end take for a text: a candidate's own is that of all of them."""
    depths = [LENGTH - place - 1 for place in range(LENGTH)]
    return 1 + sum(VOCAB * (1 + rollouts * (depth - 1)) for depth in depths if depth)


def drawn(contender: Contender, each: Problem, runs: int) -> list[Result]:
    """Returns the results of runs with seeds of their own, together."""
    scorer = None if isinstance(contender.method, Sample) else scorer_of(each.reward)
    with contender.lm.engine.together():
        handles = [
            contender.lm.submit([START], method=contender.method, scorer=scorer, temperature=1.0, max_tokens=LENGTH,
                                ignore_eos=True, seed=seed)
            for seed in range(runs)
        ]  # fmt: skip
    return [handle.result() for handle in handles]


def model_of(policy: Tensor, name: str) -> Model:
    """Returns a model that writes a policy's texts: each token says which beginning it ends."""
    law = torch.full((START + 1, START + 1), NEVER, dtype=torch.float64)
    law[:, :WHOLE] = 1 / WHOLE  # what follows a whole text
    for place, logprobs in enumerate(token_policies(policy)):
        for text in product(range(VOCAB), repeat=place):
            row = torch.full((START + 1,), NEVER, dtype=torch.float64)
            for letter, chance in enumerate(logprobs[text].exp().tolist()):
                row[token_of((*text, letter))] = chance
            law[token_of(text)] = row / row.sum()
    return markov_model(law, name)


def token_of(text: Sequence[int]) -> int:
    """Returns the token at the end of a beginning of a text."""
    number = sum(letter * VOCAB**place for place, letter in enumerate(reversed(text)))
    if not text:
        return START
    return number if len(text) == LENGTH else WHOLE + sum(VOCAB**count for count in range(1, len(text))) + number


def scorer_of(reward: Tensor) -> Any:
    """Returns a scorer of whole texts, which are known by their last letter."""
    flat = reward.flatten().tolist()

    def score(prompt: str, texts: Sequence[str]) -> list[float]:
        return [flat[ord(text[-1]) - ord("!")] for text in texts]

    return score


def _summary(contender: Contender, each: Problem, results: Sequence[Result]) -> dict[str, float]:
    flat = each.reward.flatten().tolist()
    far = contender.far
    return {
        "reward": mean(flat[result.tokens[-1]] for result in results),
        "kl": mean(result.facts["kl"] for result in results) if far is None else far,
        "passes": mean(result.ledger.target_passes + result.ledger.side_passes for result in results),
        "positions": mean(result.ledger.target_tokens + result.ledger.side_tokens for result in results),
    }
