"""A comparison of texts: methods of decoding that answer prompts, and what they wrote."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from outlay.compare import cluster, folder, journal, quality, statistics
from outlay.compare.comparison import Answers, Comparison, Display, Key, Ready
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item, digest, read_items, written
from outlay.compare.manifest import describe, refuse_other_models
from outlay.compare.metrics import Metric, metric, refuse_unfit
from outlay.compare.prepare import Prepared, prepare
from outlay.compare.results import Answer, Slot, Tally, by_item
from outlay.compare.runner import Runner
from outlay.compare.traces import trace_name, write_traces
from outlay.compare.turns import Pending, Rows
from outlay.errors import UsageError
from outlay.progress import ShowProgress
from outlay.viewer.report import TEXTS

COSTS = {"tokens_per_second": "tokens per second", "target_passes": "target passes", "flops": "FLOPs"}


@dataclass(frozen=True)
class TextComparison(Comparison):
    """Methods on prompts."""

    declaration: Declaration
    items: Sequence[Item]
    source: str
    """Where the prompts are from."""
    repeats: Mapping[str, Any] | None = None
    """The manifest of the comparison that this one repeats."""
    workers: int | None = None
    """How many processes of a Ray cluster share the runs, 0 for one a core; None runs them here."""

    @cached_property
    def metric(self) -> Metric | None:
        """What rates the texts."""
        return metric(self.declaration.metric) if self.declaration.metric else None

    def check(self) -> None:
        """As `Comparison.check`."""
        if self.workers is not None:
            cluster.require()
        if self.metric is not None:
            refuse_unfit(self.metric, self.items)

    def prepare(self, progress: ShowProgress) -> _Texts:
        """As `Comparison.prepare`."""
        return _Texts(self, prepare(self.declaration, self.items, progress))


def reopen(path: Path) -> TextComparison:
    """Returns the comparison that the manifest at `path` declares, on the prompts that lie beside it.

    Raises:
        UsageError: the manifest or the prompts can't be read, or the prompts are not those that were compared.
    """
    manifest = folder.read_manifest(path)
    beside = (path if path.is_dir() else path.parent) / folder.PROMPTS
    items, _ = read_items(str(beside))
    if digest(items) != manifest["prompts"]["sha256"]:
        raise UsageError(f"{beside} does not hold the prompts of the manifest: its hash is another")
    try:
        declaration = Declaration.from_dict(manifest["declaration"])
    except TypeError as error:
        raise UsageError(f"the manifest {path} declares what this version does not know: {error}") from None
    return TextComparison(declaration, items, manifest["prompts"]["source"], manifest)


class _Texts(Ready):
    def __init__(self, comparison: TextComparison, prepared: Prepared) -> None:
        self._comparison, self._prepared = comparison, prepared

    @property
    def plan(self) -> Declaration:
        return self._comparison.declaration

    @property
    def keys(self) -> Sequence[Key]:
        return self._prepared.keys

    @property
    def count(self) -> int:
        return len(self._comparison.items)

    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        own = self._comparison
        made = describe(self._prepared, own.source, own.metric, command, own.workers)
        refuse_other_models(own.repeats, made)
        return made

    def written(self) -> str:
        return written(self._comparison.items)

    @cached_property
    def _runner(self) -> Runner:
        return self._prepared.runner()

    def run(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        workers = self._comparison.workers
        run = self._runner.run_all if workers is None else partial(cluster.run_on_ray, self._prepared, workers)
        return run(pending)

    def finish(self, out: Path, progress: ShowProgress) -> None:
        own, runner = self._comparison, self._runner
        if own.metric is not None:
            runs, marks = out / folder.RUNS, out / folder.QUALITY
            quality.rate(runs, marks, own.metric, own.items, self._prepared.lm, runner.encode, progress)
        if self.plan.trace:
            write_traces(out, runner, self._prepared.contenders, self.count, self.plan.seeds[0], progress)

    def answers(self, out: Path) -> TextAnswers:
        return TextAnswers(out, self._comparison.items)


@dataclass
class Text(Answer):
    """What a contender wrote to a prompt with a seed, in its first repeat."""

    tokens: array[int]
    mark: float | None
    """Its quality, None where it was not rated."""
    finish_reason: str
    pieces: list[str] = field(default_factory=list)
    """The text of each token."""
    origins: list[str] = field(default_factory=list)
    """What proposed each token."""

    def first_difference(self, other: Answer) -> int | None:
        """Returns where the tokens of two answers differ first, the end of the shorter at the latest."""
        assert isinstance(other, Text)
        if self.tokens == other.tokens:
            return None
        pairs = zip(self.tokens, other.tokens, strict=False)
        return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(other.tokens)))


class TextAnswers(Answers):
    """Texts in the folder `at`, as answers to prompts; their marks lie beside them."""

    display = Display(TEXTS, COSTS)

    def __init__(self, at: Path, items: Sequence[Item]) -> None:
        self._at, self._items = at, items
        manifest = folder.read_manifest(at)
        self._seed = manifest["seeds"][0]
        self._marks = quality.read(at / folder.QUALITY, manifest["metric_key"]) if manifest["metric_key"] else {}

    def read(self, row: Mapping[str, Any]) -> Text:
        """Returns what a run wrote, with the texts of its tokens where it has the seed that a report shows."""
        mark = self._marks.get((row["prompt"], journal.output_of(row)))
        answer = Text(array("i", row["tokens"]), mark, row["finish_reason"])
        if row["seed"] == self._seed:
            answer.pieces, answer.origins = row["pieces"], row["origins"]
        return answer

    def spent(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Returns the ledger with the passes a token."""
        ledger: dict[str, float] = row["ledger"]
        tokens = ledger["tokens_out"]
        return {**ledger, "passes_per_token": ledger["target_passes"] / tokens} if tokens else ledger

    def quality(self, contender: int, tally: Tally) -> dict[str, float] | None:
        """Returns the mean over the prompts, each the mean over its seeds."""
        slots = {slot: each.mark for slot, each in _texts(tally) if each.mark is not None}
        if not slots:
            return None
        value, low, high = statistics.mean(by_item(slots, mean=True))
        return {"mean": value, "low": low, "high": high, "n": len(slots)}

    def shown(self, tallies: Sequence[Tally], references: Sequence[int]) -> dict[str, Any]:
        """Returns the prompts, a row for each answer, and the texts with the first seed."""
        return {
            "prompts": [{"index": i, "text": item.text, "answer": item.answer} for i, item in enumerate(self._items)],
            "runs": list(self._runs(tallies, references)),
            "texts": list(self._written(tallies)),
        }

    def _runs(self, tallies: Sequence[Tally], references: Sequence[int]) -> Iterable[dict[str, Any]]:
        """Yields a row for each answer, with what is the same in all repeats."""
        for index, tally in enumerate(tallies):
            reference = tallies[references[index]]
            for (prompt, seed), answer in _texts(tally):
                other = reference.answers.get((prompt, seed))
                trace = f"{folder.TRACES}/{trace_name(index, prompt, seed)}"
                yield {
                    "contender": index,
                    "prompt": prompt,
                    "seed": seed,
                    "tokens_out": len(answer.tokens),
                    "quality": answer.mark,
                    "first_difference": None if other is None else answer.first_difference(other),
                    "trace": trace if (self._at / trace).exists() else None,
                }

    def _written(self, tallies: Sequence[Tally]) -> Iterable[dict[str, Any]]:
        for index, tally in enumerate(tallies):
            for (prompt, seed), answer in _texts(tally):
                if seed == self._seed:
                    yield {
                        "contender": index,
                        "prompt": prompt,
                        "pieces": answer.pieces,
                        "origins": answer.origins,
                        "finish_reason": answer.finish_reason,
                    }


def _texts(tally: Tally) -> Iterator[tuple[Slot, Text]]:
    for slot, answer in sorted(tally.answers.items(), key=lambda each: each[0]):
        assert isinstance(answer, Text)
        yield slot, answer
