"""How well a scorer tells first errors from right steps, at each depth apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from outlay.bench.search.contenders import STEP, Setting
from outlay.bench.search.rate import rewards_of


def auc_within_depths(setting: Setting, scorer: str, rows: Sequence[Mapping[str, Any]], texts: int) -> dict[str, float]:
    """Draws texts, and rates each step up to the first wrong one.

    Args:
        setting: The reasoner and how it draws.
        scorer: The scorer.
        rows: Problems.
        texts: Texts that are drawn of each.

    Returns:
        The `auc`: the probability that a right step has a higher reward than a first error of the same depth, the mean
        over depths by their pairs; and how many `right` steps and `errors` it is made of.
    """
    lm = setting.lm()
    rights, errors = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for row in rows:
        drawn = lm.generate(
            row["prompt"], n=texts, method="sample", temperature=setting.temperature, max_tokens=setting.max_tokens
        )
        written = list(dict.fromkeys(each.text for each in drawn.alternatives))
        prefixes = {prefix: first for text in written for prefix, first in whole_steps(text, row["steps"])}
        tokens = [lm.model.tokenizer.encode(prefix) for prefix in prefixes]
        rewards = rewards_of(lm, row["prompt"], tokens, scorer, STEP)
        for (prefix, right), reward in zip(prefixes.items(), rewards, strict=True):
            (rights if right else errors)[prefix.count(STEP)].append(reward)
    pairs = {depth: len(rights[depth]) * len(errors[depth]) for depth in (*rights, *errors)}
    weighted = sum(auc(rights[depth], errors[depth]) * count for depth, count in pairs.items() if count)
    counts = {"right": float(sum(map(len, rights.values()))), "errors": float(sum(map(len, errors.values())))}
    return {"auc": weighted / max(1, sum(pairs.values())), **counts}


def whole_steps(text: str, steps: Sequence[str]) -> list[tuple[str, bool]]:
    """Returns a text up to each of its steps, each with whether the step is right, until the first error.

    Args:
        text: The text, a step a line.
        steps: The lines of the right solution.
    """
    found, begin = [], ""
    for place, line in enumerate(text.split(STEP)):
        right = place < len(steps) and line == steps[place]
        begin += line
        if place < len(steps) - 1:
            begin += STEP
        found.append((begin, right))
        if not right:
            break
    return found


def auc(rights: Sequence[float], errors: Sequence[float]) -> float:
    """Returns the share of pairs in which the right step has the higher reward, ties as half."""
    wins = sum((right > error) + 0.5 * (right == error) for right in rights for error in errors)
    return wins / (len(rights) * len(errors))
