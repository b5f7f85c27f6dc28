"""Sums a comparison up, from its manifest, prompts, runs and marks alone, so that it can be done again at any time."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from outlay.compare import folder, journal, quality, statistics
from outlay.compare.items import Item
from outlay.compare.statistics import Interval
from outlay.compare.traces import trace_name

RATES = ("tokens_per_second", "pictures_per_second", "passes_per_token")
GAINS = ("tokens_per_second", "pictures_per_second", "accepted")  # entries where more is better; elsewhere less is
Slot = tuple[int, int]  # a prompt and a seed


@dataclass
class Answer:
    """What one contender wrote to a prompt with a seed, in its first repeat."""

    tokens: array[int]
    mark: float | None
    """Its quality, None where it was not rated."""
    finish_reason: str
    pieces: list[str] = field(default_factory=list)
    """The text of each token."""
    origins: list[str] = field(default_factory=list)
    """What proposed each token."""


@dataclass
class Tally:
    """All runs of one contender."""

    spent: dict[Slot, dict[int, dict[str, float]]] = field(default_factory=lambda: defaultdict(dict))
    """A ledger for each repeat."""
    answers: dict[Slot, Answer] = field(default_factory=dict)
    errors: int = 0
    """Runs that failed."""
    unsteady: int = 0
    """Repeats that wrote another text than the first."""
    first_error: str | None = None


def summed_up(at: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Returns the results of the comparison in the folder `at`, as `results.json` has them."""
    manifest = folder.read_manifest(at)
    names = [(contender["method"], contender["budget"]) for contender in manifest["contenders"]]
    references = [contender["reference"] for contender in manifest["contenders"]]
    tallies = _tallies(at, manifest, names)
    entries = entries_of(tallies)
    rows = []
    for index, (name, tally) in enumerate(zip(names, tallies, strict=True)):
        rows.append(contender_row(name, tally, tallies[references[index]], references[index], entries))
    for row, lies_on in zip(rows, frontiers(rows, entries), strict=True):
        row["frontier"] = lies_on
    return {
        "manifest": manifest,
        "prompts": [{"index": i, "text": item.text, "answer": item.answer} for i, item in enumerate(items)],
        "contenders": rows,
        "runs": list(_runs(at, names, tallies, references)),
        "texts": list(_texts(tallies, manifest["seeds"][0])),
    }


