"""Which detector finds most within a budget: models, layers, queries, sizes, threads and types, measured here.

What costs too much is dropped before quality is looked at: by counts, which shapes tell, then by a few timed calls. One
look at the pictures measures all layers and numbers of queries of a size. Those in front are timed until their fastest
calls agree, and the winner twice more, for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from outlay.budget import Budget, Ledger
from outlay.errors import FailureError
from outlay.progress import ShowProgress, silent
from outlay.vision.detect.checkpoints import Loaded
from outlay.vision.detect.datasets import Dataset
from outlay.vision.detect.deimv2 import Detector
from outlay.vision.detect.detections import Detections, Effort, counted, detect, found_in, maps_of
from outlay.vision.detect.evaluate import BATCH, Score, score
from outlay.vision.detect.sizes import SIZES
from outlay.vision.detect.timing import PATIENT, Times, least, settled, timed_call
from outlay.vision.detect.ways import (
    CAPPED,
    DTYPES,
    TIMED,
    Dtype,
    Options,
    Priced,
    Way,
    check,
    counted_way,
    nothing_fits,
    pareto,
    ways_of,
    with_times,
    without_times,
)

ROUNDS = 3
"""Times that each way is timed before anything is known of its quality, the ways in turn; the least counts."""
ROOM = 1.25
"""Times the budget that a way may take in these few calls and stay in: the least of more calls is less."""
FINALISTS = 5
"""Ways that are timed until their fastest calls agree: so many of the best, beside those on the front."""
NEAR, PATIENCE = 0.1, 4
"""The winner's two measurements may be so far apart, as a share; else the longer one was disturbed, and is taken again,
at most so many times in all."""
DRAWS = 60
"""Resamples of the pictures that an interval is of: fewer than where one detector is measured, for each way on the
front takes as long as that one."""
PUBLISHED = "COCO, published"

Once = Callable[[Way], Times]
"""Runs a way once, and returns what it took."""


@dataclass(frozen=True)
class Choice:
    """What was found."""

    winner: Priced
    again: Ledger | None
    """The winner's cost when it was measured a second time; None where nothing was timed."""
    front: Sequence[Priced]
    """The Pareto front of the ways, the cheapest first."""
    every: Sequence[Priced]
    """All whose quality was measured; counts and intervals of those on the front alone."""
    basis: str
    """What quality was measured on."""
    dropped: Sequence[str] = field(default_factory=list)
    """What would have won, or was not tried, and why."""
    unsettled: Sequence[Way] = field(default_factory=list)
    """Ways whose fastest calls never agreed: the machine was busy all the time."""

    @property
    def away(self) -> float:
        """How far the second measurement is from the first, as a share; 0 where nothing was timed."""
        if self.again is None:
            return 0.0
        return abs(self.again.seconds / self.winner.ledger.seconds - 1)


def choose(
    models: Mapping[str, Loaded],
    data: Dataset,
    budget: Budget,
    options: Options | None = None,
    *,
    rounds: int = ROUNDS,
    once: Once | None = None,
    progress: ShowProgress = silent,
) -> Choice:
    """Chooses among detectors, and all the ways to run them, by quality on labelled pictures.

    Args:
        models: Detectors by what a user types for them.
        data: Pictures with boxes; the first is what calls are timed on.
        budget: Caps on the cost of one picture.
        options: What is tried.
        rounds: Times that each way is timed before quality is measured.
        once: Runs a way once and tells what that took; None: it is run and timed here.
        progress: Shown what is done.

    Raises:
        UsageError: For a budget that caps something else, or options that no model has.
        FailureError: Where nothing fits; it names the closest and by how much it is over.
    """
    check(budget)
    once = once or caller(models, data.examples[0].pixels())
    options = options or Options()
    ways = [way for name, loaded in models.items() for way in ways_of(name, loaded, options)]
    inside = _inside(_counted(ways, models, budget, progress), without_times(budget))
    hopeful, dropped = _hopeful(inside, budget, rounds, once, progress)
    graded = _graded(hopeful, models, data, progress)
    found = _settled(graded, budget, once, progress, data.source)
    shown = _with_intervals([found.winner, *found.front], models, data, progress)
    return _completed(replace(found, dropped=[*dropped, *found.dropped]), shown, models)


def priced_ways(
    models: Mapping[str, Loaded], picture: npt.NDArray[np.uint8], options: Options, progress: ShowProgress = silent
) -> list[Priced]:
    """Returns all ways to run some detectors, each with its counts, and its times on a picture."""
    ways = [way for name, loaded in models.items() for way in ways_of(name, loaded, options)]
    times = settled(ways, caller(models, picture), progress=progress)
    return [Priced(way, with_times(counted_way(models[way.model], way), times[way].times)) for way in ways]


