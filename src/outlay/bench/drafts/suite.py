"""`outlay bench drafts`: how much of what is drafted is accepted, in four parts that can be measured alone."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.bench.data import DATA
from outlay.bench.drafts.acceptance import node_acceptance
from outlay.bench.drafts.completions import superposed
from outlay.bench.drafts.report import report
from outlay.bench.drafts.trees import block_efficiencies, without_a_model
from outlay.bench.options import names
from outlay.bench.suite import Suite
from outlay.lm import load
from outlay.progress import ShowProgress

PARTS = ("nodes", "trees", "tables", "superposed")
ON_PROMPTS = {"trees": block_efficiencies, "tables": without_a_model, "superposed": superposed}


@dataclass(frozen=True)
class DraftsSettings:
    """What is measured, and on how much."""

    parts: tuple[str, ...]
    data: Path
    """The folder of the prompts and the novel."""
    positions: int
    """Positions of text at which acceptance rates are computed."""
    prompts: int
    """Prompts for trees and completions."""
    threads: int | None


class DraftsSuite(Suite[DraftsSettings]):
    """Acceptance rates of the verifiers, tokens a target pass of trees and tables, and superposed drafts."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the prompts and the text are")
        parser.add_argument("--positions", type=int, default=120, metavar="N", help="of text (%(default)s)")
        parser.add_argument(
            "--prompts", type=int, default=12, metavar="N", help="for trees and completions (%(default)s)"
        )
        parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="what is measured (%(default)s)")
        parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads to compute with")

    def settings(self, args: argparse.Namespace) -> DraftsSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        return DraftsSettings(names("part", args.parts, PARTS), args.data, args.positions, args.prompts, args.threads)

    def measure(self, settings: DraftsSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the results by part."""
        found: dict[str, Any] = {"prompts": settings.prompts}
        if "nodes" in settings.parts:
            exact = load(str(model), dtype="float32", threads=settings.threads)
            found["nodes"] = node_acceptance(exact, settings.data, settings.positions, progress)
            del exact

        lm = load(str(model), threads=settings.threads)
        for part, measure in ON_PROMPTS.items():
            if part in settings.parts:
                found[part] = measure(lm, settings.data, settings.prompts, progress)
        return found

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


SUITE = DraftsSuite()
