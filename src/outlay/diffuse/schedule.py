"""A schedule of a fixed number of rounds: how many tokens each of them fills (Nie et al. 2025, LLaDA)."""

from __future__ import annotations

from collections.abc import Sequence


def quotas(masks: int, rounds: int) -> list[int]:
    """Returns how many of `masks` positions each of `rounds` rounds fills; the first ones fill one more if need be."""
    rounds = max(1, min(rounds, masks))
    each, more = divmod(masks, rounds)
    return [each + (number < more) for number in range(rounds)]


def rounds_of_block(steps: int | None, blocks: Sequence[tuple[int, int]], number: int) -> int:
    """Returns how many of all `steps` rounds block `number` has; None: a round for each position."""
    begin, end = blocks[number]
    if steps is None:
        return end - begin
    each, more = divmod(steps, len(blocks))
    return max(1, each + (number < more))
