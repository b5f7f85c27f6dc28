"""Which detector finds most within a budget: models, layers, queries, sizes, threads and types, measured here.

Costs are counted from shapes and timed on this machine; quality is average precision on the user's labels. Without
labels the figures that the authors publish for COCO stand in, marked so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from outlay.budget import Budget, Ledger
from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress, silent
from outlay.vision.detect.checkpoints import Loaded
from outlay.vision.detect.datasets import Dataset
from outlay.vision.detect.deimv2 import MULTIPLE, Detector
from outlay.vision.detect.detections import SHARES, Detections, Effort, counted, detect, found_in, maps_of, places
from outlay.vision.detect.evaluate import BATCH, Score, score
from outlay.vision.detect.sizes import SIZES

Dtype = Literal["float32", "bfloat16"]
DTYPES: Mapping[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMED = ("seconds", "cpu_seconds")
CAPPED = (*TIMED, "flops", "mem_elements", "moved_bytes", "weight_bytes")
"""What a budget may cap, of one picture."""
SIDES = (1.0, 0.75, 0.5)
"""Shares of a detector's own size of pictures that are tried."""
ROUNDS = 5
"""Times that each way of running is timed, the ways in turn; the least counts, for other work only adds to it."""
NEAR, PATIENCE = 0.15, 2
"""How much longer than in the first a second measurement may take, before it is taken so many times more: other work
on the machine may have come between, and the least time counts in both."""
CONFIRMED = 5
"""Ways that are measured again at most until one stays inside the budget."""
PUBLISHED = "COCO, published"


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
        words = f"outlay vision detect PICTURE --model {self.model} --layers {self.layers} --queries {self.queries}"
        words += f" --size {self.side} --threads {self.threads}"
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


@dataclass(frozen=True)
class Choice:
    """What was found."""

    winner: Priced
    again: Ledger | None
    """The winner's cost when it was measured a second time; None where nothing was timed."""
    front: Sequence[Priced]
    """Ways of which none is both cheaper and better, the cheapest first."""
    every: Sequence[Priced]
    basis: str
    """What quality was measured on."""
    dropped: Sequence[str] = field(default_factory=list)
    """Ways that would have won, and were over the budget when they were measured again."""

    @property
    def away(self) -> float:
        """How far the second measurement is from the first, as a share; 0 where nothing was timed."""
        if self.again is None:
            return 0.0
        return max(abs(self.again.amount(name) / self.winner.ledger.amount(name) - 1) for name in TIMED[:1])


def choose(
    models: Mapping[str, Loaded],
    data: Dataset,
    budget: Budget,
    options: Options | None = None,
    *,
    rounds: int = ROUNDS,
    progress: ShowProgress = silent,
) -> Choice:
    """Chooses among detectors, and all the ways to run them, by quality on labelled pictures.

    Args:
        models: Detectors by what a user types for them.
        data: Pictures with boxes.
        budget: Caps on the cost of one picture.
        options: What is tried.
        rounds: Times that each way is timed.
        progress: Shown what is done.

    Raises:
        UsageError: For a budget that caps something else, or options that no model has.
        FailureError: Where nothing fits; it names the closest and by how much it is over.
    """
    check(budget)
    priced = _listed(models, options or Options())
    inside = [each for each in priced if each.over(_without_times(budget)) <= 1]
    if not inside:
        raise nothing_fits(priced, _without_times(budget))
    picture = data.examples[0].pixels()
    timed = _timed(inside, models, picture, rounds, progress)
    affordable = [each for each in timed if each.over(budget) <= 1]
    if not affordable:
        raise nothing_fits(timed, budget)
    graded = _graded(affordable, models, data, progress)
    return _confirmed(graded, models, data, budget, picture, rounds, progress)


def priced_ways(
    models: Mapping[str, Loaded],
    picture: npt.NDArray[np.uint8],
    options: Options,
    rounds: int = ROUNDS,
    progress: ShowProgress = silent,
) -> list[Priced]:
    """Returns all ways to run some detectors, each with its counts and its times on a picture."""
    return _timed(_listed(models, options), models, picture, rounds, progress)


def _listed(models: Mapping[str, Loaded], options: Options) -> list[Priced]:
    ways = [way for name, loaded in models.items() for way in ways_of(name, loaded, options)]
    return [Priced(way, _counted(models[way.model], way)) for way in ways]


