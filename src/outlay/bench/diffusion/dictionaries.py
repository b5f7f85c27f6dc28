"""Commit rules on the small trained models: dictionaries whose keys have several phrases, and phrases with noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from outlay.engine.handle import Result
from outlay.lm import LM, load
from outlay.problems import ambiguous, noisy
from outlay.problems.ambiguous import Dictionary
from outlay.progress import ShowProgress

ONE_BY_ONE = "threshold:tau=2"
GREEDY_RULES = (
    ONE_BY_ONE, "llada:steps=12", "llada:steps=6", "threshold:tau=0.95", "threshold", "threshold:tau=0.8",
    "threshold:tau=0.6", "factor", "localleap", "localleap:decay=linear", "bacd", "ete:gap=6", "ete:gap=6,explore=2",
)  # fmt: skip
SAMPLED_RULES = ("first_hitting", *GREEDY_RULES, "ete:gap=6,explore=3", "ete:gap=0,explore=3")
BASE = "threshold"
TOGETHER = 50  # texts that are filled side by side; each spends what it spends alone
BAND = (0.75, 0.9)  # LocalLeap's relaxed threshold and its strict one
FURTHEST = 8  # positions


@dataclass(frozen=True)
class Task:
    """A trained model, and what its texts are measured by."""

    name: str
    model: str
    dictionary: Dictionary
    temperature: float

    @property
    def rules(self) -> Sequence[str]:
        """The rules; with samples the first-hitting sampler and ETE's ablation of the gap as well."""
        return SAMPLED_RULES if self.temperature else GREEDY_RULES


TASKS = {
    task.name: task
    for task in (
        Task("ambiguous", "outlay/tiny-ambiguous", ambiguous.DICTIONARY, 1.0),
        Task("ambiguous_greedy", "outlay/tiny-ambiguous", ambiguous.DICTIONARY, 0.0),
        Task("noise", "outlay/tiny-noisy", noisy.DICTIONARY, 1.0),
        Task("noise_greedy", "outlay/tiny-noisy", noisy.DICTIONARY, 0.0),
    )
}


def measured(task: Task, samples: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns a row for each rule, of the same questions with the same seeds."""
    lm = load(task.model, dtype="float32")
    questions = [task.dictionary.row(number, "bench")["prompt"] for number in range(samples)]
    rows: list[dict[str, Any]] = []
    reference: list[Result] = []
    for place, rule in enumerate(task.rules):
        progress(task.name, place, len(task.rules))
        results = written(lm, questions, rule, task.temperature)
        reference = results if rule == ONE_BY_ONE else reference
        rows.append(_row(task, rule, questions, results, reference))
    lm.engine.close()
    return {"samples": samples, "model": task.model, "rows": rows}


def written(lm: LM, questions: Sequence[str], rule: str, temperature: float) -> list[Result]:
    """Returns what a rule writes; above temperature 0 it chooses by marginals, so that samples aren't biased."""
    options: dict[str, Any] = {"max_tokens": 24, "temperature": temperature, "ignore_eos": True}
    method = (
        rule
        if not temperature or rule == "first_hitting"
        else f"{rule}{',' if ':' in rule else ':'}score_from=marginal"
    )
    results: list[Result] = []
    for start in range(0, len(questions), TOGETHER):
        part = enumerate(questions[start : start + TOGETHER], start)
        handles = [lm.submit(question, method=method, seed=seed, **options) for seed, question in part]
        results += [handle.result() for handle in handles]
    return results


def _row(
    task: Task, rule: str, questions: Sequence[str], results: Sequence[Result], reference: Sequence[Result]
) -> dict[str, Any]:
    row = {"rule": rule, "passes": mean(result.ledger.target_passes for result in results)}
    if not task.temperature:
        same = [mine.tokens == one.tokens for mine, one in zip(results, reference, strict=True)]
        row["same"] = mean(same)
    texts = [(question, result.text) for question, result in zip(questions, results, strict=True)]
    slots = [slot for question, text in texts for slot in task.dictionary.slots(question, text)]
    row["bad"] = mean(slot < 0 for slot in slots)
    row["first"] = mean(slot == 0 for slot in slots if slot >= 0)
    row["off"] = mean(letters_off(task.dictionary, question, text) for question, text in texts)
    return row


def letters_off(dictionary: Dictionary, question: str, text: str) -> float:
    """Returns by how many letters a slot of a text differs from the nearest phrase of its key, mean over its slots."""
    length = len(dictionary.noise)
    slots = [text[place * length : (place + 1) * length] for place in range(len(question))]
    return mean(
        min(sum(a != b for a, b in zip(phrase, slot, strict=False)) for phrase in dictionary.phrases[key])
        for key, slot in zip(question, slots, strict=True)
    )


def determinism(samples: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns how often a proposal of middling confidence is the final token, by the distance of the nearest anchor.

    They are the proposals of one-by-one greedy decoding with confidences within `BAND`; an anchor is a masked position
    of the same round that is surer than it (Kong et al. 2025, LocalLeap, the two observations).
    """
    tasks = [task for task in TASKS.values() if not task.temperature]
    return {"samples": samples, "curves": {task.model: _curve(task, samples, progress) for task in tasks}}


def _curve(task: Task, samples: int, progress: ShowProgress) -> list[dict[str, Any]]:
    lm = load(task.model, dtype="float32")
    hits: dict[str, list[bool]] = {}
    for number in range(samples):
        progress(f"determinism of {task.name}", number, samples)
        events: list[dict[str, Any]] = []
        question = task.dictionary.row(number, "bench")["prompt"]
        result = lm.generate(question, method=ONE_BY_ONE, max_tokens=24, ignore_eos=True, trace=events.append)
        begin = next(event["begin"] for event in events if event["event"] == "canvas")
        for event in events:
            for position, token, distance in _middling(event.get("cells", ())):
                hits.setdefault(distance, []).append(token == result.tokens[position - begin])
    lm.engine.close()
    order = [*map(str, range(1, FURTHEST + 1)), "further"]
    return [{"distance": each, "cases": len(hits[each]), "final": mean(hits[each])} for each in order if each in hits]


def _middling(cells: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int, str]]:
    """Yields position, token and distance from the nearest anchor of each proposal within the band."""
    low, high = BAND
    anchors = [cell["position"] for cell in cells if cell["confidence"] >= high]
    for cell in cells:
        if low <= cell["confidence"] < high:
            near = min((abs(cell["position"] - anchor) for anchor in anchors), default=FURTHEST + 1)
            yield cell["position"], cell["token"], str(near) if near <= FURTHEST else "further"
