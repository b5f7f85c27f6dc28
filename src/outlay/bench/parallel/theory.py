"""What no model can do better, in closed form: ParallelBench's theory of parallel decoding (Kang et al. 2025, arXiv
2510.04767).

Tokens that are chosen in one round are drawn independently, so the texts differ from the data's by at least the
conditional total correlation of each round's tokens: the sum of their entropies minus the entropy of all of them
together, given what is known (Theorem 1). All figures are in bits and of uniform distributions over right answers; the
identity is one of the shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb, factorial, log2, prod

from outlay.errors import UsageError

TASKS = ("copy", "reverse", "shuffle", "replace_random")


def total_correlation(task: str, n: int) -> float:
    """Returns the conditional total correlation of a whole answer of n items, in bits: what one round costs at least.

    Raises:
        UsageError: There is no closed form for the task.
    """
    return lower_bound(task, n, (n,))


def lower_bound(task: str, n: int, sizes: Sequence[int]) -> float:
    """Returns how far texts are from the data at least, as KL divergence in bits, by the tokens that each round fills.

    Args:
        task: One of `TASKS`.
        n: Items of the list.
        sizes: Tokens that each round fills, n in all.
    """
    if task not in TASKS:
        raise UsageError(f"there is no closed form for {task!r}; there are those of {', '.join(TASKS)}")
    if sum(sizes) != n:
        raise UsageError(f"rounds of {', '.join(map(str, sizes))} tokens don't fill {n}")
    left = [n - sum(sizes[:number]) for number in range(len(sizes))]
    rounds = list(zip(sizes, left, strict=True))
    if task == "shuffle":
        return sum(size * log2(masks) for size, masks in rounds) - log2(factorial(n))
    if task == "replace_random":
        return sum(masks / n * _one_of(size, masks) for size, masks in rounds)
    return 0.0


def best_lower_bound(task: str, n: int, rounds: int) -> float:
    """Returns the lowest bound of any partition into rounds, in bits; it falls with the rounds (Theorem 2)."""
    return min(lower_bound(task, n, sizes) for sizes in _partitions(n, rounds))


def accuracy(task: str, n: int, k: int, *, sampled: bool) -> float:
    """Returns the share of right answers of an ideal model, whose rounds fill k tokens that are chosen without bias.

    Args:
        task: One of `TASKS`.
        n: Items of the list.
        k: Tokens of a round; the last one takes what is left.
        sampled: Whether tokens are drawn at temperature 1, or the most probable ones are taken, ties broken at random.
    """
    if task == "shuffle":
        return prod(factorial(masks) / factorial(masks - size) / masks**size for masks, size in _rounds(n, k))
    if task == "replace_random":
        return _one_replaced(n, k) if sampled else _greedy_one_replaced(n, k)
    return 1.0


def threshold_accuracy(task: str, n: int, gamma: float) -> float:
    """Returns the same of greedy threshold decoding, for thresholds above 1/2: no fixed one is fast and right on all.

    Args:
        task: One of `TASKS`.
        n: Items of the list, 3 or more.
        gamma: The threshold.
    """
    if task == "replace_random" and gamma < (n - 1) / n:
        return 0.0
    return 1.0


def _one_of(size: int, masks: int) -> float:
    """Returns the total correlation of `size` of `masks` places, of which exactly one is another item's."""
    rest = masks - size
    together = size / masks * log2(masks) + (rest / masks * log2(masks / rest) if rest else 0.0)
    return size * _entropy(1 / masks) - together


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * log2(p) - (1 - p) * log2(1 - p)


def _rounds(n: int, k: int) -> Iterator[tuple[int, int]]:
    """Yields the masks at the beginning of each round, and the tokens that it fills."""
    for masks in range(n, 0, -k):
        yield masks, min(k, masks)


def _one_replaced(n: int, k: int) -> float:
    """Returns how probable it is that exactly one item was replaced, where each round's are drawn independently."""
    none, one = 1.0, 0.0
    for masks, size in _rounds(n, k):
        once = comb(size, 1) / masks * (1 - 1 / masks) ** (size - 1)
        one, none = one + none * once, none * (1 - 1 / masks) ** size
    return one


def _greedy_one_replaced(n: int, k: int) -> float:
    """Returns the same of the most probable items: all are kept as long as more than two masks are left."""
    *_, (masks, size) = _rounds(n, k)
    before = [masks for masks, _ in _rounds(n, k)]
    if 2 in before:
        return 1.0 if k == 1 else 0.5
    return 1.0 if (masks, size) == (1, 1) else 0.0


def _partitions(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yields the compositions of n: its sums of a number of positive integers, in all orders."""
    if parts == 1:
        yield (n,)
        return
    for first in range(1, n - parts + 2):
        for rest in _partitions(n - first, parts - 1):
            yield (first, *rest)
