"""`outlay bench sparse`: recipes of N:M sparse training side by side, from the same weights, on the same text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.bench.data import NOVEL
from outlay.bench.options import names, refuse_below_one
from outlay.bench.sparse.characters import CharacterRecipe, Letters, parse, trained
from outlay.bench.sparse.report import report
from outlay.bench.suite import Suite
from outlay.errors import UsageError
from outlay.lm import set_threads
from outlay.progress import ShowProgress
from outlay.prompts import decode
from outlay.shrink.nm.schedule import RECIPES


@dataclass(frozen=True)
class SparseSettings:
    """What is trained."""

    text: Path
    patterns: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: int
    steps: int
    threads: int | None


class SparseSuite(Suite[SparseSettings]):
    """Feed-forward layers of a model of letters at several patterns, by each recipe and seed."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--text", type=Path, default=NOVEL, metavar="FILE", help="what is learned (%(default)s)")
        parser.add_argument("--patterns", default="1:16,2:4", metavar="A,B", help="N:M patterns (%(default)s)")
        parser.add_argument("--recipes", default=",".join(RECIPES[1:]), metavar="A,B", help="recipes (%(default)s)")
        parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each (%(default)s)")
        parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of a training (%(default)s)")
        parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads to compute with (%(default)s)")

    def settings(self, args: argparse.Namespace) -> SparseSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "seeds", "steps", "threads")
        if not args.text.is_file():
            raise UsageError(f"there is no file {args.text}; name a text with --text FILE")
        patterns = tuple(dict.fromkeys(pattern.strip() for pattern in args.patterns.split(",")))
        recipes = names("recipe", args.recipes, RECIPES[1:])
        for pattern in patterns:
            parse(pattern, "ste")
        return SparseSettings(args.text, patterns, recipes, args.seeds, args.steps, args.threads)

    def path(self, args: argparse.Namespace) -> Path:
        """Returns what the results are named by: the text."""
        text: Path = args.text
        return text

    def measure(self, settings: SparseSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns what each training gave, by pattern and recipe, a list of seeds each."""
        set_threads(settings.threads)
        recipe = CharacterRecipe(steps=settings.steps)
        letters = Letters(decode(settings.text.read_bytes(), str(settings.text)), recipe.context)
        todo = [("", "dense"), *((p, r) for p in settings.patterns for r in settings.recipes)]

        def runs(place: int, pattern: str, name: str) -> list[dict[str, Any]] | str:
            found = []
            for seed in range(settings.seeds):
                progress(f"{name} {pattern}", place * settings.seeds + seed, len(todo) * settings.seeds)
                try:
                    found.append(trained(letters, recipe, parse(pattern or "2:4", name), seed))
                except UsageError as error:  # a pattern that this recipe, or the model's width, doesn't take
                    return str(error)
            return found

        dense, *rest = [runs(place, *each) for place, each in enumerate(todo)]
        patterns: dict[str, dict[str, Any]] = {pattern: {} for pattern in settings.patterns}
        for (pattern, name), each in zip(todo[1:], rest, strict=True):
            patterns[pattern][name] = each
        return {"recipe": asdict(recipe), "dense": dense, "patterns": patterns}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


SUITE = SparseSuite()
