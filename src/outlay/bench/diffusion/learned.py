"""Learn2PD beside thresholds, a fixed schedule and its oracle, each greedy: passes, and texts that stay right.

Filters are fitted here, to prompts that are not asked again: by our recipe, and by the published one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from outlay.diffuse.exact.denoiser import LETTERS, START, exact_model, ids
from outlay.diffuse.exact.sequences import Phrase
from outlay.diffuse.learn2pd import Learn2PD
from outlay.diffuse.llada import LLaDA
from outlay.diffuse.threshold import Threshold
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.lm import LM, load
from outlay.problems import lists, noisy
from outlay.progress import ShowProgress
from outlay.train.commit_filter import FilterRecipe, fit_filter
from outlay.train.commit_filter.oracle import EGP, OneByOne
from outlay.train.commit_filter.traces import block_of, collect, decoded

CHAIN = Phrase(alpha=0.05, noise=(0.05, 0.1, 0.15, 0.2, 0.05, 0.1, 0.15, 0.2))
ASKED = 2  # phrases of a prompt
TAUS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # the fewest passes of those that agree as often is the baseline to beat
BASE = "threshold"


@dataclass(frozen=True)
class Question:
    """A prompt, and what tells whether a text answers it."""

    prompt: str
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Task:
    """A model, its questions, and the canvas behind them."""

    name: str
    lm: Callable[[], LM]
    length: int
    question: Callable[[int, str], Question]
    """Returns the question of a number and a seed."""
    one_of: int = 1
    """Of how many questions it is asked one, where passes take long."""


def _chain(number: int, seed: str) -> Question:
    """Two noisy phrases, for four that may follow; a text is right where it holds phrases only."""
    draw = random.Random(f"chain/{seed}/{number}")
    phrase, prompt = draw.randrange(CHAIN.phrases), START
    for _ in range(ASKED):
        letters = zip(CHAIN.table[phrase], CHAIN.noise, strict=True)
        prompt += "".join(draw.choice(LETTERS) if draw.random() < rate else LETTERS[letter] for letter, rate in letters)
        phrase = draw.choices(range(CHAIN.phrases), CHAIN.steps[phrase])[0]
    return Question(prompt, lambda text: CHAIN.invalid_slots(ids(text)) == 0)


def _lists(number: int, seed: str) -> Question:
    asked = lists.letters(number, seed)
    return Question(lists.in_letters(asked), asked.right)


def _noisy(number: int, seed: str) -> Question:
    prompt = noisy.DICTIONARY.row(number, seed)["prompt"]
    return Question(prompt, lambda text: min(noisy.DICTIONARY.slots(prompt, text)) >= 0)


TASKS = (
    Task("two phrases a key with noise (tiny-noisy)", lambda: load("tiny-noisy", dtype="float32"), 24, _noisy),
    Task("ten tasks on lists (tiny-lists)", lambda: load("tiny-lists", dtype="float32"), 10, _lists),
    Task("noisy phrases, each after the one before (exact)", lambda: LM(exact_model(CHAIN), Engine()), 32, _chain, 3),
)


def measured(questions: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns rows for each task; each filter is fitted to twice as many other questions."""
    tasks = []
    for task in TASKS:
        ours, published = FilterRecipe(length=task.length), FilterRecipe.published(length=task.length)
        tasks.append(of_task(task, max(5, questions // task.one_of), ours, published, progress))
    return {"tasks": tasks}


def of_task(
    task: Task, count: int, recipe: FilterRecipe, as_published: FilterRecipe, progress: ShowProgress
) -> dict[str, Any]:
    """Returns a row for each rule on `count` questions of a task, with filters of both recipes."""
    lm = task.lm()
    fitting = [lm.encode(task.question(number, "filter").prompt) for number in range(2 * count)]
    traces = collect(lm, fitting, recipe, None, lambda phase, done, total: progress(task.name, done, total))
    ours, _ = fit_filter(lm, fitting, traces, recipe, progress)
    published, _ = fit_filter(lm, fitting, traces, as_published, progress)

    asked = [task.question(number, "bench") for number in range(count)]
    prompts, block = [lm.encode(each.prompt) for each in asked], block_of(lm, recipe)
    reference = decoded(lm, prompts, [OneByOne(block=block)] * count, task.length)
    oracle: list[Method] = [
        EGP(block=block, reference=(*prompt, *one.tokens)) for prompt, one in zip(prompts, reference, strict=True)
    ]

    def row(rule: str, methods: Method | Sequence[Method]) -> dict[str, Any]:
        progress(f"{task.name}, {rule}", 0, 0)
        each = [methods] * count if isinstance(methods, Method) else methods
        return _row(rule, decoded(lm, prompts, each, task.length, ends=True), asked, reference, lm)

    rule = Learn2PD(filter=ours, ends="stop")
    rows = [
        row("one by one", LLaDA()),
        *(row(f"llada, {steps} steps", LLaDA(steps=steps)) for steps in (task.length // 2, task.length // 4)),
        *(row(BASE if tau == TAUS[0] else f"threshold {tau}", Threshold(tau=tau)) for tau in TAUS),
        row(f"learn2pd, accept {ours.accept:g}", rule),
        row(f"learn2pd, accept {ours.accept:g}, ends=cut", replace(rule, ends="cut")),
        row(f"learn2pd as published, accept {published.accept:g}", replace(rule, filter=published)),
        row("oracle", oracle),
    ]
    lm.engine.close()
    return {"task": task.name, "length": task.length, "samples": count, "fitted": len(fitting), "rows": rows}


def _row(
    rule: str, results: Sequence[Result], asked: Sequence[Question], reference: Sequence[Result], lm: LM
) -> dict[str, Any]:
    ends = set(lm.model.tokenizer.eos_token_ids)
    same = [_text(mine.tokens, ends) == _text(one.tokens, ends) for mine, one in zip(results, reference, strict=True)]
    return {
        "rule": rule,
        "passes": mean(result.ledger.target_passes for result in results),
        "positions": mean(result.ledger.target_tokens for result in results),
        "same": mean(same),
        "right": mean(each.right(result.text) for each, result in zip(asked, results, strict=True)),
    }


def _text(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """Returns tokens up to the first end."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])
