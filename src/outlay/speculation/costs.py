"""What a pass of a model costs on this machine, by its rows: measured by the first few processes that want it, and kept
in the user's cache. Until then it is estimated, and no run waits for it: it is measured in pieces beside running text.

The time of a pass depends on its rows, on the weights' format, the processor and the threads, and on how much text each
row attends to. It is measured for some widths after a short text, and once more after a long one; between the widths it
is taken to be linear.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from outlay.budget import Account, Budget, Ledger
from outlay.engine.forward import Forward
from outlay.engine.measured import measured_file, read_measured, write_measured
from outlay.engine.request import Served, Worker
from outlay.engine.run import Run
from outlay.engine.worker import ModelWorker
from outlay.models.load import Model
from outlay.tree.token_tree import Tree

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHORT, LONG = 64, 448  # tokens of text before the passes that are measured
TURNS, IN_A_ROW = 2, 3  # pieces of each width, and passes of a piece; the fastest counts
BYTES_PER_SECOND, FLOPS, OVERHEAD = 1e10, 1.1e11, 3e-4  # of the estimate; the last in seconds
PROCESSES = 3  # that measure: to the first, the machine may have been busy, as it is after an installation


@dataclass(frozen=True)
class PassCosts:
    """`seconds[i]` is the time of a pass over `widths[i]` rows after `SHORT` tokens of text; `slope`, what a row takes
    more for each further token that it attends to.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    slope: float

    def __call__(self, rows: float, context: float = SHORT) -> float:
        """Returns the seconds of a pass by its rows and the tokens before each."""
        widths, seconds = self.widths, self.seconds
        right = min(max(bisect_right(widths, rows), 1), len(widths) - 1)
        left = right - 1
        share = (rows - widths[left]) / (widths[right] - widths[left])
        at = seconds[left] + share * (seconds[right] - seconds[left])
        return max(at, 1e-9) + max(0.0, context - SHORT) * rows * self.slope

    def marginal(self, rows: float, most: int, context: float = SHORT) -> list[float]:
        """Returns the seconds that 0, 1, ..., `most` further rows take in a pass over `rows`."""
        one = self(rows, context)
        return [self(rows + more, context) - one for more in range(most + 1)]


