"""`outlay bench search`: accuracy against tokens and against scores, of our searches and of its_hub's.

With `--problems minilist` programs are written: other searches take part, and examples of the prompt are the scorer.
With `--lookahead` AdaDec is measured beside greedy decoding and beam search in place of all these.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay import problems
from outlay.bench.options import refuse_below_one
from outlay.bench.search import contenders as chains
from outlay.bench.search import programs
from outlay.bench.search.contenders import SearchContender, Setting
from outlay.bench.search.lookahead import LookaheadSettings, measured, tasks_of
from outlay.bench.search.report import report
from outlay.bench.search.verifier import auc_within_depths
from outlay.bench.suite import Suite
from outlay.errors import FailureError, UsageError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub
from outlay.progress import ShowProgress

MODEL, SCORER = "outlay/tiny-reasoner", "outlay/tiny-verifier"
CODER = "outlay/tiny-coder"  # writes programs
PROGRAMS = "minilist"  # the problems that ask for them
TEMPERATURE, PROGRAMS_TEMPERATURE = 0.8, 1.0  # the second is that of sampling and filtering in PG-TD's paper
USUAL = "that of the problems"


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
    lookahead: LookaheadSettings | None = None
    """What is measured of AdaDec, in place of all that."""


class SearchSuite(Suite[SearchSettings]):
    """Every contender answers the same problems; what each draws, computes and asks is counted."""

    packages = ("outlay", "torch", "its_hub")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options; its model is the one that was trained on the problems by default."""
        super().add_arguments(parser)
        parser.set_defaults(model=USUAL)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--problems", default="chains", metavar="SET", help=f"a set of problems {shown}")
        parser.add_argument("--count", type=int, default=200, metavar="N", help=f"problems {shown}")
        parser.add_argument("--scorer", default=USUAL, metavar="S", help=f"what rates texts {shown}")
        parser.add_argument("--limit", type=int, default=64, metavar="N", help=f"texts together at most {shown}")
        usual = f"({TEMPERATURE:g}; {PROGRAMS_TEMPERATURE:g} for programs)"
        parser.add_argument("--temperature", type=float, metavar="T", help=usual)
        parser.add_argument("--max-tokens", type=int, default=96, metavar="N", help=f"tokens of a text at most {shown}")
        parser.add_argument("--max-steps", type=int, default=12, metavar="N", help=f"steps of a text at most {shown}")
        parser.add_argument("--texts", type=int, default=8, metavar="N", help=f"texts a problem, for the AUC {shown}")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help=shown)
        parser.add_argument(
            "--beside", type=int, default=20, metavar="N", help=f"problems for its_hub too, or 0 {shown}"
        )
        parser.add_argument("--lookahead", metavar="TASKS", help="adadec beside greedy and beam search in place of "
                            "other searches: minilist, chains, or a file of HumanEval (.jsonl, .jsonl.gz)")  # fmt: skip
        parser.add_argument("--references", type=int, default=4000, metavar="N",
                            help=f"tokens of other tasks that its threshold is learned from {shown}")  # fmt: skip

    def settings(self, args: argparse.Namespace) -> SearchSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "count", "max_tokens", "max_steps", "texts", "references")
        if args.beside < 0:
            raise UsageError(f"--beside must be 0 or more, not {args.beside}")
        if args.limit < 4:
            raise UsageError(f"--limit must be 4 or more, not {args.limit}")
        writes_programs = args.problems == PROGRAMS
        usual = PROGRAMS_TEMPERATURE if writes_programs else TEMPERATURE
        temperature = usual if args.temperature is None else args.temperature
        if temperature <= 0:
            raise UsageError("searches draw different texts at a temperature above 0 only; try --temperature 0.8")
        if problems.make(f"{args.problems}:count=1") is None:
            raise UsageError(f"there are no problems {args.problems!r}; there are {', '.join(problems.problem_sets())}")
        if writes_programs and args.scorer != USUAL:
            raise UsageError(f"the problems {PROGRAMS} are rated by the examples that they show; leave --scorer out")
        scorer = args.scorer if args.scorer != USUAL else programs.PUBLIC if writes_programs else SCORER
        beside = 0 if writes_programs else min(args.beside, args.count)
        lookahead = None
        if args.lookahead is not None:
            lookahead = LookaheadSettings(args.lookahead, args.count, args.references, args.max_tokens, args.seed)
            tasks_of(lookahead)
        return SearchSettings(
            args.problems, args.count, args.limit, beside, scorer, temperature, args.max_tokens, args.max_steps,
            args.texts, args.seed, lookahead,
        )  # fmt: skip

    def path(self, args: argparse.Namespace) -> Path:
        """Returns the folder of the model: that which was trained on the problems, unless another is named."""
        asked = args.problems if args.lookahead is None else args.lookahead
        usual = CODER if asked == PROGRAMS else DEFAULT_MODEL if Path(asked).is_file() else MODEL
        return hub.resolve(usual if args.model == USUAL else args.model)

    def measure(self, settings: SearchSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a series of each count for each contender, an entry a problem, and how well the scorer does."""
        if settings.lookahead is not None:
            return measured(settings.lookahead, model, progress)
        setting = Setting(
            str(model), settings.scorer, settings.temperature, settings.max_tokens, settings.max_steps, settings.seed
        )
        rows = problems.make(f"{settings.problems}:count={settings.count},seed={settings.seed}") or []
        if settings.problems == PROGRAMS:
            found, failures = _answered(
                programs.program_searches(settings.limit), setting, rows, programs.KEPT, progress
            )
            return {"settings": asdict(settings), "contenders": found, "failures": failures}
        everyone = chains.contenders(settings.limit, settings.beside > 0)
        found, failures = _answered(everyone, setting, rows, chains.KEPT, progress, settings.beside)
        progress("the scorers", 0, 1)
        few = rows[: max(1, len(rows) // 2)]
        scorers = {settings.scorer: auc_within_depths(setting, settings.scorer, few, settings.texts)}
        return {"settings": asdict(settings), "contenders": found, "failures": failures, "scorers": scorers}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why none of our own methods could be measured, None where one was."""
        if "lookahead" in found:
            return None
        return None if found["contenders"] else next(iter(found["failures"].values()))


def _answered(
    everyone: Sequence[SearchContender],
    setting: Setting,
    rows: Sequence[Mapping[str, Any]],
    kept: Sequence[str],
    progress: ShowProgress,
    beside: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Has everyone answer.

    Args:
        everyone: The contenders.
        setting: What they have in common.
        rows: The problems.
        kept: The counts of which a series is kept.
        progress: Is told how far the work is.
        beside: How many of the problems other libraries answer.

    Returns:
        A series of each count for each contender, and for those that failed the reason, by name.
    """
    found, failures = [], dict[str, str]()
    for place, contender in enumerate(everyone):
        progress(contender.name, place, len(everyone))
        try:
            counted = contender.answer(setting, rows[:beside] if contender.is_peer else rows)
        except FailureError as error:
            failures[contender.name] = str(error)
            continue
        series = {name: [row[name] for row in counted] for name in kept}
        found.append({"name": contender.name, "curve": contender.curve, **series})
    return found, failures


SUITE = SearchSuite()
