"""`outlay reveal`: the message that a text of the method `mecb` carries."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from outlay.cli import terminal
from outlay.cli.arguments import number
from outlay.errors import UsageError

DESCRIPTION = "Reads the message of a text that `--method mecb` wrote, with the same model, prompt and options."
EXAMPLES = """FILE is what `outlay run --json` printed, with its tokens, or a text, whose tokens are then made anew and
may be others than those that were drawn.

examples:
  outlay run "Tell me a story." --method mecb:message=noon,key=k --temperature 1 --json > story.json
  outlay reveal story.json "Tell me a story." --method mecb:key=k --temperature 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("file", metavar="FILE", help="the text; - for what is piped in")
    parser.add_argument("prompt", metavar="PROMPT", help="what it answers")
    parser.add_argument("--model", metavar="M", help="that wrote it (the default model)")
    parser.add_argument("--method", default="mecb", metavar="mecb[:k=v]", help="key, rate, block_bits (mecb)")
    parser.add_argument("--raw", action="store_true", help="the prompt was continued without the chat template")
    parser.add_argument("--temperature", type=number(above=0), default=1.0, metavar="T", help="(1)")
    parser.add_argument("--top-k", type=number(1, whole=True), metavar="K", help="as it was written with")
    parser.add_argument("--top-p", type=number(above=0, most=1), metavar="P", help="as it was written with")
    parser.add_argument("--min-p", type=number(0, most=1), metavar="P", help="as it was written with")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="the result as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Reads; returns the exit status, 1 where the text does not tell the message whole."""
    from outlay.catalog import parse
    from outlay.decode.steer.mecb import MECB

    method = parse(args.method)
    if not isinstance(method, MECB):
        raise UsageError(f"reveal reads what mecb wrote; --method must be mecb:key=..., not {args.method}")
    given = _given(args.file)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay.lm import load
        from outlay.reveal import reveal

        lm = load(args.model, threads=args.threads, progress=progress)
        progress("reading", 0, 0)
        tokens = given if isinstance(given, list) else lm.model.tokenizer.encode(given)
        how: dict[str, Any] = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        found = reveal(lm, args.prompt, tokens, method, chat=not args.raw, **how)
    if args.json:
        print(json.dumps({"message": found.message, "certain": found.certain, "tokens": found.tokens,
                          "target_passes": found.target_passes}))  # fmt: skip
    elif found.certain:
        print(found.message)
    else:
        print("outlay: the text does not tell a message whole: it is too short, or of another model, prompt, key or "
              "options", file=sys.stderr)  # fmt: skip
    return 0 if found.certain else 1


def _given(file: str) -> list[int] | str:
    """Returns the tokens of a result, or a text."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} can't be read: {error}") from error
    if not text.lstrip().startswith("{"):
        return text
    try:
        tokens = json.loads(text)["tokens"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f'{file} must be a text, or what `outlay run --json` printed, with "tokens"') from None
    if not isinstance(tokens, list) or not tokens or not all(isinstance(each, int) for each in tokens):
        raise UsageError(f'"tokens" in {file} must be a list of token ids')
    return tokens
