"""What a suite is: options, a measurement that gives data, and a report made of that data alone."""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from outlay import machine
from outlay.bench.options import check_folder_of
from outlay.bench.progress import PhaseLine
from outlay.errors import FailureError
from outlay.lm import DEFAULT_MODEL
from outlay.models import hub
from outlay.progress import ShowProgress

S = TypeVar("S")


class Suite(ABC, Generic[S]):
    """A benchmark of one model: options, a measurement, and a report of what it measured.

    `S` is the suite's settings: what its options ask for, once they are known to be usable.
    """

    packages: ClassVar[tuple[str, ...]] = ("outlay", "torch")
    """Distributions whose versions the results record."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options to `parser`, and those of every suite."""
        parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
        self.add_options(parser)
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    @abstractmethod
    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""

    @abstractmethod
    def settings(self, args: argparse.Namespace) -> S:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""

    @abstractmethod
    def measure(self, settings: S, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Measures, and returns all that the report needs, as JSON can hold it.

        Args:
            settings: what to measure.
            model: the folder or file of the model.
            progress: is told how far the work is.
        """

    @abstractmethod
    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text. `found` is what `measure` returned, with the `machine`; it may have been JSON."""

    def path(self, args: argparse.Namespace) -> Path:
        """Returns the folder or file of the model that is measured, fetched if need be."""
        return hub.resolve(args.model)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why nothing of ours could be measured, None where something was."""
        return None

    def run(self, args: argparse.Namespace) -> int:
        """Measures, writes the results as JSON, and prints the report; returns the exit status.

        Raises:
            UsageError: the options can't be used.
            FailureError: nothing of ours could be measured.
        """
        check_folder_of(args.out)
        settings = self.settings(args)
        model = self.path(args)
        started = time.perf_counter()
        measured = self.measure(settings, model, PhaseLine())
        seconds = round(time.perf_counter() - started, 1)
        found = {"machine": machine.describe(self.packages) | {"seconds": seconds, "model": model.name}, **measured}

        if args.out is not None:
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(self.report(found))
        reason = self.failure(found)
        if reason is not None:
            raise FailureError(reason)
        return 0