def choose_published(
    budget: Budget, names: Iterable[str] = (), *, rounds: int = ROUNDS, progress: ShowProgress = silent
) -> Choice:
    """Chooses among the eight sizes by the figures that the authors publish for COCO.

    Costs are counted here, and timed with random weights where a time is capped.

    Args:
        budget: Caps on the cost of one picture.
        names: The sizes; by default all.
        rounds: Times that each is timed.
        progress: Shown what is done.

    Raises:
        UsageError: For a budget that caps something else.
        FailureError: Where nothing fits.
    """
    check(budget)
    sizes = {name: SIZES[name] for name in (names or SIZES)}
    ways = [Way(name, size.layers, size.queries, size.side) for name, size in sizes.items()]
    priced = [
        Priced(way, counted(sizes[way.model], way.side, Effort(way.layers, way.queries)),
               (sizes[way.model].coco_ap or 0) / 100)
        for way in ways
    ]  # fmt: skip
    inside = [each for each in priced if each.over(_without_times(budget)) <= 1]
    if not inside:
        raise nothing_fits(priced, _without_times(budget))
    if not set(TIMED) & set(budget.caps):
        return Choice(_best(inside, budget), None, pareto(inside, budget), priced, PUBLISHED)
    picture = np.zeros((480, 640, 3), dtype=np.uint8)
    models = {each.way.model: Loaded(Detector(each.way.model).eval(), (), each.way.side) for each in inside}
    timed = _timed(inside, models, picture, rounds, progress)
    affordable = [each for each in timed if each.over(budget) <= 1]
    if not affordable:
        raise nothing_fits(timed, budget)
    return _settled(affordable, models, budget, picture, rounds, progress, PUBLISHED)


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


def _counted(loaded: Loaded, way: Way) -> Ledger:
    return counted(loaded.detector.size, way.side, Effort(way.layers, way.queries))


def _without_times(budget: Budget) -> Budget:
    return Budget(**{name: cap for name, cap in budget.caps.items() if name not in TIMED})


def nothing_fits(priced: Sequence[Priced], budget: Budget) -> FailureError:
    """Returns an error that names the way which is closest to the budget, and by how much it is over."""
    closest = min(priced, key=lambda each: each.over(budget))
    name = max(budget.caps, key=lambda each: closest.ledger.amount(each) / budget.caps[each])
    return FailureError(
        f"nothing fits the budget; the closest, {closest.way.label}, needs {closest.over(budget):.2f} times as much: "
        f"{name} {closest.ledger.amount(name):.4g} a picture"
    )


