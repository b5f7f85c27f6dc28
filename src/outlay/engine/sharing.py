"""From how many rows and shared keys on a pass gains by reading apart what its rows share: measured by the first few
processes whose runs share, and stored in the user's cache beside the costs of passes.

Reading a shared beginning apart costs each row one more span, and saves the keys that are not read again. What is
compared is attention alone, over all layers and with the plan that it is told: rows that read a span together and then
keys of their own, against rows that each read all of theirs. The length at which they are even depends on the model's
heads, on how keys and values are held, on the processor and the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from outlay.budget import Ledger
from outlay.engine.measured import measured_file, read_measured, write_measured
from outlay.engine.request import Served, Worker
from outlay.models.decoder import Decoder
from outlay.tree.attention import attention_of
from outlay.tree.cache import Cache
from outlay.tree.plan import ASSUMED, NEVER, BreakEven, KVSpan, PassPlan

ROWS = (2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)  # shared keys; beyond the last nobody gains who didn't before
OWN = 32  # keys that each row reads alone
LAYERS = 4  # that are timed, of all that a pass has
TURNS = 5  # of each side; the fastest counts
PROCESSES = 3  # that measure; the middle one of what they found counts


@dataclass
class MeasuredSharing:
    """The lengths that processes have `found`, one for each of `ROWS`. `settled`: this process has nothing to add."""

    path: Path
    found: list[tuple[int, ...]]
    settled: bool

    @property
    def break_even(self) -> BreakEven:
        """The break-even by all measurements; an assumed one where there is none."""
        if not self.found:
            return ASSUMED
        return BreakEven(ROWS, tuple(map(median_low, zip(*self.found, strict=True))))

    def add(self, lengths: Sequence[int]) -> None:
        """Takes in what this process found, and keeps it."""
        self.found, self.settled = [*self.found, tuple(lengths)], True
        write_measured(self.path, {"rows": ROWS, "measured": self.found})


_KNOWN: dict[Path, MeasuredSharing] = {}


def sharing_of(decoder: Decoder, kv_dtype: torch.dtype) -> MeasuredSharing:
    """Returns what is known of a decoder's passes over a cache, with the threads in use."""
    config = decoder.config
    shape = [config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim, config.attention_softcap]
    timed = [ROWS, LENGTHS, OWN, LAYERS, TURNS]
    path = measured_file("sharing", shape, kv_dtype, decoder.dtype, decoder.device, timed)
    if path not in _KNOWN:
        found = _found(read_measured(path))
        settled = len(found) >= PROCESSES or not config.num_layers  # an exact denoiser attends to nothing
        _KNOWN[path] = MeasuredSharing(path, found, settled)
    return _KNOWN[path]


def _found(held: Any) -> list[tuple[int, ...]]:
    """Returns the lengths that a file holds; nothing where it doesn't hold that."""
    try:
        found = [tuple(map(int, lengths)) for lengths in held["measured"]]
    except (TypeError, ValueError, KeyError):
        return []
    return found if all(len(lengths) == len(ROWS) for lengths in found) else []


class SharingMeasurement:
    """Finds for each of `ROWS` the least of `LENGTHS` that pays, piece by piece, by halving those that are left."""

    def __init__(self, decoder: Decoder, kv_dtype: torch.dtype) -> None:
        layers = min(LAYERS, decoder.config.num_layers)
        self.lengths: list[int] = []
        self._decoder, self._times = decoder, decoder.config.num_layers / layers
        self._config = replace(decoder.config, num_layers=layers, windows=decoder.config.windows[:layers])
        slots = LENGTHS[-1] + OWN * ROWS[-1]
        self._cache = Cache(self._config, kv_dtype, decoder.device, limit=slots, capacity=slots)
        self._left = (0, len(LENGTHS))

    @property
    def done(self) -> bool:
        """Whether all is measured."""
        return len(self.lengths) == len(ROWS)

    def step(self) -> None:
        """Measures the next piece."""
        low, high = self._left
        middle = (low + high) // 2
        if self.pays(ROWS[len(self.lengths)], LENGTHS[middle]):
            high = middle
        else:
            low = middle + 1
        if low == high:
            self.lengths.append(LENGTHS[low] if low < len(LENGTHS) else NEVER)
            low, high = 0, len(LENGTHS)
        self._left = low, high

    def pays(self, rows: int, length: int) -> bool:
        """Tells whether attention of `rows` rows is faster where they read `length` shared keys apart."""
        plans = [_plan(rows, length, self._config.windows, apart=apart) for apart in (True, False)]
        apart, whole = zip(*([self.seconds(plan) for plan in plans] for _ in range(TURNS)), strict=True)
        return min(apart) <= min(whole)

    def seconds(self, plan: PassPlan) -> float:
        """Returns what attention takes in a pass; on a processor its time, whatever else it does meanwhile."""
        config, decoder, n = self._config, self._decoder, len(plan.tokens)
        q = torch.zeros((n, config.num_heads, config.head_dim), dtype=decoder.dtype, device=decoder.device)
        k = torch.zeros((n, config.num_kv_heads, config.head_dim), dtype=decoder.dtype, device=decoder.device)
        clock = _clock(decoder.device)
        started = clock()
        attend = attention_of(self._cache, plan, config, decoder.dtype)
        planned = clock()
        for layer in range(config.num_layers):
            attend(layer, q, k, k)
        return planned - started + self._times * (clock() - planned)


def _plan(rows: int, length: int, windows: Sequence[int | None], *, apart: bool) -> PassPlan:
    """Returns a pass of rows that share `length` keys and have `OWN` more each, read apart from these or with them."""
    own = [length + OWN * row for row in range(rows)]
    if apart:
        spans = [KVSpan(0, 0, length, tuple(range(rows)))]
        spans += [KVSpan(length, start, OWN, (row,)) for row, start in enumerate(own)]
    else:
        spans = [KVSpan(0, 0, length + OWN, (row,)) for row in range(rows)]
    return PassPlan([0] * rows, [0] * rows, own, dict.fromkeys(windows, spans), [length + OWN] * rows)


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.process_time

    def seconds() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return seconds


class SharingMeter(Worker):
    """Measures when sharing pays while the engine has time to spare. It serves no requests."""

    role, stage = "sharing", "now"

    def __init__(self, known: MeasuredSharing, decoder: Decoder, kv_dtype: torch.dtype) -> None:
        self.ledger = Ledger()
        self._known, self._of = known, (decoder, kv_dtype)
        self._measurement: SharingMeasurement | None = None

    def advance(self, requests: Sequence[Any]) -> Served | None:
        raise TypeError("a meter of sharing is asked for nothing")

    def spare(self) -> bool:
        known = self._known
        if known.settled:
            return False
        try:
            self._measurement = self._measurement or SharingMeasurement(*self._of)
            self._measurement.step()
        except (RuntimeError, MemoryError):  # what can't be measured stays assumed
            known.settled = True
            return False
        if self._measurement.done:
            known.add(self._measurement.lengths)
            self._measurement = None
        return True
