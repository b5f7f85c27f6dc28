"""Answers in texts, in one canonical form, and votes among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

BOXED = "\\boxed{"
PLAIN = re.compile(r"-?\d+(/\d+)?")  # a number in canonical form
NUMBER = re.compile(r"(?:(?<![\d.)\w])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
UNITS = re.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\[,;!: ]|\\%|[$%\u00b0]")
WORD = re.compile(r"(?<=[\d.])\s*[a-zA-Z]+$")
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")


def answer_of(text: str) -> str | None:
    """Returns the answer of a text in its canonical form: what is in the last box, or the last number; else None."""
    boxed = last_boxed(text)
    if boxed is not None:
        return canonical(boxed)
    numbers = NUMBER.findall(text)
    return canonical(numbers[-1]) if numbers else None


def last_boxed(text: str) -> str | None:
    r"""Returns what is in the last \boxed{...} whose braces close."""
    at = text.rfind(BOXED)
    while at >= 0:
        depth, begin = 1, at + len(BOXED)
        for place in range(begin, len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                return text[begin:place]
        at = text.rfind(BOXED, 0, at)
    return None


def canonical(answer: str) -> str | None:
    """Returns an answer without spaces, units and ways of writing: "0.50", "1/2" and "\\frac{1}{2}" are one."""
    plain = FRACTION.sub(r"\1/\2", UNITS.sub("", answer)).strip().rstrip(".")
    plain = WORD.sub("", plain)
    try:
        return str(Fraction(re.sub(r"[\s,]", "", plain)))
    except (ValueError, ZeroDivisionError):
        return re.sub(r"\s+", "", plain).casefold() or None


def is_number(answer: str) -> bool:
    """Tells whether a canonical answer is a number, so that another one is equal only where it is written alike."""
    return PLAIN.fullmatch(answer) is not None


def merged(answers: Sequence[str]) -> list[str]:
    """Returns for each of some different canonical answers the first that `math-verify` finds equal to it.

    That takes up to seconds, so runs ask a process for it (`outlay.search.agreement`).
    """
    from math_verify import parse, verify

    parsed: dict[str, list[Any]] = {answer: parse(f"${answer}$") for answer in answers}
    found: list[str] = []
    for answer in answers:
        others = [other for other in dict.fromkeys(found) if not (is_number(other) and is_number(answer))]
        found.append(next((other for other in others if verify(parsed[other], parsed[answer])), answer))
    return found


def vote(answers: Sequence[str | None], weights: Sequence[float], logprobs: Sequence[float]) -> str | None:
    """Returns the answer with the most weight.

    Args:
        answers: The answer of each text, None where it can't be read: it wins only where there is no other.
        weights: What the vote of each text weighs.
        logprobs: The log-probability of each text: among equals the answer with the highest sum wins, then the first.
    """
    read = [answer for answer in dict.fromkeys(answers) if answer is not None]
    if not read:
        return None

    def rank(answer: str) -> tuple[float, float]:
        own = [place for place, each in enumerate(answers) if each == answer]
        return sum(weights[place] for place in own), sum(logprobs[place] for place in own)

    return max(read, key=rank)
