"""`outlay lm_eval`: the command line of the `lm_eval` package, with `outlay` among its model types."""

from __future__ import annotations

import argparse
import sys

from outlay.errors import FailureError

DESCRIPTION = "Runs lm_eval with `outlay` among its model types; the arguments are lm_eval's own."
EXAMPLES = """arguments of the model, in --model_args: model, method, draft, budget, seed, dtype, device, threads,
cache_tokens, max_length, max_gen_toks; a value with commas stands in quotes: method='"NAME:a=1,b=2"'

examples:
  outlay lm_eval --model outlay --model_args model=smollm2-135m,method=greedy --tasks arc_easy
  outlay lm_eval --model outlay --include_path FOLDER --tasks NAME --limit 20
  outlay lm_eval run --help
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay lm_eval [...]"
    parser.prefix_chars = ""  # every word is lm_eval's, those that begin with a dash too
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace) -> int:
    """Runs lm_eval; returns its exit status."""
    if args.words in ([], ["-h"], ["--help"]):
        args.print_help()
        return 0
    try:
        from lm_eval.__main__ import cli_evaluate

        import outlay.compare.lm_eval  # noqa: F401 - registers the model type
    except ImportError as error:
        raise FailureError(f"lm_eval can't be imported ({error}): pip install 'outlay[lm-eval]'") from error
    sys.argv = ["lm_eval", *args.words]
    try:
        cli_evaluate()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