class Measurement:
    """Times the passes of a model, piece by piece, in a cache of its own.

    A piece is a few passes of one width in a row, as decoding has them: behind a much wider one, which leaves less of
    the weights in the caches, a narrow pass may take twice as long. The widths take turns, so that a machine that
    drifts drifts for all. `seconds` holds the fastest pass of each piece so far, the nearest to what it takes where
    nothing else runs.
    """

    def __init__(
        self,
        model: Model,
        widths: Sequence[int] = WIDTHS,
        begun: Sequence[float] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`begun`: the pieces that another process has measured."""
        self.seconds, self._clock = list(begun), clock
        self._model, self._widths = model, tuple(widths)
        context = max(1, model.decoder.config.max_positions - max(widths) - 2)
        self._short, self._long = min(SHORT, context), min(LONG, context)
        self._probe = max(width for width in widths if width <= 8)
        self._pieces = [(self._short, width) for _ in range(TURNS) for width in widths]
        self._pieces += [(self._long, self._probe)] * TURNS
        self._worker: ModelWorker | None = None
        self._trees: dict[int, Tree] = {}

    @property
    def done(self) -> bool:
        """Whether all pieces are measured."""
        return len(self.seconds) >= len(self._pieces)

    def step(self) -> None:
        """Measures the next piece."""
        if self._worker is None:
            self._worker = ModelWorker(
                self._model, role="side", cache_tokens=self._long + max(self._widths) + 1, prefix_cache=False
            )
            self._trees = filled_trees(self._worker, self._short, self._long)
        length, width = self._pieces[len(self.seconds)]
        self.seconds.append(min(timed(self._worker, self._trees[length], width, self._clock) for _ in range(IN_A_ROW)))

    def costs(self) -> PassCosts:
        """Returns the costs by all pieces."""
        least: dict[tuple[int, int], float] = {}
        for piece, seconds in zip(self._pieces, self.seconds, strict=True):
            least[piece] = min(seconds, least.get(piece, seconds))
        long = least[self._long, self._probe]
        short = [least[self._short, width] for width in self._widths]
        for place in range(len(short) - 2, -1, -1):  # fewer rows never take longer
            short[place] = min(short[place], short[place + 1])
        slope = (long - short[self._widths.index(self._probe)]) / (self._probe * max(self._long - self._short, 1))
        return PassCosts(self._widths, tuple(short), max(0.0, slope))


def filled_trees(worker: ModelWorker, *lengths: int) -> dict[int, Tree]:
    """Returns trees of the given numbers of tokens. Their keys and values are there, though nobody computed them: what
    a pass takes doesn't depend on what they are.
    """
    for held in worker.cache.layers:
        for part in held.parts:
            part.fill_(1)
    most = min(50, worker.decoder.config.vocab_size - 1)
    memory = None
    if worker.model.encoder is not None:
        read = min(SHORT, worker.model.encoder.config.max_positions)
        memory = worker.open_memory([1 + place % most for place in range(read)])
    tree = Tree(worker.cache, reserve=max(lengths), memory=memory)
    tree.append([1 + place % most for place in range(max(lengths))])
    assert tree.tip is not None
    path = tree.tip.path()
    for node in path:
        node.computed = True
    return {length: Tree(worker.cache, after=path[length - 1], memory=memory) for length in lengths}


def timed(worker: ModelWorker, tree: Tree, width: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds of a pass over a chain of `width` nodes below a tree's tip."""
    vectors = (
        list(torch.zeros(width, worker.decoder.config.hidden_size)) if worker.decoder.reads_hidden_states else None
    )
    nodes = tree.extend(range(-1, width - 1), range(1, width + 1), inputs_embeds=vectors)
    request = Forward(Account(Budget(), Ledger()), worker, tuple(nodes), topk=1)
    started = clock()
    worker.advance([request])
    seconds = clock() - started
    tree.prune(())
    if request.error is not None:
        raise request.error
    return seconds


def estimate(model: Model, widths: Sequence[int] = WIDTHS) -> PassCosts:
    """Returns what the passes of a model may cost, before they are measured: the roofline of a small machine. Only the
    ratios count, since `auto` follows how much slower passes are at the moment.
    """
    decoder = model.decoder
    seconds = [
        OVERHEAD + max(decoder.pass_weight_bytes(rows) / BYTES_PER_SECOND, decoder.linear_flops(rows, rows) / FLOPS)
        for rows in widths
    ]
    return PassCosts(tuple(widths), tuple(seconds), 0.0)


@dataclass
class Known:
    """What is known of a model's passes: the measurements that are `found`, and the pieces of one that was `begun`.
    `settled`: this process has nothing to add.
    """

    path: Path
    estimated: PassCosts
    found: list[PassCosts]
    begun: list[float]
    settled: bool

    @property
    def costs(self) -> PassCosts:
        """The costs by all measurements; an estimate where there is none."""
        return _fastest(self.found) if self.found else self.estimated

    def add(self, measurement: Measurement) -> None:
        """Takes in the pieces of a measurement so far, and keeps them."""
        self.begun = measurement.seconds
        if measurement.done:
            self.found, self.begun, self.settled = [*self.found, measurement.costs()], [], True
        measured = [[each.seconds, each.slope] for each in self.found]
        write_measured(self.path, {"widths": WIDTHS, "measured": measured, "begun": self.begun})

    def complete(self, model: Model) -> PassCosts:
        """Measures the costs of the model's passes at once, where they still should be, and returns them."""
        measurement = Measurement(model, begun=self.begun)
        while not self.settled:
            measurement.step()
            self.add(measurement)
        return self.costs


class CostMeter(Worker):
    """Measures what the passes of a model cost while the engine has time to spare. It serves no requests."""

    role, stage = "costs", "now"

    def __init__(self, model: Model) -> None:
        self.ledger = Ledger()
        self._known = known_of(model)
        self._measurement: Measurement | None = Measurement(model, begun=self._known.begun)

    def advance(self, requests: Sequence[Any]) -> Served | None:
        raise TypeError("a meter of costs is asked for nothing")

    def spare(self) -> bool:
        if self._measurement is None:
            return False
        try:
            self._measurement.step()
        except (RuntimeError, MemoryError):  # what can't be measured is estimated
            self._measurement = None
            return False
        self._known.add(self._measurement)
        if self._known.settled:
            self._measurement = None
        return True


def costs_of(model: Model) -> PassCosts:
    """Returns the costs of a model's passes with the threads in use: measured, as far as that was done, or estimated.

    It takes no time; see `measure_beside` and `Known.complete`.
    """
    return known_of(model).costs


def measure_beside(run: Run, model: Model) -> None:
    """Has the costs of a model's passes measured beside running text, in pieces, where they still should be."""
    known = known_of(model)
    if not known.settled:
        run.service(("costs", known.path), lambda wake: CostMeter(model))


_KNOWN: dict[Path, Known] = {}


def known_of(model: Model) -> Known:
    """Returns what is known of a model's passes with the threads in use."""
    measured = [WIDTHS, TURNS, IN_A_ROW, SHORT, LONG]
    path = measured_file(model.fingerprint, model.format, model.decoder.device, measured)
    if path not in _KNOWN:
        found, begun = _found(read_measured(path))
        _KNOWN[path] = Known(path, estimate(model), found, begun, settled=len(found) >= PROCESSES)
    return _KNOWN[path]


def _fastest(found: Sequence[PassCosts]) -> PassCosts:
    """Returns the least that each width took, and of the slopes, which are differences, the middle one."""
    seconds = tuple(map(min, zip(*(each.seconds for each in found), strict=True)))
    return PassCosts(found[0].widths, seconds, median_low(each.slope for each in found))


def _found(held: Any) -> tuple[list[PassCosts], list[float]]:
    """Returns what was measured before, and the pieces of what was begun; nothing where a file doesn't hold that."""
    try:
        widths = tuple(map(int, held["widths"]))
        found = [PassCosts(widths, tuple(map(float, seconds)), float(slope)) for seconds, slope in held["measured"]]
        begun = [float(seconds) for seconds in held["begun"]]
    except (ValueError, KeyError, TypeError):
        return [], []
    whole = widths == WIDTHS and all(len(each.seconds) == len(widths) for each in found)
    return (found, begun) if whole else ([], [])