def timed_call(run: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds of a call by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _timed(
    priced: Sequence[Priced],
    models: Mapping[str, Loaded],
    picture: npt.NDArray[np.uint8],
    rounds: int,
    progress: ShowProgress,
) -> list[Priced]:
    """Returns the ways with the least times of some rounds, each of which runs all ways once."""
    least: dict[Way, tuple[float, float]] = {}
    before = torch.get_num_threads()
    try:
        for turn in range(rounds + 1):  # the first warms up
            for place, each in enumerate(priced):
                torch.set_num_threads(each.way.threads)
                found = timed_call(partial(_run, models[each.way.model], each.way, picture))
                if turn:
                    known = least.get(each.way, found)
                    least[each.way] = (min(known[0], found[0]), min(known[1], found[1]))
                progress("timing", turn * len(priced) + place + 1, (rounds + 1) * len(priced))
    finally:
        torch.set_num_threads(before)
    return [replace(each, ledger=_with_times(each.ledger, least[each.way])) for each in priced]


def _with_times(ledger: Ledger, times: tuple[float, float]) -> Ledger:
    made = ledger + Ledger()
    made.seconds = times[0]
    made.extras["cpu_seconds"] = times[1]
    return made


def _run(loaded: Loaded, way: Way, picture: npt.NDArray[np.uint8]) -> list[Detections]:
    return detect(
        replace(loaded, side=way.side), [picture], layers=way.layers, queries=way.queries, dtype=DTYPES[way.dtype]
    )


def _graded(
    priced: Sequence[Priced], models: Mapping[str, Loaded], data: Dataset, progress: ShowProgress
) -> list[Priced]:
    """Returns the ways with their quality; those that differ by threads alone have one and the same."""
    graded: dict[tuple[_Setting, tuple[int, int]], Score] = {}
    settings = list(dict.fromkeys(_setting(each.way) for each in priced))
    for place, setting in enumerate(settings):
        wanted = {each.way.queries for each in priced if _setting(each.way) == setting}
        told = f"measuring {setting.model} at {setting.side} px, {setting.dtype} ({place + 1} of {len(settings)})"
        loaded = replace(models[setting.model], side=setting.side)
        seen = grades(loaded, data, sorted(wanted), DTYPES[setting.dtype], _renamed(progress, told))
        graded |= {(setting, effort): each for effort, each in seen.items()}

    def quality(way: Way) -> float:
        return graded[(_setting(way), (way.layers, way.queries))].ap or 0.0

    return [replace(each, quality=quality(each.way)) for each in priced]


class _Setting(NamedTuple):
    """What a look at the pictures is shared by: all layers and queries of it are measured at once."""

    model: str
    side: int
    dtype: Dtype


def _setting(way: Way) -> _Setting:
    return _Setting(way.model, way.side, way.dtype)


def _renamed(progress: ShowProgress, told: str) -> ShowProgress:
    return lambda phase, done, total: progress(told, done, total)


def grades(
    loaded: Loaded,
    data: Dataset,
    queries: Sequence[int],
    dtype: torch.dtype = torch.float32,
    progress: ShowProgress = silent,
    only: int | None = None,
    interval: bool = False,
) -> dict[tuple[int, int], Score]:
    """Measures all layers, and some numbers of queries, in one look at each picture.

    Args:
        loaded: The detector.
        data: Pictures with boxes.
        queries: Numbers of places that are refined.
        dtype: What backbone and encoder compute in.
        progress: Shown the pictures.
        only: The one layer that is scored, from 1; None: all.
        interval: Whether intervals are resampled.

    Returns:
        By layers and queries.
    """
    decoder, depth = loaded.detector.decoder, only or loaded.detector.size.layers
    found: dict[tuple[int, int], list[Detections]] = {}
    for start in range(0, len(data.examples), BATCH):
        pictures = [each.pixels() for each in data.examples[start : start + BATCH]]
        with torch.no_grad():
            maps = maps_of(loaded, pictures, dtype)
            for wide in queries:
                contents, boxes, _ = decoder.choose(maps, wide)
                answers, _ = decoder.refine(maps, contents, boxes, layers=depth, every=True)
                for answer in answers:
                    if only is None or answer.layer == only:
                        rows = found_in(answer, pictures, 0.0, loaded.names)
                        found.setdefault((answer.layer, wide), []).extend(rows)
        progress("looking at pictures", min(start + BATCH, len(data.examples)), len(data.examples))
    return {effort: score(rows, data, loaded.names, interval=interval) for effort, rows in found.items()}


def pareto(priced: Sequence[Priced], budget: Budget) -> list[Priced]:
    """Returns the ways of which none is both cheaper by the budget's first cap and better, the cheapest first."""
    name = next(iter(budget.caps))
    found: list[Priced] = []
    for each in sorted(priced, key=lambda each: (each.ledger.amount(name), -(each.quality or 0))):
        if not found or (each.quality or 0) > (found[-1].quality or 0):
            found.append(each)
    return found


def _best(priced: Sequence[Priced], budget: Budget) -> Priced:
    """Returns the best, and of equals the one that needs least of the budget."""
    return max(priced, key=lambda each: (each.quality or 0, -each.over(budget)))


def _confirmed(
    graded: Sequence[Priced],
    models: Mapping[str, Loaded],
    data: Dataset,
    budget: Budget,
    picture: npt.NDArray[np.uint8],
    rounds: int,
    progress: ShowProgress,
) -> Choice:
    """Returns the choice, with intervals of the winner and of the ways on the front."""
    found = _settled(graded, models, budget, picture, rounds, progress, data.source)
    named = {id(each): _with_interval(each, models, data) for each in (found.winner, *found.front)}
    return replace(found, winner=named[id(found.winner)], front=[named[id(each)] for each in found.front])


def _with_interval(priced: Priced, models: Mapping[str, Loaded], data: Dataset) -> Priced:
    way = priced.way
    loaded = replace(models[way.model], side=way.side)
    seen = grades(loaded, data, [way.queries], DTYPES[way.dtype], only=way.layers, interval=True)
    return replace(priced, interval=seen[(way.layers, way.queries)].intervals.get("ap"))


def _settled(
    affordable: Sequence[Priced],
    models: Mapping[str, Loaded],
    budget: Budget,
    picture: npt.NDArray[np.uint8],
    rounds: int,
    progress: ShowProgress,
    basis: str,
) -> Choice:
    """Returns the best way that is inside the budget when it is measured again."""
    left, dropped = list(affordable), list[str]()
    while left and len(dropped) < CONFIRMED:
        winner = _best(left, budget)
        again = _again(winner, models, picture, rounds, progress)
        if again.over(budget) <= 1:
            return Choice(winner, again.ledger, pareto(left, budget), affordable, basis, dropped)
        dropped.append(f"{winner.way.label}: {again.over(budget):.2f} times the budget when measured again")
        left.remove(winner)
    raise FailureError(
        f"{len(dropped)} ways were inside the budget, and over it when measured again; the machine's speed changes too "
        "much now, or the budget is at the edge: give it some room"
    )


def _again(
    winner: Priced,
    models: Mapping[str, Loaded],
    picture: npt.NDArray[np.uint8],
    rounds: int,
    progress: ShowProgress,
) -> Priced:
    """Returns the winner as it is measured a second time; longer where that is far above the first."""
    (best,) = _timed([winner], models, picture, rounds, progress)
    for _ in range(PATIENCE):
        if best.ledger.seconds <= (1 + NEAR) * winner.ledger.seconds:
            break
        (more,) = _timed([winner], models, picture, 2 * rounds, progress)
        best = min(best, more, key=lambda each: each.ledger.seconds)
    return best


def as_dict(choice: Choice) -> dict[str, Any]:
    """Returns a choice as JSON can hold it."""

    def row(each: Priced) -> dict[str, Any]:
        costs = {name: each.ledger.amount(name) for name in CAPPED}
        return {"way": vars(each.way), "costs": costs, "ap": each.quality, "interval": each.interval}

    again = None if choice.again is None else {name: choice.again.amount(name) for name in CAPPED}
    return {
        "winner": row(choice.winner), "command": choice.winner.way.command(), "again": again, "away": choice.away,
        "basis": choice.basis, "front": [row(each) for each in choice.front],
        "every": [row(each) for each in choice.every], "dropped": list(choice.dropped),
    }  # fmt: skip