def _tallies(at: Path, manifest: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> list[Tally]:
    marks = quality.read(at / folder.QUALITY, manifest["metric_key"]) if manifest["metric_key"] else {}
    tallies = [Tally() for _ in names]
    index_of = {name: index for index, name in enumerate(names)}
    for row in journal.lines(at / folder.RUNS):
        tally, slot = tallies[index_of[row["method"], row["budget"]]], (row["prompt"], row["seed"])
        if row["error"] is not None:
            tally.errors += 1
            tally.first_error = tally.first_error or f"prompt {row['prompt'] + 1}: {row['error']}"
            continue
        tally.spent[slot][row["repeat"]] = _with_rates(row["ledger"])
        if "tokens" in row:
            tally.unsteady += slot in tally.answers
            tally.answers.setdefault(slot, _answer(row, marks, manifest["seeds"][0]))
    return tallies


def _answer(row: Mapping[str, Any], marks: Mapping[tuple[int, str], float | None], shown: int) -> Answer:
    """Returns what a run wrote, with the texts of its tokens where it has the seed that a report shows."""
    mark = marks.get((row["prompt"], journal.output_of(row)))
    answer = Answer(array("i", row["tokens"]), mark, row["finish_reason"])
    if row["seed"] == shown:
        answer.pieces, answer.origins = row["pieces"], row["origins"]
    return answer


def _with_rates(ledger: dict[str, float]) -> dict[str, float]:
    tokens = ledger["tokens_out"]
    return {**ledger, "passes_per_token": ledger["target_passes"] / tokens} if tokens else ledger


def entries_of(tallies: Iterable[Tally]) -> list[str]:
    """Returns the names of the ledger's entries that are not zero everywhere."""
    names: dict[str, None] = {}
    for tally in tallies:
        for repeats in tally.spent.values():
            for ledger in repeats.values():
                names |= dict.fromkeys(name for name, amount in ledger.items() if amount)
    return list(names)


def contender_row(
    name: tuple[str, str], tally: Tally, reference: Tally, index: int, entries: Sequence[str]
) -> dict[str, Any]:
    """Returns a contender's row: each entry with its interval, and its ratio to the reference's, paired by slots."""
    differing = [_first_difference(tally, reference, slot) for slot in _shared(tally, reference)]
    positions = [position for position in differing if position is not None]
    return {
        "label": f"{name[0]} [{name[1]}]" if name[1] else name[0],
        "method": name[0],
        "budget": name[1],
        "reference": index,
        "entries": {entry: _spread(tally, entry) for entry in entries if tally.spent},
        "quality": _quality(tally),
        "ratios": {entry: found for entry in entries if (found := _ratio(tally, reference, entry)) is not None},
        "identical": len(differing) - len(positions),
        "compared": len(differing),
        "first_difference": median(positions) if positions else None,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "unsteady": tally.unsteady,
    }


def _spread(tally: Tally, entry: str) -> dict[str, float]:
    """Returns the median over the prompts with its interval, the mean, and the total of all prompts and seeds."""
    slots = {
        slot: median([ledger.get(entry, 0) for ledger in repeats.values()]) for slot, repeats in tally.spent.items()
    }
    value, low, high = statistics.median(_by_prompt(slots))
    total = sum(slots.values())
    spread = {"median": value, "low": low, "high": high, "mean": total / len(slots)}
    return spread if entry in RATES else {**spread, "total": total}


def _ratio(tally: Tally, reference: Tally, entry: str) -> dict[str, float] | None:
    """Returns the median ratio over the prompts, of runs that took turns, with its interval."""
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
    return _named(statistics.median(_by_prompt(slots)), "median") if slots else None


def _quality(tally: Tally) -> dict[str, float] | None:
    slots = {slot: answer.mark for slot, answer in tally.answers.items() if answer.mark is not None}
    if not slots:
        return None
    return _named(statistics.mean(_by_prompt(slots, mean=True)), "mean") | {"n": len(slots)}


def _by_prompt(slots: Mapping[Slot, float], *, mean: bool = False) -> list[float]:
    """Returns one value for each prompt, the median or the mean over its seeds."""
    prompts = defaultdict(list)
    for (prompt, _), value in slots.items():
        prompts[prompt].append(value)
    return [sum(values) / len(values) if mean else median(values) for values in prompts.values()]


def _named(interval: Interval, name: str) -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high}


def _shared(one: Tally, other: Tally) -> list[Slot]:
    return [slot for slot in one.answers if slot in other.answers]


def _first_difference(one: Tally, other: Tally, slot: Slot) -> int | None:
    """Returns where the tokens of two answers differ first, the end of the shorter at the latest; None if nowhere."""
    ours, theirs = one.answers[slot].tokens, other.answers[slot].tokens
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def frontiers(rows: Sequence[Mapping[str, Any]], entries: Sequence[str]) -> list[list[str]]:
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


def _runs(
    at: Path, names: Sequence[tuple[str, str]], tallies: Sequence[Tally], references: Sequence[int]
) -> Iterable[dict[str, Any]]:
    """Yields a row for each answer, with what is the same in all repeats."""
    for index, tally in enumerate(tallies):
        reference = tallies[references[index]]
        for (prompt, seed), answer in sorted(tally.answers.items()):
            shared = (prompt, seed) in reference.answers
            trace = f"{folder.TRACES}/{trace_name(index, prompt, seed)}"
            yield {
                "contender": index,
                "prompt": prompt,
                "seed": seed,
                "tokens_out": len(answer.tokens),
                "quality": answer.mark,
                "first_difference": _first_difference(tally, reference, (prompt, seed)) if shared else None,
                "trace": trace if (at / trace).exists() else None,
            }


def _texts(tallies: Sequence[Tally], seed: int) -> Iterable[dict[str, Any]]:
    for index, tally in enumerate(tallies):
        for (prompt, own_seed), answer in sorted(tally.answers.items()):
            if own_seed == seed:
                yield {
                    "contender": index,
                    "prompt": prompt,
                    "pieces": answer.pieces,
                    "origins": answer.origins,
                    "finish_reason": answer.finish_reason,
                }
