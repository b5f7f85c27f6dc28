"""Random decision problems whose texts can all be enumerated: exact rewards and KL of policies that are tilted.

A policy is the joint distribution of texts of T tokens, float64 with an axis of V for each token. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from outlay.decode.steer.transfer_q import mean_values

VOCAB, LENGTH = 3, 4  # of the specification's exact table
BETA, ALPHA = 0.4, 0.2
SAMPLED, ALIGNED, DECODED, OURS = "sampling", "sampling the baseline", "controlled decoding", "transfer_q"


@dataclass(frozen=True, eq=False)
class Problem:
    """A reference policy, and a reward from 0 to 1 of each text."""

    reference: Tensor
    reward: Tensor


def problem(seed: int, vocab: int = VOCAB, length: int = LENGTH) -> Problem:
    """Returns a problem: token policies are softmaxes of normal logits after each beginning, rewards are uniform."""
    random = torch.Generator().manual_seed(seed)
    policies = [
        torch.randn([vocab] * (place + 1), generator=random, dtype=torch.float64).log_softmax(-1)
        for place in range(length)
    ]
    reward = torch.rand([vocab] * length, generator=random, dtype=torch.float64)
    return Problem(joint(policies).exp(), reward)


def aligned(policy: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Returns the policy that is aligned whole texts at a time: rho(y) ~ policy(y) exp(r(y) / beta)."""
    tilted = policy * (reward / beta).exp()
    return tilted / tilted.sum()


def token_policies(policy: Tensor) -> list[Tensor]:
    """Returns the log-probabilities of each token after each beginning, [V] * (t + 1) for token t."""
    marginals = [policy.flatten(place).sum(-1) for place in range(1, policy.ndim)] + [policy]
    return [(each / each.sum(-1, keepdim=True)).log() for each in marginals]


def values(baseline: Tensor, reward: Tensor, log_weights: Tensor | None = None) -> list[Tensor]:
    """Returns Q(s, z) of the baseline's roll-outs for each token, [V] * (t + 1), their weights beside them."""
    weights = baseline.log() if log_weights is None else baseline.log() + log_weights
    found = []
    for place in range(1, baseline.ndim):
        shape = [*baseline.shape[:place], -1]
        found.append(mean_values(reward.reshape(shape), weights.reshape(shape)))
    return [*found, reward]


def tilted(prior: Tensor, q: Sequence[Tensor], alpha: float) -> Tensor:
    """Returns the policy pi(z|s) ~ prior(z|s) exp(Q(s, z) / alpha), as a distribution of texts."""
    steps = [(policy + value / alpha).log_softmax(-1) for policy, value in zip(token_policies(prior), q, strict=True)]
    return joint(steps).exp()


def joint(policies: Sequence[Tensor]) -> Tensor:
    """Returns log-probabilities of whole texts from those of each token."""
    length = len(policies)
    return sum(
        (each.reshape([*each.shape, *[1] * (length - each.ndim)]) for each in policies),
        torch.zeros((), dtype=torch.float64),
    )


def reward_of(policy: Tensor, reward: Tensor) -> float:
    """Returns a policy's mean reward."""
    return float((policy * reward).sum())


def kl(one: Tensor, other: Tensor) -> float:
    """Returns KL(one || other) in nats."""
    return float(torch.xlogy(one, one).sum() - torch.xlogy(one, other).sum())


def best_of(policy: Tensor, reward: Tensor, count: int) -> Tensor:
    """Returns the distribution of the best of `count` texts of a policy, whose rewards all differ."""
    order = reward.flatten().argsort()
    below = policy.flatten()[order].cumsum(0)
    chances = below.pow(count) - torch.cat([torch.zeros(1, dtype=torch.float64), below[:-1]]).pow(count)
    found = torch.empty_like(chances)
    found[order] = chances
    return found.view(policy.shape)


def exact_rewards(count: int) -> dict[str, float]:
    """Returns the mean rewards over `count` problems of policies that know the exact values of their roll-outs."""
    found: dict[str, list[float]] = {}
    for seed in range(count):
        each = problem(seed)
        reference, reward = each.reference, each.reward
        baseline = aligned(reference, reward, BETA)
        policies = {
            SAMPLED: reference,
            ALIGNED: baseline,
            DECODED: tilted(reference, values(reference, reward), ALPHA),
            OURS: tilted(baseline, values(baseline, reward), ALPHA),
        }
        for name, policy in policies.items():
            found.setdefault(name, []).append(reward_of(policy, reward))
    return {name: mean(rewards) for name, rewards in found.items()}
