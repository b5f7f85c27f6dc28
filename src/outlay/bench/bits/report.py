"""The report of the bits suite: a table of hashes, and what a receipt costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, table

ABSENT = {"neon": "not this processor's; tests/kernels/test_kernel_arm.py compares its kernels under an emulator"}


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    cells = found["cells"]
    columns = list(next(iter(cells.values())))
    rows = [[isa, *(row[column] for column in columns)] for isa, row in cells.items()]
    rows += [[isa, why] for isa, why in ABSENT.items() if isa not in cells]
    different = {value for row in cells.values() for value in row.values()}
    verdict = "one hash in every cell" if len(different) == 1 else f"{len(different)} hashes: the promise is broken"
    rates = found["rates"]
    cost = 1 - rates["receipt"] / rates["plain"]
    return "\n\n".join(
        (
            machine.heading(found["machine"]),
            table([f"{found['tokens']} tokens", *columns], rows),
            f"{verdict}; beam: beside a beam search; busy batch: beside {found['busy']} other requests\n"
            f"greedy text with a receipt: {rates['receipt']:.1f} tokens/s, without: {rates['plain']:.1f} "
            f"({cost:.0%} less)",
        )
    )


TABLES = {"report": lambda found: console("outlay bench bits", report(found))}
