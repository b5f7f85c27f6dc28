"""`outlay bench bits`: one hash of a text's logits, however they are computed, and what a receipt costs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay import kernels
from outlay.bench.bits.report import report
from outlay.bench.suite import Suite
from outlay.engine.receipt import Receipt
from outlay.lm import LM, load
from outlay.progress import ShowProgress
from outlay.replay import Forced, replay

PROMPT = "Write a list of the days of the week, and then write the same list again."
ISAS = ("scalar", "avx2", "avx512vnni", "amx-emulated", "amx", "neon")
REPEATS = 3


@dataclass(frozen=True)
class BitsSettings:
    """What is measured."""

    tokens: int
    busy: int
    threads: int | None


class BitsSuite(Suite[BitsSettings]):
    """A receipt's hash in each way of computing and each instruction set."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--tokens", type=int, default=16, metavar="N", help="of the text (%(default)s)")
        parser.add_argument("--busy", type=int, default=15, metavar="N", help="requests beside it (%(default)s)")
        parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads to compute with")

    def settings(self, args: argparse.Namespace) -> BitsSettings:
        """Returns what the options ask for."""
        return BitsSettings(args.tokens, args.busy, args.threads)

    def measure(self, settings: BitsSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the hash of each cell, by instruction set, and the rates with and without a receipt."""
        lm = load(str(model), threads=settings.threads)
        how: dict[str, Any] = {"max_tokens": settings.tokens, "ignore_eos": True, "method": "greedy"}
        receipt = lm.generate(PROMPT, receipt=True, **how).receipt
        assert receipt is not None
        rates = {"receipt": _rate(lm, how | {"receipt": True}), "plain": _rate(lm, how)}
        here, cells = kernels.isa(), dict[str, dict[str, str]]()
        try:
            for place, isa in enumerate(ISAS):
                progress("hashing", place, len(ISAS))
                if kernels.choose(isa):
                    cells[isa] = hashes(lm, receipt, settings.busy)
        finally:
            kernels.choose(here)
        return {"tokens": settings.tokens, "busy": settings.busy, "cells": cells, "rates": rates, "isa": here}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def hashes(lm: LM, receipt: Receipt, busy: int) -> dict[str, str]:
    """Returns the hash of a receipt's logits by how they are computed."""
    lm.engine.clear()
    methods: dict[str, str | Forced] = {"1 row": "greedy", "16 rows": Forced(receipt.tokens, 16), "drafts": "lookup"}
    found = {name: replay(lm, receipt, method=method) for name, method in methods.items()}
    with lm.engine.together():
        search = lm.submit(PROMPT, method="beam:width=4", max_tokens=len(receipt.tokens), ignore_eos=True)
    found["beam"] = replay(lm, receipt, method="greedy")
    search.cancel()
    found["busy batch"] = replay(lm, receipt, method="greedy", beside=busy)
    return {name: each.receipt.digest[:16] for name, each in found.items()}


def _rate(lm: LM, how: Mapping[str, Any]) -> float:
    """Returns tokens a second, the most of some runs."""
    best = 0.0
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = lm.generate(PROMPT, **how)
        best = max(best, len(result.tokens) / (time.perf_counter() - started))
    return best


SUITE = BitsSuite()