def choose_published(
    budget: Budget,
    names: Iterable[str] = (),
    *,
    rounds: int = ROUNDS,
    once: Once | None = None,
    progress: ShowProgress = silent,
) -> Choice:
    """Chooses among the eight sizes by the figures that the authors publish for COCO.

    Costs are counted here, and timed with random weights where a time is capped.

    Args:
        budget: Caps on the cost of one picture.
        names: The sizes; by default all.
        rounds: Times that each is timed at first.
        once: As of `choose`.
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
    inside = _inside(priced, without_times(budget))
    if not set(TIMED) & set(budget.caps):
        return Choice(_best(inside, budget), None, pareto(inside, budget), priced, PUBLISHED)
    if once is None:
        models = {each.way.model: Loaded(Detector(each.way.model).eval(), (), each.way.side) for each in inside}
        once = caller(models, np.zeros((480, 640, 3), dtype=np.uint8))
    hopeful, dropped = _hopeful(inside, budget, rounds, once, progress)
    found = _settled(hopeful, budget, once, progress, PUBLISHED)
    return replace(found, dropped=[*dropped, *found.dropped])


def caller(models: Mapping[str, Loaded], picture: npt.NDArray[np.uint8]) -> Once:
    """Returns what runs a way once on a picture, with as many threads as the way has."""

    def once(way: Way) -> Times:
        before = torch.get_num_threads()
        torch.set_num_threads(way.threads)
        try:
            return timed_call(partial(_run, models[way.model], way, picture))
        finally:
            torch.set_num_threads(before)

    return once


def _run(loaded: Loaded, way: Way, picture: npt.NDArray[np.uint8]) -> list[Detections]:
    return detect(
        replace(loaded, side=way.side), [picture], layers=way.layers, queries=way.queries, dtype=DTYPES[way.dtype]
    )


def _counted(ways: Sequence[Way], models: Mapping[str, Loaded], budget: Budget, progress: ShowProgress) -> list[Priced]:
    """Returns the ways with their counts where the budget caps one, for counting hundreds of ways takes a while.

    Raises:
        FailureError: Where not even the way with the least of everything, of no model, fits.
    """
    counts = without_times(budget)
    if not counts.caps:
        return [Priced(way, Ledger()) for way in ways]
    smallest = [min((way for way in ways if way.model == name), key=_extent) for name in models]
    _inside([Priced(way, counted_way(models[way.model], way)) for way in smallest], counts)
    priced = []
    for place, way in enumerate(ways):
        progress("counting", place, len(ways))
        priced.append(Priced(way, counted_way(models[way.model], way)))
    return priced


def _extent(way: Way) -> tuple[int, int, int]:
    return way.side, way.layers, way.queries


def _inside(priced: Sequence[Priced], budget: Budget, room: float = 1.0) -> list[Priced]:
    """Returns what needs at most `room` times the budget. Raises `FailureError` where nothing does."""
    found = [each for each in priced if each.over(budget) <= room]
    if not found:
        raise nothing_fits(priced, budget)
    return found


def _hopeful(
    priced: Sequence[Priced], budget: Budget, rounds: int, once: Once, progress: ShowProgress
) -> tuple[list[Priced], list[str]]:
    """Returns what may fit the budget by a few timed calls, and what was left out of these and why.

    Rounding to bfloat16 costs quality. Where it saves nothing that the budget caps, it is left out; on processors
    without instructions for it, that is everywhere.
    """
    ways = [each.way for each in priced]
    if not set(TIMED) & set(budget.caps):
        useless = _rounded_twins(ways)
        return [each for each in priced if each.way not in useless], _told(useless, "saves nothing that is capped")
    useless = set[Way]()

    def drop(known: Mapping[Way, Times]) -> set[Way]:
        useless.update(_no_faster(known))
        return useless

    times = least(ways, once, rounds, drop, progress)
    timed = [
        replace(each, ledger=with_times(each.ledger, times[each.way])) for each in priced if each.way not in useless
    ]
    return _inside(timed, budget, ROOM), _told(useless, "is no faster than float32 here")


def _rounded_twins(ways: Iterable[Way]) -> set[Way]:
    """Returns the ways in bfloat16 that are there in float32 too."""
    known = set(ways)
    return {way for way in known if way.dtype == "bfloat16" and replace(way, dtype="float32") in known}


def _no_faster(known: Mapping[Way, Times]) -> set[Way]:
    """Returns the ways in bfloat16 of a model, side and threads where half of them are as slow as in float32."""
    ratios: dict[tuple[str, int, int], list[float]] = {}
    twins = _rounded_twins(known)
    for way in twins:
        ratio = known[way].seconds / known[replace(way, dtype="float32")].seconds
        ratios.setdefault((way.model, way.side, way.threads), []).append(ratio)
    return {way for way in twins if median(ratios[(way.model, way.side, way.threads)]) >= 1}


def _told(useless: Iterable[Way], why: str) -> list[str]:
    models = dict.fromkeys(way.model for way in sorted(useless, key=lambda way: way.model))
    sides = {name: sorted({way.side for way in useless if way.model == name}, reverse=True) for name in models}
    return [f"{name} in bfloat16 at {', '.join(map(str, sides[name]))} px, which {why}" for name in models]


class _Look(NamedTuple):
    """What a look at the pictures is shared by: all layers and queries of it are measured at once."""

    model: str
    side: int
    dtype: Dtype


def _look(way: Way) -> _Look:
    return _Look(way.model, way.side, way.dtype)


def _looks(
    ways: Iterable[Way], models: Mapping[str, Loaded], data: Dataset, draws: int, progress: ShowProgress
) -> dict[tuple[_Look, tuple[int, int]], Score]:
    """Returns the scores of ways; those that differ by threads alone have one and the same."""
    wanted: dict[_Look, set[tuple[int, int]]] = {}
    for way in ways:
        wanted.setdefault(_look(way), set()).add((way.layers, way.queries))
    found: dict[tuple[_Look, tuple[int, int]], Score] = {}
    for place, (look, efforts) in enumerate(wanted.items()):
        told = f"{'intervals of' if draws else 'measuring'} {look.model} at {look.side} px, {look.dtype} "
        told += f"({place + 1} of {len(wanted)})"
        loaded = replace(models[look.model], side=look.side)
        shown = _renamed(progress, told)
        seen = grades(loaded, data, efforts, DTYPES[look.dtype], shown, draws=draws, by_area=False)
        found |= {(look, effort): each for effort, each in seen.items()}
    return found


def _renamed(progress: ShowProgress, told: str) -> ShowProgress:
    return lambda phase, done, total: progress(told, done, total)


def _graded(
    priced: Sequence[Priced], models: Mapping[str, Loaded], data: Dataset, progress: ShowProgress
) -> list[Priced]:
    """Returns the ways with their quality."""
    seen = _looks((each.way for each in priced), models, data, 0, progress)
    return [
        replace(each, quality=seen[(_look(each.way), (each.way.layers, each.way.queries))].ap or 0.0)
        for each in priced
    ]  # fmt: skip


def grades(
    loaded: Loaded,
    data: Dataset,
    efforts: Collection[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    progress: ShowProgress = silent,
    *,
    draws: int = 0,
    by_area: bool = True,
) -> dict[tuple[int, int], Score]:
    """Measures layers and numbers of queries, all in one look at each picture.

    Args:
        loaded: The detector.
        data: Pictures with boxes.
        efforts: Layers and queries, in pairs.
        dtype: What backbone and encoder compute in.
        progress: Shown the pictures, then the scores.
        draws: Resamples that intervals are of; 0: none are.
        by_area: Whether small, medium and large boxes are scored by themselves.

    Returns:
        By layers and queries.
    """
    decoder = loaded.detector.decoder
    deepest = {wide: max(deep for deep, each in efforts if each == wide) for _, wide in efforts}
    found: dict[tuple[int, int], list[Detections]] = {effort: [] for effort in efforts}
    total = len(data.examples) + len(found)
    for start in range(0, len(data.examples), BATCH):
        pictures = [each.pixels() for each in data.examples[start : start + BATCH]]
        with torch.no_grad():
            maps = maps_of(loaded, pictures, dtype)
            for wide, deep in deepest.items():
                contents, boxes, _ = decoder.choose(maps, wide)
                answers, _ = decoder.refine(maps, contents, boxes, layers=deep, every=True)
                for answer in answers:
                    if (answer.layer, wide) in found:
                        found[(answer.layer, wide)] += found_in(answer, pictures, 0.0, loaded.names)
        progress("looking at pictures", min(start + BATCH, len(data.examples)), total)
    scores = {}
    for effort, rows in found.items():
        scores[effort] = score(rows, data, loaded.names, draws=draws, by_area=by_area)
        progress("looking at pictures", len(data.examples) + len(scores), total)
    return scores


def _best(priced: Sequence[Priced], budget: Budget) -> Priced:
    """Returns the best, and of equals the one that needs least of the budget."""
    return max(priced, key=lambda each: _merit(each, budget))


def _merit(priced: Priced, budget: Budget) -> tuple[float, float]:
    return priced.quality or 0, -priced.over(budget)


def _settled(graded: Sequence[Priced], budget: Budget, once: Once, progress: ShowProgress, basis: str) -> Choice:
    """Returns the best way that is inside the budget by calls whose fastest agree, and by more of them once again."""
    best = sorted(graded, key=lambda each: _merit(each, budget), reverse=True)[:FINALISTS]
    finalists = list(dict.fromkeys(each.way for each in (*pareto(graded, budget), *best)))
    times = settled(finalists, once, progress=progress)
    every = [
        replace(each, ledger=with_times(each.ledger, times[each.way].times)) if each.way in times else each
        for each in graded
    ]
    left = _inside([each for each in every if each.way in times], budget)
    unsettled = [way for way in finalists if not times[way].agreed]
    dropped = list[str]()
    while left:
        winner = _best(left, budget)
        first, second = _twice(winner, once, progress)
        over = max(first.over(budget), second.over(budget))
        if over <= 1:
            left[left.index(winner)] = every[every.index(winner)] = first
            return Choice(first, second.ledger, pareto(left, budget), every, basis, dropped, unsettled)
        dropped.append(f"{winner.way.label}: {over:.2f} times the budget when measured again")
        left.remove(winner)
    raise FailureError(
        f"{len(dropped)} ways were inside the budget, and over it when measured again; the machine's speed changes too "
        "much now, or the budget is at the edge: give it some room"
    )


def _twice(winner: Priced, once: Once, progress: ShowProgress) -> tuple[Priced, Priced]:
    """Returns a way as it is measured, with patience, and measured again.

    Other work only adds to a time, so of two that are far apart the longer one is taken once more, whichever it is.
    """

    def measured() -> Priced:
        times = settled([winner.way], once, PATIENT, progress)[winner.way].times
        return replace(winner, ledger=with_times(winner.ledger, times))

    first, second = measured(), measured()
    for _ in range(PATIENCE - 2):
        if abs(second.ledger.seconds / first.ledger.seconds - 1) <= NEAR:
            break
        if second.ledger.seconds > first.ledger.seconds:
            second = min(second, measured(), key=lambda each: each.ledger.seconds)
        else:
            first, second = second, measured()
    return first, second


def _with_intervals(
    shown: Sequence[Priced], models: Mapping[str, Loaded], data: Dataset, progress: ShowProgress
) -> dict[Way, tuple[float, float] | None]:
    """Returns the intervals of ways' qualities."""
    seen = _looks((each.way for each in shown), models, data, DRAWS, progress)
    return {
        each.way: seen[(_look(each.way), (each.way.layers, each.way.queries))].intervals.get("ap") for each in shown
    }


