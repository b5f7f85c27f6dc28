"""Sums a comparison up, from its manifest, its runs and the marks beside them, so that it can be done again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from outlay.compare import folder, journal, statistics
from outlay.compare.comparison import Answers, Key
from outlay.compare.statistics import Interval

RATES = ("tokens_per_second", "pictures_per_second", "passes_per_token")
GAINS = ("tokens_per_second", "pictures_per_second", "accepted")  # entries where more is better; elsewhere less is
Slot = tuple[int, int]  # an item and a seed


class Answer(ABC):
    """What one contender answered to an item with a seed, in its first repeat."""

    @abstractmethod
    def first_difference(self, other: Answer) -> int | None:
        """Returns where another contender's answer differs first; None where it is the same."""


@dataclass
class Tally:
    """All runs of one contender."""

    spent: dict[Slot, dict[int, dict[str, float]]] = field(default_factory=lambda: defaultdict(dict))
    """A ledger for each repeat."""
    answers: dict[Slot, Answer] = field(default_factory=dict)
    errors: int = 0
    """Runs that failed."""
    unsteady: int = 0
    """Repeats that gave another answer than the first."""
    first_error: str | None = None


def summed_up(at: Path, answers: Answers) -> dict[str, Any]:
    """Returns the results of the comparison in the folder `at`, as `results.json` has them."""
    manifest = folder.read_manifest(at)
    names = [(contender["method"], contender["budget"]) for contender in manifest["contenders"]]
    references = [contender["reference"] for contender in manifest["contenders"]]
    tallies = _tallies(at, names, answers, manifest.get("noun", "prompt"))
    entries = _entries(tallies)
    rows = []
    for index, (name, tally) in enumerate(zip(names, tallies, strict=True)):
        row = _contender_row(name, tally, tallies[references[index]], references[index], entries)
        rows.append(row | {"quality": answers.quality(index, tally)})
    for row, lies_on in zip(rows, _frontiers(rows, entries), strict=True):
        row["frontier"] = lies_on
    return {"manifest": manifest, "contenders": rows, **answers.shown(tallies, references)}


def _tallies(at: Path, names: Sequence[Key], answers: Answers, noun: str) -> list[Tally]:
    tallies = [Tally() for _ in names]
    index_of = {name: index for index, name in enumerate(names)}
    for row in journal.lines(at / folder.RUNS):
        tally, slot = tallies[index_of[row["method"], row["budget"]]], (row["prompt"], row["seed"])
        if row["error"] is not None:
            tally.errors += 1
            tally.first_error = tally.first_error or f"{noun} {row['prompt'] + 1}: {row['error']}"
            continue
        tally.spent[slot][row["repeat"]] = answers.spent(row)
        if journal.has_output(row):
            tally.unsteady += slot in tally.answers
            tally.answers.setdefault(slot, answers.read(row))
    return tallies


def _entries(tallies: Iterable[Tally]) -> list[str]:
    """Returns the names of the ledger's entries that are not zero everywhere."""
    names: dict[str, None] = {}
    for tally in tallies:
        for repeats in tally.spent.values():
            for ledger in repeats.values():
                names |= dict.fromkeys(name for name, amount in ledger.items() if amount)
    return list(names)


def _contender_row(name: Key, tally: Tally, reference: Tally, index: int, entries: Sequence[str]) -> dict[str, Any]:
    """Returns a contender's row: each entry with its interval, and its ratio to the reference's, paired by slots."""
    differing = [tally.answers[slot].first_difference(reference.answers[slot]) for slot in _shared(tally, reference)]
    positions = [position for position in differing if position is not None]
    return {
        "label": f"{name[0]} [{name[1]}]" if name[1] else name[0],
        "method": name[0],
        "budget": name[1],
        "reference": index,
        "entries": {entry: _spread(tally, entry) for entry in entries if tally.spent},
        "ratios": {entry: found for entry in entries if (found := _ratio(tally, reference, entry)) is not None},
        "identical": len(differing) - len(positions),
        "compared": len(differing),
        "first_difference": median(positions) if positions else None,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "unsteady": tally.unsteady,
    }


def _spread(tally: Tally, entry: str) -> dict[str, float]:
    """Returns the median over the items with its interval, the mean, and the total of all items and seeds."""
    slots = {
        slot: median([ledger.get(entry, 0) for ledger in repeats.values()]) for slot, repeats in tally.spent.items()
    }
    value, low, high = statistics.median(by_item(slots))
    total = sum(slots.values())
    spread = {"median": value, "low": low, "high": high, "mean": total / len(slots)}
    return spread if entry in RATES else {**spread, "total": total}


def _ratio(tally: Tally, reference: Tally, entry: str) -> dict[str, float] | None:
    """Returns the median ratio over the items, of runs that took turns, with its interval."""
    slots = {}
    for slot in _shared(tally, reference):
        ours, theirs = tally.spent[slot], reference.spent[slot]
        ratios = [
            ours[repeat].get(entry, 0) / theirs[repeat][entry]
            for repeat in ours.keys() & theirs.keys()
            if theirs[repeat].get(entry)
        ]
        if ratios:
            slots[slot] = median(ratios)
    return _named(statistics.median(by_item(slots)), "median") if slots else None


def by_item(slots: Mapping[Slot, float], *, mean: bool = False) -> list[float]:
    """Returns one value for each item, the median or the mean over its seeds."""
    items = defaultdict(list)
    for (item, _), value in slots.items():
        items[item].append(value)
    return [sum(values) / len(values) if mean else median(values) for values in items.values()]


def _named(interval: Interval, name: str) -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high}


def _shared(one: Tally, other: Tally) -> list[Slot]:
    return [slot for slot in one.answers if slot in other.answers]


def _frontiers(rows: Sequence[Mapping[str, Any]], entries: Sequence[str]) -> list[list[str]]:
    """Returns for each contender the entries for which no other has more quality for less."""
    lies_on: list[list[str]] = [[] for _ in rows]
    for entry in entries:
        sign = -1 if entry in GAINS else 1
        points = [
            (row["quality"]["mean"], sign * row["entries"][entry]["median"])
            if row["quality"] is not None and entry in row["entries"]
            else None
            for row in rows
        ]
        for index in statistics.frontier(points):
            lies_on[index].append(entry)
    return lies_on
