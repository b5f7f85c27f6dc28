"""`outlay train filter`: a commit filter for a model that fills masks, which learn2pd decodes with."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number
from outlay.cli.train.options import load_model_of, model_arguments, output, prompts
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.train.commit_filter import FilterReport


def add_arguments(parser: Parser) -> None:
    """Adds the options."""
    model_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE",
                        help="about 1,000 prompts of the kind that it will be asked: a file, or problems")  # fmt: skip
    for name, least, default, what in (
        ("length", 1, 256, "positions of the canvas behind each prompt"),
        ("block", 1, None, "positions of a block (the model's own, 32 for one without)"),
        ("hidden", 0, 32, "width of the layer between; 0: a single layer"),
        ("epochs", 1, None, "times that the records are gone through, at most (300; published: 40,000)"),
        ("seed", 0, 0, "fixes all draws"),
    ):
        shown = f"{what} (%(default)s)" if default is not None else what
        parser.add_argument(f"--{name}", type=number(least, whole=True), default=default, metavar="N", help=shown)
    parser.add_argument("--agreement", type=number(above=0, most=1), metavar="P",
                        help="share of held-out texts that must stay the same, which sets accept (0.99)")  # fmt: skip
    parser.add_argument(
        "--published", action="store_true", help="the paper's recipe, in place of ours: the oracle's rounds alone"
    )


def train(args: argparse.Namespace) -> int:
    """Fits; returns the exit status."""
    from outlay.models import fitted
    from outlay.train.commit_filter import FilterRecipe, train_filter

    if args.prompts is None:
        raise UsageError("say what the model is asked: --prompts FILE, or a set of problems such as lists:count=1000")
    if args.published and args.agreement is not None:
        raise UsageError("the published recipe takes the accept score as given, 0.96; leave out --agreement")
    given = {name: getattr(args, name) for name in ("length", "block", "hidden", "epochs", "seed", "agreement")}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = FilterRecipe.published(**given) if args.published else FilterRecipe(**given)
    lm = load_model_of(args)
    out = output(args, fitted.own_path("filter", lm.model))
    with terminal.Progress(quiet=args.quiet) as progress:
        report = train_filter(lm, prompts(args, lm) or [], recipe, out, progress)
    print(out)
    print(told(report), file=sys.stderr)
    return 0


def told(report: FilterReport) -> str:
    """Returns what a filter does, in two lines."""
    lines = [f"passes: {report.reference_passes:.1f} one token a pass, {report.oracle_passes:.1f} by the oracle"]
    if report.passes is None:
        return f"{lines[0]}\naccept {report.accept:g}, as published; no text was held out to try it on"
    assert report.agreement is not None, "it is measured with the passes"
    assert report.cut_agreement is not None, "as well"
    lines[0] += f", {report.passes:.1f} by the filter, accept {report.accept:g}"
    asked = report.asked_agreement
    short = "" if asked is None or report.agreement >= asked else f" (not the {asked:.1%} that were asked for)"
    lines.append(
        f"held-out texts that stay the same: {report.agreement:.1%}{short}; with ends=cut {report.cut_agreement:.1%}, "
        f"{report.cut_positions:.2f} of the positions"
    )
    return "\n".join(lines)
