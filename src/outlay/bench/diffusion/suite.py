"""`outlay bench diffusion`: commit rules on exact denoisers and small trained models, and what their passes cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from outlay.bench.diffusion import dictionaries, learned, passes
from outlay.bench.diffusion.plot import write_pareto
from outlay.bench.diffusion.report import report
from outlay.bench.options import check_folder_of, names, refuse_below_one
from outlay.bench.suite import Suite
from outlay.compare import plots
from outlay.diffuse.exact.denoiser import START, exact_model, ids
from outlay.diffuse.exact.sequences import Phrase
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.progress import ShowProgress

EXACT = ("independent", "dependent", "noisy", "pareto")
PARTS = (*EXACT, *dictionaries.TASKS, "determinism", "learned", "passes")
NOISE = (0.05, 0.1, 0.15, 0.2)
SOURCES = {"independent": Phrase(), "dependent": Phrase(alpha=0.3), "noisy": Phrase(noise=NOISE)}
LETTERS = 128
ONE_BY_ONE = "threshold:tau=2"
RULES = (
    ONE_BY_ONE, "threshold", "threshold:tau=0.8", "factor", "dynamic", "entropy_bounded", "hierarchical",
    "localleap", "bacd", "ete", "ete:explore=2", "ete:explore=3", "ete:explore=2,gap=0", "llada:steps=64",
)  # fmt: skip
FIRST_HITTING = "first_hitting"
PARETO = [
    f"ete:explore={explore},tau={tau},tau_next={tau}" for explore in (0, 1, 2, 3) for tau in (0.7, 0.8, 0.9, 0.95)
]


@dataclass(frozen=True)
class DiffusionSettings:
    """What is measured, and on how much."""

    parts: tuple[str, ...]
    samples: int
    """Texts of each rule on each source."""
    questions: int
    """Questions to each trained model."""
    plot: Path | None = None
    """Where ETE's Pareto plot is written."""


class DiffusionSuite(Suite[DiffusionSettings]):
    """Texts of 128 letters in blocks of 32, at temperature 1 where phrases are clean, and greedy where they are noisy;
    questions to the dictionary models that come with the package; learn2pd, whose filter is fitted here; and the passes
    of `--model` over a canvas.

    The sources of the first parts are models themselves.
    """

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--samples", type=int, default=20, metavar="N", help="texts of each rule (%(default)s)")
        parser.add_argument(
            "--questions", type=int, default=300, metavar="N", help="to the trained models (%(default)s)"
        )
        parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="what is measured (%(default)s)")

        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="write ETE's rounds and broken phrases as a picture"
        )

    def settings(self, args: argparse.Namespace) -> DiffusionSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "samples", "questions")
        check_folder_of(args.plot)
        settings = DiffusionSettings(names("part", args.parts, PARTS), args.samples, args.questions, args.plot)
        if settings.plot is not None and not plots.available():
            raise UsageError("--plot needs matplotlib: pip install 'outlay[plots]'")
        if settings.plot is not None and "pareto" not in settings.parts:
            raise UsageError("--plot shows the part pareto; add it to --parts")
        return settings

    def path(self, args: argparse.Namespace) -> Path:
        """Returns the model whose passes are measured; where none are, what the results are named by."""
        return super().path(args) if "passes" in args.parts.split(",") else Path("exact-phrase")

    def measure(self, settings: DiffusionSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a row for each rule on each source and model, and the cost of each pass."""
        found: dict[str, Any] = {"samples": settings.samples, "letters": LETTERS}
        for part in settings.parts:
            if part in dictionaries.TASKS:
                found[part] = dictionaries.measured(dictionaries.TASKS[part], settings.questions, progress)
            elif part == "determinism":
                found[part] = dictionaries.determinism(settings.questions, progress)
            elif part == "learned":
                found[part] = learned.measured(settings.questions, progress)
            elif part == "passes":
                found[part] = passes.measured(model, progress)
        for part in (part for part in settings.parts if part in EXACT):
            source = SOURCES.get(part, SOURCES["dependent"])
            rules = PARETO if part == "pareto" else RULES if part == "noisy" else (*RULES, FIRST_HITTING)
            rows = []
            for place, rule in enumerate(rules):
                progress(part, place, len(rules))
                rows.append(measured(source, rule, settings.samples, greedy=part == "noisy"))
            slots = LETTERS // source.length
            found[part] = {"source": asdict(source), "entropy": source.entropy(slots), "rows": rows}
        if settings.plot is not None:
            write_pareto(found["pareto"]["rows"], settings.plot)
        return found

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def measured(source: Phrase, rule: str, samples: int, *, greedy: bool) -> dict[str, Any]:
    """Returns what a rule spent and wrote.

    Args:
        source: The distribution.
        rule: The rule with its options.
        samples: How many texts: of the seeds from 0 on, or greedy ones of as many tables of phrases.
        greedy: Whether the most probable tokens are taken.
    """
    sources = [replace(source, seed=seed) if greedy else source for seed in range(samples)]
    results = written(sources, rule, greedy=greedy)
    texts = [ids(START + result.text) for result in results]
    nlls = [each.nll(text) for each, text in zip(sources, texts, strict=True)]
    likely = [nll for nll in nlls if nll < float("inf")]
    row = {
        "rule": rule,
        "rounds": mean(result.ledger.rounds for result in results),
        "nats": mean(result.ledger.nats for result in results),
        "nll": mean(likely) if len(likely) == samples else None,
        "nll_error": _error(likely) if len(likely) == samples else None,
    }
    if greedy:
        one = written(sources, ONE_BY_ONE, greedy=True)
        same = sum(mine.tokens == theirs.tokens for mine, theirs in zip(results, one, strict=True))
        return row | {"same": same / samples}
    slots = LETTERS // source.length * samples
    return row | {"broken": sum(source.invalid_slots(text) for text in texts) / slots}


def written(sources: Sequence[Phrase], rule: str, *, greedy: bool) -> list[Result]:
    """Returns a text of each source, with the seeds from 0 on; those of one source are worked on side by side."""
    models = {source: LM(exact_model(source), Engine()) for source in sources}
    options: dict[str, Any] = {"method": rule, "max_tokens": LETTERS, "temperature": 0.0 if greedy else 1.0}
    handles = [models[source].submit(START, seed=seed, **options) for seed, source in enumerate(sources)]
    results = [handle.result() for handle in handles]
    for lm in models.values():
        lm.engine.close()
    return results


def _error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


SUITE = DiffusionSuite()
