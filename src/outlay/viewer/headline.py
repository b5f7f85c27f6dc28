"""The result of a comparison in one or two sentences, which claim no more than the intervals allow.

A sentence is a list of parts: text, or a figure by its place in the results, so that page and JSON always agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speed:
    """The rate by which contenders are ranked."""

    entry: str
    """Its name in the ledger."""
    told: str
    """In words."""
    verb: str
    """What a contender does at that rate."""
    answers: str = ""
    """What may be the same as the reference's, in words; "" where that is not told."""


TEXTS_SPEED = Speed("tokens_per_second", "tokens per second", "writes", "texts")


@dataclass(frozen=True)
class Figure:
    """A number of the results."""

    path: str
    """Where it is, such as "contenders.1.quality.mean"."""
    unit: str
    """How it is written."""


Part = str | Figure
Sentence = list[Part]


def headline(contenders: Sequence[Mapping[str, Any]], speed: Speed = TEXTS_SPEED) -> list[Sentence]:
    """Returns the sentences that head a report, at least one."""
    sentences = [sentence for sentence in (_speed(contenders, speed), _quality(contenders)) if sentence]
    return sentences or [[f"{_names(contenders)}: no run has ended well, so there is nothing to compare."]]


def _speed(contenders: Sequence[Mapping[str, Any]], speed: Speed) -> Sentence:
    """Names the fastest by its ratio to its reference; its certainty is that of the interval."""
    rivals = [
        index
        for index, contender in enumerate(contenders)
        if contender["reference"] != index and speed.entry in contender["ratios"]
    ]
    if not rivals:
        return _alone(contenders, speed)
    best = max(rivals, key=lambda index: contenders[index]["ratios"][speed.entry]["median"])
    ratio, reference = contenders[best]["ratios"][speed.entry], contenders[contenders[best]["reference"]]["label"]
    label, at = contenders[best]["label"], f"contenders.{best}.ratios.{speed.entry}"
    interval: Sentence = [" (", Figure(f"{at}.low", "ratio"), " to ", Figure(f"{at}.high", "ratio"), ")"]
    reached: Sentence = [Figure(f"{at}.median", "ratio"), f" the {speed.told} of ", reference, *interval]
    if ratio["low"] > 1:
        rival = _close_behind(contenders, rivals, best, speed.entry)
        ahead = f" is the fastest by its median, not surely ahead of {rival}: " if rival else " is the fastest: "
        return [label, ahead, *reached, *_identical(contenders, best, speed), "."]
    if ratio["high"] < 1:
        return ["Nothing here is faster than ", reference, "; ", label, " comes nearest with ", *reached, "."]
    return ["Nothing here is surely faster than ", reference, "; ", label, " reaches ", *reached, "."]


def _close_behind(contenders: Sequence[Mapping[str, Any]], rivals: Sequence[int], best: int, entry: str) -> str | None:
    """Returns the label of the fastest rival whose interval overlaps that of the best."""
    least = contenders[best]["ratios"][entry]["low"]
    close = [
        contenders[index] for index in rivals if index != best and contenders[index]["ratios"][entry]["high"] >= least
    ]
    return max(close, key=lambda rival: rival["ratios"][entry]["median"])["label"] if close else None


def _alone(contenders: Sequence[Mapping[str, Any]], speed: Speed) -> Sentence:
    speeds = [index for index, contender in enumerate(contenders) if speed.entry in contender["entries"]]
    if not speeds:
        return []
    at = f"contenders.{speeds[0]}.entries.{speed.entry}.median"
    return [contenders[speeds[0]]["label"], f" {speed.verb} ", Figure(at, "number"), f" {speed.told}."]


def _identical(contenders: Sequence[Mapping[str, Any]], index: int, speed: Speed) -> Sentence:
    contender = contenders[index]
    if not contender["compared"] or not speed.answers:
        return []
    same, of = Figure(f"contenders.{index}.identical", "number"), Figure(f"contenders.{index}.compared", "number")
    if contender["identical"] == contender["compared"]:
        return [", and all ", of, f" {speed.answers} are the same"]
    return [", with ", same, " of ", of, f" {speed.answers} the same"]


def _quality(contenders: Sequence[Mapping[str, Any]]) -> Sentence:
    """Names the best by quality; its certainty is that of the intervals."""
    rated = [index for index, contender in enumerate(contenders) if contender["quality"] is not None]
    if len(rated) < 2:
        return []
    rated.sort(key=lambda index: -contenders[index]["quality"]["mean"])
    best, last = rated[0], rated[-1]
    values = [contenders[index]["quality"] for index in rated]
    if all(value["mean"] == values[0]["mean"] for value in values):
        return ["By quality all are equal, ", *_rated(best), "."]
    lowest: Sentence = ["lowest is ", contenders[last]["label"], " with ", *_rated(last), "."]
    highest: Sentence = [contenders[best]["label"], " with ", *_rated(best)]
    if values[0]["low"] > values[1]["high"]:
        return ["Best by quality is ", *highest, "; ", *lowest]
    return [
        "None is surely the best by quality: highest is ",
        *highest,
        ", but others' intervals reach its own; ",
        *lowest,
    ]


def _rated(index: int) -> Sentence:
    at = f"contenders.{index}.quality"
    low, high = Figure(f"{at}.low", "quality"), Figure(f"{at}.high", "quality")
    return [Figure(f"{at}.mean", "quality"), " (", low, " to ", high, ")"]


def _names(contenders: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(contender["label"] for contender in contenders)
