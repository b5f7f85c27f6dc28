"""Ways to run a detector: which there are, what each costs by its shapes, and which of them nothing beats."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from outlay.budget import Budget, Ledger
from outlay.errors import FailureError, UsageError
from outlay.vision.detect.checkpoints import Loaded
from outlay.vision.detect.deimv2 import MULTIPLE
from outlay.vision.detect.detections import SHARES, Effort, counted, places
from outlay.vision.detect.timing import Times

Dtype = Literal["float32", "bfloat16"]
DTYPES: Mapping[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMED = ("seconds", "cpu_seconds")
CAPPED = (*TIMED, "flops", "mem_elements", "moved_bytes", "weight_bytes")
"""What a budget may cap, of one picture."""
SIDES = (1.0, 0.75, 0.5)
"""Shares of a detector's own size of pictures that are tried."""


@dataclass(frozen=True)
class Way:
    """A way to run a detector."""

    model: str
    layers: int
    queries: int
    side: int
    threads: int = 1
    dtype: Dtype = "float32"

    def command(self) -> str:
        """Returns what runs it."""
        words = f"outlay vision detect PICTURE --model {shlex.quote(self.model)} --layers {self.layers}"
        words += f" --queries {self.queries} --size {self.side} --threads {self.threads}"
        return words + ("" if self.dtype == "float32" else f" --dtype {self.dtype}")

    @property
    def label(self) -> str:
        """Returns it in short."""
        return (
            f"{self.model}, {self.layers} layers, {self.queries} queries, {self.side} px, {self.threads} "
            f"thread{'s' * (self.threads > 1)}, {self.dtype}"
        )


@dataclass(frozen=True)
class Priced:
    """A way with what a picture costs, and how well it does."""

    way: Way
    ledger: Ledger
    """Of one picture; times are 0 where they weren't taken."""
    quality: float | None = None
    """AP from 0 to 1."""
    interval: tuple[float, float] | None = None
    """95 % of resamples of the pictures lie between."""

    def over(self, budget: Budget) -> float:
        """Returns how many times the budget it needs: 1 or less is inside."""
        return max((self.ledger.amount(name) / cap for name, cap in budget.caps.items()), default=0.0)


@dataclass(frozen=True)
class Options:
    """What is tried of each model; empty: what goes with it."""

    layers: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")


def check(budget: Budget) -> None:
    """Raises `UsageError` for a budget that caps nothing, or what a picture's cost doesn't have."""
    if not budget.caps:
        raise UsageError(f"say what a picture may cost with --budget: {', '.join(CAPPED)}")
    strange = next((name for name in budget.caps if name not in CAPPED), None)
    if strange is not None:
        raise UsageError(f"the cost of a picture has {', '.join(CAPPED)}, not {strange}")


def ways_of(name: str, loaded: Loaded, options: Options) -> list[Way]:
    """Returns the ways to run a detector.

    Raises:
        UsageError: For layers, queries or sizes that it doesn't have.
    """
    size = loaded.detector.size
    sides = options.sides or tuple(
        sorted({max(MULTIPLE * 2, round(loaded.side * share / MULTIPLE) * MULTIPLE) for share in SIDES}, reverse=True)
    )
    wrong = next((side for side in sides if side % MULTIPLE or side < MULTIPLE), None)
    if wrong is not None:
        raise UsageError(f"a detector reads sides that {MULTIPLE} divides, not {wrong}")
    deepest = max(options.layers, default=1)
    if deepest > size.layers or min(options.layers, default=1) < 1:
        raise UsageError(f"{name} has {size.layers} layers; try 1 to {size.layers}, not {deepest}")
    threads = options.threads or tuple(sorted({1, torch.get_num_threads()}))
    found = []
    for side in sides:
        most = min(size.queries, places(replace(loaded, side=side)))
        if max(options.queries, default=1) > size.queries:
            raise UsageError(f"{name} refines {size.queries} places; try as many at most")
        queries = [each for each in options.queries if each <= most] or sorted(
            {max(1, round(share * most)) for share in SHARES}, reverse=True
        )
        found += [
            Way(name, deep, wide, side, count, dtype)
            for deep in options.layers or range(1, size.layers + 1)
            for wide in queries
            for count in threads
            for dtype in options.dtypes
        ]
    return found


def counted_way(loaded: Loaded, way: Way) -> Ledger:
    """Returns what a picture costs by shapes alone."""
    return counted(loaded.detector.size, way.side, Effort(way.layers, way.queries))


def without_times(budget: Budget) -> Budget:
    """Returns the budget's caps on what is counted."""
    return Budget(**{name: cap for name, cap in budget.caps.items() if name not in TIMED})


def with_times(ledger: Ledger, times: Times) -> Ledger:
    """Returns a ledger's counts with what a call took."""
    made = ledger + Ledger()
    made.seconds = times.seconds
    made.extras["cpu_seconds"] = times.cpu_seconds
    return made


def nothing_fits(priced: Sequence[Priced], budget: Budget) -> FailureError:
    """Returns an error that names the way which is closest to the budget, and by how much it is over."""
    closest = min(priced, key=lambda each: each.over(budget))
    name = max(budget.caps, key=lambda each: closest.ledger.amount(each) / budget.caps[each])
    return FailureError(
        f"nothing fits the budget; the closest, {closest.way.label}, needs {closest.over(budget):.2f} times as much: "
        f"{name} {closest.ledger.amount(name):.4g} a picture"
    )


def pareto(priced: Sequence[Priced], budget: Budget) -> list[Priced]:
    """Returns the Pareto front by the budget's first cap and the quality, the cheapest first."""
    name = next(iter(budget.caps))
    found: list[Priced] = []
    for each in sorted(priced, key=lambda each: (each.ledger.amount(name), -(each.quality or 0))):
        if not found or (each.quality or 0) > (found[-1].quality or 0):
            found.append(each)
    return found
