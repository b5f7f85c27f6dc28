"""`outlay bench arch`: what an answer costs an encoder-decoder and a decoder-only model of equal parameters."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.bench.arch.nets import write_decoder_only, write_mu
from outlay.bench.arch.report import report
from outlay.bench.options import refuse_below_one
from outlay.bench.suite import Suite
from outlay.errors import UsageError
from outlay.lm import LM, load, set_threads
from outlay.progress import ShowProgress
from outlay.train.distill import MuConfig

HEAD = 64  # width of a head


@dataclass(frozen=True)
class ArchSettings:
    """What is measured."""

    layers: int
    """Layers of the decoder-only model."""
    encoder: int
    decoder: int
    hidden: int
    vocab: int
    inputs: tuple[int, ...]
    """Tokens of an input."""
    outputs: tuple[int, ...]
    """Tokens of an output."""
    rounds: int
    """Times that each is measured, in turns; the least counts."""
    dtype: str


class ArchSuite(Suite[ArchSettings]):
    """Random weights: what is measured does not depend on them. Processor time of one thread."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the suite's options; the models are made here."""
        self.add_options(parser)
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        for name, default, what in (
            ("layers", 12, "of the decoder-only model"),
            ("encoder", 8, "encoder layers"),
            ("decoder", 3, "decoder layers"),
            ("hidden", 512, "width of the hidden states"),
            ("vocab", 8192, "entries of the vocabulary"),
            ("rounds", 3, "and the least of them counts"),
        ):
            parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (%(default)s)")
        parser.add_argument("--inputs", type=_lengths, default=(128, 512), metavar="N,N", help="tokens in (128,512)")
        parser.add_argument("--outputs", type=_lengths, default=(8, 32), metavar="N,N", help="tokens out (8,32)")
        parser.add_argument("--dtype", default="float32", metavar="D", help="how weights are held (%(default)s)")

    def settings(self, args: argparse.Namespace) -> ArchSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        refuse_below_one(args, "layers", "encoder", "decoder", "hidden", "vocab", "rounds")
        if args.hidden % HEAD:
            raise UsageError(f"--hidden must be a multiple of {HEAD}, the width of a head, not {args.hidden}")
        if min(args.outputs) < 2:
            raise UsageError("--outputs must be 2 or more, since the first token is told apart")
        names = ("layers", "encoder", "decoder", "hidden", "vocab", "inputs", "outputs", "rounds", "dtype")
        return ArchSettings(**{name: getattr(args, name) for name in names})

    def path(self, args: argparse.Namespace) -> Path:
        """Returns what the results are named by."""
        return Path("random networks")

    def measure(self, settings: ArchSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the parameters of both and what each cell of the grid took."""
        set_threads(1)
        heads, hidden = settings.hidden // HEAD, settings.hidden
        longest = max(settings.inputs) + max(settings.outputs) + 1
        shape = MuConfig(
            settings.encoder, settings.decoder, hidden, hidden, heads, heads, 4 * hidden, settings.vocab, longest
        )
        with tempfile.TemporaryDirectory() as made:
            folders = {"decoder-only": Path(made) / "decoder-only", "encoder-decoder": Path(made) / "encoder-decoder"}
            parameters = {
                "decoder-only": write_decoder_only(
                    folders["decoder-only"], settings.layers, hidden, heads, settings.vocab, longest
                ),
                "encoder-decoder": write_mu(folders["encoder-decoder"], shape),
            }
            models = {name: load(str(folder), dtype=settings.dtype, threads=1) for name, folder in folders.items()}
            cells: list[dict[str, Any]] = []
            for inputs in settings.inputs:
                for outputs in settings.outputs:
                    progress(f"{inputs} in, {outputs} out", len(cells), len(settings.inputs) * len(settings.outputs))
                    cells.append({"inputs": inputs, "outputs": outputs, **_cell(models, inputs, outputs, settings)})
        return {"settings": asdict(settings), "parameters": parameters, "cells": cells}

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def _cell(models: Mapping[str, LM], inputs: int, outputs: int, settings: ArchSettings) -> dict[str, Any]:
    """Returns the seconds to the first token, to the last, of a further one, and the bytes of the cache, by model."""
    found = {name: {"first": float("inf"), "whole": float("inf"), "bytes": 0} for name in models}
    prompt = [1 + place % (min(settings.vocab, 256) - 1) for place in range(inputs)]
    for _ in range(settings.rounds):
        for name, lm in models.items():
            first, _ = _timed(lm, prompt, 1)
            whole, ledger = _timed(lm, prompt, outputs)
            held = found[name]
            held["first"], held["whole"] = min(first, held["first"]), min(whole, held["whole"])
            held["bytes"] = ledger.kv_held
    return {
        name: {**held, "each": max(1e-9, (held["whole"] - held["first"]) / (outputs - 1))}
        for name, held in found.items()
    }


def _timed(lm: LM, prompt: list[int], tokens: int) -> tuple[float, Any]:
    lm.engine.clear()
    started = time.process_time()
    result = lm.generate(prompt, method="greedy", max_tokens=tokens, ignore_eos=True)
    return time.process_time() - started, result.ledger


def _lengths(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be whole numbers like 128,512, not {text!r}")
    return tuple(map(int, parts))


SUITE = ArchSuite()
