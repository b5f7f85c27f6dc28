"""Words to a sentence: four words that belong together, loosely or not at all, in one correct sentence."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from outlay.bench.parallel.samples import Sample, Task

WORDS = 4
THEMES = {
    "kitchen": "oven flour butter recipe kettle spoon onion apron pan cake",
    "garden": "seed spade rose hedge compost tulip rake bee pond lawn",
    "harbour": "sailor anchor tide boat rope gull lighthouse crane fish storm",
    "school": "teacher lesson chalk exam pupil library desk homework bell essay",
    "railway": "train platform ticket conductor tunnel signal luggage bridge whistle timetable",
    "music": "violin concert drum singer melody piano orchestra choir rhythm stage",
    "winter": "snow scarf sledge ice fireplace frost glove skate blizzard soup",
    "office": "meeting printer manager deadline report keyboard coffee contract elevator invoice",
}
NEAR = {
    "kitchen": "garden", "garden": "kitchen", "harbour": "railway", "railway": "harbour", "school": "office",
    "office": "school", "music": "school", "winter": "harbour",
}  # fmt: skip
VOWELS = "aeiou"
SOUNDS = {"a": ("u", "eu", "one", "once"), "an": ("h",)}  # a union, a one-off, an hour


def tasks() -> list[Task]:
    """Returns the three levels."""
    return [Task(f"writing/words_{level}", 64, partial(_draw, level)) for level in ("easy", "medium", "hard")]


def _draw(level: str, count: int, items: tuple[int, int], seed: int) -> list[Sample]:
    draw = random.Random(f"parallel/words_{level}/{seed}")
    return [_sample(_words(level, draw)) for _ in range(count)]


def _words(level: str, draw: random.Random) -> list[str]:
    """Draws words of one theme, of two that touch, or of one theme each."""
    if level == "hard":
        return [draw.choice(THEMES[theme].split()) for theme in draw.sample(sorted(THEMES), WORDS)]
    theme = draw.choice(sorted(THEMES))
    if level == "easy":
        return draw.sample(THEMES[theme].split(), WORDS)
    return [word for each in (theme, NEAR[theme]) for word in draw.sample(THEMES[each].split(), WORDS // 2)]


def _sample(words: Sequence[str]) -> Sample:
    prompt = f"Write one sentence that contains each of these words: {', '.join(words)}. Give only the sentence."
    nouns = [f"the {word}" for word in words]
    return Sample(prompt, f"We saw {', '.join(nouns[:-1])} and {nouns[-1]}.", _score(words))


def _score(words: Sequence[str]) -> Callable[[str, bool], float]:
    def score(text: str, strict: bool) -> float:
        found = set(re.findall(r"[a-z]+", text.lower()))
        held = all(found & {word, f"{word}s", f"{word}es"} for word in words)
        return float(held and not any(issues(text.strip())) and (not strict or _one_sentence(text.strip())))

    return score


def issues(text: str) -> Iterator[str]:
    """Yields what is wrong with a text by a few rules: its beginning and end, repeated words, a and an, brackets."""
    if not text[:1].isupper():
        yield "no capital letter at the beginning"
    if not text.endswith((".", "!", "?")):
        yield "no end"
    words = re.findall(r"[\w'-]+", text.lower())
    yield from (f"{word!r} twice" for word, after in itertools.pairwise(words) if word == after)
    for article, noun in re.findall(r"\b(an?)\s+([a-z]+)", text.lower()):
        right = "an" if noun[0] in VOWELS else "a"
        if article != right and not noun.startswith(SOUNDS[article]):
            yield f"{article!r} before {noun!r}"
    if text.count("(") != text.count(")") or text.count('"') % 2:
        yield "brackets or quotes that don't close"


def _one_sentence(text: str) -> bool:
    return len(re.findall(r"[.!?](\s|$)", text)) == 1
