"""How long calls take on a machine that does other work too: calls in turn, until the fastest of each agree.

Other work makes a call wait for its processor, which Linux tells and which isn't the call's, and it takes caches and
bandwidth, which only adds to a call's time. So the fastest calls are the ones that met least of it; but the fastest of
few calls may have met some. The rule is the K-best one of Bryant and O'Hallaron (Computer Systems: A Programmer's
Perspective, on measuring time): go on until the K fastest calls are within a share of each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from outlay.progress import ShowProgress, silent

Key = TypeVar("Key", bound=Hashable)


WAITED = Path("/proc/thread-self/schedstat")
"""Where Linux counts, second of three, the nanoseconds that a thread could run and had no processor."""


class Times(NamedTuple):
    """What a call took."""

    seconds: float
    """By the clock, without `waited`."""
    cpu_seconds: float
    """Of the processor, all threads together."""
    waited: float = 0.0
    """Seconds that the calling thread waited for a processor which other work held; 0 where no system tells."""


@dataclass(frozen=True)
class Patience:
    """When calls have been timed often enough."""

    fastest: int = 3
    """Calls that must agree."""
    within: float = 0.03
    """How much longer the last of them may take than the first, as a share."""
    least: int = 6
    """Calls at least: a disturbance that lasts makes the first few agree."""
    calls: int = 40
    """Calls at most; where the machine is never quiet for long enough, the fastest are taken as they are."""
    seconds: float = 2.0
    """After so much time in its calls, what they waited included, nothing is called more than `least` times."""
    span: float = 0.0
    """Seconds of calls at least, or as many calls as there may be: a machine that is shared is slow for seconds, in
    which all calls agree."""


PATIENT = Patience(calls=500, seconds=20.0, span=2.0)
"""For one way, whose time is what is told: the fastest calls of a busy machine are rare."""


class Settled(NamedTuple):
    """The time of a call."""

    times: Times
    """The middle one of the fastest calls, for each of the times by itself."""
    agreed: bool
    """Whether the fastest agreed."""


def timed_call(run: Callable[[], object]) -> Times:
    """Returns what a call took."""
    wall, cpu, waited = time.perf_counter(), time.process_time(), _waited()
    run()
    waited = _waited() - waited  # read within the clock's two readings, so that it is never the longer
    worked, elapsed = time.process_time() - cpu, time.perf_counter() - wall
    return Times(elapsed - waited, worked, waited)


def _waited() -> float:
    """Returns the seconds that this thread has waited for a processor since it began."""
    try:
        return int(WAITED.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def least(
    keys: Sequence[Key],
    once: Callable[[Key], Times],
    rounds: int,
    drop: Callable[[dict[Key, Times]], set[Key]] = lambda known: set(),
    progress: ShowProgress = silent,
) -> dict[Key, Times]:
    """Returns the least times of some rounds, which call all in turn, after a round that isn't timed.

    Args:
        keys: What is called.
        once: Calls one of them.
        rounds: Timed rounds.
        drop: Names, after the first timed round, what is not called again.
        progress: Shown the calls.
    """
    known: dict[Key, Times] = {}
    left = list(keys)
    for turn in range(rounds + 1):
        for place, key in enumerate(left):
            took = once(key)
            if turn:
                known[key] = _less(known.get(key, took), took)
            progress("timing", turn * len(left) + place + 1, (rounds + 1) * len(left))
        if turn == 1:
            dropped = drop(known)
            left = [key for key in left if key not in dropped]
    return {key: known[key] for key in left}


def settled(
    keys: Sequence[Key],
    once: Callable[[Key], Times],
    patience: Patience | None = None,
    progress: ShowProgress = silent,
) -> dict[Key, Settled]:
    """Returns the times of calls that are made in turn until the fastest of each agree.

    Args:
        keys: What is called.
        once: Calls one of them; the first time, which warms up, doesn't count.
        patience: When it is enough.
        progress: Shown how many have settled.
    """
    patience = patience or Patience()
    taken: dict[Key, list[Times]] = {key: [] for key in keys}
    for key in keys:
        once(key)
    left = list(keys)
    while left:
        for key in left:
            taken[key].append(once(key))
        left = [key for key in reversed(left) if not _enough(taken[key], patience)]
        progress("timing those in front", len(keys) - len(left), len(keys))
    return {
        key: Settled(Times(*(_middle(each, patience) for each in zip(*calls, strict=True))), _agree(calls, patience))
        for key, calls in taken.items()
    }


def _less(one: Times, other: Times) -> Times:
    return Times(*map(min, zip(one, other, strict=True)))


def _enough(calls: Sequence[Times], patience: Patience) -> bool:
    if len(calls) < patience.least:
        return False
    spent = sum(each.seconds + each.waited for each in calls)
    if len(calls) >= patience.calls or spent >= patience.seconds:
        return True
    return spent >= patience.span and _agree(calls, patience)


def _agree(calls: Sequence[Times], patience: Patience) -> bool:
    fastest = sorted(each.seconds for each in calls)[: patience.fastest]
    return fastest[-1] <= (1 + patience.within) * fastest[0]


def _middle(seconds: Sequence[float], patience: Patience) -> float:
    return sorted(seconds)[: patience.fastest][patience.fastest // 2]
