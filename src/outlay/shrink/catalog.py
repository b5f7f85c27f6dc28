"""The methods that shrink weights, by name: ours, which are the files beside this one, and those of other packages."""

from __future__ import annotations

from functools import cache

import outlay.shrink
from outlay import catalog
from outlay.errors import FailureError, UsageError, nearest
from outlay.shrink.shrinker import Shrinker

ENTRY_POINTS = "outlay.shrinkers"


@cache
def shrinkers() -> dict[str, type[Shrinker]]:
    """Returns all methods by name, ours first.

    Raises:
        FailureError: For a package whose entry point can't be used.
    """
    found = catalog.found_in((outlay.shrink,), ENTRY_POINTS, "Shrinker")
    for name, entry in found.items():
        if not issubclass(entry, Shrinker):
            raise FailureError(f"the method {name!r} shrinks nothing: it is not a subclass of Shrinker")
    return {name: entry for name, entry in found.items() if issubclass(entry, Shrinker)}


def make(text: str, bits: float | None) -> Shrinker:
    """Makes a method of its name and options, as in `"gptq:bits=3,group=64"`.

    Args:
        text: The name, and the options that are set.
        bits: Bits a weight by which the options that aren't set are chosen; None: their defaults.

    Raises:
        UsageError: For what isn't known, or bits that the method can't do.
    """
    name, _, written = text.partition(":")
    known = shrinkers()
    if name.strip() not in known:
        raise UsageError(
            f"there is no method {name!r} that shrinks{nearest(name, known)}; there are {', '.join(known)}"
        )
    kind = known[name.strip()]
    return catalog.made(kind, "method", name, written, None if bits is None else kind.at_bits(bits))
