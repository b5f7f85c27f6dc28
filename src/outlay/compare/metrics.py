"""Metrics: the quality of a text as a number; the higher the better."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from outlay.compare.execute import passes_tests
from outlay.compare.items import Item
from outlay.errors import FailureError, UsageError, nearest, one_line

if TYPE_CHECKING:
    from outlay.lm import LM

NAMES = ("exact", "regex", "number", "tests", "logprob", "judge:MODEL", "python:FILE")
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
SHOWN = 5  # prompts that a refusal names


@dataclass(frozen=True)
class Completion:
    """A text that was written, with its prompt's number from 0 and its token ids."""

    number: int
    item: Item
    text: str
    tokens: tuple[int, ...]


class Metric(ABC):
    """Rates texts. `key` tells it from every other metric."""

    needs: ClassVar[str | None] = None
    """The field that a prompt's row must have for it."""

    def __init__(self, key: str) -> None:
        self.key = key

    def fits(self, item: Item) -> bool:
        """Tells whether the texts of this prompt can be rated."""
        return self.needs is None or item.row.get(self.needs) is not None

    @abstractmethod
    def scores(self, lm: LM, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> list[float | None]:
        """Rates completions.

        Args:
            lm: the model that wrote them.
            prompts: the token ids before each.
            completions: what is rated.

        Returns:
            A number for each completion, None where it has none.
        """


class _ByText(Metric):
    def scores(self, lm: LM, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> list[float | None]:
        return [self.score(completion) for completion in completions]

    @abstractmethod
    def score(self, completion: Completion) -> float:
        """Returns the quality of one text."""


class Exact(_ByText):
    """1 where the text is the prompt's `answer`, but for case, white space and punctuation at its ends."""

    needs = "answer"

    def score(self, completion: Completion) -> float:
        return float(normalised(completion.text) == normalised(completion.item.answer or ""))


class Regex(_ByText):
    """1 where the prompt's `answer`, a pattern, is found in the text."""

    needs = "answer"

    def fits(self, item: Item) -> bool:
        try:
            return item.answer is not None and bool(re.compile(item.answer))
        except re.error:
            return False

    def score(self, completion: Completion) -> float:
        return float(re.search(completion.item.answer or "", completion.text, re.MULTILINE) is not None)


class Number(_ByText):
    """1 where the last number in the text equals the last one in the prompt's `answer`, as GSM8K is scored."""

    needs = "answer"

    def fits(self, item: Item) -> bool:
        return last_number(item.answer or "") is not None

    def score(self, completion: Completion) -> float:
        found, right = last_number(completion.text), last_number(completion.item.answer or "")
        return float(found is not None and right is not None and math.isclose(found, right, rel_tol=1e-9))


class Tests(_ByText):
    """1 where the program in the text passes the prompt's `tests`."""

    needs = "tests"

    def score(self, completion: Completion) -> float:
        row = completion.item.row
        return float(passes_tests(completion.item.text, completion.text, row["tests"], row.get("entry_point")))


class Logprob(Metric):
    """The mean log-probability of the text's tokens under the target model, natural logarithm."""

    def scores(self, lm: LM, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> list[float | None]:
        from outlay.compare.forced import logprobs

        rated = [index for index, completion in enumerate(completions) if completion.tokens]
        found = logprobs(lm, [prompts[index] for index in rated], [completions[index].tokens for index in rated])
        scores: list[float | None] = [None] * len(completions)
        for index, value in zip(rated, found, strict=True):
            scores[index] = value / len(completions[index].tokens)
        return scores


class Judge(Metric):
    """A model's rating from 0 to 1: its expected mark, from its distribution over 1 to 5 as the next token."""

    def __init__(self, key: str, model: str) -> None:
        super().__init__(key)
        self._model = model
        self._lm: LM | None = None

    def scores(self, lm: LM, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> list[float | None]:
        from outlay.compare.forced import expected_choices
        from outlay.lm import load

        if self._lm is None:
            self._lm = load(self._model, device=str(lm.model.decoder.device))
        rater = self._lm
        marks = [rater.model.tokenizer.encode(mark)[0] for mark in "12345"]
        questions = [rater.encode(_question(completion)) for completion in completions]
        return [mean / (len(marks) - 1) for mean in expected_choices(rater, questions, marks)]


class Python(_ByText):
    """What the function `score(prompt, text)` of a file returns; `prompt` is the prompt's row."""

    def __init__(self, key: str, path: str, score: Callable[[Mapping[str, Any], str], Any]) -> None:
        super().__init__(key)
        self._path, self._score = path, score

    def score(self, completion: Completion) -> float:
        try:
            value = float(self._score(dict(completion.item.row), completion.text))
        except Exception as error:  # somebody else's function
            raise FailureError(
                f"score() in {self._path} failed on prompt {completion.number + 1}: {one_line(error)}"
            ) from error
        if not math.isfinite(value):
            raise FailureError(f"score() in {self._path} returned {value} for prompt {completion.number + 1}")
        return value


PLAIN: Mapping[str, type[Metric]] = {
    "exact": Exact, "regex": Regex, "number": Number, "tests": Tests, "logprob": Logprob,
}  # fmt: skip


def metric(text: str) -> Metric:
    """Makes the metric of that name. Raises `UsageError` for a name or a file that can't be used."""
    name, colon, argument = text.partition(":")
    if not colon and name in PLAIN:
        return PLAIN[name](name)
    if name == "judge" and argument:
        return Judge(text, argument)
    if name == "python" and argument:
        return _python(argument)
    if name in ("judge", "python"):
        raise UsageError(f"the metric {name} needs to be told which: {name}:{'MODEL' if name == 'judge' else 'FILE'}")
    known = [known.partition(":")[0] for known in NAMES]
    raise UsageError(f"there is no metric {text!r}{nearest(name, known)}; the metrics are {', '.join(NAMES)}")


def refuse_unfit(metric: Metric, items: Sequence[Item]) -> None:
    """Raises `UsageError` that names the prompts which lack what the metric needs."""
    lacking = [number for number, item in enumerate(items, 1) if not metric.fits(item)]
    if lacking:
        named = ", ".join(map(str, lacking[:SHOWN])) + (f" and {len(lacking) - SHOWN} more" if lacking[SHOWN:] else "")
        kind = {"number": "a number as", "regex": "a pattern as"}.get(metric.key, "")
        raise UsageError(
            f'the metric {metric.key} needs {f"{kind} " if kind else ""}"{metric.needs}" with each prompt, '
            f"which {'prompt' if len(lacking) == 1 else 'prompts'} {named} of {len(items)} "
            f"{'has' if len(lacking) == 1 else 'have'} not"
        )


def normalised(text: str) -> str:
    """Returns text for comparing: NFKC, lower case, single spaces, no punctuation at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'`*")


def last_number(text: str) -> float | None:
    """Returns the last number in a text ("1,234.5" is one), or None."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _question(completion: Completion) -> str:
    answer = f"\n\nA right answer:\n{completion.item.answer}" if completion.item.answer is not None else ""
    return (
        "Rate how well a reply answers a question, from 1 (useless) to 5 (excellent).\n\n"
        f"Question:\n{completion.item.text}{answer}\n\nReply:\n{completion.text}\n\n"
        "Write the mark alone, one digit from 1 to 5."
    )


def _python(path: str) -> Python:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read the metric {path}: {error.strerror}") from error
    spec = importlib.util.spec_from_file_location("outlay_metric", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"the metric {path} must be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's file
        raise UsageError(f"the metric {path} can't be loaded: {one_line(error)}") from error
    score = getattr(module, "score", None)
    if not callable(score):
        raise UsageError(f"the metric {path} must have a function score(prompt, text) that returns a number")
    return Python(f"python:{path}@{hashlib.sha256(content).hexdigest()[:16]}", path, score)
