"""`outlay bench search`: accuracy against tokens and against scores, of our searches and of its_hub's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay import problems
from outlay.bench.options import refuse_below_one
from outlay.bench.search.contenders import KEPT, Setting, contenders
from outlay.bench.search.report import report
from outlay.bench.search.verifier import auc_within_depths
from outlay.bench.suite import Suite
from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress

MODEL, SCORER = "outlay/tiny-reasoner", "outlay/tiny-verifier"


@dataclass(frozen=True)
class SearchSettings:
    """What the suite measures."""

    problems: str
    """The set of problems."""
    count: int
    """How many of them."""
    limit: int
    """The most texts that are drawn together."""
    beside: int
    """How many of the problems its_hub answers, which takes ten times as long; 0: it is left out."""
    scorer: str
    temperature: float
    max_tokens: int
    max_steps: int
    texts: int
    """Texts of each problem by which the scorer is measured."""
    seed: int


class SearchSuite(Suite[SearchSettings]):
    """Every contender answers the same problems; what each draws, computes and asks is counted."""

    packages = ("outlay", "torch", "its_hub")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options; its model is the tiny reasoner by default."""
        super().add_arguments(parser)
        parser.set_defaults(model=MODEL)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--problems", default="chains", metavar="SET", help=f"a set of problems {shown}")
        parser.add_argument("--count", type=int, default=200, metavar="N", help=f"problems {shown}")
        parser.add_argument("--scorer", default=SCORER, metavar="S", help=f"what rates texts {shown}")
        parser.add_argument("--limit", type=int, default=64, metavar="N", help=f"texts together at most {shown}")
        parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help=shown)
        parser.add_argument("--max-tokens", type=int, default=96, metavar="N", help=f"tokens of a text at most {shown}")
        parser.add_argument("--max-steps", type=int, default=12, metavar="N", help=f"steps of a text at most {shown}")
        parser.add_argument("--texts", type=int, default=8, metavar="N", help=f"texts a problem, for the AUC {shown}")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help=shown)
        parser.add_argument(
            "--beside", type=int, default=20, metavar="N", help=f"problems for its_hub too, or 0 {shown}"
        )

    def settings(self, args: argparse.Namespace) -> SearchSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "count", "max_tokens", "max_steps", "texts")
        if args.beside < 0:
            raise UsageError(f"--beside must be 0 or more, not {args.beside}")
        if args.limit < 4:
            raise UsageError(f"--limit must be 4 or more, not {args.limit}")
        if args.temperature <= 0:
            raise UsageError("searches draw different texts at a temperature above 0 only; try --temperature 0.8")
        if problems.make(f"{args.problems}:count=1") is None:
            raise UsageError(f"there are no problems {args.problems!r}; there are {', '.join(problems.problem_sets())}")
        return SearchSettings(
            args.problems, args.count, args.limit, min(args.beside, args.count), args.scorer, args.temperature,
            args.max_tokens, args.max_steps, args.texts, args.seed,
        )  # fmt: skip

    def measure(self, settings: SearchSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a series of each count for each contender, an entry a problem, and how well the scorer does."""
        setting = Setting(
            str(model), settings.scorer, settings.temperature, settings.max_tokens, settings.max_steps, settings.seed
        )
        rows = problems.make(f"{settings.problems}:count={settings.count},seed={settings.seed}") or []
        everyone, found = contenders(settings.limit, settings.beside > 0), []
        failures: dict[str, str] = {}
        for place, contender in enumerate(everyone):
            progress(contender.name, place, len(everyone))
            try:
                counted = contender.answer(setting, rows[: settings.beside] if contender.is_peer else rows)
            except FailureError as error:
                failures[contender.name] = str(error)
                continue
            series = {name: [row[name] for row in counted] for name in KEPT}
            found.append({"name": contender.name, "curve": contender.curve, **series})
        progress("the scorers", 0, 1)
        few = rows[: max(1, len(rows) // 2)]
        scorers = {settings.scorer: auc_within_depths(setting, settings.scorer, few, settings.texts)}
        return {"settings": asdict(settings), "contenders": found, "failures": failures, "scorers": scorers}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why none of our own methods could be measured, None where one was."""
        return None if found["contenders"] else next(iter(found["failures"].values()))


SUITE = SearchSuite()
