"""Several samples of one prompt: runs of their own, which share the prompt's cache and differ by their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outlay.budget import Ledger
from outlay.engine.handle import Result
from outlay.engine.session import Alternative


def joined(results: Sequence[Result]) -> Result:
    """Returns the first of several samples, with all of them as its alternatives.

    Args:
        results: The samples, in the order of their seeds. One alone is returned as it is.

    Returns:
        A result whose ledger is what all of them spent, in the seconds of the longest.
    """
    if len(results) == 1:
        return results[0]
    ledger = sum((result.ledger for result in results), start=Ledger())
    return replace(
        results[0],
        ledger=replace(ledger, seconds=max(result.ledger.seconds for result in results)),
        alternatives=[Alternative(each.text, each.tokens, None, each.finish_reason) for each in results],
    )