def _completed(
    found: Choice, intervals: Mapping[Way, tuple[float, float] | None], models: Mapping[str, Loaded]
) -> Choice:
    """Returns a choice whose winner and front have intervals, and counts where the budget caps none."""

    def whole(each: Priced) -> Priced:
        counts = counted_way(models[each.way.model], each.way)
        times = Times(each.ledger.seconds, each.ledger.amount("cpu_seconds"))
        return replace(each, ledger=with_times(counts, times), interval=intervals[each.way])

    made = {each.way: whole(each) for each in (found.winner, *found.front)}
    again = found.again
    if again is not None:
        again = with_times(made[found.winner.way].ledger, Times(again.seconds, again.amount("cpu_seconds")))
    return replace(
        found, winner=made[found.winner.way], again=again, front=[made[each.way] for each in found.front],
        every=[made.get(each.way, each) for each in found.every],
    )  # fmt: skip


def as_dict(choice: Choice) -> dict[str, Any]:
    """Returns a choice as JSON can hold it; costs that were not measured are left out."""

    def costs(ledger: Ledger) -> dict[str, float]:
        return {name: ledger.amount(name) for name in CAPPED if ledger.amount(name)}

    def row(each: Priced) -> dict[str, Any]:
        return {"way": vars(each.way), "costs": costs(each.ledger), "ap": each.quality, "interval": each.interval}

    again = None if choice.again is None else costs(choice.again)
    return {
        "winner": row(choice.winner), "command": choice.winner.way.command(), "again": again, "away": choice.away,
        "basis": choice.basis, "front": [row(each) for each in choice.front],
        "every": [row(each) for each in choice.every], "dropped": list(choice.dropped),
        "unsettled": [way.label for way in choice.unsettled],
    }  # fmt: skip
