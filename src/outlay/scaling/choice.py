"""The choice of a draft: the number of layers and the chain with the highest predicted throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outlay.scaling.laws import Prediction

LAYERS = (1, 2, 3, 4, 6, 8, 10)  # sizes of draft heads that are weighed; the paper's go to 10
DEPTHS = (1, 2, 3, 4, 5, 6, 8)  # tokens of the chains that are weighed


@dataclass(frozen=True)
class Choice:
    """A draft to train and how to use it."""

    layers: int
    """Decoder layers of the draft head."""
    tokens: float
    """Tokens to train it on."""
    depth: int
    """Tokens of a chain."""
    tau: float
    """Predicted acceptance length."""
    throughput: float
    """Predicted tokens a second, of all requests."""
    speedup: float
    """Throughput over plain decoding's."""
    low: float
    """Lower end of the speed-up's 95 % interval, as far as tau's prediction makes it."""
    high: float
    """Upper end."""


def choose(
    tau: Callable[[int, int], Prediction],
    seconds: Callable[[int, int], float],
    plain: float,
    *,
    tokens: float,
    batch: int = 1,
    layers: Sequence[int] = LAYERS,
    depths: Sequence[int] = DEPTHS,
    fits: Callable[[int], bool] = lambda layers: True,
) -> tuple[Choice | None, list[Choice]]:
    """Weighs all configurations.

    Args:
        tau: (layers, depth) -> predicted acceptance length.
        seconds: (layers, depth) -> seconds of a round of the whole batch.
        plain: Seconds of a round without drafts.
        tokens: Tokens to train the draft on.
        batch: Requests that are decoded together.
        layers: Sizes to weigh.
        depths: Chains to weigh.
        fits: layers -> whether a draft is within the budget.

    Returns:
        The configuration with the highest throughput, None where its interval holds plain decoding's speed; and all
        configurations, the fastest first.
    """
    found = []
    for size in filter(fits, layers):
        for depth in depths:
            predicted = tau(size, depth)
            took = seconds(size, depth)
            gains = [value * plain / took for value in (predicted.value, predicted.low, predicted.high)]
            found.append(Choice(size, tokens, depth, predicted.value, batch * predicted.value / took, *gains))
    found.sort(key=lambda choice: -choice.throughput)
    best = found[0] if found and found[0].low > 1 else None
    return best, found


def at_depth(tau: Prediction, measured: int, depth: int) -> Prediction:
    """Carries a prediction over to chains of another depth, assuming one acceptance rate for all their tokens.

    Args:
        tau: Prediction for chains of `measured` tokens.
        measured: Tokens of the chains that tau was measured with.
        depth: Tokens of the chains that are asked about.
    """
    value, low, high = (
        chain_tokens(even_acceptance(tokens, measured), depth) for tokens in (tau.value, tau.low, tau.high)
    )
    return Prediction(value, low, high, tau.warning)


def chain_tokens(acceptance: float, depth: int) -> float:
    """Returns the expected acceptance length of a chain with one acceptance rate for all its `depth` tokens.

    It is (1 - a^(depth + 1)) / (1 - a) (Leviathan et al. 2023, equation 1).
    """
    return float(depth + 1) if acceptance >= 1 else (1 - acceptance ** (depth + 1)) / (1 - acceptance)


def even_acceptance(tokens: float, depth: int) -> float:
    """Inverts `chain_tokens`: returns the acceptance rate at which a chain has an acceptance length of `tokens`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chain_tokens(middle, depth) < tokens else (low, middle)
    return (low + high) / 2


def expected_tokens(acceptances: Sequence[float]) -> float:
    """Returns the block efficiency of a chain: its expected acceptance length.

    Args:
        acceptances: Acceptance rate of each token, given that those before it are accepted.
    """
    total, reach = 1.0, 1.0
    for rate in acceptances:
        reach *= rate
        total += reach
    return total


def memory_bound_speedup(block_efficiency: float, cost: float, depth: int) -> float:
    """Returns the speed-up of a chain where a pass takes the time of reading the weights.

    Args:
        block_efficiency: Expected acceptance length.
        cost: Size of the draft over that of the target.
        depth: Tokens of the chain.
    """
    return block_efficiency / (1 + cost * depth)
