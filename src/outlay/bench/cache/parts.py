"""What the suite compares: the parts of ZipVL one by one, then together, and a fixed share of tokens in its place."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A row of the report."""

    name: str
    cache: str | None
    """The policy as it is typed; None for the plain cache. `{ratio}` stands for the share that `ADAPTIVE` held."""


ADAPTIVE = "evict"
PARTS = (
    Part("dense", None),
    Part("4 bits for all", "zipvl:tau=1,bits=4x4,sparse=false"),
    Part("2 bits for all", "zipvl:tau=1,bits=2x2,sparse=false"),
    Part(ADAPTIVE, "zipvl:mode=evict,bits=16x16,sparse=false"),
    Part("evict, a fixed share", "zipvl:mode=evict,bits=16x16,sparse=false,ratio={ratio}"),
    Part("evict, 4 bits", "zipvl:mode=evict,bits=4x4,sparse=false"),
    Part("4/2 bits", "zipvl:sparse=false"),
    Part("4/2 bits, first in full", "zipvl:sparse=false,full_first=1"),
    Part("8/4 bits, first in full", "zipvl:bits=8x4,sparse=false,full_first=1"),
    Part("sparse prefill", "zipvl:bits=16x16"),
    Part("sparse prefill, 0.99", "zipvl:tau=0.99,bits=16x16"),
    Part("sparse prefill, 0.995, all probes", "zipvl:tau=0.995,bits=16x16,probes=100000x0"),
    Part("zipvl", "zipvl"),
    Part("zipvl, 0.96", "zipvl:tau=0.96"),
    Part("zipvl, evict", "zipvl:mode=evict"),
)
