"""`outlay train threshold`: the entropy from which AdaDec looks ahead, learned from reference code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.train.options import load_model_of, model_arguments, output
from outlay.errors import UsageError


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE",
                        help='.py, or .jsonl with "prompt" and "canonical_solution" (Python\'s library)')  # fmt: skip
    model_arguments(parser)
    parser.add_argument("--tokens", type=number(100, whole=True), default=20_000, metavar="N",
                        help="tokens of reference code to read, if there are as many (%(default)s)")  # fmt: skip
    parser.add_argument("--cut", type=float, metavar="P",
                        help="P(right) at the threshold (what tells most held-out steps right or wrong)")  # fmt: skip
    parser.add_argument("--pause-rate", type=float, metavar="R",
                        help="in place of a cut, the share of steps that are to pause")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="of the order of texts (0)")


def train(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from outlay.models import fitted
    from outlay.train.reference_code import references
    from outlay.train.threshold import about, fit_threshold, forced_steps

    for name, value in (("--cut", args.cut), ("--pause-rate", args.pause_rate)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} must lie between 0 and 1, not {value:g}")
    if args.cut is not None and args.pause_rate is not None:
        raise UsageError("give --cut or --pause-rate, not both")
    pairs = references(args.files)
    lm = load_model_of(args)
    out = output(args, fitted.own_path("threshold", lm.model))
    with terminal.Progress(quiet=args.quiet) as progress:
        steps = forced_steps(lm, pairs, args.tokens, args.seed, progress)
    fit = fit_threshold(steps, cut=args.cut, pause_rate=args.pause_rate)
    fitted.write(out, "threshold", lm.model, {}, **about(fit))
    print(out)
    print(
        f"{fit.threshold:.3f} nats, at which P(right) is {fit.cut:.2f}; {fit.pause_rate:.1%} of {fit.tokens} reference "
        f"steps pause; held out, {fit.accuracy:.1%} are told (the more frequent kind: {fit.majority:.1%}), "
        f"AUC {fit.auc:.3f}",
        file=sys.stderr,
    )
    return 0
